"""Classes of somebody's own that settings name: the code that they stand for, and how another call names them again."""

from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from types import FunctionType, ModuleType

import yaml

from cgfedrec.errors import Notice
from cgfedrec.files import file_digest
from cgfedrec.settings.layers import UNLOGGED
from cgfedrec.settings.trust import import_paths, not_named

_INSTALLED = {"site-packages", "dist-packages"}


def code_of(config: str) -> dict[str, str]:
    """The checksum of each module of somebody's own from which the classes come that settings name.

    Beside the modules of these classes it has those of what they take from other modules of one's own by an import at
    their top. Nothing is imported for it. Modules of cgfedrec, of what is installed and of Python are left out, and so
    is what has no file, such as a notebook. How a run is logged changes no result, and does not count.

    Args:
        config: The settings, as YAML, whose classes have been imported.
    """
    settings = {name: value for name, value in yaml.safe_load(config).items() if name not in UNLOGGED}
    waiting = [_module_of(name) for name in import_paths(settings)]
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        path = _own_file(module)
        if module is not None and path is not None and name not in found:
            found[name] = file_digest(path)
            waiting += _taken_by(module)
    return dict(sorted(found.items()))


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The files that hold something else than when a run began. Arguments are as `code_of` gives them."""
    names = [name for name in now if before.get(name, now[name]) != now[name]]
    paths = [Path(str(sys.modules[name].__file__)) for name in names]
    here = Path.cwd()
    return [os.path.relpath(path) if path.is_relative_to(here) else str(path) for path in paths]


def tell_of_changes(option: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """A `Notice` where the code of a run has changed since it began. It goes on: mistakes are mended in the middle.

    Args:
        option: Which names the run.
        before: Its code, as `code_of` gives it.
        now: The code of now.
    """
    for file in changed_files(before, now):
        warnings.warn(f"{option}: what {file} holds has changed since its run began", Notice, stacklevel=3)


def gone_on(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """What is told of the code of a run that goes on by what its files hold now: one checksum after the other."""
    return {
        name: before[name] if before.get(name, "").endswith(one) else ", ".join(filter(None, (before.get(name), one)))
        for name, one in now.items()
    }


def going_on(checkpoint: Path, config: str) -> str:
    """The command that goes on with a run. It names the classes that a checkpoint may not name by itself.

    Args:
        checkpoint: Of the run.
        config: Its settings, as YAML.
    """
    method, trusted = "", dict[str, None]()
    for place, name in not_named(yaml.safe_load(config)):
        if place == "method.class_path":
            method = f" --method {quote(name)}"
        else:
            trusted[name] = None
    trust = f" --trust {quote(','.join(trusted))}" if trusted else ""
    return f"cgfedrec fit --ckpt_path {quote(str(checkpoint))}{method}{trust}"


def _module_of(name: str) -> str:
    """The module in which a class is written, by a name that it can be imported by; empty for any other text."""
    place, _, kind = name.rpartition(".")
    found = vars(sys.modules[place]).get(kind) if place in sys.modules else None
    return str(getattr(found, "__module__", ""))


def _own_file(module: ModuleType | None) -> Path | None:
    """The file of a module, if it is somebody's own."""
    name, file = getattr(module, "__name__", ""), getattr(module, "__file__", None)
    if not file or name.split(".")[0] in ("cgfedrec", "__main__", "__mp_main__"):
        return None
    path = Path(file)
    installed = _INSTALLED & set(path.parts) or path.is_relative_to(sysconfig.get_paths()["stdlib"])
    return None if installed or not path.is_file() else path


def _taken_by(module: ModuleType) -> Iterator[str]:
    """The modules of which a module has something at its top."""
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            # Which of its parts a package has depends on what else was imported.
            if not value.__name__.startswith(f"{module.__name__}."):
                yield value.__name__
        elif isinstance(value, type | FunctionType):
            yield str(value.__module__)
