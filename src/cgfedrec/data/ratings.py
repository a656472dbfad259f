"""Read a table of interactions from CSV, TSV, ``::``-separated text or Parquet, and refuse what cannot be read."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cgfedrec.data.catalog import CATALOG
from cgfedrec.errors import InputError, check

Column = int | str
SHOWN = 5


@dataclass(frozen=True)
class Format:
    """How a file of interactions is laid out.

    Args:
        separator: Between fields of a text file; by default told from the file name: a tab for .tsv and .data, ``::``
            for .dat, else a comma.
        header: Whether the first line of a text file holds the names of the columns.
        user_column: Name, or position counted from 0, of the column that holds user ids.
        item_column: The same for item ids.
        rating_column: The same for ratings; only needed with a threshold.
        timestamp_column: The same for the time of an interaction: numbers, or ISO dates. ``null`` for none.
        threshold: An interaction counts as positive from this rating on; by default every one does. Items rated below
            it are known to their user: they are never recommended, nor candidates in a ranking, but can be negatives.
        bad_rows: ``error`` refuses a file with rows that cannot be read, ``drop`` leaves them out and counts them.
    """

    separator: str | None = None
    header: bool = True
    user_column: Column = "user"
    item_column: Column = "item"
    rating_column: Column | None = None
    timestamp_column: Column | None = "timestamp"
    threshold: float | None = None
    bad_rows: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        for name in ("rating_column", "timestamp_column"):
            if getattr(self, name) in ("null", "None"):  # how a null on the command line arrives where text is allowed
                object.__setattr__(self, name, None)
        check(
            "threshold: needs rating_column, the column that it applies to"
            if self.threshold is not None and self.rating_column is None
            else None,
            "separator: is empty" if self.separator == "" else None,
        )

    def wanted(self) -> dict[str, Column | None]:
        """The columns that are read, by what they are for; ``None`` for one that is not."""
        return {
            "user": self.user_column,
            "item": self.item_column,
            "rating": self.rating_column if self.threshold is not None else None,
            "time": self.timestamp_column,
        }


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
    numbers = _read_numbers(path, layout)
    if numbers is not None:
        return _encode(path, layout, numbers, lambda rows: rows)
    table = read_table(path, layout)
    wanted = layout.wanted()
    check(*(_missing(path, table.columns, name, column) for name, column in wanted.items()))
    raw = table.select(
        pl.col(column_of(path, table, name, column)).alias(name)
        for name, column in wanted.items()
        if column is not None
    )
    blank = table.select(pl.all_horizontal(pl.all().is_null())).to_series()  # how a blank line reads
    first = 2 if layout.header and path.suffix != ".parquet" else 1

    def lines_of(rows: pl.Series) -> pl.Series:
        """The line on which each row begins: quoted fields may hold line breaks."""
        if path.suffix == ".parquet":
            return rows + first
        breaks = table.select(pl.sum_horizontal(pl.all().str.count_matches("\n", literal=True).fill_null(0)))
        return rows + first + breaks.to_series().cum_sum().shift(1, fill_value=0).gather(rows)

    try:
        return _encode(path, layout, raw.with_row_index("row").filter(~blank), lines_of)
    except pl.exceptions.PolarsError as error:
        what = "ids, ratings or times of a type that is not supported"
        raise InputError(f"{path}: {what} ({_first_line(error)})") from error


def _read_numbers(path: Path, layout: Format) -> pl.DataFrame | None:
    """The wanted columns, if every field of them is a number, as in most large files; else nothing.

    Ids are whole numbers then, written without sign or leading zeros. Read twice in passing, such a file takes a third
    of the memory that its text would.
    """
    separator = layout.separator or _separator(path)
    if path.suffix == ".parquet" or not path.is_file() or len(separator.encode()) != 1:
        return None
    try:
        lines = pl.scan_csv(path, has_header=layout.header, separator=separator, infer_schema=False, glob=False)
        names = lines.collect_schema().names()
        wanted = layout.wanted()
        if any(_missing(path, names, name, column) for name, column in wanted.items()):
            return None
        fields = lines.select(
            pl.col(column if isinstance(column, str) else names[column]).alias(name)
            for name, column in wanted.items()
            if column is not None
        )
        kinds = {name: pl.Float64 if name == "rating" else pl.Int64 for name in fields.collect_schema().names()}
        as_numbers = {name: pl.col(name).cast(kind, strict=False) for name, kind in kinds.items()}
        good = [
            number.is_not_null().all() & (number.cast(pl.String) == pl.col(name)).all()
            if name in ("user", "item")
            else number.is_not_null().all() & ~(number.is_nan().any() if name == "rating" else False)
            for name, number in as_numbers.items()
        ]
        if not fields.select(pl.all_horizontal(good)).collect(engine="streaming").item():
            return None
        return fields.select(*as_numbers.values()).with_row_index("row").collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError):
        return None  # the reader of texts says what is wrong


def read_table(path: Path, layout: Format, encoding: Literal["utf8", "utf8-lossy"] = "utf8") -> pl.DataFrame:
    """The file as it stands: text files as strings. Raises `InputError` if it cannot be read."""
    if not path.is_file():
        known = path.parent.name in CATALOG
        raise InputError(
            f"{path}: no such file" + (f"; see cgfedrec data download {path.parent.name}" if known else "")
        )
    if path.suffix == ".parquet":
        try:
            return pl.read_parquet(path, glob=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{path}: not a Parquet file ({_first_line(error)})") from error
    separator = layout.separator or _separator(path)
    single = len(separator.encode()) == 1
    try:
        table = pl.read_csv(
            path,
            has_header=layout.header and single,
            separator=separator if single else "\x1f",
            quote_char='"' if single else None,
            infer_schema=False,
            encoding=encoding,
            glob=False,
        )
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{path}: the file is empty") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(_why_unreadable(path, separator, error)) from error
    return table if single else _split_fields(path, table, separator, layout.header)


def _split_fields(path: Path, lines: pl.DataFrame, separator: str, header: bool) -> pl.DataFrame:
    """Text whose separator has several characters, which the CSV reader does not know."""
    fields = lines.to_series().str.split(separator)
    if fields[0] is None:
        raise InputError(f"{path}, line 1: is blank")
    width = len(fields[0])
    counts = fields.list.len()
    wrong = (counts > width).arg_true().to_list()
    if wrong:
        raise InputError(f"{path}, line {wrong[0] + 1}: {counts[wrong[0]]} fields, expected {width}")
    names = fields[0].to_list() if header else [f"column_{i + 1}" for i in range(width)]
    if len(set(names)) < width:
        raise InputError(f"{path}, line 1: two columns have the same name, of {', '.join(names)}")
    return (fields.slice(1) if header else fields).list.to_struct(fields=names).struct.unnest()


def _why_unreadable(path: Path, separator: str, error: Exception) -> str:
    """Find the line that the CSV reader stumbled over, which it does not name."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter=separator if len(separator) == 1 else "\x1f", strict=True)
            width = None
            for row in reader:
                width = width or len(row)
                if len(row) > width:
                    return f"{path}, line {reader.line_num}: {len(row)} fields, expected {width}"
    except UnicodeDecodeError as broken:
        return f"{path}: not UTF-8 text (byte {broken.start}: {broken.reason}); convert it, or check that it is text"
    except (csv.Error, OSError, EOFError) as broken:
        return f"{path}: {broken}"
    return f"{path}: {_first_line(error)}"


