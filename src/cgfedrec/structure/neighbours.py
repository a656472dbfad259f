"""Neighbours: for each item a few others with few-bit weights, which a client reads by its own history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.optim import Adam, Optimizer

from cgfedrec.client import Batch, StepOutput, empty_parameter
from cgfedrec.data.candidates import RankingCohort
from cgfedrec.errors import no_count, not_positive
from cgfedrec.evaluation.ranking import gains
from cgfedrec.forgetting import RECENTS
from cgfedrec.serving.neighbours import NeighbourReader
from cgfedrec.structure.ages import BUCKETS, START, STEP_SIZE, STEPS, TRAIN_ROUNDS, bucket, questions
from cgfedrec.structure.discover import Found, closed_form, pair_weights, quantised, verified
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.judging import JUDGED_BY
from cgfedrec.structure.options import ALONE, Option, options_with
from cgfedrec.structure.sparseranks import Beside, gained
from cgfedrec.structure.structure import LEVELS, Structure, SumsClient
from cgfedrec.structure.tallies import Known
from cgfedrec.wire.values import Field, Value, WeightLayout, Weights

Reading = Literal["chosen", "flat", "trained"]
NUDGE = 1e-6
"""Weight of the popularity that only decides between items with equal scores, such as those without neighbours."""


@dataclass(frozen=True, kw_only=True)
class Neighbours(Structure):
    """Each item's nearest items, with weights of a few bits. A client scores by its own history, the newest first.

    An item scores the sum over its neighbours in the history of weight times (1 + age)^-rho, plus beta times
    log(1 + n) / max.
    """

    weight_bits: int = 4
    """Bits of a weight, in units of a scale that each item has for itself."""
    keep: float = 0.5
    """Share of an item's candidates that stay as neighbours: those with the largest weights, if above 0."""
    reading: Reading = "chosen"
    """``chosen``: rho and beta are chosen by all clients together, on what they hold out for validation. ``flat``: the
    whole history counts alike, and popularity not at all. ``trained``: clients also train how much each age counts and
    popularity beside it; the average of what they find and each client's own are two more readings to choose among."""
    recents: tuple[float, ...] | None = None
    """Half-lives in days of popularities of late, which beta may weigh in place of popularity as it always was. By
    default those that a rolling evaluation chooses among, and none under other splits, which cannot judge it."""

    popular: bool = False
    """Whether popularity alone is one more reading, the last of those without training. Always so under privacy."""

    verifies: ClassVar[bool] = True

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.structure.weight_bits", self.weight_bits, most=16)
        yield not_positive("method.structure.keep", self.keep, 1)
        for recent in self.recently:
            yield not_positive("method.structure.recents", recent)
        if self.recently and self.reading == "flat":
            yield "method.structure.recents: the flat reading adds no popularity; leave them out"

    @property
    def recently(self) -> tuple[float, ...]:
        return self.recents or ()

    @property
    def alternative(self) -> Mapping[str, Any]:
        if self.recents is None and self.reading != "flat":
            return {"recents": list(RECENTS)}
        return {}

    def fixed(self, reading: str) -> Mapping[str, Any]:
        every = replace(self, recents=RECENTS if self.recents is None else self.recents)
        needed = [option.recent for option in every.options if option.named == reading and option.recent is not None]
        return {"recents": needed}

    @property
    def options(self) -> list[Option]:
        """What to choose among without anything being trained."""
        found = [Option(0.0, 0.0)] if self.reading == "flat" else options_with(self.recently)
        if self.popular:
            found.append(Option(0.0, ALONE))
        return found

    @property
    def readings(self) -> Sequence[str]:
        named = [option.named for option in self.options]
        if self.reading == "trained":
            named += ["trained, shared", "trained, personal"]
        return named

    @property
    def train_rounds(self) -> int:
        if self.reading == "trained":
            return TRAIN_ROUNDS
        return 0

    def average(self, known: Known) -> Field | None:
        """What each bucket of age counts, and popularity, `[BUCKETS + 1]`."""
        if self.reading == "trained":
            return Field((BUCKETS + 1,))
        return None

    def find(self, found: Found, discovery: Discovery) -> dict[str, Value]:
        """Weigh the candidates by their counts, keep the best, and round their weights."""
        assert found.pairs is not None
        diagonal = found.rows.diagonal
        if found.counts is None:
            weights = pair_weights(*closed_form(found.factor, diagonal, discovery.penalty), found.pairs)
        else:
            weights = verified(found.factor, diagonal, found.pairs, found.counts, discovery.penalty)
        sizes = (found.pairs >= 0).sum(1)  # as they were when the candidates were found
        return {"weights": quantised(weights, sizes, self.keep, self.weight_bits)}

    def fields(self, known: Known, discovery: Discovery) -> dict[str, Field]:
        assert known.pairs is not None
        sizes = (known.pairs >= 0).sum(1)
        shape = (len(sizes), int(sizes.max()))
        return {"weights": Field(shape, torch.float16, lists=WeightLayout(sizes, self.weight_bits))}

    def client(self, discovery: Discovery, num_items: int, seed: int) -> NeighboursClient:
        if self.reading == "trained":
            return TrainedClient(self, discovery, num_items, seed)
        return NeighboursClient(self, discovery, num_items, seed)


