"""The server's half of counting: which sum is counted, by whom, and what it adds up to over all passes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cgfedrec.data.changes import Changes
from cgfedrec.errors import TooFewError, check
from cgfedrec.kit.sums import SumsInTurn
from cgfedrec.structure.discovery import TRAIN, Discovery, Step, changes_of
from cgfedrec.structure.judging import UNIT, chosen_by, judgement, told_of
from cgfedrec.structure.plausible import check_sum, implausible
from cgfedrec.structure.private import CHOOSE
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.structure import Structure, place_of
from cgfedrec.structure.tallies import Known
from cgfedrec.structure.updating import Past, aged, change_field, possible, with_new_rows
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.tensors import numbered
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

    updates = "exactly"
    of_clients = (*SumsInTurn.of_clients, "late", "changed")
    counts: Tensor
    late_counts: Tensor
    average: Tensor
    judged: Tensor
    late: Tensor
    chosen: Tensor
    known: Known
    past_counts: Tensor
    order: Tensor
    rows_before: Tensor
    keys: Tensor
    days: Tensor
    changed: Tensor

    def __init__(self, discovery: Discovery, structure: Structure, num_items: int, seed: int) -> None:
        self.timeline = structure.timeline(discovery, num_items)
        super().__init__([step.phase for step in self.timeline], discovery.least_clients, seed)
        self.discovery, self.structure, self.num_items = discovery, structure, num_items
        self.tallies = structure.tallies(discovery, num_items)
        self.hold("counts", torch.empty(0, 2, dtype=torch.int64))  # [items, ...]: the first sum, of the first pass
        self.hold("late_counts", torch.empty(0, 2, dtype=torch.int64))  # the same of those who came late
        for tally in self.tallies[1:]:  # each later sum, once it has been opened
            self.hold(f"total_{tally.name}", torch.empty(0, dtype=torch.int64))
            self.hold(f"past_{tally.name}", torch.empty(0, dtype=torch.int64))
        # Of sums of before to which only changes are added: the first one, the items of all rows, how many of these
        # there were then, by which numbers signs are drawn, and how many days ago it was.
        self.hold("past_counts", torch.empty(0, 2, dtype=torch.int64))
        self.hold("order", torch.empty(0, dtype=torch.int64))  # [rows]
        self.register_buffer("rows_before", torch.tensor(0))
        self.hold("keys", torch.empty(0, dtype=torch.int64))  # [items]
        self.register_buffer("days", torch.tensor(0.0, dtype=torch.float64))
        self.hold("changed", torch.empty(0, dtype=torch.bool))  # [users]: who has something to add or to take back
        self.hold("average", torch.empty(0))
        self.hold("judged", torch.empty(0, dtype=torch.int64))  # [readings]: summed gains, in units of `UNIT`
        self.register_buffer("chosen", torch.tensor(place_of(structure, discovery)))  # which reading

    def hold(self, name: str, nothing: Tensor) -> None:
        """Make room for a part of the state that is not there at first, `[any]`."""
        self.register_buffer(name, nothing)
        self.grows = tuple(dict.fromkeys((*self.grows, name)))

    def implausible(self, upload: Upload) -> dict[int, str]:
        """As of any server. Changes of sums of before are not looked at: they take back what was added."""
        found: dict[int, str] = {}
        if self.past is None:
            for tally in self.tallies:
                if tally.name in upload.values:
                    named = implausible(tally, upload.values[tally.name])
                    found |= {int(upload.clients[row]): why for row, why in named.items()}
        return found

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
            return (self.enrolled & ~self.gone).nonzero().squeeze(1)
        return super().wanted()

    @property
    def past(self) -> Past | None:
        """Of the sums of before, where only changes are added to them."""
        if not self.past_counts.numel():
            return None
        return Past(self.past_counts.cpu(), int(self.rows_before), float(self.days))

    def update_from(self, state: Mapping[str, Any], changes: Changes) -> None:
        check(*self._cannot_update(state))
        number = changes.counts["changed users"]
        if number < self.least_clients:
            raise TooFewError(
                f"update_from: only {number} clients have changes, and a sum of fewer than {self.least_clients} "
                "(method.least_clients) is not opened; wait until there are more"
            )
        moved = torch.from_numpy(changes.moved)
        first = self.tallies[0]
        counts = torch.zeros(self.num_items, state["counts"].shape[1], dtype=torch.int64)
        counts[moved] = state["counts"]
        keys, before = moved.new_empty(self.num_items), len(moved)
        # A new item's number is beyond all of before.
        beyond = int(state["keys"].max()) + 1 if state["keys"].numel() else before
        keys[:] = torch.arange(beyond, beyond + self.num_items)
        keys[moved] = state["keys"] if state["keys"].numel() else torch.arange(before)
        order = state["order"]
        if not order.numel():
            order = Rows.of(state["counts"], self.discovery.least_clients, first.unit).items
        self.keys, self.order, self.past_counts = keys, moved[order], aged(first, counts, changes.days)
        self.rows_before, self.days = torch.tensor(len(order)), self.days.new_tensor(changes.days)
        self.changed = torch.from_numpy(changes.changed)
        for tally in self.tallies[1:]:
            setattr(self, f"past_{tally.name}", aged(tally, state[f"total_{tally.name}"], changes.days))
        self.chosen = state["chosen"].clone()
        self.begin_update()

    def _cannot_update(self, state: Mapping[str, Any]) -> Iterator[str | None]:
        """Why changes cannot be added to the sums in a state."""
        sums = len(self.tallies) if state["past_counts"].numel() else len(self.sums)
        if int(state["at"]) != sums:
            yield "update_from: its sums were not counted to the end"
        if state["late_counts"].numel():
            yield "update_from: some of its clients came late (method.share): not all of theirs was added; start again"
        if self.structure.train_rounds:
            kind = type(self.structure).__name__
            yield f"update_from: clients train {kind}, which cannot be brought up to date; start again"

    def begin_update(self) -> None:
        """Count nothing but changes from now on."""
        self.timeline = changes_of(self.tallies)
        self.sums = [step.phase for step in self.timeline]

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        if state_dict[f"{prefix}past_counts"].numel():
            self.begin_update()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def group(self) -> Tensor:
        if self.past is not None:
            return self.enrolled & self.changed
        if self.step is None or self.step.tally is None or int(self.at) == 0:
            return self.enrolled
        if self.step.late:
            return self.late
        return self.enrolled & ~self.late

    def complete(self) -> bool:
        if int(self.at) == 0 and self.past is None:
            enough = math.ceil(self.discovery.share * int(self.enrolled.sum()))
            return int(self.there.sum()) >= enough or super().complete()
        return super().complete()

    def welcome(self) -> Broadcast:
        """The seed, and how many clients there will be, from which follows what the first sum can reach."""
        return Broadcast({"seed": torch.tensor(self.seed), "clients": self.enrolled.sum()})

    def broadcast(self, users: Tensor, round: int) -> Broadcast:
        """Which step the round is for, the average while clients train, and bulletins."""
        values: dict[str, Value] = {}
        if self.step is not None:
            values["step"] = numbered(self.at)
            if self.average.numel():
                values["average"] = self.average
            if self.past is not None:
                values["days"] = self.days
        return Broadcast(values, kept=self.bulletins)

    def read_as(self, state: Mapping[str, Any]) -> None:
        """Read as in the state of another run of the same settings, until clients choose."""
        self.chosen.copy_(state["chosen"])

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        if self.counting != TRAIN:
            return super().update(users, round)
        total = self.take_sum()
        if TRAIN in total.values:
            self.average = (total.values[TRAIN] / total.clients).float()
        self.at += 1
        self.refresh()
        return dict(total.told)

    def opened(self, name: str, total: Tensor) -> dict[str, float]:
        """Take in a sum to which all have added. Raises `RunError` if it is more than all together can add."""
        field = self.expects.get(name)
        if name != CHOOSE and field is not None and field.bounds is not None:
            check_sum(name, total.cpu(), field.bounds)
        if name == CHOOSE:
            self.judged = total
            self.chosen.fill_(chosen_by(total, int(self.chosen), list(self.structure.readings)))
            return told_of(total, UNIT, int(self.there.sum()), list(self.structure.readings))
        if self.past is not None:
            total = self._with_past(name, total)
        if int(self.at) == 0:
            self.counts, self.late = self.first_sum(total), self.enrolled & ~self.there
        elif name == self.timeline[0].phase:
            self.late_counts = total
        else:
            before = self.get_buffer(f"total_{name}")
            if before.numel():
                total = before + total
            setattr(self, f"total_{name}", total)
        self._go_on(name)
        return {}

    def first_sum(self, total: Tensor) -> Tensor:
        """What is made of the first sum, `[items, ...]`: by default it stays."""
        return total

    def _with_past(self, name: str, change: Tensor) -> Tensor:
        """A sum of before and what has changed, `[rows, columns]`."""
        if int(self.at) == 0:
            total = possible(self.past_counts + change)
            self.order = with_new_rows(total[:, 0].cpu(), self.order.cpu(), self.discovery.least_clients)
            # Whoever has an item that has a row from now on has something to add to all other sums.
            assert self.changes is not None
            self.changed = self.changed | self.changes.with_any(self.order[int(self.rows_before) :])
            return total
        total = change.clone()
        past = self.get_buffer(f"past_{name}")
        total[: len(past), : past.shape[1]] += past
        return total

    def _go_on(self, name: str) -> None:
        """Decide what comes after the sum of this name, and find what that needs."""
        following = int(self.at) + 1
        if int((self.late & ~self.gone).sum()) < self.discovery.least_clients:
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
            return judgement(len(self.structure.readings), self.discovery, known.num_clients)
        if name == TRAIN:
            return self.structure.average(known)
        assert step is not None
        assert step.tally is not None
        if self.past is not None:
            return change_field(step.tally, known, self.past)
        if step.late and self.late_counts.numel():
            known = known.for_others(self.late_counts)
        return step.tally.field(known)
