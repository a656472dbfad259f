"""Rolling evaluation: cuts in time, before which models are trained, and after which users are asked for what is next.

Leave one out tests a user's last item against models that have seen what others did later. Here nothing after a cut is
there when a model is trained: at each cut everything is read as if the file ended with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgfedrec.data.core import core, left_out, no_core
from cgfedrec.data.interactions import Interactions
from cgfedrec.data.split import Part, latest_of_each, quantiles
from cgfedrec.errors import check, no_count

Lateness = Callable[[Interactions], list[NDArray[Any]]]


@dataclass(frozen=True)
class Rolling:
    """Where the cuts are, and who is asked.

    Args:
        cuts: How many. Their shares of all interactions are equally far apart.
        first: The share of all interactions that comes before the first cut.
        last: The same of the last one.
        at: The cuts as times, in what the file counts, in place of shares.
        choosing: So many of the first cuts only choose settings, and are not reported; by default a third of all. What
            is reported at a later cut has the settings that did best at all cuts before it. With 0 settings are as they
            are given, and all cuts are reported.
        least: Interactions that users need before a cut to be asked for their next one.
        cut: One of the cuts, counted from 1, to be trained for alone; by default all, one after another.
    """

    cuts: int = 15
    first: float = 0.30
    last: float = 0.97
    at: Sequence[float] | None = None
    choosing: int | None = None
    least: int = 5
    cut: int | None = None

    def __post_init__(self) -> None:
        check(*self._problems())

    def _problems(self) -> Iterator[str | None]:
        yield no_count("data.rolling.cuts", self.cuts, most=1000)
        if not 0 < self.first <= self.last < 1:
            yield f"data.rolling.first, data.rolling.last: {self.first}, {self.last} must rise between 0 and 1"
        if self.at is not None and (not self.at or list(self.at) != sorted(set(self.at))):
            yield f"data.rolling.at: {list(self.at)} must be times that rise"
        if problem := no_count("data.rolling.choosing", self.choosing, 0, or_none=True):
            yield problem
        elif self.choosing is not None and self.choosing >= self.number:
            yield f"data.rolling.choosing: {self.choosing} of {self.number} cuts leave none to report"
        yield no_count("data.rolling.least", self.least)
        if problem := no_count("data.rolling.cut", self.cut, or_none=True):
            yield problem
        elif self.cut is not None and self.cut > self.number:
            yield f"data.rolling.cut: there are {self.number} cuts, and no number {self.cut}"

    @property
    def number(self) -> int:
        """How many cuts there are."""
        if self.at is not None:
            return len(self.at)
        return self.cuts

    @property
    def num_choosing(self) -> int:
        """How many of them only choose settings."""
        if self.choosing is not None:
            return self.choosing
        if self.number < 3:
            return self.number - 1
        return self.number // 3

    def chooses(self, cut: int) -> bool:
        """Whether a cut, counted from 1, only chooses settings."""
        return cut <= self.num_choosing

    def cut_at(self, times: NDArray[Any]) -> Cut | None:
        """The cut to be trained for, of those at these times `[cuts]`; ``None`` where that is all of them."""
        if self.cut is None:
            return None
        asked = Part.VAL if self.chooses(self.cut) else Part.TEST
        return Cut(times[self.cut - 1], asked, self.least)

    def asked(self, data: Interactions, times: NDArray[Any], fewest: int, min_users: int) -> list[int]:
        """How many users each cut asks, of those at these times `[cuts]`: they are the cases of an evaluation.

        Args:
            data: All that was read, with times.
            times: Of `times`.
            fewest: As of `Cut.until`.
            min_users: As of `Cut.until`.
        """
        found, number = [], len(data.user_ids)
        for time in times:
            before = data.times < time
            here, inside = core(data, before & data.positive, fewest, min_users)
            liked = data.positive & inside[data.items]
            numbers = np.bincount(data.users[before & liked], minlength=number)
            goes_on = np.bincount(data.users[~before & liked], minlength=number) > 0
            found.append(int((goes_on & here & (numbers >= self.least)).sum()))
        return found

    def times(self, data: Interactions) -> NDArray[Any]:
        """The time of each cut, `[cuts]`. What has this time comes after it.

        Raises:
            InputError: where cuts fall together, or nothing lies before the first.
        """
        of_all = data.only_positive().times
        assert of_all is not None
        if self.at is not None:
            found = np.asarray(self.at, of_all.dtype if of_all.dtype.kind == "f" else None)
            option = "data.rolling.at"
        else:
            found = quantiles(of_all, np.linspace(self.first, self.last, self.cuts).tolist())
            option = "data.rolling.cuts"
        together = len(found) - len(np.unique(found))
        problems = []
        if together:
            problems.append(
                f"{option}: {together} of {len(found)} cuts fall on the time of another: there are too few "
                "different times; choose fewer cuts"
            )
        if found[0] <= of_all.min():
            problems.append(f"{option}: nothing comes before the first cut, {found[0]}")
        check(*problems)
        return found


@dataclass(frozen=True)
class Cut:
    """One cut.

    Args:
        time: What has this time or a later one comes after it.
        asked: What the next interactions are for: validation where the cut only chooses settings, or test.
        least: Positive interactions that users need before it to be asked for their next one.
    """

    time: float
    asked: Part
    least: int

    def until(self, data: Interactions, fewest: int, min_users: int, lateness: Lateness) -> Interactions:
        """What is known at the cut, and the next positive interaction of each user who is asked. Nothing else is left.

        Who and what takes part is decided by what comes before the cut alone. Where items need users, those that too
        few have by then are no part of the catalogue, and nobody is asked for them.

        Args:
            data: All that was read, with times.
            fewest: Positive interactions that users need before the cut to be there at all.
            min_users: Users that items need before the cut to be there at all.
            lateness: Says which of a user's interactions is later: `cgfedrec.data.split.lateness`.

        Raises:
            InputError: if nobody has enough.
        """
        assert data.times is not None
        before = data.times < self.time
        counted = before & data.positive
        here, inside = core(data, counted, fewest, min_users)  # [users], [items]
        check(no_core(data, counted, here, f"data.rolling: before the cut {self.time}", fewest, min_users))
        there = inside[data.items]  # [interactions]
        numbers = np.bincount(data.users[counted & there], minlength=len(data.user_ids))
        kept = before & there & here[data.users]
        asked = ~before & data.positive & there & (here & (numbers >= self.least))[data.users]
        if asked.any():
            later = data.keep_rows(asked)
            levels = [_reversed(level)[later.order] for level in lateness(later)]
            first = later.order[latest_of_each(later.users[later.order], levels)]
            kept[np.flatnonzero(asked)[first]] = True
        left = data.keep_rows(kept)
        left.report["interactions after the cut"] = int((~before & ~kept).sum())
        if min_users > 1:
            left.report |= left_out(data, counted, here, inside)
        return left

    def parts(self, data: Interactions) -> NDArray[np.int8]:
        """The `Part` of every interaction that `until` has left, `[interactions]`."""
        assert data.times is not None
        return np.where(data.times < self.time, Part.TRAIN, self.asked).astype(np.int8)


def _reversed(level: NDArray[Any]) -> NDArray[Any]:
    """The level of an order turned round, so that what came first comes last."""
    if level.dtype.kind == "u":
        return np.iinfo(level.dtype).max - level
    return -level
