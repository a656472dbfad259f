"""Each client's data: training cohorts with fresh negatives, ranking cohorts with candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from cgfedrec.client import Batch
from cgfedrec.data.layout import Format
from cgfedrec.data.ratings import Interactions, read
from cgfedrec.data.split import NEEDS_TIME, Part, SplitName, assign
from cgfedrec.data.synthetic import Synthetic, Track, untold
from cgfedrec.errors import check, no_count
from cgfedrec.protocol import Protocol
from cgfedrec.random import Stream, bits, distinct

Stage = Literal["val", "test"]
SHORTEST = 32
"""Samples to which a client with fewer is padded."""
DRAWN_AT_ONCE = 256
"""Users for whom candidates, or everyone's negatives, are drawn in one operation."""


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


@dataclass(frozen=True)
class _Lists:
    """A list of items for each user (compressed sparse rows)."""

    starts: NDArray[np.int64]
    items: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, users: NDArray[np.integer[Any]], items: NDArray[np.integer[Any]], num_users: int) -> _Lists:
        """Of interactions in ascending order of users, and of items within a user."""
        return cls(np.append(0, np.bincount(users, minlength=num_users).cumsum()), items)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def flat(self, users: NDArray[np.int64]) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64], NDArray[np.int64]]:
        """The lists of some users one after another: the items, whose each is (a place in ``users``), and its place in
        its list.
        """
        lengths = self.lengths[users]
        owner = np.repeat(np.arange(len(users)), lengths)
        place = np.arange(len(owner)) - (lengths.cumsum() - lengths)[owner]
        return self.items[self.starts[users][owner] + place], owner, place

    def padded(self, users: NDArray[np.int64], fill: int) -> NDArray[np.int64]:
        """`[users, longest]`, each list in its own row."""
        items, owner, place = self.flat(users)
        rows = np.full((len(users), self.lengths[users].max(initial=0)), fill)
        rows[owner, place] = items
        return rows

    def mask(self, users: NDArray[np.int64], num_items: int) -> NDArray[np.bool_]:
        """`[users, items]`, True where an item is in the user's list."""
        items, owner, _ = self.flat(users)
        marked = np.zeros((len(users), num_items), bool)
        marked[owner, items] = True
        return marked


