"""What is wrong with the settings of a run, in words: the option, what it must be, what it is, and who says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import Namespace

import cgfedrec.centralized
import cgfedrec.methods
from cgfedrec.errors import InputError, nearest
from cgfedrec.settings.layers import LISTS, Layer, leaves, short
from cgfedrec.settings.options import Option, class_path, groups_of, item_of, options_at, own_options, parser_of
from cgfedrec.settings.standing import meant_by, standing
from cgfedrec.settings.trust import IMPORTING
from cgfedrec.settings.yamlfile import read_yaml

Source = Callable[[Sequence[str]], str]
"""Who says what stands at a place, in brackets, to end a message with."""
MOVED = {"cgfedrec.logging.WandbLogger": ("0.2", "cgfedrec.run.loggers.WandbLogger")}
"""Classes that configs of before may name: the last version that had the name, and the name now.

Methods, references and the data module have kept their names, and the optimisers of our own never had another one.
"""
HERE = "; is it in the current folder, or its folder on PYTHONPATH?"
"""What to ask of a module that was not found."""
_LONGEST = 80
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_ITEM = re.compile(r"\[\d+\]$")
"""How the place of an item of a list ends: ``steps[0]``."""
_FORM = "write a mapping with a class_path and, if it needs any, init_args"
_SPEC = ("class_path", "init_args", "dict_kwargs")
_Path = tuple[str, ...]


def problems(spec: Layer, known: Mapping[str, Option], source: Source) -> Iterator[tuple[str, str]]:
    """What is wrong with settings, each with the group that it is in, such as ``loop``.

    Args:
        spec: The settings.
        known: Of `options_of`.
        source: Who says what.
    """
    for key, value in spec.items():
        for path, problem in _wrong(value, (key,), known):
            yield key, f"{short(path)}: {problem}{source(_said_whole(path))}"


def no_mappings(
    spec: Layer, known: Mapping[str, Option], needed: Collection[str], source: Source
) -> Iterator[tuple[str, str]]:
    """What is wrong where a single value stands for a whole group of options, as `problems` has it.

    Args:
        spec: The settings.
        known: Of `options_of`.
        needed: Options that name a class, and may not be null.
        source: Who says what.
    """
    groups = groups_of(known)
    for path, value in leaves(spec):
        name = short(path)
        if value != {} and (name in needed or name in groups - known.keys()) and path[-1] != "class_path":
            yield path[0], f"{name}: {_no_mapping(value)}{source(path)}"


def out_of_bounds(settings: Namespace) -> Iterator[str]:
    """The problem with each value that the parser takes and no run does."""
    seed = settings["seed_everything"]
    if not 0 <= seed < 2**63:
        yield f"seed_everything: {seed} is not from 0 to 2^63 - 1"
    for name in ("ckpt_path", "update_from", "run_dir"):
        if settings[name] == "":
            yield f"{name}: is empty"


def not_imported(name: str) -> str | None:
    """Why a name stands for nothing that can be imported, in one line; none if it does stand for something."""
    try:
        resolve_name(name)
    except ModuleNotFoundError as error:
        return f"{error}{HERE}"
    except (ImportError, AttributeError) as error:
        return str(error)
    except (Exception, SystemExit) as error:  # a user's module may raise anything as it is imported
        return f"importing it ends in {type(error).__name__}: {error}"
    return None


def shown(value: object) -> str:
    """A value as it is written in a config, cut where it is long."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str) and value:
        text = value
    else:
        try:
            text = repr(value)
        except ValueError:  # Python writes no number of thousands of digits
            text = "a number without end"
    if len(text) > _LONGEST:
        return f"{text[:_LONGEST]}..."
    return text


