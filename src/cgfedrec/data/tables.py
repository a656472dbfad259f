"""A table as it stands in its file: the names of its columns, its fields, and the line on which each row begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from cgfedrec.data.layout import Column, Format
from cgfedrec.errors import check

SEPARATORS = (";", "\t", "|", "::", ",")
"""That a line is searched for where it seems to be one field."""
SHOWN = 5
"""Bad rows that a message shows one by one."""
OVERLONG, HEADERS = "rows with too many fields", "repeated headers"
"""What a report calls rows that are left out."""


@dataclass(frozen=True)
class Table:
    """The rows of a file."""

    path: Path
    names: Sequence[str]
    """The names of its columns; two may have the same."""
    fields: pl.DataFrame
    """One column for each, called by its position from 0: text as it stands, or values as Parquet has them."""
    lines: pl.Series
    """`[rows]`: the line of a text, or the row of Parquet, on which each row begins, from 1."""
    place: Literal["line", "row"]
    """What `lines` counts."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many rows were left out, by why."""

    def column(self, option: str, column: Column) -> pl.Series:
        """The column that an option names, `[rows]`. Raises `InputError` if there is none."""
        check(missing(self.path, self.names, option, column))
        return self.fields.to_series(position(self.names, column))


def position(names: Sequence[str], column: Column) -> int:
    """The position, from 0, of a column that is there (`missing` says whether it is)."""
    if isinstance(column, int):
        return column
    return names.index(column)


def missing(path: Path, names: Sequence[str], option: str, column: Column | None) -> str | None:
    """The problem with a column that is not there, or there twice.

    Args:
        path: Of the file.
        names: Of its columns.
        option: That names the column.
        column: A name, or a position from 0; ``None`` where nobody wants one, which is no problem.
    """
    found = f"the file has {len(names)} columns: {', '.join(names)}"
    if len(names) == 1:
        separator = f"{option.rpartition('.')[0]}.separator"
        found = f"the file has one column: {names[0]}{other_separator(names[0], separator)}"
    if isinstance(column, str) and column not in names:
        advice = ""
        if option.endswith("timestamp_column"):
            advice = ", or set it to null with a split that needs no time (random or none)"
        return f"{path}: no column {column!r}; {found}. Give {option} a name or a position from 0{advice}"
    if isinstance(column, str) and names.count(column) > 1:
        places = " or ".join(str(place) for place, name in enumerate(names) if name == column)
        return f"{path}: two columns have the same name, {column!r}; give {option} its position from 0, {places}"
    if isinstance(column, int) and not 0 <= column < len(names):
        return f"{path}: no column at position {column}; {found}. Give {option} a position from 0 to {len(names) - 1}"
    return None


def other_separator(line: str, option: str) -> str:
    """A hint at what may separate fields, in brackets, where a line of a text was taken for one field.

    Args:
        line: Of the text.
        option: That says what separates fields.

    >>> other_separator("sku;title;category", "data.items.separator")
    " (';' may stand between its fields: data.items.separator says so)"
    """
    found = max(SEPARATORS, key=line.count)
    if not line.count(found):
        return ""
    return f" ({found!r} may stand between its fields: {option} says so)"


def more_like_these(path: Path, layout: Format, count: int) -> list[str]:
    """What is said after bad rows: that there are more than are shown, and what leaves them out, if anything does."""
    if not layout.drops:
        return [f"{path}: {count - SHOWN} more rows like these"] if count > SHOWN else []
    drop = f"{layout.option('bad_rows')} drop leaves"
    if count > SHOWN:
        return [f"{path}: {count - SHOWN} more rows like these; {drop} them out"]
    return [f"{path}: {drop} {'this row' if count == 1 else 'these rows'} out"]


def first_line(error: Exception) -> str:
    """What polars says, without the rest of it."""
    return str(error).strip().splitlines()[0]
