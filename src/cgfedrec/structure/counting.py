"""The server that counts sums one after another, each until all clients have added to it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cgfedrec.errors import RunError, check
from cgfedrec.server import CLIENTS, READINGS, Server
from cgfedrec.structure.discovery import CHOOSE, TRAIN, Discovery, Step
from cgfedrec.structure.structure import UNIT, Structure
from cgfedrec.wire.messages import Sum, Upload


class CountingServer(Server):
    """Counts one sum after another, until all clients have added to it, or a stated share.

    Sums span rounds. Under secure aggregation the masks of a sum cancel once all have added to it, so it is opened at
    the end of its phase and not before; here, nothing looks at it until then. What is made of an opened sum, and sent,
    is up to a subclass.

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
    part: Tensor
    there: Tensor
    late: Tensor
    enrolled: Tensor
    at: Tensor
    clients: Tensor
    chosen: Tensor

    def __init__(self, discovery: Discovery, structure: Structure, num_items: int, seed: int) -> None:
        super().__init__()
        self.discovery, self.structure, self.num_items, self.seed = discovery, structure, num_items, seed
        chooses = len(structure.readings) > 1
        self.timeline = discovery.timeline(num_items, structure.verifies, structure.train_rounds, chooses)
        self.tallies = discovery.tallies(num_items, structure.verifies)[1:]
        """Those after the first."""
        self.hold("counts", torch.empty(0, 2, dtype=torch.int64))  # [items, 2]: the first sum, of the first pass
        self.hold("late_counts", torch.empty(0, 2, dtype=torch.int64))  # the same of those who came late
        self.hold("average", torch.empty(0))
        self.hold("judged", torch.empty(0, dtype=torch.int64))  # [readings]: summed gains, in units of `UNIT`
        self.hold("part", torch.empty(0, dtype=torch.int64))  # the sum that is being counted
        for tally in self.tallies:  # each later sum, once it has been opened
            self.hold(f"total_{tally.name}", torch.empty(0, dtype=tally.summed))
        # At which step of the timeline; how many clients its sum has; which reading.
        for name in ("at", "clients", "chosen"):
            self.register_buffer(name, torch.tensor(0))
        self.nothing_changed = True

    def hold(self, name: str, empty: Tensor) -> None:
        """Have a buffer whose length changes, of the kind of ``empty`` `[0, ...]`."""
        self.register_buffer(name, empty)
        self.grows = (*self.grows, name)

    def total(self, name: str) -> Tensor:
        """The sum of this name, `[rows, ...]`, on the CPU; empty before it has been opened."""
        return self.get_buffer(f"total_{name}").cpu()

    def enrol(self, users: Tensor, participants: int) -> None:
        least = self.discovery.least_clients
        if len(users) < least:
            check(f"method.least_clients: {least} is more than the {len(users)} clients who take part")
        enrolled = torch.zeros(int(users.max()) + 1, dtype=torch.bool)
        enrolled[users] = True
        self.register_buffer("enrolled", enrolled)
        self.register_buffer("there", torch.zeros_like(enrolled))  # who has added to the sum that is being counted
        self.register_buffer("late", torch.zeros_like(enrolled))  # who was not there in the first pass
        self.refresh()

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        if state_dict[f"{prefix}part"].is_floating_point():  # not all sums are of whole numbers
            self.part = self.part.double()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.sum = None
        if not 0 <= int(self.at) <= len(self.timeline):
            raise ValueError(f"there is no step {int(self.at)}")
        self.refresh()

    @property
    def step(self) -> Step | None:
        """What the next round is for; ``None`` once all is done."""
        if self.finished:
            return None
        return self.timeline[int(self.at)]

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
        self.part = torch.empty(0, dtype=torch.int64)
        self.clients.fill_(0)
        self.there.fill_(False)
        too_few = int(self.late.sum()) < self.discovery.least_clients
        while self.step is not None and self.step.late and too_few:
            self.at += 1  # nobody is late, or too few for a sum of their own
        self.opened(before)
        # With a structure whose reading is yet to be chosen, there is nothing to measure yet.
        self.nothing_changed = self.step is not None and self.step.phase != TRAIN and before.phase != TRAIN
        self.refresh()

    @abstractmethod
    def opened(self, before: Step) -> None:
        """Find what the present step needs, now that the one before has ended."""

    @abstractmethod
    def refresh(self) -> None:
        """Bring what follows from the state up to date: what is sent, and what is expected."""


def _plus(total: Tensor, part: Tensor) -> Tensor:
    """A sum that begins as an empty tensor, `[...]`."""
    if not total.numel():
        return part
    return total + part