class NeighboursClient(SumsClient):
    """Reads neighbours by its own history. Nothing is trained."""

    structure: Neighbours
    serves_newcomers = True

    def changed(self) -> None:
        self._sorted: dict[Option, Beside] = {}
        if not self.structured:
            return
        weights, rows = self.kept["structure"]["weights"], self.known.the_rows
        assert isinstance(weights, Weights)
        assert self.known.pairs is not None
        values = weights.levels * weights.scales.double()[:, None]  # [rows, most]
        targets, places = weights.kept.nonzero(as_tuple=True)
        sources = self.known.pairs[targets, places]
        # [items, items]: row j holds the weights of an owned item j for each target
        self.weights = csr_array(
            (
                values[targets, places].float().numpy(),
                (rows.items[sources].numpy(), rows.items[targets].numpy()),
            ),
            shape=(self.num_items, self.num_items),
        )

    def read(self, reading: int) -> Tensor:
        option = self.structure.options[reading]
        return self.scores(self._counts(option.decay)) + self._beside(option)

    @property
    def popular_now(self) -> Tensor:
        """`[items]`: the popularity of late by which clients read, if they do; else as of any structure."""
        if self.chosen < len(self.structure.options):
            recent = self.structure.options[self.chosen].recent
            if recent is not None and "recent" in self.kept:
                return self._beside(Option(0.0, 1.0, recent))
        return super().popular_now

    def _beside(self, option: Option) -> Tensor:
        """What is added to every client's scores, `[items]`."""
        if option.recent is None:
            return (option.weight + NUDGE) * self.popularity
        column = self.structure.recently.index(option.recent)
        levels = self.kept["recent"]["levels"]
        assert isinstance(levels, Tensor)
        recent = levels[:, column].to(self.added.device).float() / LEVELS
        return option.weight * recent + NUDGE * self.popularity

    def gained(self, held_out: RankingCohort) -> Iterator[Tensor]:
        """As any client's. In a large catalogue it does not look at every item (`SparseRanks`)."""
        yield from gained(JUDGED_BY, self._readings(), held_out)

    def _readings(self) -> Iterator[tuple[csr_array, Sequence[Beside]]]:
        """What neighbours score, and what is added: readings that differ in popularity alone follow one another."""
        for decay, options in groupby(self.structure.options, key=itemgetter(0)):
            alike = list(options)
            for option in alike:
                if option not in self._sorted:
                    self._sorted[option] = Beside.of(self._beside(option))
            yield self._near(self._counts(decay)), [self._sorted[option] for option in alike]

    def _counts(self, decay: float) -> Tensor:
        """How much each entry of the histories counts, `[entries]`: (1 + age)^-decay."""
        _, _, ages = self.own.history.entries()
        return (1 + ages.double()).pow(-decay).float()

    def scores(self, counts: Tensor) -> Tensor:
        """The sums over neighbours, `[clients, items]`, by how much each entry of the histories counts, `[entries]`."""
        return torch.from_numpy(self._near(counts).toarray()).to(self.added.device)

    def _near(self, counts: Tensor) -> csr_array:
        """`scores`, sparse."""
        clients, items, _ = self.own.history.entries()
        history = csr_array((counts.numpy(), (clients.numpy(), items.numpy())), shape=(len(self.users), self.num_items))
        return history @ self.weights

    def reader(self) -> NeighbourReader:
        neighbours = (self.weights.indptr.astype(np.int64), self.weights.indices.astype(np.int32), self.weights.data)
        beside, counts = self.reads_by()
        popular = self.popular_now.float().cpu().numpy()
        reading = self.structure.readings[self.chosen]
        return NeighbourReader(*neighbours, beside.float().cpu().numpy(), popular, reading, **counts)

    def reads_by(self) -> tuple[Tensor, dict[str, Any]]:
        """How a newcomer reads: what is added to all scores, `[items]`, and what an item counts by its age.

        The latter is ``decay`` or ``buckets`` of `NeighbourReader`.
        """
        option = self.structure.options[self.chosen]
        return self._beside(option), {"decay": option.decay}


