"""Environment variables: every option of every command has one, and one that nobody reads is told.

The variable of ``--top_k`` of ``recommend`` is CGFEDREC_RECOMMEND_TOP_K. The settings of a run are options of ``fit``
wherever they are taken, and their variables begin with `PREFIX`; `cgfedrec.settings.sources` reads those.
"""

from __future__ import annotations

import shlex
import warnings
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator, Mapping, Sequence

from cgfedrec.errors import InputError, Notice, nearest

Verbs = Mapping[tuple[str, ...], ArgumentParser]
"""The parser of each command's own options, by the words that call it; of none, those before any command."""
PREFIX = "CGFEDREC_FIT_"
"""Of the variables of a run's settings."""
_OTHERS = ("CGFEDREC_DATA", "CGFEDREC_PARITY", "CGFEDREC_ALL_STOPS", "CGFEDREC_ALL_OPTIONS")
"""Those of the tests and benchmarks."""


def with_variables(argv: Sequence[str], verbs: Verbs, environment: Mapping[str, str]) -> list[str]:
    """A command line with what the environment says where it says nothing itself.

    Raises:
        InputError: for a variable of a switch that is neither true nor false.
    """
    first = next((place for place, word in enumerate(argv) if not word.startswith("-")), len(argv))
    last = next((end for end in (first + 2, first + 1) if tuple(argv[first:end]) in verbs and end > first), first)
    words = tuple(argv[first:last])
    before = _said(verbs[()], (), argv, environment)
    own = _said(verbs[words], words, argv, environment) if words in verbs and words else []
    return [*before, *argv[:last], *own, *argv[last:]]


def tell_of_unread(verb: tuple[str, ...], verbs: Verbs, environment: Mapping[str, str], takes_settings: bool) -> None:
    """Warn of variables of ours that no option has, and of a run's settings where no run takes them."""
    known = {name: None for words, parser in verbs.items() for name, _ in _variables(parser, words)}
    known |= dict.fromkeys(_OTHERS)
    for name in sorted(environment):
        if not name.startswith("CGFEDREC_") or name in known:
            continue
        if not name.startswith(PREFIX):
            text = f"{name} is not read: no option has this variable{nearest(name, known)}"
            warnings.warn(text, Notice, stacklevel=2)
        elif not takes_settings and verb == ("compare",):
            warnings.warn(f"{name} has no effect on compare: its config says all of every run", Notice, stacklevel=2)


def _variables(parser: ArgumentParser, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each variable of a parser's options, and the option."""
    for action in parser._actions:
        if action.option_strings and action.default != SUPPRESS:
            yield "_".join(["CGFEDREC", *words, action.dest]).upper(), action.option_strings[0]


def _said(
    parser: ArgumentParser, words: Sequence[str], argv: Sequence[str], environment: Mapping[str, str]
) -> list[str]:
    """The options that the environment gives, and the command line does not."""
    given = []
    switches = {action.option_strings[0] for action in parser._actions if action.option_strings and action.nargs == 0}
    many = {action.option_strings[0] for action in parser._actions if action.option_strings and action.nargs == "+"}
    for variable, option in _variables(parser, words):
        text = environment.get(variable)
        if text is None or any(word == option or word.startswith(f"{option}=") for word in argv):
            continue
        if option in switches:
            if text.lower() not in ("true", "false"):
                raise InputError(f"{variable}: must be true or false, not {text!r}")
            given += [option] if text.lower() == "true" else []
        else:
            given += [f"{option}={one}" for one in (shlex.split(text) if option in many else [text])]
    return given
