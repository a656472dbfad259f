"""How a file of interactions is laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from cgfedrec.data.layouts import LAYOUTS, LayoutName
from cgfedrec.errors import check

Column = int | str
Kind = Literal["table", "json", "netflix"]
QUOTED = (",", ";", "|")
"""Separators of files in which quotes hold a field together, unless ``quoted`` says otherwise."""


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
        quoted: Whether a field of a text file may stand in double quotes, and then hold separators and line ends. By
            default where the separator is ``,``, ``;`` or ``|``; elsewhere a quote is a character like any other.
        encoding: Of a text file: utf-8, latin-1, cp1252, utf-16 or another that Python knows.
        kind: ``table``: a line of fields for each interaction; ``json``: a line of JSON for each; ``netflix``: blocks
            of lines user,rating,date below a line item:. By default told from the file name: json for .json, .jsonl and
            .ndjson, else a table.
        layout: The name of a public layout, such as movielens-1m, in place of the options above. Each of them may still
            be said besides, and wins. (In Python, an option that is at its default counts as not said.)
    """

    separator: str | None = None
    header: bool = True
    user_column: Column = "user"
    item_column: Column = "item"
    rating_column: Column | None = None
    timestamp_column: Column | None = "timestamp"
    threshold: float | None = None
    bad_rows: Literal["error", "drop"] = "error"
    quoted: bool | None = None
    encoding: str = "utf-8"
    kind: Kind | None = None
    layout: LayoutName | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout in LAYOUTS:
            for name, value in LAYOUTS[self.layout].values.items():
                if getattr(self, name) == _DEFAULTS[name]:
                    object.__setattr__(self, name, value)
        for name in ("rating_column", "timestamp_column"):
            if getattr(self, name) in ("null", "None"):  # how a null on the command line arrives where text is allowed
                object.__setattr__(self, name, None)
        check(*self._problems())

    def _problems(self) -> Iterator[str]:
        if self.layout is not None and self.layout not in LAYOUTS:
            yield f"{self.option('layout')}: no {self.layout!r}; there are {', '.join(LAYOUTS)}"
        if self.kind not in (None, "table"):
            for name in ("separator", "quoted"):
                if getattr(self, name) is not None:
                    yield f"{self.option(name)}: a file of kind {self.kind} has none; leave it out"
        if self.threshold is not None and self.rating_column is None:
            yield "threshold: needs rating_column, the column that it applies to"
        if self.separator == "":
            yield f"{self.option('separator')}: is empty"
        if not _is_encoding(self.encoding):
            yield (
                f"{self.option('encoding')}: {self.encoding!r} is none that Python knows; utf-8, latin-1, cp1252 and "
                "utf-16 are the usual ones"
            )
        # Where no separator is given, the file's name tells it later; `open_text` asks again then.
        if self.quoted and len((self.separator or ",").encode()) != 1:
            yield f"{self.option('quoted')}: needs a separator of one character, not {self.separator!r}"

    @property
    def drops(self) -> bool:
        """Whether the user may ask for bad rows to be left out."""
        return True

    def option(self, name: str) -> str:
        """The name by which the user gives one of these options, such as ``data.format.separator``."""
        return f"data.format.{name}"

    def wanted(self) -> dict[str, Column | None]:
        """The columns to read, by what they are for (user, item, rating, time); ``None`` for one that is not read."""
        wanted = {
            "user": self.user_column,
            "item": self.item_column,
            "rating": None,
            "time": self.timestamp_column,
        }
        if self.threshold is not None:
            wanted["rating"] = self.rating_column
        return wanted


_DEFAULTS = {field.name: field.default for field in fields(Format)}
_ANY_LAYOUT = ("threshold", "bad_rows", "layout")
"""Options that say nothing of how a file is laid out."""


def laid_out(name: LayoutName | None) -> dict[str, object]:
    """The value of every option that a named layout decides; without a name, the defaults."""
    values = {option: value for option, value in _DEFAULTS.items() if option not in _ANY_LAYOUT}
    return values | dict(LAYOUTS[name].values if name else {})


def _is_encoding(name: str) -> bool:
    try:
        "".encode(name)
    except (LookupError, ValueError):
        return False
    return True