class TrainedClient(NeighboursClient):
    """Trains how much an item of each age counts, on what came next in its own history.

    What it finds is how far it stands apart from the average of all clients, with which each round begins. So one that
    has not trained reads by the average.
    """

    def __init__(self, structure: Neighbours, discovery: Discovery, num_items: int, seed: int) -> None:
        super().__init__(structure, discovery, num_items, seed)
        self.apart = empty_parameter(BUCKETS + 1)

    def start(self, users: Tensor) -> dict[str, Tensor]:
        return super().start(users) | {"apart": torch.zeros(1, BUCKETS + 1).expand(len(users), -1)}

    @property
    def shared(self) -> Tensor:
        """What all clients have found together, `[BUCKETS + 1]`: what each bucket counts, and popularity."""
        if self.average is not None:
            return self.average.to(self.apart.device)
        found = START * 2 ** (-torch.arange(BUCKETS + 1) / 2)
        found[-1] = 0
        return found.to(self.apart.device)

    def configure_optimizers(self) -> list[Optimizer]:
        return [Adam([self.apart], lr=STEP_SIZE)]

    def train_batches(self) -> Sequence[Batch]:
        """The questions of the round in one batch, once for every step."""
        self.apart.data.zero_()
        asked = questions(self.own.history, self.users, self.weights, self.seed, self.own.round)
        device = self.apart.device
        popularity = self.popularity.cpu()[asked.items]
        # [clients, questions, answers, BUCKETS + 1]
        self.features = torch.cat((asked.features, popularity[..., None]), dim=3).to(device)
        self.closed = ~asked.open.to(device)
        first = asked.items[..., 0]
        alike = torch.ones(len(first))  # who asks nothing has a loss of 0
        batch = Batch(first, torch.ones_like(first).float(), asked.weights, alike, alike.bool())
        return [batch] * STEPS

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        counts = self.shared + self.apart  # [clients, BUCKETS + 1]
        scores = (self.features * counts[:, None, None]).sum(3).masked_fill(self.closed, -torch.inf)
        losses = -scores.log_softmax(2)[..., 0]  # [clients, questions]
        return StepOutput((losses * batch.weights).sum(1))

    def learned(self) -> Tensor:
        return self.shared + self.apart.detach()

    def read(self, reading: int) -> Tensor:
        personal = reading - len(self.structure.options)
        if personal < 0:
            return super().read(reading)
        counts = self.shared + personal * self.apart.detach()  # [clients, BUCKETS + 1]
        clients, _, ages = self.own.history.entries()
        entries = counts.cpu()[clients, bucket(ages)]
        return self.scores(entries) + (counts[:, -1:] + NUDGE) * self.popularity

    def reads_by(self) -> tuple[Tensor, dict[str, Any]]:
        if self.chosen < len(self.structure.options):
            return super().reads_by()
        # A newcomer has trained nothing, and reads by what all have found together.
        counts = self.shared
        return (counts[-1] + NUDGE) * self.popularity, {"buckets": counts[:-1].cpu().numpy()}

    def gained(self, held_out: RankingCohort) -> Iterator[Tensor]:
        """Those of before, and the trained ones, `[clients]` each."""
        yield from super().gained(held_out)
        for reading in range(len(self.structure.options), len(self.structure.readings)):
            yield gains(JUDGED_BY, self.read(reading).cpu(), held_out)
