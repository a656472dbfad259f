"""A table of items, for their titles: what people are shown beside ids, and nobody trains on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cgfedrec.data.ids import as_ids
from cgfedrec.data.layout import Column, Format
from cgfedrec.data.reading import read_table
from cgfedrec.data.tables import Table
from cgfedrec.errors import InputError, Notice, check


@dataclass(frozen=True)
class Items:
    """A table of items, for their titles: in recommendations, exports and the page of a run.

    Args:
        path: CSV, TSV, ``::``-separated text (.dat) or Parquet, gzipped or alone in a zip; by default there are no
            titles.
        id: Name, or position counted from 0, of the column that holds ids, which are those of the interactions.
        title: The same for titles.
        separator: Between fields of a text file; by default told from the file name.
        header: Whether the first line of a text file holds the names of the columns.
        quoted: Whether a field of a text file may stand in double quotes; by default where the separator is ``,``,
            ``;`` or ``|``.
        encoding: Of a text file, such as latin-1.
    """

    path: str | None = None
    id: Column = 0
    title: Column = 1
    separator: str | None = None
    header: bool = True
    quoted: bool | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        _ = self.layout  # which refuses what cannot be

    @property
    def layout(self) -> Format:
        """How the file is laid out. Raises `InputError` for what cannot be."""
        return _Layout(self.separator, self.header, item_column=self.id, quoted=self.quoted, encoding=self.encoding)

    def titles(self, items: pl.Series) -> dict[str, str]:
        """The title of each item of the file that has one, by its id as text; a `Notice` (a warning) if it has none.

        White space around a title is left out, and a title of nothing else is none.

        Args:
            items: `[items]`: the ids that are looked for; where they are whole numbers, so are the file's.

        Raises:
            InputError: if the file cannot be read or a column is not there, naming the line or the column.
        """
        if self.path is None:
            return {}
        check(None if Path(self.path).exists() else f"data.items.path: no file {self.path}")
        given = read_table(Path(self.path), self.layout)
        ids = given.column("data.items.id", self.id)
        titles = given.column("data.items.title", self.title)
        keys = _keys(given, ids, items.dtype)
        _refuse_lost_item(given, self, items)
        if titles.dtype.is_nested():
            raise InputError(f"{self.path}: the title is of type {titles.dtype}, expected text")
        texts = titles.cast(pl.String, strict=False).str.strip_chars()
        found = pl.DataFrame({"key": keys, "title": texts.set(texts == "", None)}).drop_nulls()
        if found["key"].is_in(items.cast(pl.String).implode()).sum() == 0:
            warnings.warn(f"data.items.path: no id in {self.path} is among the items", Notice, stacklevel=2)
        return dict(found.unique("key", keep="first").iter_rows())


class _Layout(Format):
    """That of a file of items."""

    @property
    def drops(self) -> bool:
        """No: an item whose row is left out would lose its title."""
        return False

    def option(self, name: str) -> str:
        """How an option is called."""
        return f"data.items.{'id' if name == 'item_column' else name}"


def _keys(given: Table, ids: pl.Series, ours: pl.DataType) -> pl.Series:
    """The ids of a table of items as text; where ours are whole numbers, so are theirs that have no fraction."""
    try:
        keys = as_ids(ids).cast(pl.String)
    except ValueError as error:
        raise InputError(f"{given.path}: the item {error}") from error
    if not ours.is_integer():
        return keys
    return keys.str.replace(r"^(-?\d+)\.0+$", "${1}")


def _refuse_lost_item(given: Table, said: Items, items: pl.Series) -> None:
    """Refuse a first line that was taken for names, but names an item that is looked for."""
    if given.place == "line" and said.header and isinstance(said.id, int):
        name = given.names[said.id]
        if name in items.cast(pl.String):
            raise InputError(
                f"{given.path}: its first line was taken for the names of columns, but {name!r} is an item; give "
                "data.items.header false"
            )
