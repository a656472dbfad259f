"""What a client trains on in a round: its interactions with fresh negatives, in batches, and who trains beside whom.

Clients of a cohort train together, so their batches lie in one tensor, `[clients, batch]`. Clients have different
numbers of samples, which is why batches are padded, and why a cohort gets narrower as its clients run out of batches.
Everything that is drawn hangs on (seed, client, round) alone, so no client notices in which cohort it trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.data.lists import Lists
from cgfedrec.random import Stream, bits

SHORTEST = 32
"""Samples to which a client with fewer is padded."""


class Batch(NamedTuple):
    """One local batch of each client that still has one. Those are the first clients of the cohort.

    Shorter batches are padded with item 0 at weight 0.

    Attributes:
        items: `[clients, batch]`, int64.
        targets: `[clients, batch]`, 1 for an interaction, 0 for a negative.
        weights: `[clients, batch]`: 1 / the client's own batch length, so that a weighted sum is the client's mean.
        sizes: `[clients]`, float32: the client's own batch length.
        ends: `[clients]`, bool: whether it is the client's last of an epoch.
    """

    items: Tensor
    targets: Tensor
    weights: Tensor
    sizes: Tensor
    ends: Tensor


@dataclass(frozen=True)
class Batches:
    """Draws the batches of all clients.

    Args:
        positives: Each user's training items.
        excluded: The items that are none of each user's negatives, the training items among them.
        num_items: Of the catalogue.
        negatives: How many are drawn for each positive, anew in every round.
        batch_size: Samples, positives and negatives, in a batch; the last one of an epoch may be shorter.
    """

    positives: Lists
    excluded: Lists
    num_items: int
    negatives: int
    batch_size: int

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """`[users]`: how many samples each client has in an epoch, negatives included."""
        return self.positives.lengths * (1 + self.negatives)

    @cached_property
    def able(self) -> Tensor:
        """Who has anything to train on, `[users]`, int64, ascending: all but users of a run before who have gone."""
        return torch.from_numpy(np.flatnonzero(self.counts))

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """`[users]`: how many batches each client has in an epoch."""
        return -(-self.counts // self.batch_size)

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """`[users]`: the number of samples to which each client's batches are padded.

        It is the batch size, or the next power of two where a client's samples fill no batch. How sums over a batch are
        rounded depends on its width. If a client were padded to the widest of its cohort, its result would depend on
        who else is in it.
        """
        powers = 2 ** np.ceil(np.log2(np.maximum(self.counts, SHORTEST))).astype(np.int64)
        return np.minimum(powers, self.batch_size)

    @cached_property
    def order(self) -> Tensor:
        """All users, `[users]`: those with the widest batches first, and among these the ones with the most."""
        return torch.from_numpy(np.lexsort((-self.steps, -self.widths)))

    @cached_property
    def place(self) -> Tensor:
        """`[users]`: where each user stands in `order`."""
        return self.order.argsort()

    def cohorts(self, participants: Tensor, cohort_size: int) -> Iterator[Tensor]:
        """Share out participants, `[participants]`, into cohorts, `[clients]` each, in `order`.

        The batches of a cohort are equally wide, and whoever has more of them stands before those who have fewer.
        """
        users = participants[self.place[participants].argsort()]
        widths = torch.from_numpy(self.widths)[users]
        for width in widths.unique().flip(0):
            yield from users[widths == width].split(cohort_size)

    def draw(self, users: Tensor, round: int, epochs: int, seed: int) -> list[Batch]:
        """A cohort's batches of one round: its negatives are drawn once, its samples shuffled anew in every epoch.

        Each client goes from one epoch to the next on its own. So later batches hold only the first clients of the
        cohort, those that still have some.

        Args:
            users: One of `cohorts`, `[clients]`.
            round: From 1.
            epochs: Passes over the samples.
            seed: Of negatives and of the order of samples.

        Raises:
            ValueError: for users in another order.
        """
        from cgfedrec.kernels import draws  # here, since numba takes half a second, and most commands draw nothing

        numbers, longest = users.numpy(), int(self.counts[users.numpy()].max())
        steps, width = self.steps[numbers], int(self.widths[numbers[0]])
        if (self.widths[numbers] != width).any() or (np.diff(steps) > 0).any():
            raise ValueError("the users are none of `cohorts`: their batches differ in width, or some have more later")
        states = bits(seed, Stream.SHUFFLE, numbers, round, np.arange(epochs)[:, None])
        positive = np.arange(longest) % (1 + self.negatives) == 0  # it stands first, and its negatives behind it
        # [steps of all epochs]: those who still have some are the first ones, by the order within a cohort.
        having = (epochs * steps > np.arange(epochs * steps[0])[:, None]).sum(1)
        rows = int(having.sum())
        found = (
            np.zeros((rows, width), np.int64),
            np.zeros((rows, width), np.float32),
            np.zeros((rows, width), np.float32),
            np.zeros(rows, np.float32),
            np.zeros(rows, bool),
        )
        samples, counts = self.samples(numbers, round, seed).ravel(), self.counts[numbers]
        if samples.dtype != np.int64 or len(samples) != counts.sum():
            raise ValueError(f"there are {len(samples)} samples ({samples.dtype}), and not {counts.sum()} (int64)")
        draws.batches(states, samples, counts, positive, having.cumsum() - having, *found)
        split = (torch.from_numpy(values).split(having.tolist()) for values in found)
        return [Batch(*parts) for parts in zip(*split, strict=True)]

    def samples(self, users: NDArray[np.int64], round: int, seed: int) -> NDArray[np.int64]:
        """Every positive of ``users``, `[clients]`, with its negatives behind it, one client after another.

        Args:
            users: In any order.
            round: For which negatives are drawn.
            seed: Of negatives.

        Returns:
            `[positives, 1 + negatives]`: the negatives of one positive are different items.
        """
        times = self.positives.lengths[users]
        states = bits(seed, Stream.NEGATIVES, users, round)
        positives = self.positives.flat(users).items[:, None]  # [positives, 1]
        return np.hstack([positives, self.excluded.drawn_outside(users, states, times, self.negatives, self.num_items)])

    def samples_of_all(self, round: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`samples` of every client: users `[positives]`, and items `[positives, 1 + negatives]`."""
        everyone = np.arange(len(self.counts))
        return np.repeat(everyone, self.positives.lengths), self.samples(everyone, round, seed)
