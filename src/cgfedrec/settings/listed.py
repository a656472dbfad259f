"""Objects that a run's settings list by their classes, several at once: its callbacks, and loggers beside the first."""

from __future__ import annotations

from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.loggers import Logger

from cgfedrec.errors import InputError, check, nearest
from cgfedrec.settings.hooks import unheeded
from cgfedrec.settings.layers import LISTS
from cgfedrec.settings.mistakes import not_imported, shown
from cgfedrec.settings.options import ERRORS, item_of
from cgfedrec.settings.standing import meant_by, standing

_FORM = "write module.Class, or a mapping with a class_path and, if it needs any, init_args"


def add_lists(parser: ArgumentParser) -> None:
    """Add the options of `LISTS`."""
    parser.add_argument(
        "--callbacks",
        type=list[Any] | None,
        default=None,
        help="Classes with hooks such as on_round_end(loop): one by its class_path, or a list; a mapping with "
        "class_path and init_args gives arguments. They are imported, and so run.",
    )
    parser.add_argument(
        "--loggers",
        type=list[Any] | None,
        default=None,
        help="More of Lightning's loggers, beside --logger; in the same forms as --callbacks.",
    )


def build_lists(settings: Namespace) -> Iterator[tuple[str, list[object], list[str]]]:
    """The objects of each list, and what is wrong with those that cannot be made.

    Args:
        settings: Of a run.
    """
    for option in LISTS:
        made, wrong = list[object](), list[str]()
        for place, one in enumerate(settings.get(option) or ()):
            try:
                made.append(_object(f"{option}[{place}]", one))
            except InputError as error:
                wrong += error.problems
        yield option, made, wrong


def _object(place: str, one: object) -> object:
    """The object that one entry of a list names, such as ``callbacks[0]``. Raises `InputError`, in one line."""
    name, arguments = _spec(place, one)
    made = _class(place, name)
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(made, "init_args")
        known = {action.dest.split(".")[1] for action in parser._actions if action.dest.startswith("init_args.")}
        unknown = [key for key in arguments if key not in known]
        check(*(f"there is no init_args.{key}{nearest(key, known)}" for key in unknown))
        built: object = parser.instantiate(parser.parse_object({"init_args": arguments}, env=False))["init_args"]
    except InputError as error:
        raise InputError([f"{place}: {name}: {problem}" for problem in error.problems]) from error
    except (*ERRORS, RuntimeError, OSError) as error:
        raise InputError(f"{place}: {name}: {' '.join(str(error).split())}") from error
    if place.startswith("loggers") and not isinstance(built, Logger):
        raise InputError(f"{place}: {name} is none of Lightning's loggers{_loggers(name)}")
    return built


def _spec(place: str, one: object) -> tuple[str, dict[str, object]]:
    """The class and the arguments that one entry of a list names."""
    spec: object = one
    if isinstance(one, Namespace):
        spec = one.as_dict()
    elif isinstance(one, str):
        spec = {"class_path": one}
    if not isinstance(spec, dict) or not isinstance(name := spec.get("class_path"), str) or "." not in name:
        meant = _loggers(one) if place.startswith("loggers") and isinstance(one, str) else ""
        raise InputError(f"{place}: {shown(one)} names no class{meant}; {_FORM}")
    arguments = spec.get("init_args") or {}
    odd = sorted(str(key) for key in spec if key not in ("class_path", "init_args"))
    check(f"{place}: {name}: there is no {', '.join(odd)} here; {_FORM}" if odd else None)
    assert isinstance(arguments, dict)  # the parser refuses all else
    return name, arguments


def _loggers(name: str) -> str:
    """What to say of a name that is of no logger: which one may have been meant, and which there are."""
    logger = item_of(list[Logger])
    assert logger is not None
    names = standing(logger, whole=True)
    return f"{meant_by(name, names)}; those here: {', '.join(names)}"


def _class(place: str, name: str) -> type:
    """The class of a name, of which a callback must have hooks that are called."""
    if reason := not_imported(name):
        meant = _loggers(name) if place.startswith("loggers") else ""
        raise InputError(f"{place}: {name} cannot be imported ({reason}){meant}")
    found = resolve_name(name)
    if not isinstance(found, type):
        raise InputError(f"{place}: {name} is no class")
    if place.startswith("callbacks"):
        check(*unheeded(found, place))
    return found
