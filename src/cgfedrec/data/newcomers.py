"""Newcomers: people who were not in training, with their items numbered as in the data of those who were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.data.ids import as_ids, places
from cgfedrec.data.interactions import Interactions, Numbers
from cgfedrec.data.layout import Format
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.data.ratings import of_frame
from cgfedrec.data.report import OUTSIDE, left_out, many, named
from cgfedrec.data.rolling import Rolling
from cgfedrec.data.split import Part
from cgfedrec.errors import check

Histories = Mapping[Any, Sequence[Any]]
"""Users' items, the oldest first."""
Given = Histories | pl.DataFrame | str | Path
"""Histories of newcomers: lists, a table with the columns user, item and, if any, timestamp, or a file."""


class Newcomers(FederatedDataModule):
    """People who were not in training, on the catalogue of those who were.

    Nobody trains on them: what is split off for training is their history. Items outside the catalogue are left out. If
    one is held out for a test, it stays as a miss (`misses`). A history has no order where those in training have none.

    Args:
        trained: What a federation was trained on, set up: it says which items there are, and how results are measured.
        given: Their interactions.
        format: How these are laid out, if they are in a file.
        tested: Whether something is held out, by the split of ``trained``; otherwise all is history.

    Attributes:
        unknown: `[unknown]`: the ids of items that are not in the catalogue.
        misses: `[users]`: how many items of each that are held out for a test are not in it.
        also_trained: `[users]`: the ids that people in training have too. They are served as anybody else here.
    """

    def __init__(
        self, trained: FederatedDataModule, given: Given, format: Format | None = None, tested: bool = False
    ) -> None:
        path, in_memory = None, None
        check("histories: name nobody" if not isinstance(given, str | Path) and not len(given) else None)
        if isinstance(given, str | Path):
            path = str(given)
        elif isinstance(given, pl.DataFrame):
            times = "timestamp" if "timestamp" in given.columns else None
            in_memory = of_frame(given, Format(timestamp_column=times))
        else:
            in_memory = of_lists(given)
        super().__init__(
            path,
            format or trained.format,
            split=trained.split if tested else "none",
            temporal_fractions=trained.temporal_fractions,
            rolling=trained.rolling,
            min_interactions=trained.min_interactions if tested else 1,
        )
        if trained.cut:  # the very cut, wherever it lies among their interactions
            self.rolling = Rolling(at=[trained.cut.time], least=trained.cut.least, cut=1)
        self.negatives = 0  # nobody draws any, and so nobody is dropped for having too many items
        self.trained, self._in_memory = trained, in_memory
        self.attach(trained.protocol, trained.seed, trained.track)

    def setup(self, stage: str | None = None) -> None:
        """Read and split. Raises `InputError` if nobody is left."""
        super().setup(stage)
        self.people = replace(self.people, left=self.trained.people.left)
        self.also_trained = self.user_ids.filter(pl.Series(places(self.user_ids, self.trained.user_ids) >= 0))

    def read(self) -> Interactions:
        """What the file or the memory holds, without times where those in training had none."""
        found = self._in_memory or super().read()
        if not self.trained.has_times:
            found = replace(found, times=None)
        return found

    def _kept(self, read_in: Interactions, fewest: int) -> tuple[Interactions, NDArray[np.int8]]:
        kept, part = read_in, np.zeros(int(read_in.positive.sum()), np.int8)
        if self.split != "none":
            kept, part = super()._kept(read_in, fewest)
        number = places(kept.item_ids, self.trained.item_ids)
        number = np.where(np.isin(number, self.trained.people.left), -1, number)
        self.unknown = kept.item_ids.filter(pl.Series(number < 0))
        known = number[kept.items] >= 0
        missed = kept.users[kept.positive][(part == Part.TEST) & ~known[kept.positive]]
        self.misses: NDArray[np.int64] = np.bincount(missed, minlength=len(kept.user_ids))
        items: Numbers = number[kept.items[known]]
        report = kept.report | {OUTSIDE: int((~known).sum())}
        times = kept.times if kept.times is None else kept.times[known]
        ids = (kept.user_ids, self.trained.item_ids)
        placed = Interactions(*ids, kept.users[known], items, times, kept.positive[known], report)
        return placed, part[known[kept.positive]]

    def notes(self) -> list[str]:
        """What whoever gave these histories should know of them."""
        told = []
        if dropped := left_out(self.report):
            told.append(f"{self.path or 'histories'}: {dropped}")
        if len(self.unknown):
            told.append(
                f"{many(self.report[OUTSIDE], 'interaction is', 'interactions are')} left out: "
                f"{many(len(self.unknown), 'item is', 'items are')} not in the data of this checkpoint: "
                f"{named(self.unknown)}"
            )
        if len(self.also_trained):
            told.append(
                f"{many(len(self.also_trained), 'user was', 'users were')} in training too, and here "
                f"{'is' if len(self.also_trained) == 1 else 'are'} served by the history that is given, as anybody "
                f"else: {named(self.also_trained)}"
            )
        return told


def of_lists(histories: Histories) -> Interactions:
    """Interactions of users' items, the oldest first; of an item that stands there twice, its first place counts."""
    lists = {str(user): list(dict.fromkeys(map(str, items))) for user, items in histories.items()}
    named = all(one.strip() for user, items in lists.items() for one in (user, *items))
    check(None if named else "histories: an id of a user or an item is empty")
    user_ids = as_ids(pl.Series(list(lists), dtype=pl.String)).sort()
    lists = {user: lists[user] for user in user_ids.cast(pl.String)}
    each = as_ids(pl.Series([item for items in lists.values() for item in items], dtype=pl.String))
    item_ids = each.unique().sort()
    lengths = [len(items) for items in lists.values()]
    return Interactions(
        user_ids,
        item_ids,
        np.repeat(np.arange(len(lists)), lengths),
        places(each, item_ids),
        np.concatenate([np.arange(0), *map(np.arange, lengths)]),
        np.ones(len(each), bool),
        {"rows": len(each)},
    )
