"""Servers that work on sums: what a round's participants send, added up; its mean; and tables that are sent down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cgfedrec.data.changes import Changes
from cgfedrec.processes import Processes
from cgfedrec.server import Server
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field


class SumServer(Server):
    """Adds up what a round's participants send, and looks at nothing else. What becomes of the sum is a subclass's."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.sum = None  # of a round that was not ended: what is loaded is the state between two
        super()._load_from_state_dict(*args, **kwargs)

    def aggregate(self, part: Upload | Sum) -> None:
        if isinstance(part, Upload):
            part = part.sum()
        if self.sum is None:
            self.sum = part.dense()
        else:
            self.sum += part

    def gather(self, processes: Processes) -> None:
        if processes.number > 1:
            ours = self.sum or self.of_nobody()
            assert isinstance(ours, Sum)
            self.sum = ours.over_processes(processes)

    def take_sum(self) -> Sum:
        """This round's sum, opened. The next one begins from nothing."""
        return self.wire.opened(self.take_closed(), self.expects)

    def take_closed(self) -> Sum:
        """This round's sum as it came: `Wire.opened` makes sense of it. The next one begins from nothing."""
        assert self.sum is not None, "a round without participants"
        total, self.sum = self.sum, None
        return total


class MeanServer(SumServer):
    """Averages what this round's participants upload, and keeps the mean tables.

    Sums are exact (`cgfedrec.wire.sums.GRID`), and the mean is rounded to float32. So neither the order of the
    clients, nor the size of a cohort, nor the number of processes shows in it.

    Args:
        expects: The fields of one client's upload, by name.
        seed: Of the start that all clients share, which goes down as this seed and not as a table.
    """

    def __init__(self, expects: Mapping[str, Field], seed: int) -> None:
        super().__init__(expects)
        self.seed = seed
        self.means = nn.Module()
        for name, field in expects.items():
            self.means.register_buffer(name, torch.zeros(field.shape))

    def mean(self, name: str) -> Tensor:
        """The mean of an uploaded value over the last round's participants, `[...]`; zeros before the first."""
        return self.means.get_buffer(name)

    def welcome(self) -> Broadcast:
        return Broadcast({"seed": torch.tensor(self.seed)})

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        total = self.take_sum()
        for name, values in total.values.items():
            self.mean(name).copy_(values.double() / total.clients)  # divided in float64, and rounded by the copy
        return dict(total.told)


class TableServer(MeanServer):
    """Sends down the means as they are. In the first round there are none: clients start from the welcome's seed.

    Args:
        expects, seed: As of `MeanServer`.
        axes: How many axes of a field, from the first, go over the items. One, for a field that is not named.
    """

    updates = "warm"
    warm = False

    def __init__(self, expects: Mapping[str, Field], seed: int, axes: Mapping[str, int] | None = None) -> None:
        super().__init__(expects, seed)
        self.axes = dict(axes or {})

    def update_from(self, state: Mapping[str, Any], changes: Changes) -> None:
        """Begin with the means of then; an item that was not there yet has zeros."""
        moved = torch.from_numpy(changes.moved)
        for name, mean in self.means.named_buffers():
            axes = self.axes.get(name, 1)
            # Along each axis of items: where those of then stand now. Their order may change where their number does
            # not, and without such an axis all of it is replaced.
            at = tuple(moved.view(-1, *[1] * (axes - axis - 1)) for axis in range(axes))
            mean[at] = state[f"means.{name}"].to(mean)
        self.warm = True

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        if round <= 1 and not self.warm:
            return None
        return Broadcast(dict(self.means.named_buffers()))
