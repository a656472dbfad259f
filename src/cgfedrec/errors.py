"""The two ways in which a command ends badly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

LARGEST = 1e38
"""Of numbers that are computed with: float32 holds little more."""
MOST = 2**31 - 1
"""Of things that are counted."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text as it may go to a terminal: what would move its cursor, colour it or turn its direction is spelt out.

    Ids, titles and names of columns come from files, and may hold anything. Line ends and tabs stay.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Notice(UserWarning):
    """What a user should know of what they gave, and that ends nothing."""


class InputError(Exception):
    """What the user gave cannot be used; exit code 2. Holds every problem found, not only the first."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunError(Exception):
    """A run that started well has failed; exit code 1. The last good checkpoint stays."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at which of these names may have been meant, or nothing."""
    found = get_close_matches(name, list(names), 1)
    return f"; did you mean {found[0]}?" if found else ""


def check(*problems: str | None) -> None:
    """Raise one `InputError` with every problem that is not ``None``."""
    if found := [problem for problem in problems if problem]:
        raise InputError(found)


def not_positive(option: str, value: Any, most: float = LARGEST, or_none: bool = False) -> str | None:
    """The problem with a number that must be above 0 and at most ``most``; ``or_none``: or ``None``."""
    return None if or_none and value is None else _problem(option, value, 0, most, above=True)


def not_between(option: str, value: Any, low: float, high: float = LARGEST) -> str | None:
    """The problem with a number that must be from ``low`` to ``high``."""
    return _problem(option, value, low, high)


def no_count(option: str, value: Any, least: int = 1, most: int = MOST, or_none: bool = False) -> str | None:
    """The problem with a whole number that must be from ``least`` to ``most``; ``or_none``: or ``None``."""
    return None if or_none and value is None else _problem(option, value, least, most, whole=True)


def _problem(option: str, value: Any, low: float, high: float, above: bool = False, whole: bool = False) -> str | None:
    kind: Any = Integral if whole else Real  # numpy has numbers of its own
    if isinstance(value, bool) or not isinstance(value, kind) or value != value:
        return f"{option}: {'null' if value is None else value} is no {'whole ' if whole else ''}number"
    if value < low or (above and value == low):
        return f"{option}: {value} is {'not positive' if above or (whole and low == 1) else f'below {low:g}'}"
    return f"{option}: {value} is more than {high:,}" if value > high else None
