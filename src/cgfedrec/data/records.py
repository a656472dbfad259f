"""Files that are no tables: a line of JSON for each interaction, or blocks of lines as Netflix published them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import PurePath

import polars as pl

from cgfedrec.data.layout import Column, Format, Kind
from cgfedrec.data.quotes import check_text
from cgfedrec.data.source import Source, unpacking
from cgfedrec.data.tables import OVERLONG, SHOWN, Table, more_like_these
from cgfedrec.errors import InputError

BLOCKS = ("item", "user", "rating", "date")
"""What the columns of Netflix's blocks are called here; the file has no names."""
_JSON = (".json", ".jsonl", ".ndjson")


def kind_of(source: Source, layout: Format) -> Kind:
    """What a text file is: as the layout says, else by its name."""
    if layout.kind is not None:
        return layout.kind
    return "json" if PurePath(source.name).suffix in _JSON else "table"


def read_records(source: Source, layout: Format, wanted: Collection[Column | None] | None = None) -> Table:
    """A file that is no table, with its fields as text.

    Args:
        source: The file, of kind json or netflix.
        layout: Says what becomes of bad rows.
        wanted: The columns to read; by default all that the first line has. Others are there without values.

    Raises:
        InputError: if it cannot be read.
    """
    check_text(source, layout, None)
    with unpacking(source.path):
        text = pl.read_lines(source.content).to_series().str.strip_suffix("\r")
    if len(text):
        text[0] = text[0].removeprefix("\ufeff")
    there = text.str.strip_chars() != ""
    if not there.any():
        raise InputError(f"{source.path}: the file is empty")
    lines = pl.int_range(1, len(text) + 1, eager=True, dtype=pl.UInt32)
    if kind_of(source, layout) == "netflix":
        return _blocks(source, layout, text, lines, there)
    return _json(source, text.filter(there), lines.filter(there), wanted)


def _json(source: Source, text: pl.Series, lines: pl.Series, wanted: Collection[Column | None] | None) -> Table:
    """The table of lines `[rows]` of JSON; a line that is none has no values."""
    try:
        first = json.loads(text[0])
    except ValueError:
        first = None
    if not isinstance(first, dict):
        what = "holds one list; write a line for each of its entries, such as with jq -c '.[]'"
        if not text[0].lstrip().startswith("["):
            what = "holds no JSON object on its first line; expected one on each line"
        raise InputError(f"{source.path}: {what}")
    names = list(first)
    fields = {}
    for place, name in enumerate(names):
        quote = '"' if "'" in name else "'"
        fields[str(place)] = pl.lit(None, pl.String)
        if wanted is None or name in wanted or place in wanted:
            fields[str(place)] = pl.col("text").str.json_path_match(f"$[{quote}{name}{quote}]").replace("", None)
    table = pl.DataFrame({"text": text}).select(**fields)
    return Table(source.path, names, table, lines, "line")


def _blocks(source: Source, layout: Format, text: pl.Series, lines: pl.Series, there: pl.Series) -> Table:
    """The table of blocks: a line ``item:`` above its lines ``user,rating,date``."""
    items = text.str.extract(r"^\s*([^,:]+):\s*$")
    rows = there & items.is_null()
    parts = text.filter(rows).str.split(",")
    lines = lines.filter(rows)
    overlong = parts.list.len() > len(BLOCKS) - 1
    if overlong.any() and layout.bad_rows == "error":
        problems = [
            f"{source.path}, line {line}: {count} fields, expected {len(BLOCKS) - 1} below a line item:"
            for line, count in zip(lines.filter(overlong), parts.list.len().filter(overlong), strict=True)
        ]
        raise InputError(problems[:SHOWN] + more_like_these(source.path, layout, len(problems)))
    fields = {"0": items.forward_fill().filter(rows)}
    fields |= {str(place + 1): parts.list.get(place, null_on_oob=True).replace("", None) for place in range(3)}
    table = pl.DataFrame(fields).filter(~overlong)
    return Table(source.path, BLOCKS, table, lines.filter(~overlong), "line", {OVERLONG: int(overlong.sum())})
