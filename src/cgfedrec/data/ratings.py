"""From a file of interactions to interactions; what cannot be read without a loss is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from cgfedrec.data.encode import encode, typed
from cgfedrec.data.ids import as_ids
from cgfedrec.data.interactions import Interactions
from cgfedrec.data.layout import Format
from cgfedrec.data.reading import is_parquet, read_parquet
from cgfedrec.data.recognising import recognised
from cgfedrec.data.records import kind_of, read_records
from cgfedrec.data.report import BREAKS
from cgfedrec.data.source import find
from cgfedrec.data.synthetic import Track
from cgfedrec.data.tables import Table, missing, position
from cgfedrec.data.text import Text, open_text, read_text
from cgfedrec.errors import InputError, check

_NUMBERS = {"user": pl.Int64, "item": pl.Int64, "rating": pl.Float64, "time": pl.Int64}


def read(path: str | Path, layout: Format | None = None) -> Interactions:
    """Read a file of interactions.

    If several rows have the same user and item, the one that stands first in the file is kept.

    Args:
        path: A text, a Parquet file, or a folder of Parquet parts.
        layout: How the file is laid out.

    Raises:
        InputError: naming the file, the column or the lines, and what would be right; and the layout, if it looks like
            a named one that nobody has named.
    """
    path, layout = Path(path), layout or Format()
    try:
        return _read(path, layout)
    except InputError as error:
        if hint := recognised(path, layout):
            raise InputError([*error.problems, hint]) from error
        raise


def read_told(path: str, layout: Format, track: Track) -> Interactions:
    """`read`, which may take long, under the eyes of ``track``."""
    file, what = Path(path), f"reading {path}"
    if file.is_file():
        what += f", {file.stat().st_size:,} bytes"
    # One part of work: whoever tracks it cannot say how far it is, but can say that it goes on.
    (found,) = [read(one, layout) for one in track([path], what)]
    return found


def _read(path: Path, layout: Format) -> Interactions:
    if is_parquet(path):
        return _read_table(read_parquet(path, layout), layout)
    source = find(path, layout)
    if source.is_parquet:
        return _read_table(read_parquet(path, layout, source), layout)
    if kind_of(source, layout) != "table":
        return _read_table(read_records(source, layout, layout.wanted().values()), layout)
    text = open_text(source, layout)
    places = _places(path, text.names, layout)
    numbers = _read_numbers(text, places)
    if numbers is None:
        data = _read_table(read_text(text), layout)
    else:
        lines = pl.Series(dtype=pl.UInt32)  # only a message about a bad row needs them, and no row is bad
        data = encode(Table(path, text.names, numbers, lines, "line"), layout)
    check(_lost_row(text, places, data))
    if text.breaks:
        data.report[BREAKS] = text.breaks
    return data


def of_frame(frame: pl.DataFrame, layout: Format) -> Interactions:
    """The interactions of a table in memory. Raises `InputError` as `read`."""
    fields = frame.rename({name: str(place) for place, name in enumerate(frame.columns)})
    rows = pl.int_range(1, len(frame) + 1, eager=True)
    return _read_table(Table(Path("DataFrame"), frame.columns, fields, rows, "row"), layout)


def _places(path: Path, names: list[str], layout: Format) -> dict[str, int]:
    """The position of each column that is read, by what it is for. Raises `InputError` if one is not there."""
    wanted = {name: column for name, column in layout.wanted().items() if column is not None}
    options = {name: layout.option(f"{name}_column") for name in wanted} | {"time": layout.option("timestamp_column")}
    check(*(missing(path, names, options[name], column) for name, column in wanted.items()))
    return {name: position(names, column) for name, column in wanted.items()}


def _read_table(table: Table, layout: Format) -> Interactions:
    places = _places(table.path, list(table.names), layout)
    fields = table.fields.select(pl.col(str(place)).alias(name) for name, place in places.items())
    return encode(replace(table, fields=fields), layout)


def _read_numbers(text: Text, places: Mapping[str, int]) -> pl.DataFrame | None:
    """The wanted columns if all of their fields are numbers, as in most large files; else nothing.

    Ids must be whole numbers as a program writes them, without a sign or leading zeros. Such a file is read twice, once
    to look at every field and once to convert it. Both go through the file in passing, so that its text is never in
    memory as a whole: that takes a third of the memory.
    """
    if not text.single:
        return None
    lines = text.scan()
    try:
        columns = lines.collect_schema().names()
        as_numbers: dict[str, pl.Expr] = {}
        good: list[pl.Expr] = []
        for name, place in places.items():
            field = pl.col(columns[place])
            number = field.cast(_NUMBERS[name], strict=False).alias(name)
            as_numbers[name] = number
            good.append(number.is_not_null().all())
            if name in ("user", "item"):
                # 7, 007 and 7.0 are three ids, so the number must be written like the text.
                good.append((number.cast(pl.String) == field).all())
            if name == "rating":
                good.append(~number.is_nan().any())
        # A row with too many fields is found only if all columns are read.
        others = [pl.col(name).null_count() for name in columns]
        found = lines.select(pl.all_horizontal(good).alias("good"), *others).collect(engine="streaming")
        if not found["good"].item():
            return None
        return lines.select(*as_numbers.values()).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError):
        return None  # the reader of texts says what is wrong


def _lost_row(text: Text, places: Mapping[str, int], data: Interactions) -> str | None:
    """The problem with a file whose first row was taken for names of columns but reads like an interaction.

    Where columns are given by name, their names were found in that row, so it is no interaction.
    """
    if not text.header or not all(isinstance(column, int | None) for column in text.layout.wanted().values()):
        return None
    values = {name: pl.Series([text.first[place]], dtype=pl.String) for name, place in places.items()}
    readable = [typed(name, values[name]).null_count() == 0 for name in ("rating", "time") if name in values]
    if readable:
        # Names of columns are neither ratings nor times.
        like_an_interaction = all(readable)
    else:
        # Only ids are there to tell. Whole numbers betray themselves; text must be an id that other rows have too.
        ids = {"user": data.user_ids, "item": data.item_ids}
        whole = [as_ids(values[name]).dtype.is_integer() for name, known in ids.items() if known.dtype.is_integer()]
        again = [values[name][0] in known for name, known in ids.items() if not known.dtype.is_integer()]
        like_an_interaction = all(whole) and (bool(whole) or any(again))
    if not like_an_interaction:
        return None
    return (
        f"{text.source.path}, line {text.blank + 1}: was taken for the names of columns, but reads like an interaction "
        f"({', '.join(text.first)}); set {text.layout.option('header')} false, or give columns by name"
    )
