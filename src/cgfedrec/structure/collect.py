"""The server that counts sums one after another, discovers structure from them, and sends that down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgfedrec.errors import RunError, check
from cgfedrec.random import Stream, bits
from cgfedrec.server import CLIENTS, READINGS, Server
from cgfedrec.structure.clusters import clustered, merged
from cgfedrec.structure.discover import candidates, closed_form
from cgfedrec.structure.discovery import CHOOSE, TRAIN, Discovery, Step, counts_value
from cgfedrec.structure.nystroem import coordinates, factor
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.structure import UNIT, Found, Structure, judgement
from cgfedrec.structure.tallies import Columns, Known, LabelColumns, PairCounts
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.codec import decode, encode
from cgfedrec.wire.messages import Broadcast, Sum, Upload
from cgfedrec.wire.values import Field, IdLists, Labels, Value

LABELS, PAIRS = LabelColumns.name, PairCounts.name

TABLES = 12
"""How many tables `[items, columns]` of 8 bytes there are at most: sums, columns, factors. Measured."""


class SumsServer(Server):
    """Counts one sum after another, until all clients have added to it, or a stated share.

    Sums span rounds. Under secure aggregation the masks of a sum cancel once all have added to it, so it is opened at
    the end of its phase and not before; here, nothing looks at it until then.

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
    part: Tensor
    there: Tensor
    late: Tensor
    enrolled: Tensor
    at: Tensor
    clients: Tensor
    version: Tensor
    chosen: Tensor

    def __init__(self, discovery: Discovery, structure: Structure, num_items: int, seed: int) -> None:
        super().__init__()
        self.discovery, self.structure, self.num_items, self.seed = discovery, structure, num_items, seed
        chooses = len(structure.readings) > 1
        self.timeline = discovery.timeline(num_items, structure.verifies, structure.train_rounds, chooses)
        state = {
            "counts": torch.empty(0, 2, dtype=torch.int64),  # [items, 2]: the first sum, of the first pass
            "late_counts": torch.empty(0, 2, dtype=torch.int64),  # the same of those who came late
            "labels": torch.empty(0, dtype=torch.int64),  # [rows]
            "pairs": torch.empty(0, 0, dtype=torch.int64),  # [rows, most]
            "found": torch.empty(0, dtype=torch.uint8),  # the structure as it travels
            "average": torch.empty(0),
            "judged": torch.empty(0, dtype=torch.int64),  # [readings]: summed gains, in units of `UNIT`
            "part": torch.empty(0, dtype=torch.int64),  # the sum that is being counted
        }
        # Each later sum, once it has been opened.
        tallies = discovery.tallies(num_items, structure.verifies)[1:]
        state |= {f"total_{tally.name}": torch.empty(0, dtype=torch.int64) for tally in tallies}
        self.last_tally = tallies[-1].name
        self.columns = [tally for tally in tallies if isinstance(tally, Columns)]
        self.grows = tuple(state)
        for name, value in state.items():
            self.register_buffer(name, value)
        # At which step of the timeline; how many clients its sum has; which version of the structure; which reading.
        for name in ("at", "clients", "version", "chosen"):
            self.register_buffer(name, torch.tensor(0))
        self.nothing_changed = True
        self._sent: dict[str, Bulletin] = {}

    def enrol(self, users: Tensor, participants: int) -> None:
        least = self.discovery.least_clients
        if len(users) < least:
            check(f"method.least_clients: {least} is more than the {len(users)} clients who take part")
        enrolled = torch.zeros(int(users.max()) + 1, dtype=torch.bool)
        enrolled[users] = True
        self.register_buffer("enrolled", enrolled)
        self.register_buffer("there", torch.zeros_like(enrolled))  # who has added to the sum that is being counted
        self.register_buffer("late", torch.zeros_like(enrolled))  # who was not there in the first pass
        self._refresh()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.sum = None
        if not 0 <= int(self.at) <= len(self.timeline):
            raise ValueError(f"there is no step {int(self.at)}")
        self._sent = {}
        self._refresh()

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
    def phase(self) -> str:
        if self.step is None:
            return ""
        return self.step.phase

    @property
    def preparing(self) -> bool:
        return self.nothing_changed

    @property
    def finished(self) -> bool:
        return int(self.at) == len(self.timeline)

    def wanted(self) -> Tensor | None:
        """Who has not added to the sum that is being counted; everybody in a round of training."""
        if self.step is None or self.step.phase == TRAIN:
            return self.enrolled.nonzero().squeeze(1)
        return (self._group() & ~self.there).nonzero().squeeze(1)

    def _group(self) -> Tensor:
        """Who is to add to the present sum, `[users]`, bool."""
        if self.step is None or self.step.phase == CHOOSE or int(self.at) == 0:
            return self.enrolled
        if self.step.late:
            return self.late
        return self.enrolled & ~self.late

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

    def aggregate(self, part: Upload | Sum) -> None:
        assert isinstance(part, Sum)
        if self.sum is not None:
            part = self.sum + part
        self.sum = part

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """End a round, and with it a step once all whom it wants have been there.

        Raises:
            RunError: if more or fewer clients have added to a sum than were to.
        """
        step, total = self.step, self.sum
        assert step is not None
        assert total is not None
        self.sum = None
        if step.phase == TRAIN:
            self.average = (total.values["average"] / total.clients).float()
            self._next()
            return {}
        expected = int((self._group() & ~self.there)[users].sum())
        if total.clients != expected:
            raise RunError(f"{total.clients} clients have added to the sum {step.phase!r}, where {expected} were to")
        (added,) = total.values.values()
        self.part = _plus(self.part, added)
        self.there[users] = True
        self.clients += total.clients
        report: dict[str, float] = {f"{CLIENTS}{step.phase}": int(self.clients)}
        self.nothing_changed = True
        group = self._group()
        missing = int((group & ~self.there).sum())
        first = int(self.at) == 0
        if first and int(self.there.sum()) >= math.ceil(self.discovery.share * int(group.sum())):
            missing = 0
        if not missing:
            counted = int(self.clients)
            self._open(step)
            if step.phase == CHOOSE:
                means = (self.judged.double() / UNIT / counted).tolist()
                names = (f"{READINGS}{reading}" for reading in self.structure.readings)
                report |= dict(zip(names, means, strict=True))
        return report

    def _open(self, step: Step) -> None:
        """Take in a sum to which all have added, and find what the next one needs."""
        part = self.part
        if step.phase == CHOOSE:
            self.judged = part
            self.chosen.fill_(int(part.argmax()))
        elif int(self.at) == 0:
            self.counts, self.late = part, self.enrolled & ~self.there
        elif step.phase == self.timeline[0].phase:
            self.late_counts = part
        else:
            name = f"total_{step.phase}"
            setattr(self, name, _plus(self.get_buffer(name), part))
        self._next()

    def _next(self) -> None:
        """Go to the next step, with what it needs."""
        before = self.timeline[int(self.at)]
        self.at += 1
        self.part = self.part.new_empty(0)
        self.clients.fill_(0)
        self.there.fill_(False)
        too_few = int(self.late.sum()) < self.discovery.least_clients
        while self.step is not None and self.step.late and too_few:
            self.at += 1  # nobody is late, or too few for a sum of their own
        self.known = self._known()
        if before.phase == self.last_tally:
            self._find_structure()
        elif self.phase == LABELS and not self.labels.numel():
            self.labels = self._find_labels()
        elif self.phase == PAIRS and not self.pairs.numel():
            half, _ = closed_form(self._factor(), self.known.the_rows.clients, self.discovery.penalty)
            self.pairs = candidates(half, self.discovery.sizes(self.known.the_rows))
        # With a structure whose reading is yet to be chosen, there is nothing to measure yet.
        self.nothing_changed = self.step is not None and self.step.phase != TRAIN and before.phase != TRAIN
        self._refresh()

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

    def _refresh(self) -> None:
        """Bring what follows from the state up to date: what is known, what is sent, and what is expected."""
        self.known = self._known()
        self.bulletins = self._needed()
        self.expects = self._expected()

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

    def _needed(self) -> dict[str, Bulletin]:
        """What clients need for the next round, and to score: bulletins by name."""
        step, known = self.step, self.known
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

    def _expected(self) -> dict[str, Field]:
        """What one client sends in the next round."""
        step = self.step
        if step is None:
            return {}
        if step.phase == CHOOSE:
            return {CHOOSE: judgement(len(self.structure.readings))}
        if step.tally is None:
            average = self.structure.average(self.known)
            assert average is not None, "nothing is averaged, and so there is nothing to train"
            return {"average": average}
        known = self.known
        if step.late and self.late_counts.numel():
            known = known.for_others(self.late_counts)
        return {step.tally.name: step.tally.field(known)}


def _plus(total: Tensor, part: Tensor) -> Tensor:
    """A sum that begins as an empty tensor, `[...]`."""
    if not total.numel():
        return part
    return total + part
