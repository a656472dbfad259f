"""Environment variables: every option of every command has one, and a user is told of one that nobody reads.

The variable of ``--top_k`` of ``recommend`` is CGFEDREC_RECOMMEND_TOP_K. The settings of a run are options of ``fit``,
whichever command takes them. Their variables begin with `PREFIX`; `cgfedrec.settings.sources` reads those.
"""

from __future__ import annotations

import shlex
import warnings
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator, Mapping, Sequence

from cgfedrec.errors import InputError, Notice, nearest

Verbs = Mapping[tuple[str, ...], ArgumentParser]
"""The parser of each command's own options, by the words of the command. No words: the options before any command."""
PREFIX = "CGFEDREC_FIT_"
"""Of the variables of a run's settings."""
_OTHERS = ("CGFEDREC_DATA", "CGFEDREC_PARITY", "CGFEDREC_ALL_STOPS", "CGFEDREC_ALL_OPTIONS")
"""Those of the tests and benchmarks."""


def with_variables(argv: Sequence[str], verbs: Verbs, environment: Mapping[str, str]) -> list[str]:
    """A command line, completed by what the environment says of options that it does not give.

    Raises:
        InputError: for a variable of a switch that is neither true nor false.
    """
    first = 0
    while first < len(argv) and argv[first].startswith("-"):
        first += 1
    words = _command(argv[first:], verbs)
    before = _options(verbs[()], (), argv, environment)
    own: list[str] = []
    if words:
        own = _options(verbs[words], words, argv, environment)
    # argparse takes an option only behind the command that it belongs to.
    last = first + len(words)
    return [*before, *argv[:last], *own, *argv[last:]]


def _command(words: Sequence[str], verbs: Verbs) -> tuple[str, ...]:
    """The command with which these words begin, such as ``data describe`` or ``fit``; empty if they begin with none."""
    for length in (2, 1):
        command = tuple(words[:length])
        if command in verbs:
            return command
    return ()


def tell_of_unread(verb: tuple[str, ...], verbs: Verbs, environment: Mapping[str, str], takes_settings: bool) -> None:
    """Warn of our variables that no option has, and of a run's settings if the command takes none."""
    known = {name for words, parser in verbs.items() for name, _ in _variables(parser, words)}
    for name in sorted(environment):
        if not name.startswith("CGFEDREC_") or name in known or name in _OTHERS:
            continue
        if not name.startswith(PREFIX):
            # Of CGFEDREC_TOP_K only the command is missing.
            option = name.removeprefix("CGFEDREC_")
            whole = [f"CGFEDREC_{'_'.join(words)}_{option}".upper() for words in verbs if words]
            meant = ", ".join(one for one in whole if one in known)
            hint = f"; did you mean {meant}?" if meant else nearest(name, known)
            text = f"{name} is not read: no option has this variable{hint}"
            warnings.warn(text, Notice, stacklevel=2)
        elif not takes_settings and verb == ("compare",):
            warnings.warn(f"{name} has no effect on compare: its config says all of every run", Notice, stacklevel=2)


def _variables(parser: ArgumentParser, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each variable of a parser's options, and the option."""
    for action in parser._actions:
        if action.option_strings and action.default != SUPPRESS:
            yield "_".join(["CGFEDREC", *words, action.dest]).upper(), action.option_strings[0]


def _typed(option: str, argv: Sequence[str]) -> list[str] | None:
    """The values that a command line gives an option; nothing if it does not give it."""
    values: list[str] = []
    found, open = False, False
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            open = name == option and not equals
            found = found or name == option
            if name == option and equals:
                values.append(value)
        elif open:
            values.append(word)
    return values if found else None


def _options(
    parser: ArgumentParser, words: Sequence[str], argv: Sequence[str], environment: Mapping[str, str]
) -> list[str]:
    """The options of one parser that the environment gives and the command line does not."""
    given: list[str] = []
    switches = {action.option_strings[0] for action in parser._actions if action.option_strings and action.nargs == 0}
    many = {action.option_strings[0] for action in parser._actions if action.option_strings and action.nargs == "+"}
    for variable, option in _variables(parser, words):
        text = environment.get(variable)
        if text is None:
            continue
        typed = _typed(option, argv)
        if typed is not None:
            said = shlex.split(text) if option in many else [text]
            if option in switches:
                said = [] if text.lower() == "true" else [text]
            if said != typed:
                told = f"{variable} has no effect here: the command line says otherwise"
                warnings.warn(told, Notice, stacklevel=3)
            continue
        if option in switches:
            if text.lower() not in ("true", "false"):
                raise InputError(f"{variable}: must be true or false, not {text!r}")
            if text.lower() == "true":
                given.append(option)
        elif option in many:
            given += [f"{option}={one}" for one in shlex.split(text)]
        else:
            given.append(f"{option}={text}")
    return given
