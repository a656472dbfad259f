"""The server's half of counting: which sum is counted, by whom, and what it adds up to over all passes."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from cgfedrec.kit.sums import SumsInTurn
from cgfedrec.server import READINGS
from cgfedrec.structure.discovery import CHOOSE, TRAIN, Discovery, Step
from cgfedrec.structure.structure import UNIT, Structure, judgement, place_of
from cgfedrec.structure.tallies import Known
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.values import Field, Value


class CountingServer(SumsInTurn):
    """Counts the tallies one after another, lets clients train, and then choose how they read.

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
    average: Tensor
    judged: Tensor
    late: Tensor
    chosen: Tensor
    known: Known

    def __init__(self, discovery: Discovery, structure: Structure, num_items: int, seed: int) -> None:
        self.timeline = structure.timeline(discovery, num_items)
        super().__init__([step.phase for step in self.timeline], discovery.least_clients, seed)
        self.discovery, self.structure, self.num_items = discovery, structure, num_items
        self.tallies = structure.tallies(discovery, num_items)
        self.hold("counts", torch.empty(0, 2, dtype=torch.int64))  # [items, ...]: the first sum, of the first pass
        self.hold("late_counts", torch.empty(0, 2, dtype=torch.int64))  # the same of those who came late
        for tally in self.tallies[1:]:  # each later sum, once it has been opened
            self.hold(f"total_{tally.name}", torch.empty(0, dtype=torch.int64))
        self.hold("average", torch.empty(0))
        self.hold("judged", torch.empty(0, dtype=torch.int64))  # [readings]: summed gains, in units of `UNIT`
        self.register_buffer("chosen", torch.tensor(place_of(structure, discovery)))  # which reading

    def hold(self, name: str, nothing: Tensor) -> None:
        """Make room for a part of the state that is not there at first, `[any]`."""
        self.register_buffer(name, nothing)
        self.grows = tuple(dict.fromkeys((*self.grows, name)))

    def total(self, name: str) -> Tensor:
        """A sum over everybody who has been counted, `[rows, columns]`; empty before it has been opened."""
        return self.get_buffer(f"total_{name}").cpu()

    def enrol(self, users: Tensor) -> None:
        super().enrol(users)
        self.register_buffer("late", torch.zeros_like(self.enrolled))  # who was not there in the first pass
        self.refresh()

    @property
    def step(self) -> Step | None:
        """What the next round is for; ``None`` once all is done."""
        if self.finished:
            return None
        return self.timeline[int(self.at)]

    @property
    def preparing(self) -> bool:
        if self.step is None:
            return False
        if self.step.phase == TRAIN:
            # Clients who are yet to choose are not done. Were they ranked by the first reading, a run could stop here
            # for want of a better round, and never choose.
            return self.timeline[-1].phase == CHOOSE
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
        total = self.take_sum()
        if TRAIN in total.values:
            self.average = (total.values[TRAIN] / total.clients).float()
        self.at += 1
        self.refresh()
        return {}

    def opened(self, name: str, total: Tensor) -> dict[str, float]:
        """Take in a sum to which all have added."""
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
        self._go_on(name)
        return {}

    def _go_on(self, name: str) -> None:
        """Decide what comes after the sum of this name, and find what that needs."""
        following = int(self.at) + 1
        if int(self.late.sum()) < self.discovery.least_clients:
            # Nobody is late, or too few for a sum of their own: they wait.
            while following < len(self.timeline) and self.timeline[following].late:
                following += 1
        self.at.fill_(following - 1)  # the next one is counted from here
        self.find(name, [*self.sums, ""][following])

    @abstractmethod
    def find(self, name: str, following: str) -> None:
        """Find what the following sum needs, now that the one of this name has been opened; either may be the last."""

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
