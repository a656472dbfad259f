"""The rows of a text file, read by polars where it can."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import polars as pl

from cgfedrec.data.layout import QUOTED, Format
from cgfedrec.data.quotes import check_text
from cgfedrec.data.source import Source, unpacking
from cgfedrec.data.tables import HEADERS, OVERLONG, SHOWN, Table, first_line, more_like_these
from cgfedrec.errors import InputError, check

_SEPARATORS = {".tsv": "\t", ".data": "\t", ".dat": "::"}


@dataclass(frozen=True)
class Text:
    """A text file that is known to be UTF-8 with its quotes in order, and its first row."""

    source: Source
    layout: Format
    separator: str
    quote: str | None
    """What holds a field together; ``None`` where the text has no quotes, or they are literal."""
    breaks: int
    """Line ends within quotes."""
    blank: int
    """Blank lines before the first row."""
    first: list[str]
    """The fields of the first row."""
    length: int
    """How many lines the first row takes."""

    @property
    def header(self) -> bool:
        """Whether the first row holds the names of the columns."""
        return self.layout.header

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return self.first if self.header else [f"column_{number + 1}" for number in range(len(self.first))]

    @property
    def single(self) -> bool:
        """Whether the CSV reader knows the separator."""
        return len(self.separator.encode()) == 1

    def scan(self, truncate: bool = False) -> pl.LazyFrame:
        """All rows behind the header, blank lines among them as rows without a value; for a `single` separator.

        Rows with too many fields raise only where every column is read, or lose what is too much with ``truncate``.
        """
        return pl.scan_csv(
            self.source.content,
            has_header=self.header,
            skip_lines=self.blank,
            separator=self.separator,
            quote_char=self.quote,
            infer_schema=False,
            truncate_ragged_lines=truncate,
            glob=False,
        )

    def rows(self) -> Iterator[tuple[int, list[str], int]]:
        """Each row, a blank line being one without fields, between the numbers of lines before it and behind it.

        Slow: for where something is wrong.
        """
        with unpacking(self.source.path), self.source.open() as file:
            yield from _rows(file, self.separator, self.quote is not None)


def open_text(source: Source, layout: Format) -> Text:
    """See that a text can be read without a loss, and read its first row. Raises `InputError` if it cannot."""
    suffix = Path(source.name).suffix
    separator = layout.separator or _SEPARATORS.get(suffix, ",")
    quoted = separator in QUOTED if layout.quoted is None else layout.quoted
    check(
        f"{source.path}: {layout.option('quoted')} needs a separator of one character, not {separator!r}"
        if quoted and len(separator.encode()) != 1
        else None
    )
    quotes = check_text(source, layout, separator if quoted else None)
    with unpacking(source.path), source.open() as file:
        rows = _rows(file, separator, quotes.any)
        before, first, behind = next(((start, row, end) for start, row, end in rows if row), (0, [], 0))
    check(f"{source.path}: the file is empty" if not first else None)
    quote = '"' if quotes.any else None
    return Text(source, layout, separator, quote, quotes.breaks, before, first, behind - before)


def _rows(file: BinaryIO, separator: str, quoted: bool) -> Iterator[tuple[int, list[str], int]]:
    lines = io.TextIOWrapper(file, "utf-8-sig", newline="\n")
    if not quoted:
        for number, line in enumerate(lines):
            text = line.removesuffix("\n").removesuffix("\r")
            yield number, text.split(separator) if text else [], number + 1
        return
    csv.field_size_limit(2**31 - 1)
    reader, before = csv.reader(lines, delimiter=separator), 0
    for row in reader:
        yield before, row, reader.line_num
        before = reader.line_num


def read_text(text: Text) -> Table:
    """A text file, fields as they stand: null where there is nothing."""
    fields, overlong = _fields(text) if text.single else _split_fields(text)
    lines = _lines(text, fields)
    kept = ~fields.select(pl.all_horizontal(pl.all().is_null())).to_series()  # how a blank line reads
    kept = kept.scatter(overlong, False) if overlong else kept
    headers = 0
    if text.header:
        same = (pl.col(str(place)).eq_missing(name or None) for place, name in enumerate(text.first))
        again = fields.select(pl.all_horizontal(*same)).to_series() & kept
        headers, kept = int(again.sum()), kept & ~again
    left_out = {OVERLONG: len(overlong), HEADERS: headers}
    return Table(text.source.path, text.names, fields.filter(kept), lines.filter(kept), "line", left_out)


def _fields(text: Text) -> tuple[pl.DataFrame, list[int]]:
    """Every row behind the header, blank lines among them, and which of them have too many fields."""
    overlong: list[int] = []
    try:
        table = text.scan().collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        overlong = _overlong(text)
        if not overlong:
            raise InputError(f"{text.source.path}: cannot be read ({first_line(error)})") from error
        table = text.scan(truncate=True).collect()
    return table.rename({name: str(place) for place, name in enumerate(table.columns)}), overlong


def _split_fields(text: Text) -> tuple[pl.DataFrame, list[int]]:
    """The same for a separator of several characters, which the CSV reader does not know."""
    with unpacking(text.source.path):
        lines = pl.read_lines(text.source.content).to_series().slice(text.blank)
    lines = lines.str.strip_prefix("\ufeff") if text.blank == 0 else lines
    rows = lines.str.strip_suffix("\r").slice(1 if text.header else 0)
    fields, width = rows.set(rows == "", None).str.split(text.separator), len(text.first)
    overlong = _overlong(text) if (fields.list.len() > width).any() else []
    table = pl.DataFrame({str(place): fields.list.get(place, null_on_oob=True) for place in range(width)})
    return table.with_columns(pl.all().replace("", None)), overlong


def _overlong(text: Text) -> list[int]:
    """Which rows behind the header have too many fields. Raises `InputError` where they may not be left out."""
    width, rows = len(text.first), islice(text.rows(), text.blank + int(text.header), None)
    found = [(number, line, len(row)) for number, (line, row, _) in enumerate(rows) if len(row) > width]
    if found and text.layout.bad_rows == "error":
        problems = [
            f"{text.source.path}, line {line + 1}: {count} fields, expected {width}" for _, line, count in found[:SHOWN]
        ]
        raise InputError(problems + more_like_these(text.source.path, text.layout, len(found)))
    return [number for number, _, _ in found]


def _lines(text: Text, fields: pl.DataFrame) -> pl.Series:
    """The line on which each row begins: quoted fields may hold line ends."""
    first = text.blank + (text.length if text.header else 0) + 1
    lines = pl.int_range(first, first + len(fields), eager=True, dtype=pl.UInt32)
    if not text.breaks:
        return lines
    breaks = fields.select(pl.sum_horizontal(pl.all().str.count_matches("\n", literal=True).fill_null(0)))
    return lines + breaks.to_series().cum_sum().shift(1, fill_value=0)
