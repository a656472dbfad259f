"""FederatedDataModule: a table of interactions becomes the private data of each client."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from cgfedrec.data.arguments import argument_problems, origin
from cgfedrec.data.batches import Batch, Batches
from cgfedrec.data.candidates import Candidates, RankingCohort
from cgfedrec.data.changes import Before, Changes, before_of, changes
from cgfedrec.data.days import days_ago, is_order, per_day
from cgfedrec.data.dropping import drop_users, pool_problems
from cgfedrec.data.histories import Histories, History
from cgfedrec.data.interactions import Interactions, renumbered
from cgfedrec.data.items import Items
from cgfedrec.data.layout import Format
from cgfedrec.data.lists import Lists, fingerprint
from cgfedrec.data.people import People
from cgfedrec.data.ratings import read_told
from cgfedrec.data.rolling import Cut, Rolling
from cgfedrec.data.split import Part, SplitName, assign, lateness
from cgfedrec.data.synthetic import Synthetic, Track, untold
from cgfedrec.errors import check, no_count
from cgfedrec.protocol import Protocol
from cgfedrec.random import mark, private_seed

Stage = Literal["val", "test"]


class FederatedDataModule(LightningDataModule):
    """A table of interactions, split into the private data of each client.

    It holds no batches and no dataset of its own: `Batches` draws what clients train on, and `Candidates` says what
    their held-out items are ranked against.

    Attributes:
        cut: Of a rolling evaluation, once it is set up for one.
        cut_times, asked: Of a rolling evaluation, the time of every cut, and how many users it asks.
        days: `[training interactions]`: how many days before the cut, or before the latest one, each was, users in
            order and items in order within a user; ``None`` where times tell no days.
        now: The time that they are counted from, in days.
        people: Everybody of the file, those included who were dropped.
        changes: What is different from the run that goes on with these data, if one does.

    Args:
        path: CSV, TSV, ``::``-separated text (.dat) or Parquet, gzipped or alone in a zip, or a folder of Parquet
            parts; by default the embedded data set.
        format: How that file is laid out.
        synthetic: The embedded data set, used where there is no path.
        split: What is held out. ``leave_one_out``: a user's latest item for test, the one before it for validation;
            ``random``: two items at random; ``temporal``: one cut in time for all users; ``rolling``: several cuts, and
            after each a user's next item; ``none``: nothing, for a model that is to be used and not measured.
        temporal_fractions: For ``temporal``, the shares of all interactions before validation and before test.
        rolling: For ``rolling``, where the cuts are.
        min_interactions: Users with fewer are dropped, with a count; under ``rolling`` with fewer before the cut.
        min_users: Items that fewer users have are left out, with a count, and then again users with too few, until
            nothing changes (a k-core); under ``rolling`` by what comes before the cut.
        negatives: Negatives drawn for each positive, anew in every round.
        batch_size: Samples, positives and negatives, in a local batch; the last may be shorter.
        items: A table of items, for their titles. Nothing is trained on it, and no server sees it.
    """

    def __init__(
        self,
        path: str | None = None,
        format: Format = Format(),  # noqa: B008, frozen
        synthetic: Synthetic = Synthetic(),  # noqa: B008, frozen
        split: SplitName = "leave_one_out",
        temporal_fractions: tuple[float, float] = (0.8, 0.9),
        rolling: Rolling = Rolling(),  # noqa: B008, frozen
        min_interactions: int = 3,
        negatives: int = 4,
        batch_size: int = 256,
        min_users: int = 1,
        items: Items = Items(),  # noqa: B008, frozen
    ) -> None:
        super().__init__()
        counts = {"min_users": min_users, "negatives": negatives, "batch_size": batch_size}
        check(*argument_problems(path, format, split, temporal_fractions, min_interactions, counts))
        self.path, self.format, self.synthetic = path, format, synthetic
        self.split: SplitName = split
        self.temporal_fractions, self.rolling = temporal_fractions, rolling
        self.min_interactions, self.min_users = min_interactions, min_users
        self.negatives, self.batch_size, self.items = negatives, batch_size, items
        self.protocol, self.run, self.seed, self.private_seed = Protocol(), "", 0, 0
        self.track: Track = untold
        self.cut: Cut | None = None
        self.days: NDArray[np.float64] | None = None
        self.now: float | None = None
        self.before: Before | None = None
        self.changes: Changes | None = None

    def attach(
        self, protocol: Protocol, seed: int, track: Track = untold, before: Before | None = None, run: str = ""
    ) -> None:
        """Say how results are measured, what is drawn from, and who tells how far long work is; before `setup`.

        Args:
            protocol: How results are measured.
            seed: Of the run: of embedded data, split and candidates. The private seed of the clients follows from it.
            track: Tells the user how far long work is.
            before: What clients had in a run that goes on with other data. Its users and items stay.
            run: What makes the run, as a text, by default a new one: all that trains after one call has one noise.
        """
        self.before = before
        check(no_count("seed_everything", seed, 0, 2**63 - 1))
        self.protocol, self.seed, self.track, self.run = protocol, int(seed), track, run or secrets.token_hex()
        # Negatives and the order of samples are a client's own business: they have a seed of their own.
        self.private_seed = private_seed(seed)

    def setup(self, stage: str | None = None) -> None:
        """Read the interactions and split them. Raises `InputError` if nobody can be trained on them."""
        read_in = self.read()
        if self.before:
            read_in = self.before.beside(read_in)
        fewest = self.min_interactions
        if self.split == "rolling":
            self.cut_times = self.rolling.times(read_in)
            self.cut = self.rolling.cut_at(self.cut_times)
            self.asked = self.rolling.asked(read_in, self.cut_times, fewest, self.min_users)
        if self.cut:
            # What comes after the cut is taken away before anything else looks at the data.
            read_in, fewest = self.cut.until(read_in, fewest, self.min_users, self._lateness), 1
        kept, part_of_positive = self._kept(read_in, fewest)
        if self.before:
            kept = kept.with_ids(self.before.user_ids, self.before.item_ids)
        self.user_ids, self.item_ids = kept.user_ids, kept.item_ids
        self.num_users, self.num_items = len(kept.user_ids), len(kept.item_ids)
        self.report = kept.report
        self.people = People.of(read_in, self.user_ids, self.item_ids, self.before is not None)
        # From here on all are in ascending order of users, and of items within a user: `Lists` need that.
        users, items, positive = kept.users[kept.order], kept.items[kept.order], kept.positive[kept.order]
        part = np.full(len(kept.users), len(Part), np.int8)  # items below the rating threshold are of no part
        part[kept.positive] = part_of_positive
        part = part[kept.order]

        def lists(chosen: NDArray[np.bool_]) -> Lists:
            return Lists.of(users[chosen], items[chosen], self.num_users)

        self._parts = [lists(part == one) for one in Part]
        self._train = self._parts[Part.TRAIN]
        later = None
        if kept.times is not None:
            # As the split ordered them: among positive interactions alone.
            training = renumbered(kept.positive)[kept.order[part == Part.TRAIN]]
            later = [level[training] for level in self._lateness(kept.only_positive())]
            if not is_order(kept.times):
                times = kept.times[kept.order[part == Part.TRAIN]]
                now = self.cut.time if self.cut else times.max()
                self.days, self.now = days_ago(times, now), float(now / per_day(kept.times))
        self._histories = Histories(self._train, later, self.days)
        if self.before:
            self.changes = changes(self.before, self.user_ids, self.item_ids, self._train, self.days, self.now or 0.0)
        self._disliked = lists(~positive)
        touched = Lists.of(users, items, self.num_users)
        no_negatives = lists(positive) if self.protocol.leaks else self._train
        check(*pool_problems(self.user_ids, self.num_items, self.negatives, no_negatives, touched, self.protocol))
        self.batches = Batches(self._train, no_negatives, self.num_items, self.negatives, self.batch_size)
        whose = self._parts, self._disliked, touched
        self.candidates = Candidates(*whose, self.num_items, self.protocol.num_sampled, self.seed, bool(self.cut))

    def read(self) -> Interactions:
        """All interactions, before the split. A subclass overrides it that has them from elsewhere."""
        if self.path is None:
            return self.synthetic.draw(self.seed, self.track)
        return read_told(self.path, self.format, self.track)

    def _kept(self, read_in: Interactions, fewest: int) -> tuple[Interactions, NDArray[np.int8]]:
        """Those who take part, and what each of their positive interactions is for (`drop_users`)."""
        name = origin(self.path, type(self).__name__)
        min_users = 1 if self.cut else self.min_users  # at a cut they have been left out
        return drop_users(read_in, name, self._split, fewest, min_users, self.negatives, self.protocol.leaks)

    def _lateness(self, data: Interactions) -> list[NDArray[Any]]:
        return lateness(data, self.protocol.ties, self.seed)

    def _split(self, data: Interactions) -> NDArray[np.int8]:
        if self.split == "rolling":
            positive = data.only_positive()
            return self.cut.parts(positive) if self.cut else np.zeros(len(positive.users), np.int8)
        return assign(data.only_positive(), self.split, self.protocol.ties, self.temporal_fractions, self.seed)

    @property
    def popularity(self) -> Tensor:
        """`[items]`: the share of users who have each item in training."""
        counts = np.bincount(self._train.items, minlength=self.num_items)
        return torch.from_numpy(counts / self.num_users)

    @cached_property
    def titles(self) -> Mapping[str, str]:
        """Of items, by their ids as text: as of `Items.titles`, read when first asked for."""
        return self.items.titles(self.item_ids)

    def training_matrix(self) -> csr_array:
        """`[users, items]`, float64: 1 where a user has an item in training, for models that see everyone's data."""
        ones = np.ones(len(self._train.items))
        return csr_array((ones, self._train.items, self._train.starts), shape=(self.num_users, self.num_items))

    def training_samples(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Everyone's training samples with the negatives that their clients would draw in round ``epoch``.

        Returns:
            Users `[positives]` and items `[positives, 1 + negatives]`, the positive first.
        """
        users, items = self.batches.samples_of_all(epoch, self.private_seed)
        return torch.from_numpy(users), torch.from_numpy(items)

    def interactions_per_user(self) -> NDArray[np.int64]:
        """`[users]`: how many positive interactions each has, whatever they are for."""
        return sum((part.lengths for part in self._parts), np.zeros(self.num_users, np.int64))

    def users_per_item(self) -> NDArray[np.int64]:
        """`[items]`: how many users have each as a positive interaction, whatever it is for."""
        counts = (np.bincount(part.items, minlength=self.num_items) for part in self._parts)
        return sum(counts, np.zeros(self.num_items, np.int64))

    def part_size(self, part: Part) -> int:
        """How many positive interactions are for ``part``."""
        return len(self._parts[part].items)

    def holds_out(self, stage: Stage) -> bool:
        """Whether the split leaves anything for this stage."""
        return self.part_size(Part[stage.upper()]) > 0

    def fingerprint(self) -> str:
        """A hash of the data, the split, the ids and training times: what a checkpoint must agree with to be used.

        Items below the rating threshold count too: they decide what is ranked and recommended.
        """
        return fingerprint((*self._parts, self._disliked), (self.user_ids, self.item_ids), self._histories.when)

    @cached_property
    def mark(self) -> bytes:
        """Of the run and all data: noise is drawn of it. If either differs it is other noise, and nothing cancels."""
        return mark(self.run, self.fingerprint(), self._histories.mark)

    def cohorts(self, participants: Tensor, cohort_size: int) -> Iterator[Tensor]:
        """Share out participants, `[participants]`, into cohorts of at most ``cohort_size``, `[clients]` each.

        They come in `order`. The batches of a cohort are equally wide, and whoever has more of them stands first.
        """
        return self.batches.cohorts(participants, cohort_size)

    def order(self) -> Tensor:
        """All users, `[users]`: those with the widest batches first, and among these the ones with the most."""
        return self.batches.order

    def draw(self, users: Tensor, round: int, epochs: int) -> list[Batch]:
        """Draw a cohort's negatives for one round, and cut its samples into batches, shuffled anew in every epoch.

        Args:
            users: One of `cohorts`, `[clients]`.
            round: From 1.
            epochs: Passes over the samples.

        Returns:
            The batches in order. Later ones hold only the first clients, those that still have some.
        """
        return self.batches.draw(users, round, epochs, self.private_seed)

    def to_keep(self) -> Before:
        """What clients have in training, for a run that goes on from here with other data."""
        return before_of(self.user_ids, self.item_ids, self._train, self.days, self.now)

    def histories(self, users: Tensor) -> History:
        """The training items of ``users``, `[clients]`, the newest first: what their own devices know of them."""
        return self._histories.of(users)

    @property
    def has_times(self) -> bool:
        """Whether the data tell in which order a user's interactions came."""
        return self._histories.lateness is not None

    def ranked(self, stage: Stage, cohort_size: int, among: Tensor | None = None) -> Iterator[Tensor]:
        """All users with something held out for ``stage``, or those ``among`` them, in cohorts, `[users]` each.

        They come in `order`, in which a store in memory holds their state: so nothing is copied to score them.
        """
        order = self.order()
        held_out = torch.from_numpy(self._parts[Part[stage.upper()]].lengths > 0)  # [users]
        if among is not None:
            held_out &= among
        yield from order[held_out[order]].split(cohort_size)

    def ranking(self, users: Tensor, stage: Stage) -> RankingCohort:
        """What is ranked for ``users``, `[users]`.

        In test, training and validation items are no candidates; in validation, training items are none.
        """
        return self.candidates.cohort(users, Part[stage.upper()])
