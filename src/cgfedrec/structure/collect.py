"""The server that counts sums one after another, discovers structure from them, and sends that down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgfedrec.kit.sums import SumsInTurn
from cgfedrec.random import Stream, bits
from cgfedrec.server import READINGS
from cgfedrec.structure.clusters import clustered, merged
from cgfedrec.structure.discover import candidates, closed_form
from cgfedrec.structure.discovery import CHOOSE, TRAIN, Discovery, Step, counts_value
from cgfedrec.structure.nystroem import coordinates, factor
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.structure import UNIT, Found, Structure, judgement
from cgfedrec.structure.tallies import Columns, Known, LabelColumns, PairCounts
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.codec import decode, encode
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.values import Field, IdLists, Labels, Value

LABELS, PAIRS = LabelColumns.name, PairCounts.name

TABLES = 12
"""How many tables `[items, columns]` of 8 bytes there are at most: sums, columns, factors. Measured."""


class SumsServer(SumsInTurn):
    """Counts the tallies one after another, finds what the next one needs, and at last the structure.

    Where `Discovery.share` is below 1, the first sum ends early. Those who were there are asked for all later sums of a
    first pass, and those who came late for all sums of a second one.

    Args:
        discovery: The settings.
        structure: What is discovered.
        num_items: n.
        seed: The shared one.
    """

    counts: Tensor
    late_counts: Tensor
    labels: Tensor
    pairs: Tensor
    found: Tensor
    average: Tensor
    judged: Tensor
    late: Tensor
    version: Tensor
    chosen: Tensor

    def __init__(self, discovery: Discovery, structure: Structure, num_items: int, seed: int) -> None:
        self.chooses = len(structure.readings) > 1
        self.timeline = discovery.timeline(num_items, structure.verifies, structure.train_rounds, self.chooses)
        super().__init__([step.phase for step in self.timeline], discovery.least_clients, seed)
        self.discovery, self.structure, self.num_items = discovery, structure, num_items
        state = {
            "part": torch.empty(0, dtype=torch.int64),
            "counts": torch.empty(0, 2, dtype=torch.int64),  # [items, 2]: the first sum, of the first pass
            "late_counts": torch.empty(0, 2, dtype=torch.int64),  # the same of those who came late
            "labels": torch.empty(0, dtype=torch.int64),  # [rows]
            "pairs": torch.empty(0, 0, dtype=torch.int64),  # [rows, most]
            "found": torch.empty(0, dtype=torch.uint8),  # the structure as it travels
            "average": torch.empty(0),
            "judged": torch.empty(0, dtype=torch.int64),  # [readings]: summed gains, in units of `UNIT`
        }
        # Each later sum, once it has been opened.
        tallies = discovery.tallies(num_items, structure.verifies)[1:]
        state |= {f"total_{tally.name}": torch.empty(0, dtype=torch.int64) for tally in tallies}
        self.last_tally = tallies[-1].name
        self.columns = [tally for tally in tallies if isinstance(tally, Columns)]
        self.grows = tuple(state)
        for name, value in state.items():
            self.register_buffer(name, value)
        # Which version of the structure has been found, and which reading of it has been chosen.
        for name in ("version", "chosen"):
            self.register_buffer(name, torch.tensor(0))
        self._sent: dict[str, Bulletin] = {}

    def enrol(self, users: Tensor, participants: int) -> None:
        super().enrol(users, participants)
        self.register_buffer("late", torch.zeros_like(self.enrolled))  # who was not there in the first pass
        self.refresh()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._sent = {}
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def step(self) -> Step | None:
        """What the next round is for; ``None`` once all is done."""
        if self.finished:
            return None
        return self.timeline[int(self.at)]

    @property
    def working(self) -> int:
        columns = self.discovery.num_columns(self.num_items) + self.discovery.num_clusters(self.num_items)
        return TABLES * 8 * columns * self.num_items

    @property
    def preparing(self) -> bool:
        if self.step is None:
            return False
        if self.step.phase == TRAIN:
            # Clients who are yet to choose are not done. Were they ranked by the first reading, a run could stop here
            # for want of a better round, and never choose.
            return self.chooses
        # With a structure whose reading is yet to be chosen, there is nothing to measure yet, but after training.
        trained = int(self.at) > 0 and self.timeline[int(self.at) - 1].phase == TRAIN
        return not trained or bool(self.there.any())

    def wanted(self) -> Tensor:
        """Who has not added to the sum that is being counted; everybody in a round of training."""
        if self.counting == TRAIN:
            return self.enrolled.nonzero().squeeze(1)
        return super().wanted()

    def group(self) -> Tensor:
        if self.step is None or self.step.tally is None or int(self.at) == 0:
            return self.enrolled
        if self.step.late:
            return self.late
        return self.enrolled & ~self.late

    def complete(self) -> bool:
        if int(self.at) == 0:
            return int(self.there.sum()) >= math.ceil(self.discovery.share * int(self.enrolled.sum()))
        return super().complete()

    def welcome(self) -> Broadcast:
        """The seed, and how many clients there will be, from which follows what the first sum can reach."""
        return Broadcast({"seed": torch.tensor(self.seed), "clients": self.enrolled.sum()})

    def broadcast(self, users: Tensor, round: int) -> Broadcast:
        """Which step the round is for, the average while clients train, and bulletins."""
        values: dict[str, Value] = {}
        if self.step is not None:
            values["step"] = self.at.to(torch.uint8)
            if self.average.numel():
                values["average"] = self.average
        return Broadcast(values, kept=self.bulletins)

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        if self.counting != TRAIN:
            return super().update(users, round)
        total, self.sum = self.sum, None
        assert total is not None, "a round without participants"
        if TRAIN in total.values:
            self.average = (total.values[TRAIN] / total.clients).float()
        self.at += 1
        self.refresh()
        return {}

    def opened(self, name: str, total: Tensor) -> dict[str, float]:
        """Take in a sum to which all have added, and find what the next one needs."""
        if name == CHOOSE:
            self.judged = total
            self.chosen.fill_(int(total.argmax()))
            means = (total.double() / UNIT / int(self.there.sum())).tolist()
            readings = (f"{READINGS}{reading}" for reading in self.structure.readings)
            return dict(zip(readings, means, strict=True))
        if int(self.at) == 0:
            self.counts, self.late = total, self.enrolled & ~self.there
        elif name == self.timeline[0].phase:
            self.late_counts = total
        else:
            before = self.get_buffer(f"total_{name}")
            if before.numel():
                total = before + total
            setattr(self, f"total_{name}", total)
        self._find(name)
        return {}

    def _find(self, name: str) -> None:
        """Find what comes next, after the sum of this name: labels, candidates, the structure, or nothing."""
        following = int(self.at) + 1
        if int(self.late.sum()) < self.discovery.least_clients:
            # Nobody is late, or too few for a sum of their own: they wait.
            while following < len(self.timeline) and self.timeline[following].late:
                following += 1
        self.at.fill_(following - 1)  # the next one is counted from here
        self.known = self._known()
        if name == self.last_tally:
            self._find_structure()
        elif self.sums[following] == LABELS and not self.labels.numel():
            self.labels = self._find_labels()
        elif self.sums[following] == PAIRS and not self.pairs.numel():
            half, _ = closed_form(self._factor(), self.known.the_rows.clients, self.discovery.penalty)
            self.pairs = candidates(half, self.discovery.sizes(self.known.the_rows))

    def _rows(self) -> Rows:
        """The rows with the clients of everybody who has been counted."""
        rows = self.known.the_rows
        if self.late_counts.numel():
            clients, reach = self.late_counts.cpu()[rows.items].T
            # Items of too few who came late have not been added.
            open_ = clients >= rows.least
            rows = replace(rows, clients=rows.clients + clients * open_, reach=rows.reach + reach * open_)
        return rows

    def _factor(self) -> Tensor:
        """F from all columns that have been counted, `[rows, rank]`, float64."""
        counted = [tally for tally in self.columns if self.get_buffer(f"total_{tally.name}").numel()]
        columns = torch.cat([tally.columns(self.known) for tally in counted], dim=1)
        sketch = torch.cat([self.get_buffer(f"total_{tally.name}").cpu() for tally in counted], dim=1)
        return factor(columns.double(), sketch.double())

    def coordinates(self) -> Tensor:
        """Where the items lie by all columns that have been counted, `[rows, at most 64]`, to be looked at."""
        return coordinates(self._factor())

    def _find_labels(self) -> Tensor:
        """The cluster of each row, `[rows]`, int64."""
        rows = self.known.the_rows
        clusters = min(self.discovery.num_clusters(self.num_items), len(rows))
        seed = int(bits(self.seed, Stream.CLUSTERS, 0) >> np.uint64(32))
        # Popular items count more: their co-occurrence is known better.
        weights = (rows.clients + 1).double().sqrt().numpy()
        labels, centroids = clustered(coordinates(self._factor()).numpy(), clusters, seed, weights=weights)
        return torch.from_numpy(merged(labels, centroids, self.discovery.least_items))

    def _find_structure(self) -> None:
        pairs = counts = None
        if self.structure.verifies:
            pairs, counts = self.pairs, self.get_buffer(f"total_{PAIRS}").cpu()
        found = Found(self._factor(), self._rows(), pairs, counts, self.seed)
        message = encode(self.structure.find(found, self.discovery))
        self.found = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        self.version += 1

    def histograms(self) -> dict[str, Tensor]:
        """How many items each cluster has, `[clusters]`, once there are any."""
        if not self.labels.numel():
            return {}
        return {"clusters/sizes": torch.bincount(self.labels)}

    def _known(self) -> Known:
        """What clients know too, once they have the bulletins."""
        known = Known(self.num_items, int(self.enrolled.sum()), self.seed)
        if self.counts.numel():
            known = replace(known, rows=Rows.of(self.counts, self.discovery.least_clients))
        if self.labels.numel():
            known = replace(known, labels=self.labels.cpu())
        if self.pairs.numel():
            known = replace(known, pairs=self.pairs.cpu())
        return known

    def needed(self) -> dict[str, Bulletin]:
        self.known = known = self._known()
        step = self.step
        sent: dict[str, Bulletin] = {}
        if known.rows is None:
            return sent
        sent["bounds"] = self._bulletin("bounds", {"counts": counts_value(known, self.counts)})
        if step is not None and step.late and self.late_counts.numel():
            sent["late"] = self._bulletin("late", {"counts": counts_value(known, self.late_counts)})
        if step is not None and step.phase == LABELS and known.labels is not None:
            labels = Labels(known.labels, int(known.labels.max()) + 1)
            sent["labels"] = self._bulletin("labels", {"labels": labels})
        if known.pairs is not None:
            layout = self.discovery.pairs_layout(known.rows)
            pairs = IdLists(known.pairs, layout.sizes, layout.high, layout.coding)
            sent["verify"] = self._bulletin("verify", {"pairs": pairs})
        if self.found.numel():
            name = f"structure/{int(self.version)}"
            if name not in self._sent:
                message = self.found.cpu().numpy().tobytes()
                self._sent[name] = Bulletin(decode(message, self.structure.fields(known, self.discovery)), len(message))
            sent[name] = self._sent[name]
        if self.finished:
            reading: dict[str, Value] = {"chosen": self.chosen.to(torch.uint8)}
            if self.average.numel():
                reading["average"] = self.average
            sent["reading"] = self._bulletin("reading", reading)
        return sent

    def _bulletin(self, name: str, values: Mapping[str, Value]) -> Bulletin:
        """The bulletin of this name, encoded when it is first needed."""
        if name not in self._sent:
            self._sent[name] = Bulletin.of(values)
        return self._sent[name]

    def field(self, name: str) -> Field | None:
        step, known = self.step, self.known
        if name == CHOOSE:
            return judgement(len(self.structure.readings))
        if name == TRAIN:
            return self.structure.average(known)
        assert step is not None
        assert step.tally is not None
        if step.late and self.late_counts.numel():
            known = known.for_others(self.late_counts)
        return step.tally.field(known)
