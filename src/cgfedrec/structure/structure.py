"""Structure: what a server discovers from sums and sends down, and what a client does with it.

A new kind of structure is one file: a `Structure` with its settings, and the `SumsClient` that reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cgfedrec.client import Batch
from cgfedrec.data.candidates import RankingCohort
from cgfedrec.errors import RunError
from cgfedrec.evaluation.ranking import gains
from cgfedrec.kit.sums import AddingClient
from cgfedrec.random import mark
from cgfedrec.structure.discover import Found
from cgfedrec.structure.discovery import TRAIN, Discovery, Step, changes_of, known_from
from cgfedrec.structure.judging import JUDGED_BY, UNIT, judgement
from cgfedrec.structure.private import CHOOSE, judged
from cgfedrec.structure.refusing import refusal
from cgfedrec.structure.tallies import SHARES, Known, Tally
from cgfedrec.structure.updating import Past, change_field, change_of
from cgfedrec.wire.codec import encode
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Counts, Field, Value

LEVELS = 255
"""Popularities of late are sent in so many steps: 8 bits an item."""


class Structure(ABC):
    """A kind of structure, its settings among its fields."""

    verifies: ClassVar[bool]
    """Whether it needs candidate pairs, which are counted unless a setting forbids it."""

    @property
    def train_rounds(self) -> int:
        """For how many rounds clients train what they read it with; 0 where nothing is trained."""
        return 0

    @property
    def readings(self) -> Sequence[str]:
        """The ways to read it, in a word or two each. If there are several, clients choose by validation."""
        return ("default",)

    @property
    def recently(self) -> tuple[float, ...]:
        """Half-lives in days of popularities of late that it reads; by default none."""
        return ()

    @property
    def alternative(self) -> Mapping[str, Any]:
        """Settings with which it has everything to choose among that only earlier cuts in time can judge."""
        return {}

    def fixed(self, reading: str) -> Mapping[str, Any]:
        """Settings with which it has what a reading of the `alternative` needs, and no more."""
        return {}

    def tallies(self, discovery: Discovery, num_items: int) -> list[Tally]:
        """The sums of a run, in order."""
        return discovery.tallies(num_items, self.verifies, self.recently)

    def timeline(self, discovery: Discovery, num_items: int) -> list[Step]:
        """All steps of a run, in order, as both halves know them."""
        tallies = self.tallies(discovery, num_items)
        return discovery.timeline(tallies, self.train_rounds, len(self.readings) > 1)

    @abstractmethod
    def problems(self) -> Iterator[str | None]:
        """What is wrong with its settings."""

    @abstractmethod
    def find(self, found: Found, discovery: Discovery) -> dict[str, Value]:
        """The server's half: what goes down, once, from what the sums have told."""

    @abstractmethod
    def fields(self, known: Known, discovery: Discovery) -> dict[str, Field]:
        """What this is like, by name: what a client expects."""

    def average(self, known: Known) -> Field | None:
        """What a trained client sends up, to be averaged over clients and sent back; ``None`` for nothing."""
        return None

    @abstractmethod
    def client(self, discovery: Discovery, num_items: int, seed: int) -> SumsClient:
        """The clients' half."""


