"""From a path to a table, whatever kind of file it is."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

import polars as pl

from cgfedrec.data.catalog import CATALOG
from cgfedrec.data.layout import Format
from cgfedrec.data.records import kind_of, read_records
from cgfedrec.data.report import many, named
from cgfedrec.data.source import Source, find
from cgfedrec.data.tables import Table, first_line
from cgfedrec.data.text import open_text, read_text
from cgfedrec.errors import InputError, Notice


def read_table(path: Path, layout: Format) -> Table:
    """A file as it stands. Raises `InputError` if it cannot be read, or rows of it cannot and may not be left out."""
    if is_parquet(path):
        return read_parquet(path, layout)
    source = find(path, layout)
    if source.is_parquet:  # within a zip
        return read_parquet(path, layout, source)
    if kind_of(source, layout) != "table":
        return read_records(source, layout)
    return read_text(open_text(source, layout))


def is_parquet(path: Path) -> bool:
    """Whether a path is a Parquet file or a folder of them; raises `InputError` where it is neither that nor a file."""
    if path.is_dir():
        return True
    if not path.exists():
        advice = ""
        if path.parent.name in CATALOG:
            advice = f"; see cgfedrec data download {path.parent.name}"
        raise InputError(f"{path}: no such file{advice}")
    return path.suffix.lower() == ".parquet"


def check_there(path: Path) -> None:
    """Raise `InputError` where there is no such file, and no folder of Parquet files."""
    if is_parquet(path) and path.is_dir():
        _parts(path)


def _parts(folder: Path) -> list[Path]:
    """The Parquet files of a folder, in order. Raises `InputError` where there are none."""
    parts = sorted(part for part in folder.rglob("*") if part.suffix.lower() == ".parquet" and part.name[0] not in "._")
    if not parts:
        raise InputError(f"{folder}: is a folder without Parquet parts (*.parquet); name the file of interactions")
    return parts


def read_parquet(path: Path, layout: Format, source: Source | None = None) -> Table:
    """A Parquet file, or a folder of parts as Spark writes it.

    Args:
        path: Of the file or folder.
        layout: How it is laid out.
        source: The file itself, where ``path`` is a zip that holds it.

    Raises:
        InputError: if it cannot be read.
    """
    content: Path | bytes | list[Path] = path
    if source is not None:
        content = source.content
    folders = False
    if path.is_dir():
        parts = _parts(path)
        _tell_of_others(path, set(parts))
        # Folders like year=2024 are columns that the parts within them do not hold.
        folders = any("=" in folder for part in parts for folder in part.relative_to(path).parts[:-1])
        content = parts
    try:
        table = pl.read_parquet(content, glob=False, hive_partitioning=folders)
    except (pl.exceptions.PolarsError, OSError) as error:
        what = "not a Parquet file"
        if path.is_dir():
            what = "its Parquet parts cannot be read together"
        raise InputError(f"{path}: {what} ({first_line(error)})") from error
    names, fields = table.columns, table.rename({name: str(place) for place, name in enumerate(table.columns)})
    return Table(path, names, fields, pl.int_range(1, len(table) + 1, eager=True), "row")


def _tell_of_others(folder: Path, parts: Collection[Path]) -> None:
    """Warn of the files of a folder that are none of its parts, but for Spark's own, which begin with . or _."""
    inside = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file() and file not in parts)
    others = [str(file) for file in inside if all(name[0] not in "._" for name in file.parts)]
    if not others:
        return
    count = many(len(others), "other file is", "other files are")
    warnings.warn(f"{folder}: {count} not read, since parts end in .parquet: {named(others)}", Notice, stacklevel=2)