def _separator(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return {".tsv": "\t", ".data": "\t", ".dat": "::"}.get(suffixes[-1] if suffixes else "", ",")


def column_of(path: Path, table: pl.DataFrame, name: str, column: Column) -> str:
    """The name of the column that an option means. Raises `InputError` if there is none."""
    check(_missing(path, table.columns, name, column))
    return column if isinstance(column, str) else table.columns[column]


def _missing(path: Path, columns: Sequence[str], name: str, column: Column | None) -> str | None:
    option = "timestamp_column" if name == "time" else f"{name}_column"
    found = f"the file has {len(columns)} columns: {', '.join(columns)}"
    if isinstance(column, str) and column not in columns:
        advice = ", or set it to null with a split that needs no time (random or none)" if name == "time" else ""
        return f"{path}: no column {column!r}; {found}. Give {option} a name or a position from 0{advice}"
    if isinstance(column, int) and not 0 <= column < len(columns):
        return f"{path}: no column at position {column}; {found}. Give {option} a position from 0 to {len(columns) - 1}"
    return None


def _encode(path: Path, layout: Format, raw: pl.DataFrame, lines_of: Callable[[pl.Series], pl.Series]) -> Interactions:
    """Typed, checked, without duplicates, ids as numbers."""
    if raw.is_empty():
        raise InputError(f"{path}: no rows")
    table = raw.with_columns(_id(raw["user"]), _id(raw["item"]))
    if "rating" in raw.columns:
        table = table.with_columns(raw["rating"].cast(pl.Float64, strict=False).fill_nan(None))
    if "time" in raw.columns:
        table = table.with_columns(_time(raw["time"]))
    values = [name for name in table.columns if name != "row"]
    unreadable = table.select(pl.any_horizontal(pl.col(values).is_null())).to_series()
    if unreadable.any() and layout.bad_rows == "error":
        bad = raw.filter(unreadable).with_columns(lines_of(raw.filter(unreadable)["row"]).alias("line"))
        raise InputError(_unreadable(path, bad, table.filter(unreadable), values, int(unreadable.sum())))
    kept = table.filter(~unreadable) if unreadable.any() else table
    if kept.is_empty():
        raise InputError(f"{path}: none of its {len(table)} rows can be read")
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
            "rows": len(table),
            "unreadable rows": int(unreadable.sum()),
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


def _id(ids: pl.Series) -> pl.Series:
    """Ids of any type, as whole numbers where nothing is lost by it, else as text."""
    if ids.dtype.is_integer() and ids.dtype != pl.UInt64:
        return ids.cast(pl.Int64)
    text = ids.cast(pl.String)
    text = text.set(text.str.strip_chars() == "", None)
    numbers = text.cast(pl.Int64, strict=False)
    return numbers if (numbers.cast(pl.String) == text).all() and numbers.null_count() == text.null_count() else text


def _time(times: pl.Series) -> pl.Series:
    """Numbers as they are, dates as microseconds since 1970 (UTC where they name no zone)."""
    if times.dtype.is_numeric():
        return times.fill_nan(None) if times.dtype.is_float() else times
    if times.dtype.is_temporal():
        return times.cast(pl.Datetime("us")).cast(pl.Int64)
    present = len(times) - times.null_count()
    for number in (pl.Int64, pl.Float64):
        numbers = times.cast(number, strict=False)
        if number == pl.Float64:
            numbers = numbers.fill_nan(None)
        if len(numbers) - numbers.null_count() >= present / 2:
            return numbers
    text = times.str.strip_chars().str.replace(" ", "T", literal=True)
    zoned = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", strict=False, time_unit="us")
    readings = [zoned.dt.replace_time_zone(None)] + [
        text.str.to_datetime(layout, strict=False, time_unit="us")
        for layout in ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")
    ]
    readings.append(text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
    return pl.select(pl.coalesce(readings).cast(pl.Int64)).to_series().alias(times.name)


def _unreadable(path: Path, raw: pl.DataFrame, table: pl.DataFrame, values: list[str], count: int) -> list[str]:
    right = {"user": "an id", "item": "an id", "rating": "a number", "time": "a number or an ISO date"}
    place = "row" if path.suffix == ".parquet" else "line"
    problems = []
    for given, parsed in zip(raw.head(SHOWN).iter_rows(named=True), table.iter_rows(named=True), strict=False):
        wrong = next(name for name in values if parsed[name] is None)
        what = "is missing" if given[wrong] is None else f"is {given[wrong]!r}, expected {right[wrong]}"
        problems.append(f"{path}, {place} {given['line']}: the {wrong} {what}")
    if count > SHOWN:
        problems.append(f"{path}: {count - SHOWN} more rows like these; bad_rows: drop leaves them out")
    return problems


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
