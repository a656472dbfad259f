"""Whether a file looks like one of the named layouts. What is recognised is told, and never applied."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from cgfedrec.data.layout import Format, laid_out
from cgfedrec.data.layouts import LAYOUTS, Layout, LayoutName
from cgfedrec.data.source import find, unpacking
from cgfedrec.errors import InputError

LOOKED_AT = 1 << 16
"""Bytes from the beginning of a file."""
LINES = 20
_TOLD_BY = ("header", "user_column", "item_column", "timestamp_column")
"""Where these are as in a layout, the file is read by it."""
RATINGS = {name for one in LAYOUTS.values() if isinstance(name := one.values.get("rating_column"), str)}
"""What columns of ratings are called in the named layouts."""


def looks_like(path: Path) -> LayoutName | None:
    """The layout that the first lines of a file have, if it is a named one."""
    lines = _begins(path, Format())
    for name, layout in LAYOUTS.items():
        if lines and _reads_like(layout, lines):
            return name
    return None


def _begins(path: Path, layout: Format) -> list[str]:
    """The first lines of a text file, but for blank ones; none of what is no text, or cannot be read."""
    try:
        if not path.is_file():
            return []
        source = find(path, layout)
        if source.is_parquet:
            return []
        with unpacking(path), source.open() as file:
            begin = file.read(LOOKED_AT)
    except InputError:  # whoever reads the file says what is wrong with it
        return []
    lines = begin.decode("utf-8-sig", "replace").splitlines()
    if len(begin) == LOOKED_AT:
        lines = lines[:-1] or lines  # the last one is cut
    return [line for line in lines[:LINES] if line]


def _reads_like(layout: Layout, lines: list[str]) -> bool:
    first, rest = lines[0], layout.goes_on
    if not any(layout.begins.fullmatch(one) for one in (first, first.replace('"', ""))):
        return False
    return rest is None or all(rest.fullmatch(line) for line in lines[1:])


def recognised(path: Path, layout: Format) -> str | None:
    """What to say of a file that looks like a named layout, and is not read by it.

    Args:
        path: Of the file.
        layout: How it is read.
    """
    name = looks_like(path)
    if name is None:
        return None
    values = laid_out(name)
    if all(getattr(layout, option) == values[option] for option in _TOLD_BY):
        return None
    advice = f"add --{layout.option('layout')} {name}"
    if values["timestamp_column"] is None:
        advice += " --data.split random (it has no times)"
    return f"{path}: looks like {name}: {advice}"


def unread_ratings(path: Path, layout: Format) -> str | None:
    """What to say of a file that has a column which looks like ratings, and is read as it is by default: without them.

    Whoever names a layout, or the columns of users and items, has looked at the columns and means just these.

    Args:
        path: Of a file, or a folder of parts, that has been read.
        layout: How.
    """
    told_by, default = ("layout", "rating_column", "header", "user_column", "item_column"), Format()
    if any(getattr(layout, name) != getattr(default, name) for name in told_by):
        return None
    column = next((name for name in _names(path, layout) if name.lower() in RATINGS), None)
    if column is None:
        return None
    option = f"--{layout.option('rating_column')}"
    return (
        f"{path}: its column {column!r} is not read: every row counts as positive; {option} {column} "
        f"--{layout.option('threshold')} 4 takes those from 4 on alone, {option} null says that all are meant"
    )


def _names(path: Path, layout: Format) -> Iterable[str]:
    """The names of the columns of a file that has been read; none of Parquet within a zip."""
    if path.is_dir():
        path = min(part for part in path.rglob("*") if part.suffix.lower() == ".parquet" and part.name[0] not in "._")
    if path.suffix.lower() == ".parquet":
        return pl.read_parquet_schema(path)
    first = next(iter(_begins(path, layout)), "")
    if first.startswith("{"):
        return dict(json.loads(first))
    separator = re.escape(layout.separator) if layout.separator else r"::|[,;|\t]"
    return [name.strip(' "') for name in re.split(separator, first)]
