"""From a table in a file to interactions: typed, numbered, without duplicates; what cannot be read is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cgfedrec.data.ids import as_ids
from cgfedrec.data.layout import Format
from cgfedrec.data.source import find
from cgfedrec.data.tables import (
    HEADERS,
    OVERLONG,
    SHOWN,
    Table,
    Text,
    is_parquet,
    missing,
    more_like_these,
    open_text,
    position,
    read_parquet,
    read_text,
)
from cgfedrec.data.times import as_times
from cgfedrec.errors import InputError, check

BREAKS = "line ends within quotes"
"""Counted in the report, though nothing is lost by them: in a file with a stray quote they hold what should be rows."""
_EXPECTED = {"user": "an id", "item": "an id", "rating": "a number", "time": "a number or an ISO date"}


@dataclass
class Interactions:
    """Who touched what, and when: encoded, without duplicates, in the order of the file."""

    user_ids: pl.Series
    """Original id of each user number."""
    item_ids: pl.Series
    """Original id of each item number."""
    users: NDArray[np.integer[Any]]
    """`[interactions]`"""
    items: NDArray[np.integer[Any]]
    """`[interactions]`"""
    times: NDArray[np.float64] | NDArray[np.int64] | None
    """`[interactions]`; only the order matters. ``None`` where the file has none."""
    positive: NDArray[np.bool_]
    """`[interactions]`: the others fall below the rating threshold, and are known to the user but not trained on."""
    report: dict[str, int] = field(default_factory=dict)
    """What was read and what was left out, counted."""
    order: NDArray[np.integer[Any]] = field(default_factory=lambda: np.empty(0, np.int32))
    """`[interactions]`: the same by user, and by item within a user. Found once, since sorting costs most."""

    def __post_init__(self) -> None:
        if len(self.order) < len(self.users):
            self.order = by_user_and_item(self.users, self.items, len(self.user_ids), len(self.item_ids))

    def keep_users(self, keep: NDArray[np.bool_]) -> Interactions:
        """The interactions of the users marked in ``keep`` and the items that they touched, encoded anew."""
        if keep.all():
            return replace(self, report=dict(self.report))
        rows = keep[self.users]
        kept_items = np.zeros(len(self.item_ids), bool)
        kept_items[self.items[rows]] = True
        return Interactions(
            self.user_ids.filter(pl.Series(keep)),
            self.item_ids.filter(pl.Series(kept_items)),
            _number(keep)[self.users[rows]],
            _number(kept_items)[self.items[rows]],
            None if self.times is None else self.times[rows],
            self.positive[rows],
            dict(self.report),
            _number(rows)[self.order[rows[self.order]]],
        )

    def only_positive(self) -> Interactions:
        """The positive interactions, with the same numbers of users and items."""
        chosen = self.positive
        if chosen.all():
            return self
        return Interactions(
            self.user_ids,
            self.item_ids,
            self.users[chosen],
            self.items[chosen],
            None if self.times is None else self.times[chosen],
            chosen[chosen],
            dict(self.report),
            _number(chosen)[self.order[chosen[self.order]]],
        )


def _number(kept: NDArray[np.bool_]) -> NDArray[np.integer[Any]]:
    """The new number of each thing that is kept."""
    numbers: NDArray[np.integer[Any]] = kept.cumsum(dtype=np.int32 if len(kept) < 2**31 else np.int64)
    numbers -= 1
    return numbers


def by_user_and_item(
    users: NDArray[np.integer[Any]], items: NDArray[np.integer[Any]], num_users: int, num_items: int
) -> NDArray[np.integer[Any]]:
    """The order of interactions by user, by item within a user, and as they stand where both are the same."""
    by_item = counted(items, num_items)
    order: NDArray[np.integer[Any]] = by_item[counted(users[by_item], num_users)]
    return order


def counted(numbers: NDArray[np.integer[Any]], high: int) -> NDArray[np.integer[Any]]:
    """A stable order of numbers from [0, high), in linear time.

    It is a sparse matrix with a row for each number and a 1 in its column, read column by column.
    """
    starts = np.arange(len(numbers) + 1, dtype=np.int32 if len(numbers) < 2**31 else np.int64)
    ones = np.ones(len(numbers), np.bool_)
    by_column: NDArray[np.integer[Any]] = csr_array((ones, numbers, starts), shape=(len(numbers), high)).tocsc().indices
    return by_column


def read(path: str | Path, layout: Format | None = None) -> Interactions:
    """Read a file of interactions.

    Of rows that repeat a user and an item, the one that stands first in the file is kept.

    Raises:
        InputError: naming the file, the column or the lines, and what would be right.
    """
    path, layout = Path(path), layout or Format()
    if is_parquet(path):
        return _read_table(read_parquet(path, layout), layout)
    source = find(path, layout)
    if source.is_parquet:
        return _read_table(read_parquet(path, layout, source), layout)
    text = open_text(source, layout)
    places = _places(path, text.names, layout)
    numbers = _read_numbers(text, places)
    if numbers is None:
        data = _read_table(read_text(text), layout)
    else:
        lines = pl.Series(dtype=pl.UInt32)  # no row is bad
        data = _encode(Table(path, text.names, numbers, lines, "line"), layout)
    check(_lost_row(text, places, data))
    if text.breaks:
        data.report[BREAKS] = text.breaks
    return data


def _places(path: Path, names: list[str], layout: Format) -> dict[str, int]:
    """Where the columns stand that are read, by what they are for. Raises `InputError` if one does not."""
    wanted = {name: column for name, column in layout.wanted().items() if column is not None}
    check(*(missing(path, names, layout.option(_option(name)), column) for name, column in wanted.items()))
    return {name: position(names, column) for name, column in wanted.items()}


def _option(name: str) -> str:
    return "timestamp_column" if name == "time" else f"{name}_column"


def _read_table(table: Table, layout: Format) -> Interactions:
    places = _places(table.path, list(table.names), layout)
    fields = table.fields.select(pl.col(str(place)).alias(name) for name, place in places.items())
    return _encode(replace(table, fields=fields), layout)


def _read_numbers(text: Text, places: Mapping[str, int]) -> pl.DataFrame | None:
    """The wanted columns, if every field of them is a number, as in most large files; else nothing.

    Ids are whole numbers then, written without sign or leading zeros. Read twice in passing, such a file takes a third
    of the memory that its text would.
    """
    if not text.single:
        return None
    lines = text.scan()
    try:
        columns = lines.collect_schema().names()
        as_numbers = {
            name: pl.col(columns[place]).cast(pl.Float64 if name == "rating" else pl.Int64, strict=False).alias(name)
            for name, place in places.items()
        }
        good = [
            number.is_not_null().all() & (number.cast(pl.String) == pl.col(columns[places[name]])).all()
            if name in ("user", "item")
            else number.is_not_null().all() & ~(number.is_nan().any() if name == "rating" else False)
            for name, number in as_numbers.items()
        ]
        # A row with too many fields is found only if all columns are read.
        others = [pl.col(name).null_count() for name in columns]
        found = lines.select(pl.all_horizontal(good).alias("good"), *others).collect(engine="streaming")
        if not found["good"].item():
            return None
        return lines.select(*as_numbers.values()).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError):
        return None  # the reader of texts says what is wrong


def _lost_row(text: Text, places: Mapping[str, int], data: Interactions) -> str | None:
    """The problem with names of columns that nobody asked for by name, and that read like an interaction."""
    if not text.header or not all(isinstance(column, int | None) for column in text.layout.wanted().values()):
        return None
    values = {name: pl.Series([text.first[place]], dtype=pl.String) for name, place in places.items()}
    typed = [_typed(name, values[name]).null_count() == 0 for name in ("rating", "time") if name in values]
    ids = {"user": data.user_ids, "item": data.item_ids}
    whole = [as_ids(values[name]).dtype.is_integer() for name, known in ids.items() if known.dtype.is_integer()]
    again = [values[name][0] in known for name, known in ids.items() if not known.dtype.is_integer()]
    if all(typed) if typed else all(whole) and (whole or any(again)):
        return (
            f"{text.source.path}, line {text.blank + 1}: was taken for the names of columns, but reads like an "
            f"interaction ({', '.join(text.first)}); set {text.layout.option('header')} false, or give columns by name"
        )
    return None


def _typed(name: str, column: pl.Series) -> pl.Series:
    """A column as what it is for, null where it is not. Raises `ValueError` for types that cannot be that."""
    if name in ("user", "item"):
        return as_ids(column)
    if name == "time":
        return as_times(column)
    if column.dtype.is_nested() or column.dtype.is_temporal():
        raise ValueError(f"is of type {column.dtype}, expected numbers")
    return column.cast(pl.Float64, strict=False).fill_nan(None)


def _encode(given: Table, layout: Format) -> Interactions:
    """Typed, checked, without duplicates, ids as numbers."""
    path, raw = given.path, given.fields
    left_out = sum(given.left_out.values())
    if raw.is_empty():
        raise InputError(f"{path}: no rows" + (f" but {left_out} that cannot be read" if left_out else ""))
    columns, problems = [], []
    for column in raw.iter_columns():
        try:
            columns.append(_typed(column.name, column).alias(column.name))
        except (ValueError, pl.exceptions.PolarsError) as error:
            problems.append(f"{path}: the {column.name} {error}")
    check(*problems)
    table = pl.DataFrame(columns)
    unreadable = table.select(pl.any_horizontal(pl.all().is_null())).to_series()
    if unreadable.any() and layout.bad_rows == "error":
        raise InputError(_unreadable(given, layout, table, unreadable))
    kept = table.filter(~unreadable) if unreadable.any() else table
    if kept.is_empty():
        raise InputError(f"{path}: none of its {len(table) + left_out} rows can be read")
    (user_ids, users), (item_ids, items) = (_numbered(kept[name]) for name in ("user", "item"))
    order = by_user_and_item(users, items, len(user_ids), len(item_ids))
    again = (np.diff(users[order]) == 0) & (np.diff(items[order]) == 0)
    first = np.ones(len(users), bool)
    first[order[1:][again]] = False
    times = kept["time"].to_numpy() if "time" in kept.columns else None
    positive = np.ones(len(users), bool)
    if layout.threshold is not None:
        positive = (kept["rating"] >= layout.threshold).to_numpy()
    if again.any():
        order = _number(first)[order[first[order]]]
        users, items, positive = users[first], items[first], positive[first]
        times = None if times is None else times[first]
    return Interactions(
        user_ids,
        item_ids,
        users,
        items,
        times,
        positive,
        {
            "rows": len(table) + left_out,
            "unreadable rows": int(unreadable.sum()) + given.left_out.get(OVERLONG, 0),
            HEADERS: given.left_out.get(HEADERS, 0),
            "duplicates": int(again.sum()),
            "below the threshold": int((~positive).sum()),
        },
        order,
    )


def _numbered(ids: pl.Series) -> tuple[pl.Series, NDArray[np.integer[Any]]]:
    """The different ids in ascending order, and for each row the place of its id among them."""
    different = ids.unique().sort()
    kind = np.int32 if len(different) < 2**31 else np.int64
    if different.dtype.is_integer():
        lowest, highest = int(different[0]), int(different[-1])
        if highest - lowest < 4 * len(ids):  # a table of all numbers between is faster than a search
            place = np.zeros(highest - lowest + 1, kind)
            place[different.to_numpy() - lowest] = np.arange(len(different))
            return different, place[ids.to_numpy() - lowest]
    return different, different.search_sorted(ids).to_numpy().astype(kind)


def _unreadable(given: Table, layout: Format, table: pl.DataFrame, unreadable: pl.Series) -> list[str]:
    problems, path = [], given.path
    for row in unreadable.arg_true().head(SHOWN):
        wrong = next(name for name in table.columns if table[name][row] is None)
        value = given.fields[wrong][row]
        what = "is missing" if value is None else f"is {value!r}, expected {_EXPECTED[wrong]}"
        problems.append(f"{path}, {given.place} {given.lines[row]}: the {wrong} {what}")
    return problems + more_like_these(path, layout, int(unreadable.sum()))
