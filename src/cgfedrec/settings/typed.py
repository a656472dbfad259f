"""The words of a command line, taken apart: options, configs, and what is to be printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from cgfedrec.errors import check


class Typed(NamedTuple):
    """A command line in its parts.

    Attributes:
        options: Each option without its dashes, and the text of its value.
        configs: The values of ``--config``.
        asked: What it asks to be printed, each with its value.
    """

    options: list[tuple[str, str]]
    configs: list[str]
    asked: list[tuple[str, str]]


def typed_words(words: Sequence[str]) -> Typed:
    """The parts of a command line. Raises `InputError` for words that are no option, and options without a value."""
    found, problems = Typed([], [], []), list[str]()
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        follows = bool(waiting) and not waiting[0].startswith("--")
        if word == "-h" or name.split(".")[-1].lstrip("-") == "help":
            # --method.help tells of the class that follows it, and --help of everything.
            if not value and follows and "." in name:
                value = waiting.pop(0)
            found.asked.append((name, value))
        elif name == "--print_config":
            found.asked.append((name, value))
        elif not name.startswith("--") or name == "--":
            meant = f"; did you mean --data.path {quote(word)}?" if Path(word).is_file() else ""
            problems.append(f"unrecognized argument {word!r}: options begin with --, and have one value{meant}")
        elif not equals and not follows:
            problems.append(f"{name}: has no value")
        else:
            if not equals:
                value = waiting.pop(0)
            if name == "--config":
                found.configs.append(value)
            else:
                found.options.append((name.removeprefix("--"), value))
    check(*problems)
    return found
