"""Which classes can stand at an option, by the names that can be written there."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from inspect import isabstract
from pkgutil import resolve_name
from types import UnionType
from typing import Union, get_args, get_origin

from cgfedrec.settings.layers import DEFAULTS
from cgfedrec.settings.options import Option
from cgfedrec.settings.trust import CLASSES

_OURS = CLASSES | {spec["class_path"] for spec in DEFAULTS.values()}
"""Of the classes of cgfedrec, those that are offered. Others are parts of these."""


def standing(option: Option, whole: bool = False) -> list[str]:
    """The names of all classes, of those imported by now, that can stand at an option.

    Args:
        option: The option.
        whole: With whole paths. Otherwise a name is short where the parser knows just one class by it.
    """
    for spec in DEFAULTS.values():  # which nobody may have needed by now
        resolve_name(spec["class_path"])
    found: dict[str, list[type]] = {}
    for base in _bases(option.kind):
        for kind in dict.fromkeys(_below(base)):
            # The base of others' classes does nothing by itself.
            if kind is base and not _is_ours(kind):
                continue
            found.setdefault(kind.__name__, []).append(kind)
    names = []
    for short, kinds in found.items():
        if not whole and option.named(short) in kinds:
            names.append(short)
        else:
            # Most loggers of Lightning are there twice. Ours and Fabric's need no Trainer.
            alone = [kind for kind in kinds if not kind.__module__.startswith("lightning.pytorch.")]
            names += map(_path, alone or kinds)
    return sorted(names, key=str.lower)


def meant_by(name: str, names: Sequence[str]) -> str:
    """A hint at which of these classes may have been meant, or nothing. Paths are compared by their last parts."""
    by_last = {one.rpartition(".")[2].lower(): one for one in reversed(names)}
    near = get_close_matches(name.rpartition(".")[2].lower(), by_last, 1)
    return f"; did you mean {by_last[near[0]]}?" if near and by_last[near[0]] != name else ""


def _bases(kind: object) -> Iterator[type]:
    """The classes of which an annotation takes subclasses."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for one in inner:
            yield from _bases(one)
    elif "Callable" in str(origin):
        yield from _bases(inner[-1])
    elif isinstance(kind, type) and origin is None and kind.__module__ not in ("builtins", "types"):
        yield kind


def _below(base: type) -> Iterator[type]:
    """A class and all below it that somebody may name."""
    whole = f"{base.__module__}.{base.__qualname__}"
    private = "<locals>" in whole or any(part.startswith("_") for part in whole.split("."))
    if not private and not isabstract(base) and (not _is_ours(base) or whole in _OURS):
        yield base
    below: list[type] = base.__subclasses__()
    for kind in below:
        yield from _below(kind)


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "cgfedrec"


def _path(kind: type) -> str:
    """The shortest path from which a class can be imported."""
    parts = kind.__module__.split(".")
    packages = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    offered = (one for one in packages if getattr(sys.modules.get(one), kind.__name__, None) is kind)
    return f"{next(offered, kind.__module__)}.{kind.__name__}"
