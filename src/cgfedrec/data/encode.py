"""From the fields of a table to interactions: typed, checked, numbered, without duplicates."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.data.ids import as_ids, doubtful
from cgfedrec.data.interactions import Interactions, Numbers, Times, by_user_and_item, index_type, renumbered
from cgfedrec.data.layout import Format
from cgfedrec.data.tables import HEADERS, OVERLONG, SHOWN, Table, more_like_these
from cgfedrec.data.times import as_times, of_coarser_unit
from cgfedrec.errors import InputError, Notice, check

_EXPECTED = {"user": "an id", "item": "an id", "rating": "a number such as 4.5", "time": "a number or an ISO date"}


def typed(name: str, column: pl.Series) -> pl.Series:
    """A column in the type that it is for.

    Args:
        name: What the column is for: ``user``, ``item``, ``rating`` or ``time``.
        column: As it stands in the file.

    Returns:
        A series of the same length, null where a field cannot be read.

    Raises:
        ValueError: for types that cannot be that.
    """
    if name in ("user", "item"):
        return as_ids(column)
    if name == "time":
        return as_times(column)
    if column.dtype.is_nested() or column.dtype.is_temporal():
        raise ValueError(f"is of type {column.dtype}, expected numbers")
    return column.cast(pl.Float64, strict=False).fill_nan(None)


def encode(given: Table, layout: Format) -> Interactions:
    """Make interactions of a table.

    Args:
        given: Its columns are called ``user``, ``item`` and, where they are wanted, ``rating`` and ``time``.
        layout: Says from which rating on an interaction is positive, and what becomes of bad rows.

    Raises:
        InputError: naming the rows that cannot be read, if they may not be left out.
    """
    path, raw = given.path, given.fields
    left_out = sum(given.left_out.values())
    if raw.is_empty():
        but = f" but {left_out} that cannot be read" if left_out else ""
        raise InputError(f"{path}: no rows{but}")
    columns, problems = [], []
    for column in raw.iter_columns():
        try:
            columns.append(typed(column.name, column).alias(column.name))
        except (ValueError, pl.exceptions.PolarsError) as error:
            problems.append(f"{path}: the {column.name} {error}")
    check(*problems)
    table = pl.DataFrame(columns)
    unreadable = table.select(pl.any_horizontal(pl.all().is_null())).to_series()  # [rows], bool
    kept = table
    if unreadable.any():
        if layout.bad_rows == "error":
            raise InputError(_unreadable(given, layout, table, unreadable))
        kept = table.filter(~unreadable)
    if kept.is_empty():
        raise InputError(f"{path}: none of its {len(table) + left_out} rows can be read")
    (user_ids, users), (item_ids, items) = (_numbered(kept[name]) for name in ("user", "item"))
    times: Times | None = None
    if "time" in kept.columns:
        times = kept["time"].to_numpy()
        _tell_of_units(path, times)
    # In this order rows with the same user and item are neighbours, the first one of the file first.
    order = by_user_and_item(users, items, len(user_ids), len(item_ids))
    again = (np.diff(users[order]) == 0) & (np.diff(items[order]) == 0)
    if times is not None:
        _earliest_first(order, again, times)
    first = np.ones(len(users), bool)
    first[order[1:][again]] = False
    positive = np.ones(len(users), bool)
    if layout.threshold is not None:
        positive = (kept["rating"] >= layout.threshold).to_numpy()
    if again.any():
        order = renumbered(first)[order[first[order]]]
        users, items, positive = users[first], items[first], positive[first]
        if times is not None:
            times = times[first]
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
            **(Counter(doubtful(user_ids)) + Counter(doubtful(item_ids))),
        },
        order,
    )


def _tell_of_units(path: object, times: Times) -> None:
    """Warn where some times, `[rows]`, seem to count another unit than others: which came first would be wrong."""
    coarser = of_coarser_unit(times)
    if coarser.any():
        one, other = times[coarser][0], times.max()
        told = f"{coarser.sum():,} of {len(times):,} are like {one}, others like {other}"
        warnings.warn(f"{path}: times seem to be of two units: {told}; all are read alike", Notice, stacklevel=3)


def _earliest_first(order: Numbers, again: NDArray[np.bool_], times: Times) -> None:
    """Among rows with the same user and item put the earliest first; of equal times, the first one of the file.

    A user has an item from then on. Whatever stands first in the file, at an earlier cut in time nothing of it is new.

    Args:
        order: `[rows]`: such rows are neighbours. Changed in place.
        again: `[rows - 1]`: whether a row has the same user and item as the one before it.
        times: `[rows]`.
    """
    here = np.append(again, False) | np.insert(again, 0, False)  # rows that are not alone
    pair = np.insert(~again, 0, True).cumsum()[here]
    rows = order[here]
    order[here] = rows[np.lexsort((times[rows], pair))]  # which leaves equal ones as they stand


def _numbered(ids: pl.Series) -> tuple[pl.Series, Numbers]:
    """The different ids in ascending order, and the place of each row's id among them, `[rows]`."""
    different = ids.unique().sort()
    kind = index_type(len(different))
    if different.dtype.is_integer():
        lowest, highest = int(different[0]), int(different[-1])
        # A table of all numbers between is faster than a search, as long as it is not much longer than the data.
        if highest - lowest < 4 * len(ids):
            place = np.zeros(highest - lowest + 1, kind)
            place[different.to_numpy() - lowest] = np.arange(len(different))
            return different, place[ids.to_numpy() - lowest]
    return different, different.search_sorted(ids).to_numpy().astype(kind)


def _unreadable(given: Table, layout: Format, table: pl.DataFrame, unreadable: pl.Series) -> list[str]:
    """What to say of the first rows that cannot be read, and how many more there are."""
    problems, path = [], given.path
    for row in unreadable.arg_true().head(SHOWN):
        wrong = next(name for name in table.columns if table[name][row] is None)
        value = given.fields[wrong][row]
        what = "is missing"
        if value is not None:
            what = f"is {value!r}, expected {_EXPECTED[wrong]}"
        problems.append(f"{path}, {given.place} {given.lines[row]}: the {wrong} {what}")
    return problems + more_like_these(path, layout, int(unreadable.sum()))