class FederatedDataModule(LightningDataModule):
    """A table of interactions, split into the private data of each client.

    Args:
        path: CSV, TSV, ``::``-separated text (.dat) or Parquet, gzipped or alone in a zip, or a folder of Parquet
            parts; by default the embedded data set.
        format: How that file is laid out.
        synthetic: The embedded data set, used where there is no path.
        split: What is held out. ``leave_one_out``: a user's latest item for test, the one before it for validation;
            ``random``: two items at random; ``temporal``: one cut in time for all users; ``none``: nothing, for a
            model that is to be used and not measured.
        temporal_fractions: For ``temporal``, the shares of all interactions before validation and before test.
        min_interactions: Users with fewer are dropped, with a count.
        negatives: Negatives drawn for each positive, anew in every round.
        batch_size: Samples, positives and negatives, in a local batch; the last may be shorter.
    """

    def __init__(
        self,
        path: str | None = None,
        format: Format = Format(),  # noqa: B008, frozen
        synthetic: Synthetic = Synthetic(),  # noqa: B008, frozen
        split: SplitName = "leave_one_out",
        temporal_fractions: tuple[float, float] = (0.8, 0.9),
        min_interactions: int = 3,
        negatives: int = 4,
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        first, second = temporal_fractions
        fewest = 3 if split in ("leave_one_out", "random") else 1
        check(
            f"data.temporal_fractions: {first}, {second} must rise between 0 and 1"
            if not 0 < first < second < 1
            else None,
            f"data.min_interactions: {min_interactions} is below {fewest}, which split {split} needs"
            if min_interactions < fewest
            else no_count("data.min_interactions", min_interactions),
            no_count("data.negatives", negatives),
            no_count("data.batch_size", batch_size),
            f"data.format.timestamp_column: split {split} needs times; choose the split random or none"
            if path is not None and format.timestamp_column is None and split in NEEDS_TIME
            else None,
        )
        self.path = path
        self.format = format
        self.synthetic = synthetic
        self.split: SplitName = split
        self.temporal_fractions = temporal_fractions
        self.min_interactions = min_interactions
        self.negatives = negatives
        self.batch_size = batch_size
        self.protocol = Protocol()
        self.seed = 0
        self.track: Track = untold
        self._candidates: dict[Stage, NDArray[np.int32]] = {}

    def attach(self, protocol: Protocol, seed: int, track: Track = untold) -> None:
        """Say how results are measured, seed every draw, and say who tells of long work; before `setup`."""
        self.protocol, self.seed, self.track = protocol, seed, track

    def setup(self, stage: str | None = None) -> None:
        """Read and split. Raises `InputError` where the data cannot serve."""
        for name in ("_place", "_breadth", "_steps"):  # of the data before, if there were any
            self.__dict__.pop(name, None)
        self._candidates.clear()
        read_in = self._read()
        kept = self._drop(read_in)
        self.user_ids, self.item_ids = kept.user_ids, kept.item_ids
        self.num_users, self.num_items = len(kept.user_ids), len(kept.item_ids)
        self.report = kept.report
        self.known_ids = read_in.user_ids
        self._owned = self._owned_by_all(read_in)
        users, items, positive = (values[kept.order] for values in (kept.users, kept.items, kept.positive))
        part = np.full(len(kept.users), len(Part), np.int8)  # of no part: below the threshold
        part[kept.positive] = self._part
        part = part[kept.order]

        def lists(chosen: NDArray[np.bool_]) -> _Lists:
            return _Lists.of(users[chosen], items[chosen], self.num_users)

        self._parts = [lists(part == one) for one in Part]
        self._train = self._parts[Part.TRAIN]
        self._no_negatives = lists(positive) if self.protocol.leaks else self._train
        self._touched = _Lists.of(users, items, self.num_users)
        self._disliked = lists(~positive)
        self._check_pools()

    def _read(self) -> Interactions:
        if self.path is None:
            return self.synthetic.draw(self.seed, self.track)
        file = Path(self.path)
        size = f", {file.stat().st_size:,} bytes" if file.is_file() else ""
        (found,) = (read(path, self.format) for path in self.track([self.path], f"reading {self.path}{size}"))
        return found

    def _drop(self, data: Interactions) -> Interactions:
        """Leave out users with too few positive interactions, none to train on or no room for negatives; count them."""
        counts = np.bincount(data.users[data.positive], minlength=len(data.user_ids))
        kept = data.keep_users(counts >= self.min_interactions)
        check(
            f"{self.path or 'embedded data'}: no user has {self.min_interactions} interactions or more "
            f"(min_interactions); the most that one has is {counts.max(initial=0)}"
            if not len(kept.user_ids)
            else None
        )
        few = len(data.user_ids) - len(kept.user_ids)
        part = self._split(kept)
        owners = kept.users[kept.positive]
        avoided = owners if self.protocol.leaks else owners[part == Part.TRAIN]
        roomy = len(kept.item_ids) - np.bincount(avoided, minlength=len(kept.user_ids)) >= self.negatives
        trained = np.bincount(owners[part == Part.TRAIN], minlength=len(kept.user_ids)) > 0
        usable = roomy & trained
        check(
            "data.temporal_fractions: no user has interactions before the first cut" if not trained.any() else None,
            f"data.negatives: {self.negatives} different ones are asked for, but every user has all but "
            f"{self.negatives - 1} of the {len(kept.item_ids)} items or more"
            if not roomy.any()
            else None,
        )
        check(
            f"{self.path or 'embedded data'}: of {len(usable)} users, {int((~trained).sum())} have nothing to train "
            f"on, and the others have all but {self.negatives - 1} of the {len(kept.item_ids)} items or more "
            "(data.negatives)"
            if not usable.any()
            else None
        )
        self._part = part[usable[owners]]
        kept = kept.keep_users(usable)
        kept.report |= {
            "users with too few interactions": few,
            "users without training interactions": int((~trained).sum()),
            "users with too few items left as negatives": int((trained & ~roomy).sum()),
        }
        return kept

    def _split(self, data: Interactions) -> NDArray[np.int8]:
        return assign(data.only_positive(), self.split, self.protocol.ties, self.temporal_fractions, self.seed)

    def _owned_by_all(self, read_in: Interactions) -> _Lists:
        """What every user of the file has of the catalogue, dropped users and ratings below the threshold included."""
        last = len(self.item_ids) - 1
        number = np.minimum(self.item_ids.search_sorted(read_in.item_ids).to_numpy(), last)
        users, items = read_in.users[read_in.order], read_in.items[read_in.order]
        found = (self.item_ids[number] == read_in.item_ids).to_numpy()[items]
        return _Lists.of(users[found], number.astype(items.dtype)[items[found]], len(read_in.user_ids))

    def _check_pools(self) -> None:
        spare = self.num_items - self._no_negatives.lengths
        user = int(spare.argmin())
        unseen = self.num_items - self._touched.lengths
        other = int(unseen.argmin())
        check(
            f"data.negatives: {self.negatives} different ones are asked for, but user {self.user_ids[user]} leaves "
            f"only {spare[user]} of {self.num_items} items to draw from"
            if spare[user] < self.negatives
            else None,
            f"protocol.num_candidates: {self.protocol.num_candidates} is too many: user {self.user_ids[other]} leaves "
            f"only {unseen[other]} of {self.num_items} items untouched; give at most that, or protocol.candidates full"
            if self.protocol.ranking == "sampled" and unseen[other] < self.protocol.num_candidates
            else None,
        )

    @property
    def popularity(self) -> Tensor:
        """`[items]`: the share of users who have each item in training."""
        counts = np.bincount(self._train.items, minlength=self.num_items)
        return torch.from_numpy(counts / self.num_users)

    def training_matrix(self) -> csr_array:
        """`[users, items]`, float64: 1 where a user has an item in training; for those who see everyone's data."""
        ones = np.ones(len(self._train.items))
        return csr_array((ones, self._train.items, self._train.starts), shape=(self.num_users, self.num_items))

    def training_samples(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Everyone's training samples with the negatives that their clients would draw in round ``epoch``.

        Returns:
            Users `[positives]` and items `[positives, 1 + negatives]`, the positive first.
        """
        everyone = np.arange(self.num_users)
        parts = [everyone[start : start + DRAWN_AT_ONCE] for start in range(0, self.num_users, DRAWN_AT_ONCE)]
        items = np.concatenate([self._samples(users, epoch) for users in parts])
        return torch.from_numpy(np.repeat(everyone, self._train.lengths)), torch.from_numpy(items)

    def interactions_per_user(self) -> NDArray[np.int64]:
        """`[users]`: positive interactions, whatever they are for."""
        return sum((part.lengths for part in self._parts), np.zeros(self.num_users, np.int64))

    def users_per_item(self) -> NDArray[np.int64]:
        """`[items]`"""
        counts = (np.bincount(part.items, minlength=self.num_items) for part in self._parts)
        return sum(counts, np.zeros(self.num_items, np.int64))

    def part_size(self, part: Part) -> int:
        """How many interactions are for ``part``."""
        return len(self._parts[part].items)

    def holds_out(self, stage: Stage) -> bool:
        """Whether the split leaves anything for this stage."""
        return self.part_size(Part[stage.upper()]) > 0

    def fingerprint(self) -> str:
        """A hash of the data, the split and the ids: what a checkpoint must agree with to be used.

        Items below the rating threshold count too: they decide what is ranked and recommended.
        """
        digest = hashlib.sha256()
        for lists in (*self._parts, self._disliked):
            digest.update(lists.starts.astype("<i8").data)
            digest.update(lists.items.astype("<i8").data)
        for ids in (self.user_ids, self.item_ids):
            digest.update("\n".join(map(str, ids)).encode())
        return digest.hexdigest()

    def client_numbers(self) -> NDArray[np.int64]:
        """The client of every user in ``known_ids``, `[known]`; -1 for those who were dropped."""
        numbers = np.full(len(self.known_ids), -1)
        numbers[self.known_ids.search_sorted(self.user_ids).to_numpy()] = np.arange(self.num_users)
        return numbers

    def owned(self, known: NDArray[np.int64]) -> Tensor:
        """`[users, items]`, bool: every item that these of the ``known_ids`` have, whatever it was held out for."""
        return torch.from_numpy(self._owned.mask(known, self.num_items))

    def cohorts(self, participants: Tensor, cohort_size: int) -> Iterator[Tensor]:
        """Share out participants into cohorts, `[clients]` each, in `order`: in a cohort batches are of one width, and
        those who take more steps stand before those who take fewer.
        """
        users = participants[self._place[participants].argsort()]
        breadth = torch.from_numpy(self._breadth)[users]
        for one in breadth.unique().flip(0):
            yield from users[breadth == one].split(cohort_size)

    def order(self) -> Tensor:
        """All users: the widest batches first, then the most of them."""
        return torch.from_numpy(np.lexsort((-self._steps, -self._breadth)))

    @cached_property
    def _place(self) -> Tensor:
        """Where each user stands in `order`, `[users]`."""
        return self.order().argsort()

    @cached_property
    def _breadth(self) -> NDArray[np.int64]:
        """To how many samples each client's batches are padded, `[users]`: a power of two where it has but one.

        How a client's sums are rounded then depends on its own samples alone, and not on its cohort.
        """
        samples = self._train.lengths * (1 + self.negatives)
        powers = 2 ** np.ceil(np.log2(np.maximum(samples, SHORTEST))).astype(np.int64)
        return np.minimum(powers, self.batch_size)

    @cached_property
    def _steps(self) -> NDArray[np.int64]:
        """How many batches each client has in an epoch, `[users]`."""
        return -(-self._train.lengths * (1 + self.negatives) // self.batch_size)

    def draw(self, users: Tensor, round: int, epochs: int) -> list[Batch]:
        """Draw a cohort's negatives for one round, and cut its samples into batches, shuffled anew in every epoch.

        Each client goes from one epoch to the next on its own. Later batches hold only the first clients, those that
        still have some.

        Args:
            users: A cohort of `cohorts`, `[clients]`.
            round: From 1.
            epochs: Passes over the samples.
        """
        numbers = users.numpy()
        steps, breadth = self._steps[numbers], int(self._breadth[numbers[0]])
        counts = self._train.lengths[numbers] * (1 + self.negatives)
        samples, starts = self._samples(numbers, round).ravel(), counts.cumsum() - counts
        shape = (len(numbers), int(steps[0]), breadth)
        place = np.arange(shape[1] * breadth)
        inside = place < counts[:, None]
        sizes = inside.reshape(shape).sum(2).astype(np.float32)
        weights = inside.reshape(shape) / np.maximum(sizes, 1)[:, :, None]
        items, targets = np.empty((epochs, *shape), np.int64), np.empty((epochs, *shape), np.float32)
        for epoch in range(epochs):
            keys = bits(self.seed, Stream.SHUFFLE, numbers[:, None], round, epoch, place)
            order = _shuffled(keys, inside)
            items[epoch] = np.where(inside, samples.take(starts[:, None] + order, mode="clip"), 0).reshape(shape)
            targets[epoch] = (inside & (order % (1 + self.negatives) == 0)).reshape(shape)
        batches = []
        for step in range(epochs * shape[1]):
            mine = steps[epochs * steps > step]
            client, epoch_of, part = np.arange(len(mine)), step // mine, step % mine
            chosen = (
                items[epoch_of, client, part],
                targets[epoch_of, client, part],
                weights[client, part],
                sizes[client, part],
                part == mine - 1,
            )
            batches.append(Batch(*map(torch.from_numpy, chosen)))
        return batches

    def _samples(self, users: NDArray[np.int64], round: int) -> NDArray[np.int64]:
        """Every positive with its negatives behind it, one client after another, `[positives, 1 + negatives]`."""
        positives, client, place = self._train.flat(users)
        pool, starts, sizes = self._pool(users, self._no_negatives)
        places = place[:, None] * self.negatives + np.arange(self.negatives)
        drawn = bits(self.seed, Stream.NEGATIVES, users[client][:, None], round, places)
        samples = np.empty((len(positives), 1 + self.negatives), np.int64)
        samples[:, 0] = positives
        samples[:, 1:] = pool[starts[client][:, None] + distinct(drawn, sizes[client])]
        samples[:, 1:] -= client[:, None] * self.num_items
        return samples

    def _pool(
        self, users: NDArray[np.int64], excluded: _Lists
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The items outside each user's list, one user after another, where each user's begin, and how many.

        Of the user at place u, item i is given as u * items + i, which is faster to find.
        """
        free = np.flatnonzero(~excluded.mask(users, self.num_items))
        sizes = self.num_items - excluded.lengths[users]
        return free, sizes.cumsum() - sizes, sizes

    def ranked(self, stage: Stage, cohort_size: int) -> Iterator[Tensor]:
        """All users with something held out for ``stage``, in cohorts, in `order`, so that no row need be copied."""
        order = self.order()
        yield from order[torch.from_numpy(self._parts[Part[stage.upper()]].lengths > 0)[order]].split(cohort_size)

    def ranking(self, users: Tensor, stage: Stage) -> RankingCohort:
        """What is ranked for some users.

        In test, training and validation items are no candidates; in validation, training items are none.
        """
        numbers = users.numpy()
        known = self._train.mask(numbers, self.num_items) | self._disliked.mask(numbers, self.num_items)
        if stage == "test":
            known |= self._parts[Part.VAL].mask(numbers, self.num_items)
        return RankingCohort(
            users,
            torch.from_numpy(self._parts[Part[stage.upper()]].padded(numbers, -1)),
            torch.from_numpy(~known),
            torch.from_numpy(self._sampled(stage)[numbers]).long() if self.protocol.ranking == "sampled" else None,
        )

    def _sampled(self, stage: Stage) -> NDArray[np.int32]:
        """Each user's sampled candidates, `[users, candidates]`: the same in every round."""
        if stage not in self._candidates:
            places = np.arange(self.protocol.num_candidates)
            found = np.empty((self.num_users, len(places)), np.int32)
            for start in range(0, self.num_users, DRAWN_AT_ONCE):
                users = np.arange(start, min(start + DRAWN_AT_ONCE, self.num_users))
                drawn = bits(self.seed, Stream.CANDIDATES, users[:, None], Part[stage.upper()], places)
                pool, starts, sizes = self._pool(users, self._touched)
                found[users] = pool[starts[:, None] + distinct(drawn, sizes)] % self.num_items
            self._candidates[stage] = found
        return self._candidates[stage]


def _shuffled(keys: NDArray[np.uint64], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Places in ascending order of their keys, the invalid ones last: each in the low bits of its key, then sorted."""
    low = np.uint64(2 ** int(keys.shape[1] - 1).bit_length() - 1)
    packed = np.where(valid, keys, np.iinfo(np.uint64).max) & ~low | np.arange(keys.shape[1], dtype=np.uint64)
    packed.sort(axis=1)
    return (packed & low).astype(np.int64)
