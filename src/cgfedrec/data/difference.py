"""The difference between two files of interactions, as a run sees it that goes on from one with the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.data.changes import KINDS, Changes, before_of, changes
from cgfedrec.data.days import days_ago, is_order, per_day
from cgfedrec.data.interactions import Interactions, Numbers
from cgfedrec.data.layout import Format
from cgfedrec.data.lists import Lists
from cgfedrec.data.ratings import read
from cgfedrec.errors import InputError, check

EXAMPLES = 3
"""Of each kind, that are shown."""


@dataclass(frozen=True)
class Difference:
    """What is different between two files.

    Args:
        old: The file as it was.
        new: The file as it is now.
        changes: Between their positive interactions, counted as in a run that goes on.
        user_ids: Of both files, ascending: changes have their places as numbers.
        item_ids: Likewise.
        days: Between the latest times of both; ``None`` where the times of one or both tell no days.
        reports: What was read and left out, of the old file and of the new one.
    """

    old: Path
    new: Path
    changes: Changes
    user_ids: pl.Series
    item_ids: pl.Series
    days: float | None
    reports: tuple[Mapping[str, int], Mapping[str, int]]

    @property
    def counts(self) -> dict[str, int]:
        """What changed, by what it is, and what did not.

        Items are new or gone as a catalogue sees them: new ones have not been in the file before, rated low or high;
        those gone were somebody's and are nobody's now.
        """
        return self.changes.counts

    @property
    def share(self) -> float:
        """How many interactions have come or gone, as a share of those of before."""
        return self.changes.share

    def examples(self, number: int = EXAMPLES) -> dict[str, list[tuple[object, ...]]]:
        """The first of each kind of change: ids of users or items, or of both for interactions."""
        then, now = self.changes.histories.train, self.changes.train
        new_items = np.setdiff1d(np.arange(len(self.item_ids)), self.changes.moved)
        gone = np.setdiff1d(then.items, now.items)
        had, has = then.lengths > 0, now.lengths > 0
        found: dict[str, list[tuple[object, ...]]] = {
            "new users": _ids(self.user_ids, np.flatnonzero(~had & has)[:number]),
            "users gone": _ids(self.user_ids, np.flatnonzero(had & ~has)[:number]),
            "new items": _ids(self.item_ids, new_items[:number]),
            "items gone": _ids(self.item_ids, gone[:number]),
        }
        for kind in KINDS:
            rows = self.changes.different.filter(pl.col("what") == kind).sort("user", "item").head(number)
            found[kind] = list(zip(self.user_ids[rows["user"]], self.item_ids[rows["item"]], strict=True))
        return found


def diff(old: str | Path, new: str | Path, format: Format | None = None) -> Difference:
    """Compare the positive interactions of two files, by user and item.

    It is what a run would see that goes on from the old file with the new one, where all of them are for training
    (``data.split: none``, ``data.min_interactions: 1``). Other splits hold some out, and drop users. Ids that are
    numbers in one and text in the other are compared as text.

    Args:
        old: The file as it was.
        new: The file as it is now.
        format: How both are laid out.

    Raises:
        InputError: if one of them cannot be read.
    """
    check(None if str(old) and str(new) else "data diff: the path of a file is empty")
    old, new = Path(old), Path(new)
    then, now = _read((old, new), format or Format())
    before = before_of(then.user_ids, then.item_ids, *_histories(then))
    both = before.beside(now, with_items=True)
    train, ages, latest = _histories(both)
    found = changes(before, both.user_ids, both.item_ids, train, ages, latest or 0.0)
    days = None if before.now is None or latest is None else latest - before.now
    return Difference(old, new, found, both.user_ids, both.item_ids, days, (then.report, now.report))


def _read(paths: tuple[Path, Path], layout: Format) -> list[Interactions]:
    found, problems = list[Interactions](), list[str]()
    for path in paths:
        try:
            found.append(read(path, layout))
        except InputError as error:
            problems += error.problems
        else:
            if not found[-1].positive.any():
                problems.append(f"{path}: no rating reaches {layout.option('threshold')} {layout.threshold:g}")
    check(*problems)
    return found


def _histories(data: Interactions) -> tuple[Lists, NDArray[np.float64] | None, float | None]:
    """Each user's positive items, how many days before the latest each was, and when that is, in days."""
    positive = data.only_positive()
    users, items = positive.users[positive.order], positive.items[positive.order]
    lists = Lists.of(users, items, len(data.user_ids))
    if data.times is None or positive.times is None or is_order(data.times):
        return lists, None, None
    times = positive.times[positive.order]
    return lists, days_ago(times, times.max()), float(times.max() / per_day(data.times))


def _ids(ids: pl.Series, numbers: Numbers) -> list[tuple[object, ...]]:
    """The ids of these numbers, `[numbers]`."""
    return [(one,) for one in ids[numbers]]
