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
from cgfedrec.data.tables import HEADERS, OVERLONG, SHOWN, Table, first_line, more_like_these, other_separator
from cgfedrec.errors import InputError, check

_LONGEST = 2**31 - 1
"""Bytes of a field that Python's reader takes: its own limit is 128 KiB."""
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
        """The names of the columns; where the file has none, such as polars gives them."""
        if self.header:
            return self.first
        return [f"column_{number + 1}" for number in range(len(self.first))]

    @property
    def single(self) -> bool:
        """Whether the CSV reader knows the separator."""
        return len(self.separator.encode()) == 1

    def scan(self, truncate: bool = False) -> pl.LazyFrame:
        """All rows behind the header, for a `single` separator. A blank line is a row without a value.

        Args:
            truncate: Whether rows with too many fields lose those that are too many. If not, polars raises once it
                comes to such a row, but only if every column is read.
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
        """Every row of the file, one after another. It is slow: for where something is wrong.

        Yields:
            How many lines come before the row, its fields (none in a blank line), and how many lines have been read
            once it has.
        """
        with unpacking(self.source.path), self.source.open() as file:
            yield from _rows(file, self.separator, self.quote is not None)


def open_text(source: Source, layout: Format) -> Text:
    """See that a text can be read without a loss, and read its first row. Raises `InputError` if it cannot."""
    suffix = Path(source.name).suffix
    separator = layout.separator or _SEPARATORS.get(suffix, ",")
    quoted = layout.quoted
    if quoted is None:
        quoted = separator in QUOTED
    if quoted and len(separator.encode()) != 1:
        check(f"{source.path}: {layout.option('quoted')} needs a separator of one character, not {separator!r}")
    quotes = check_text(source, layout, separator if quoted else None)
    with unpacking(source.path), source.open() as file:
        rows = _rows(file, separator, quotes.any)
        before, first, behind = next(((start, row, end) for start, row, end in rows if row), (0, [], 0))
    if not first:
        check(f"{source.path}: the file is empty")
    # Without quotes in it, polars need not look for any.
    quote = '"' if quotes.any else None
    return Text(source, layout, separator, quote, quotes.breaks, before, first, behind - before)


def _rows(file: BinaryIO, separator: str, quoted: bool) -> Iterator[tuple[int, list[str], int]]:
    """As `Text.rows`."""
    lines = io.TextIOWrapper(file, "utf-8-sig", newline="\n")
    if not quoted:
        for number, line in enumerate(lines):
            text = line.removesuffix("\n").removesuffix("\r")
            fields = text.split(separator) if text else []
            yield number, fields, number + 1
        return
    csv.field_size_limit(_LONGEST)
    reader, before = csv.reader(lines, delimiter=separator), 0
    for row in reader:
        yield before, row, reader.line_num
        before = reader.line_num


def read_text(text: Text) -> Table:
    """A text file, fields as they stand, null where there is nothing.

    Raises:
        InputError: if rows of it cannot be read, and may not be left out.
    """
    if text.single:
        fields, overlong = _fields(text)
    else:
        fields, overlong = _split_fields(text)
    lines = _lines(text, fields)
    kept = ~fields.select(pl.all_horizontal(pl.all().is_null())).to_series()  # a blank line has no fields
    if overlong:
        kept = kept.scatter(overlong, False)
    headers = 0
    if text.header:
        # Files that were put together of several have a header in the middle.
        same = (pl.col(str(place)).eq_missing(name or None) for place, name in enumerate(text.first))
        again = fields.select(pl.all_horizontal(*same)).to_series() & kept
        headers, kept = int(again.sum()), kept & ~again
    left_out = {OVERLONG: len(overlong), HEADERS: headers}
    return Table(text.source.path, text.names, fields.filter(kept), lines.filter(kept), "line", left_out)


def _fields(text: Text) -> tuple[pl.DataFrame, list[int]]:
    """Every row behind the header, blank lines among them, and the places of those with too many fields."""
    overlong: list[int] = []
    try:
        table = text.scan().collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        # Polars says that a row is too long, but not which: look for it.
        overlong = _overlong(text)
        if not overlong:
            raise InputError(f"{text.source.path}: cannot be read ({first_line(error)})") from error
        table = text.scan(truncate=True).collect()
    return table.rename({name: str(place) for place, name in enumerate(table.columns)}), overlong


def _split_fields(text: Text) -> tuple[pl.DataFrame, list[int]]:
    """The same for a separator of several characters, which the CSV reader does not know."""
    with unpacking(text.source.path):
        lines = pl.read_lines(text.source.content).to_series().slice(text.blank)
    if text.blank == 0:
        lines = lines.str.strip_prefix("\ufeff")  # the byte order mark, which stands before the first line
    rows = lines.str.strip_suffix("\r").slice(1 if text.header else 0)
    fields, width = rows.set(rows == "", None).str.split(text.separator), len(text.first)
    overlong: list[int] = []
    if (fields.list.len() > width).any():
        overlong = _overlong(text)
    table = pl.DataFrame({str(place): fields.list.get(place, null_on_oob=True) for place in range(width)})
    return table.with_columns(pl.all().replace("", None)), overlong


def _overlong(text: Text) -> list[int]:
    """The places of the rows behind the header that have too many fields.

    Raises:
        InputError: naming the first of them, if they may not be left out.
    """
    width, rows = len(text.first), islice(text.rows(), text.blank + int(text.header), None)
    found = [(number, line, len(row)) for number, (line, row, _) in enumerate(rows) if len(row) > width]
    if found and text.layout.bad_rows == "error":
        problems = [
            f"{text.source.path}, line {line + 1}: {count} fields, expected {width}" for _, line, count in found[:SHOWN]
        ]
        if width == 1 and (hint := other_separator(text.first[0], text.layout.option("separator"))):
            problems.append(f"{text.source.path}: its first line is one field, {text.first[0]!r}{hint}")
        raise InputError(problems + more_like_these(text.source.path, text.layout, len(found)))
    return [number for number, _, _ in found]


def _lines(text: Text, fields: pl.DataFrame) -> pl.Series:
    """The line on which each row begins, `[rows]`."""
    first = text.blank + 1
    if text.header:
        first += text.length
    lines = pl.int_range(first, first + len(fields), eager=True, dtype=pl.UInt32)
    if not text.breaks:
        return lines
    # Quoted fields hold line ends, and each of them moves all rows behind it down by a line.
    breaks = fields.select(pl.sum_horizontal(pl.all().str.count_matches("\n", literal=True).fill_null(0)))
    return lines + breaks.to_series().cum_sum().shift(1, fill_value=0)
