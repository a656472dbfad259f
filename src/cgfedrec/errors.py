"""The two ways in which a command ends badly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TypeGuard

LARGEST = 1e38
"""Of numbers that are computed with: float32 holds little more."""
MOST = 2**31 - 1
"""Of things that are counted."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text as it may go to a terminal: what would move the cursor, colour the text or turn it round is spelt out.

    Ids, titles and names of columns come from files, and may hold anything. Line ends and tabs stay.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Notice(UserWarning):
    """Something that users should know of what they gave. The command goes on."""


class InputError(Exception):
    """What the user gave cannot be used; exit code 2.

    Attributes:
        problems: Every problem found, not only the first.
    """

    code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        if isinstance(problems, str):  # it too is an iterable of texts, of its letters
            problems = [problems]
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class TooFewError(InputError):
    """Too few clients have changes to go on from a run with them; exit code 3.

    A job that comes again goes on from the same run then, and must be able to tell this from what it has to mend.
    """

    code = 3


class BusyError(InputError):
    """Somebody else is at work in a folder; see `cgfedrec.files.locked`."""


class RunError(Exception):
    """A run that started well has failed; exit code 1. The last good checkpoint stays."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at which of these names may have been meant, or nothing."""
    by_lower = {one.lower(): one for one in names}
    found = get_close_matches(name.lower(), list(by_lower), 1)
    if not found:
        return ""
    return f"; did you mean {by_lower[found[0]]}?"


def check(*problems: str | None) -> None:
    """Raise one `InputError` with every problem that is not ``None``."""
    if found := [problem for problem in problems if problem]:
        raise InputError(found)


def not_positive(option: str, value: object, most: float = LARGEST, or_none: bool = False) -> str | None:
    """The problem with a number that must be above 0 and at most ``most``; ``or_none``: or ``None``."""
    if or_none and value is None:
        return None
    if not _is_number(value):
        return f"{option}: {_shown(value)} is no number"
    if value <= 0:
        return f"{option}: {value} is not positive"
    return _too_much(option, value, most)


def not_between(option: str, value: object, low: float, high: float = LARGEST) -> str | None:
    """The problem with a number that must be from ``low`` to ``high``."""
    if not _is_number(value):
        return f"{option}: {_shown(value)} is no number"
    if value < low:
        return f"{option}: {value} is below {low:g}"
    return _too_much(option, value, high)


def no_count(option: str, value: object, least: int = 1, most: int = MOST, or_none: bool = False) -> str | None:
    """The problem with a whole number that must be from ``least`` to ``most``; ``or_none``: or ``None``."""
    if or_none and value is None:
        return None
    if not _is_number(value) or not isinstance(value, Integral):
        return f"{option}: {_shown(value)} is no whole number"
    if value < least and least == 1:
        return f"{option}: {value} is not positive"
    if value < least:
        return f"{option}: {value} is below {least:g}"
    return _too_much(option, value, most)


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number of Python or of numpy. NaN is none, and to Python true would be one."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(value == value)


def _too_much(option: str, value: float, most: float) -> str | None:
    if value > most:
        return f"{option}: {value} is more than {most:,}"
    return None


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return str(value)
