"""What each user's held-out items are ranked against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.data.lists import Flat, Lists
from cgfedrec.data.split import Part
from cgfedrec.random import Stream, bits


@dataclass(frozen=True)
class RankingCohort:
    """Users and what their held-out items are ranked against."""

    users: Tensor
    """`[users]`, int64."""
    relevant: Tensor
    """`[users, relevant]`, the held-out items, -1 where a user has fewer."""
    candidates: Tensor
    """`[users, items]`, bool: the catalogue without the items that the user is known to have."""
    sampled: Tensor | None
    """`[users, candidates]`, where the protocol samples."""
    misses: Tensor | None = None
    """`[users, relevant]`, bool: held-out items that nobody can recommend, whatever they score; ``None`` for none."""


@dataclass(frozen=True)
class Candidates:
    """Says what is ranked for each user.

    Args:
        parts: Each user's positive items, a `Lists` for each `Part`.
        disliked: Each user's items below the rating threshold: the user knows them, so they are never ranked.
        touched: All items of each user, whatever they are for: a sample holds none of them.
        num_items: Of the catalogue.
        num_sampled: How many candidates are sampled for each user; ``None`` where the whole catalogue is ranked.
        seed: Of the sample.
        at_a_cut: Whether what is held out comes after a cut in time: what nobody had before it is a miss.
    """

    parts: Sequence[Lists]
    disliked: Lists
    touched: Lists
    num_items: int
    num_sampled: int | None
    seed: int
    at_a_cut: bool = False
    _drawn: dict[Part, NDArray[np.int32]] = field(default_factory=dict)

    def cohort(self, users: Tensor, part: Part) -> RankingCohort:
        """What is ranked for ``users``, `[users]`, when ``part`` is held out: validation or test.

        Nobody ranks what they have already: training items, and for a test validation items too, since they come before
        it in time.
        """
        numbers = users.numpy()
        known = self.known(numbers, part)
        candidates = np.ones((len(numbers), self.num_items), bool)
        candidates[known.row, known.items] = False
        sampled = None
        if self.num_sampled is not None:
            sampled = torch.from_numpy(self._sampled(part, self.num_sampled)[numbers]).long()
        relevant = torch.from_numpy(self.parts[part].padded(numbers, -1))
        return RankingCohort(users, relevant, torch.from_numpy(candidates), sampled, self.misses(relevant))

    @cached_property
    def unseen(self) -> NDArray[np.int64]:
        """Items that nobody had before the cut, `[any]`: no candidates, and a miss where they are held out."""
        if not self.at_a_cut:
            return np.empty(0, np.int64)
        train, disliked = (
            np.bincount(lists.items, minlength=self.num_items) for lists in (self.parts[Part.TRAIN], self.disliked)
        )
        return np.flatnonzero(train + disliked == 0)

    def misses(self, relevant: Tensor) -> Tensor | None:
        """Which held-out items `[users, relevant]` are unseen, likewise; ``None`` where none is."""
        if not len(self.unseen):
            return None
        return torch.isin(relevant, torch.from_numpy(self.unseen))

    def known(self, users: NDArray[np.int64], part: Part) -> Flat:
        """What is no candidate of ``users`` `[users]` when ``part`` is held out. An item may stand there twice."""
        parts = [self.parts[Part.TRAIN], self.disliked]
        if part == Part.TEST:
            parts.append(self.parts[Part.VAL])
        lists = [one.flat(users) for one in parts]
        if len(self.unseen):
            items, places = (np.tile(column, len(users)) for column in (self.unseen, np.arange(len(self.unseen))))
            lists.append(Flat(items, np.repeat(np.arange(len(users)), len(self.unseen)), places))
        return Flat(*(np.concatenate(columns) for columns in zip(*lists, strict=True)))

    def _sampled(self, part: Part, number: int) -> NDArray[np.int32]:
        """Every user's sample, `[users, number]`: drawn once, and the same in every round, so that rounds compare."""
        if part not in self._drawn:
            users = np.arange(len(self.touched.lengths))
            states = bits(self.seed, Stream.CANDIDATES, users, part)
            drawn = self.touched.drawn_outside(users, states, np.ones_like(users), number, self.num_items)
            self._drawn[part] = drawn.astype(np.int32)
        return self._drawn[part]
