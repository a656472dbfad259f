"""Modules of the current folder: a class that a user names may lie there, without any PYTHONPATH."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from pathlib import Path


def look_here(names: Iterable[str]) -> None:
    """Let Python look into the current folder, last of all, if a module that is named lies there and nowhere else.

    Otherwise nothing changes. Python does not look there by itself when ``cgfedrec`` starts, and a file that happens
    to lie there must not run because it is called as some package that is not installed.

    Args:
        names: Of classes or modules, by whoever starts the command. Never those of a checkpoint.
    """
    here = Path.cwd()
    invalidate_caches()  # a file may be younger than the last look
    for first in {name.strip().split(".")[0] for name in names}:
        there = (here / f"{first}.py").is_file() or (here / first / "__init__.py").is_file()
        if first.isidentifier() and there and first not in sys.modules and PathFinder.find_spec(first) is None:
            sys.path.append(str(here))
            return