def told(kind: object) -> str:
    """A type in words, such as ``a whole number or null``."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        *others, last = map(shown, inner)
        if not others:
            return last
        return f"{', '.join(others)} or {last}"
    if origin in (Union, UnionType):
        return " or ".join(map(told, inner))
    if inner == (Any,):
        return "a list of classes"
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        elements = [f"{told(one)}s".removeprefix("a ") for one in inner if one is not Ellipsis]
        return f"a list of {' and '.join(elements)}"
    names: dict[object, str] = {
        NoneType: "null",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
    }
    return names.get(kind) or str(getattr(kind, "__name__", kind))


def _wrong(value: object, path: _Path, known: Mapping[str, Option]) -> Iterator[tuple[_Path, str]]:
    """Each place below this one where something is wrong, and what."""
    name = short(path)
    option = known.get(name)
    if option is not None and option.takes_class and isinstance(value, dict) and "class_path" not in value:
        default = class_path(option.parser.get_default(option.dest))
        if default is not None:  # settings alone are those of the default class
            value = {"class_path": default, "init_args": value.get("init_args", value)}
    if option is not None and isinstance(value, dict) and "class_path" in value:
        yield from _wrong_class(option, value, path, known)
    elif option is not None:
        if option.problem(value) is None:
            return
        inside = list(_wrong_inside(option, value, path, known))
        if inside:
            yield from inside
        elif option.takes_class:
            yield path, _no_class(option, value, path)
        else:
            yield path, f"must be {told(option.kind)}, not {shown(value)}{_why(option, value)}"
    elif not any(other.startswith(f"{name}.") for other in known):
        others = [other for other in known if not name.startswith(f"{other}.")]
        yield path, f"there is no such option{nearest(name, others)}"
    elif not isinstance(value, dict):
        yield path, _no_mapping(value)
    else:
        for key, inner in value.items():
            yield from _wrong(inner, (*path, key), known)


def _wrong_inside(
    option: Option, value: object, path: _Path, known: Mapping[str, Option]
) -> Iterator[tuple[_Path, str]]:
    """What is wrong with the items of a list of classes, or with the fields of a dataclass, each at its place."""
    kinds = [option.kind, *get_args(option.kind)]
    fields_of = next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)
    if fields_of is not None and isinstance(value, dict):
        named = own_options(parser_of(fields_of), f"{short(path)}.")
        for key, inner in value.items():
            yield from _wrong(inner, (*path, key), {**known, **named})
        for field in fields(fields_of):
            if field.default is MISSING and field.default_factory is MISSING and field.name not in value:
                yield path, f"{field.name} is missing, and has no default"
    item = item_of(option.kind)
    if item is not None and isinstance(value, str):
        with suppress(InputError):
            value = read_yaml(value, option.dest)
    for place, one in enumerate(value if isinstance(value, list) else ()):
        at = (*path[:-1], f"{path[-1]}[{place}]")
        if item is not None:
            spec = {"class_path": one} if isinstance(one, str) else one
            yield from _wrong(spec, at, {**known, **options_at(item, spec, short(at))})
        elif option.dest in LISTS and isinstance(one, dict) and not isinstance(one.get("init_args", {}), dict):
            # All else in these is told where they are made.
            yield at, f"its init_args must be a mapping, not {shown(one['init_args'])}"


def _said_whole(path: _Path) -> _Path:
    """The place of the list that holds this one, which somebody has said whole; without a list the place itself."""
    for end, part in enumerate(path):
        if _ITEM.search(part):
            return (*path[:end], _ITEM.sub("", part))
    return path


def _wrong_class(option: Option, spec: Layer, path: _Path, known: Mapping[str, Option]) -> Iterator[tuple[_Path, str]]:
    """What is wrong with a class and its settings, each at its place."""
    name = spec["class_path"]
    if option.named(name) is None:
        yield path, _no_class(option, name, path)
        return
    arguments = spec.get("init_args", {})
    if not isinstance(arguments, dict):
        yield path, f"its init_args must be a mapping, not {shown(arguments)}"
        return
    found = [wrong for key, inner in arguments.items() for wrong in _wrong(inner, (*path, "init_args", key), known)]
    beside = [key for key in spec if key not in _SPEC]
    found += [((*path, key), "stands beside class_path; write it under init_args") for key in beside]
    yield from found
    if found:
        return
    # Each setting can be right, and the class still lack one that it needs. Only the parser knows.
    lines = _lines(option.problem(spec))
    if lines:
        yield path, next((line for line in lines if "required" in line), lines[-1])


def _named(value: object) -> str:
    """How to write a class, or an object of one, that stands where settings name one; empty for any other value."""
    kind = value if isinstance(value, type) else type(value)
    if kind.__module__ == "builtins":
        return ""
    name = f"{kind.__module__}.{kind.__qualname__}"
    with_arguments = f'{{"class_path": "{name}", "init_args": {{...}}}}'
    return f'is named by settings, and not given as an object: write "{name}", or {with_arguments}'


def _no_mapping(value: object) -> str:
    return _named(value) or f"must be a mapping of its options, not {shown(value)}"


def _no_class(option: Option, name: object, path: _Path) -> str:
    """What is wrong with a name of a class, or with what stands in place of one."""
    if isinstance(name, str) and name in MOVED:
        version, now = MOVED[name]
        return f"{name} was its name until version {version}; it is {now} now"
    if isinstance(name, dict | list):
        return f"{shown(name)} names no class; {_FORM}"
    if named := _named(name):
        return named
    tried = name
    if isinstance(name, str):
        tried = {"class_path": name}
    why = _why(option, tried)
    # Where the parser would import it, a checkpoint can only name what it may, so that this does no more.
    if not why and path[0] in IMPORTING and isinstance(name, str) and _DOTTED.fullmatch(name):
        reason = not_imported(name)
        why = f" ({reason})" if reason else ""
    text = f"{shown(name)} is no class that can stand here{why}"
    if option.dest == "method":
        names = [*cgfedrec.methods.__all__, *cgfedrec.centralized.__all__]
        those = "methods here"
    else:
        names, those = standing(option), "those here"
    meant = meant_by(name, names) if isinstance(name, str) else ""
    return f"{text}{meant}; {those}: {', '.join(names)}; any other is named by where it is imported from, module.Class"


def _why(option: Option, value: object) -> str:
    """Of all that the parser says, the one line that tells what is wrong with a class, in brackets.

    It tells a mistyped module from a mistyped class, and both from a class of another kind or a wrong setting of it.
    """
    telling = ("No module", "has no attribute", "subclass of", "is not accepted")
    why = [line for line in _lines(option.problem(value)) if any(words in line for words in telling)]
    if not why:
        return ""
    hint = HERE if "No module" in why[-1] else ""
    return f" ({why[-1]}{hint})"


def _lines(problem: str | None) -> list[str]:
    """The lines of what the parser says, without its bullets."""
    return [line.strip(" -") for line in (problem or "").splitlines() if line.strip()]
