"""What was read and what was left out, counted, in one line for a person."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import polars as pl

SHOWN = 5
"""Of many things, so many are named."""
BREAKS = "line ends within quotes"
"""Counted, though nothing is lost by them: in a file with a stray quote they hold what should be rows."""
PADDED, HOLLOW = "ids with blanks at an end", "ids such as NA, null, None or nan"
"""Counted, though they are ids like any other: a file that was exported without care has them."""
OUTSIDE = "of items outside the catalogue"
"""Interactions of people who were not in training; a note of its own names their items."""
_TOLD_OF = (BREAKS, PADDED, HOLLOW)
_NOT_LEFT_OUT = ("rows", *_TOLD_OF, OUTSIDE)
_EXPLAINED = {"duplicates": "duplicates (the same user and item again: the earliest counts, without times the first)"}

_PLURAL = re.compile(r"\b(duplicate|header|id|interaction|item|line end|row|user)s\b")


def left_out(report: Mapping[str, int]) -> str:
    """What a report counts as left out, and what it counts besides; empty if there is nothing to tell.

    >>> left_out({"rows": 1200, "unreadable rows": 231, "duplicates": 0, BREAKS: 4})
    'left out: 231 unreadable rows; 4 line ends within quotes'
    """
    counts = ", ".join(
        counted(count, _EXPLAINED.get(what, what))
        for what, count in report.items()
        if what not in _NOT_LEFT_OUT and count
    )
    told = [f"left out: {counts}"] if counts else []
    told += [counted(report[what], what) for what in _TOLD_OF if report.get(what)]
    return "; ".join(told)


def counted(count: int, what: str) -> str:
    """How many there are of what a report calls in the plural.

    >>> counted(1, "users gone"), counted(1200, "unreadable rows")
    ('1 user gone', '1,200 unreadable rows')
    """
    if count == 1:
        what = _PLURAL.sub(r"\1", what, count=1)
    return f"{count:,} {what}"


def many(count: int, one: str, more: str) -> str:
    """How many there are of something, which is called otherwise where it is one."""
    return f"{count:,} {one if count == 1 else more}"


def named(things: Sequence[object] | pl.Series, shown: int = SHOWN) -> str:
    """The first of some things, and how many more there are.

    >>> named(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    told = ", ".join(map(str, things[:shown]))
    if len(things) > shown:
        told += f" and {len(things) - shown:,} more"
    return told
