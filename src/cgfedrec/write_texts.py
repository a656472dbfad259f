"""Write the texts that are packaged: the help of a run's settings, and the completion of two shells.

``python -m cgfedrec.write_texts`` writes them, and needs shtab, which is among the packages of ``dev``. They hold no
path of the machine, and lines of one width.
"""

from __future__ import annotations

import os
import re
from argparse import Action, ArgumentParser
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

import cgfedrec.centralized
import cgfedrec.methods
from cgfedrec.arguments import command_parser
from cgfedrec.cli import COMMANDS, TAKE_SETTINGS
from cgfedrec.files import write_atomically
from cgfedrec.settings.layers import DEFAULTS
from cgfedrec.settings.options import Option, options_of
from cgfedrec.settings.parser import described
from cgfedrec.texts import FOLDER, SETTINGS, SHELLS

WIDTH = 120
_ASKED = ("--help", "--print_config", "--method.help", "--data.help", "--logger.help")
_PLACES = {"FILE": "file", "PATH": "file", "DIR": "directory", "FOLDER": "directory", "OLD": "file", "NEW": "file"}
"""What a value is, by its metavar."""
_SETTINGS_PLACES = {"config": "file", "ckpt_path": "file", "update_from": "file", "run_dir": "directory"} | {
    "data.path": "file"
}


def settings_help() -> str:
    """The help of a run's settings.

    The lists of known classes are left out: they are of what happens to be imported. Methods are named instead.
    """
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with described() as whole:
            text = whole.format_help()
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    text = re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", text)
    methods, references = ", ".join(cgfedrec.methods.__all__), ", ".join(cgfedrec.centralized.__all__)
    return f"{text.rstrip()}\n\nmethods: {methods}\nreferences: {references}\n"


def completion(shell: str) -> str:
    """The script that completes the command line in a shell, ``bash`` or ``zsh``."""
    import shtab

    places = {"file": shtab.FILE, "directory": shtab.DIRECTORY}
    whole, verbs = command_parser(COMMANDS)
    with described(False) as settings:
        known = options_of(settings, dict(DEFAULTS))
    for words, one in verbs.items():
        if words and words[0] in TAKE_SETTINGS and words != ("data", "download"):
            _add_settings(one, known)
        for action in one._actions:
            place = _PLACES.get(str(action.metavar)) or _SETTINGS_PLACES.get(action.dest)
            if place is not None:
                action.complete = places[place]  # type: ignore[attr-defined]
    return str(shtab.complete(whole, shell=shell))


def choices(name: str, kind: object) -> list[str]:
    """The values between which an option chooses; none where they are without number.

    Args:
        name: Of the option.
        kind: The type of its values.
    """
    if name == "method":
        return [*cgfedrec.methods.__all__, *cgfedrec.centralized.__all__]
    if name == "protocol":
        return ["strict", "reference"]
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [value for one in kinds for value in _values(one)]


def _values(kind: object) -> Iterator[str]:
    """The values of a type that has few, as they are typed."""
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif kind is bool:
        yield from ("true", "false")
    elif kind is NoneType:
        yield "null"


def _add_settings(verb: ArgumentParser, known: dict[str, Option]) -> None:
    """Add the settings of a run, with those of the default classes, to a command that takes them."""
    there = {option for action in verb._actions for option in action.option_strings}
    for asked in _ASKED:
        if asked not in there:
            verb.add_argument(asked, action="store_true", help="show what there is")
    if "--config" not in there:
        verb.add_argument("--config", help="a YAML file of these options")
    for name, option in known.items():
        if f"--{name}" not in there:
            found = choices(name, option.kind)
            verb.add_argument(f"--{name}", choices=found or None, help=_help(_action(option)))


def _action(option: Option) -> Action | None:
    return next((action for action in option.parser._actions if action.dest == option.dest), None)


def _help(action: Action | None) -> str:
    """The first sentence of an option's help, without what a shell or a format would take for its own."""
    text = str(action.help or "") if action else ""
    first = re.split(r"[.:;] |\(|, known", f"{text} ")[0]
    return re.sub(r"[^\w ,.+-]", "", first).strip()


def main() -> None:
    """Write them all."""
    write_atomically(FOLDER / SETTINGS, settings_help())
    for shell in SHELLS:
        write_atomically(FOLDER / f"completion.{shell}", completion(shell))


if __name__ == "__main__":
    main()