class SumsClient(AddingClient):
    """A client that adds to sums, and reads the structure that comes of them.

    A subclass says what its trained parameters are, how it trains in a round of the phase ``train`` (`train_batches`,
    `training_step`), and how it scores (`read`).

    Attributes:
        wary: Whether it refuses what looks aimed at somebody. What follows from a sample's sums often does.

    Args:
        structure: The kind.
        discovery: How it is found.
        num_items: n.
        seed: The private one.
    """

    def __init__(self, structure: Structure, discovery: Discovery, num_items: int, seed: int) -> None:
        timeline = structure.timeline(discovery, num_items)
        # A late pass has the phases of the first, and a client adds to each in one of them.
        phases = list(dict.fromkeys(step.phase for step in timeline if step.phase != TRAIN))
        super().__init__(len(phases))
        self.structure, self.discovery, self.num_items, self.seed = structure, discovery, num_items, seed
        self.timeline, self.phases = timeline, phases
        self.changes = changes_of([step.tally for step in timeline if step.tally is not None and not step.late])
        self.step: Step | None = None
        self.past: Past | None = None
        self.kept: Mapping[str, Mapping[str, Value]] = {}
        self.wary = True
        self.refused: str | None = None  # why nothing is added to the sum that is asked for
        self._asked: tuple[Step, Known, Field] | None = None  # the last `_field`, and of what
        self._read: dict[str, int] = {}  # which bulletins `kept` and `known` were made from
        self._came = b""  # their mark, once it was needed
        self.average: Tensor | None = None
        self.chosen = place_of(structure, discovery)

    def welcome(self, broadcast: Broadcast | None) -> None:
        super().welcome(broadcast)
        assert broadcast is not None
        clients = broadcast.values["clients"]
        assert isinstance(clients, Tensor)
        self.nothing_known = self.known = Known(self.num_items, int(clients), self.shared_seed)

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        assert broadcast is not None
        kept = {name.split("/")[0]: bulletin for name, bulletin in broadcast.kept.items()}
        if {name: id(bulletin) for name, bulletin in kept.items()} != self._read:
            self._read = {name: id(bulletin) for name, bulletin in kept.items()}
            self.kept = {name: bulletin.values for name, bulletin in kept.items()}
            first = self.timeline[0].tally
            assert first is not None
            self.known = known_from(self.nothing_known, self.kept, self.discovery.least_clients, first.unit)
            self.refused = refusal(self.known, self.discovery) if self.wary else None
            self._came = b""
            self.changed()
        values = broadcast.values
        self.step = self.past = None
        if "step" in values:
            timeline = self.timeline
            if "days" in values:  # only what has changed is asked for
                timeline = self.changes
                self.past = self._past(float(values["days"]))  # type: ignore[arg-type]
            self.step = timeline[int(values["step"])]  # type: ignore[arg-type]
        if "reading" in self.kept:
            values = self.kept["reading"]
            self.chosen = int(values["chosen"])  # type: ignore[arg-type]
        self.average = values.get("average")  # type: ignore[assignment]

    def _past(self, days: float) -> Past:
        """Of the sums of some days before."""
        if "past" not in self.kept:  # before the first sum, nothing else of it is known, or needed
            return Past(torch.empty(0, 0), 0, days)
        counts, rows = self.kept["past"]["counts"], self.kept["before"]["rows"]
        assert isinstance(counts, Counts)
        return Past(counts.values, int(rows), days)  # type: ignore[arg-type]

    def changed(self) -> None:
        """Called when bulletins have come down: `kept` and `known` hold them."""

    @property
    def structured(self) -> bool:
        """Whether a structure has come down."""
        return "structure" in self.kept

    def batches(self) -> Sequence[Batch]:
        if self.step is None or self.step.phase != TRAIN:
            return []
        return self.train_batches()

    def train_batches(self) -> Sequence[Batch]:
        """What is trained on in a round of the phase ``train``."""
        return []

    def upload(self) -> Upload:
        """What the step asks for. Raises `RunError` where clients refuse to add anything."""
        if self.step is None:
            return Upload(self.users[:0])
        if self.refused:
            raise RunError(f"clients refuse to add to the sum {self.step.phase!r}: {self.refused}")
        if self.step.tally is not None:
            return self._addition(self.step)
        if self.step.phase == CHOOSE:
            return self._judgement(self.due(self.phases.index(CHOOSE)))
        learned = self.learned()
        if learned is None:
            return Upload(self.users[:0])
        return Upload(self.users, {TRAIN: learned})

    def learned(self) -> Tensor | None:
        """What trained clients send up to be averaged, `[clients, ...]`, as `Structure.average` says."""
        return None

    def _addition(self, step: Step) -> Upload:
        """What those clients add to a sum who have not added to it yet."""
        tally, known = step.tally, self._marked()
        assert tally is not None
        due = self.due(self.phases.index(tally.name))
        if step.late and known.rows is not None and "late" in self.kept:
            counts = self.kept["late"]["counts"]
            assert isinstance(counts, Counts)
            known = known.for_others(counts.values)
        history, users = self.own.history, self.users
        if not due.all():
            history, users = history.of(due), users[due]
        if self.past is not None:
            before = self.own.before.of(due)
            added = change_of(tally, history, before, users, known, self.past, self.seed)
            return Upload.of_fields(users, {tally.name: added}, {tally.name: change_field(tally, known, self.past)})
        added = tally.of(history, users, known, self.seed)
        return Upload.of_fields(users, {tally.name: added}, {tally.name: self._field(step, known)})

    def _field(self, step: Step, known: Known) -> Field:
        """What one client sends. The bounds of many pairs take long to make, and are the same for all cohorts."""
        assert step.tally is not None
        # What is known in a step follows from what has come down: marks and late clients make it anew each time.
        if self._asked is None or self._asked[0] is not step or self._asked[1] is not self.known:
            self._asked = (step, self.known, step.tally.field(known))
        return self._asked[2]

    def _marked(self) -> Known:
        """What is known, with the mark that noise is drawn of. Only under privacy: otherwise there is no noise."""
        if self.discovery.privacy is None:
            return self.known
        if not self._came:
            self._came = mark(*(part for name in sorted(self.kept) for part in (name, encode(self.kept[name]))))
        return replace(self.known, mark=mark(self.own.mark, self._came, str(self.own.round)))

    def _judgement(self, due: Tensor) -> Upload:
        """How well each reading ranks what those hold out who are due `[clients]`, in units of `UNIT`."""
        held_out = self.own.validation()
        number = len(self.structure.readings)
        if held_out is None:  # nobody can judge, and the first reading stays
            gained = torch.zeros(len(self.users), number)
        else:
            gained = torch.stack(list(self.gained(held_out)), dim=1)
        bounds = judgement(number, self.discovery, self.known.num_clients).bounds
        assert bounds is not None
        told = (gained * UNIT).round().long()
        if self.discovery.privacy is not None and held_out is not None:
            told = judged(gained, self.discovery.privacy, self._marked(), self.users, self.seed)
        return Upload(self.users[due], {CHOOSE: told[due]}, bounds={CHOOSE: bounds})

    def score(self) -> Tensor:
        if self.structured:
            return self.read(self.chosen)
        return self.popularity.expand(len(self.users), -1)

    @property
    def popularity(self) -> Tensor:
        """`[items]`: log(1 + n) as a share of the largest, from the first sum; all alike before that has come."""
        if self.known.rows is None:
            return torch.zeros(self.num_items, device=self.added.device)
        counts = self.kept["bounds"]["counts"]
        assert isinstance(counts, Counts)
        popularity = counts.values[:, 0].to(self.added.device).float().log1p()
        return popularity / popularity.max()

    @property
    def popular_now(self) -> Tensor:
        """`[items]`: `popularity`, or if interactions are forgotten how much of each item's is left."""
        if self.known.rows is None or self.known.rows.unit == 1:
            return self.popularity
        counts = self.kept["bounds"]["counts"]
        assert isinstance(counts, Counts)
        # The mass: of each client the square of what an item counts, which forgets as pairs do.
        left = (counts.values[:, 2].to(self.added.device).float() / SHARES).log1p()
        return left / left.max().clamp_min(1e-12)

    def gained(self, held_out: RankingCohort) -> Iterator[Tensor]:
        """How well each reading ranks what is held out, in order: `[clients]` each, by `JUDGED_BY`."""
        for reading in range(len(self.structure.readings)):
            yield gains(JUDGED_BY, self.read(reading).cpu(), held_out)

    @abstractmethod
    def read(self, reading: int) -> Tensor:
        """Scores of all items, `[clients, items]`, by one of `Structure.readings`, from a structure that has come."""


def place_of(structure: Structure, discovery: Discovery) -> int:
    """Which reading clients begin with, by its place: that which is settled, or the first."""
    if discovery.read_by is None:
        return 0
    return list(structure.readings).index(discovery.read_by)
