"""The two ways in which a command ends badly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text as it may go to a terminal: what would move its cursor, colour it or turn its direction is spelt out.

    Ids, titles and names of columns come from files, and may hold anything. Line ends and tabs stay.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class InputError(Exception):
    """What the user gave cannot be used; exit code 2. Holds every problem found, not only the first."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunError(Exception):
    """A run that started well has failed; exit code 1. The last good checkpoint stays."""


def check(*problems: str | None) -> None:
    """Raise one `InputError` with every problem that is not ``None``."""
    if found := [problem for problem in problems if problem]:
        raise InputError(found)


@contextmanager
def checked_with(*problems: str | None) -> Iterator[None]:
    """Raise these problems together with those that the body raises, in one `InputError`."""
    found = list(problems)
    try:
        yield
    except InputError as error:
        found += error.problems
    check(*found)


def not_positive(option: str, value: float | None) -> str | None:
    """The problem with a number that must be positive and finite; none for ``None``."""
    return None if value is None or 0 < value < float("inf") else f"{option}: {value} is not positive"
