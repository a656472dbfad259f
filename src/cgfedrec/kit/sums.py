"""Sums that are counted one after another, each of them over all clients: the server, and a client that adds once."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cgfedrec.client import Batch, Client, StepOutput
from cgfedrec.errors import RunError, check
from cgfedrec.kit.means import SumServer
from cgfedrec.server import CLIENTS
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field

FEWEST = 2
"""Items that enough clients must have for anything to be found out about what goes with what."""


def check_enough(known: int, items: int, least: int) -> None:
    """Raise `RunError` where only ``known`` of so many ``items`` have ``least`` clients, and these are too few."""
    if known < FEWEST:
        raise RunError(
            f"{known} of {items} items have {least} clients (method.least_clients), and it takes two to find out what "
            "goes with what: give it more interactions, or method.least_clients 1"
        )


class AddingClient(Client):
    """A client that adds to each sum once, whatever a server asks. By itself it trains nothing.

    Args:
        sums: To how many sums there is something to add.
    """

    scores_after = "aggregation"

    def __init__(self, sums: int) -> None:
        super().__init__()
        # [clients, sums]: to which a client has added
        self.added = nn.Parameter(torch.empty(0, sums, dtype=torch.uint8), requires_grad=False)

    def start(self, users: Tensor) -> dict[str, Tensor]:
        return {"added": torch.zeros(1, dtype=torch.uint8).expand(len(users), self.added.shape[1])}

    def due(self, place: int) -> Tensor:
        """Who has not added to the sum at this place yet, `[clients]`, bool. From now on they all have.

        Asked for when they add and not in `receive`, which is called to score too.
        """
        column = self.added.data[:, place]
        due = column.eq(0).cpu()
        column.fill_(1)
        return due

    def batches(self) -> Sequence[Batch]:
        return []

    def configure_optimizers(self) -> list[Optimizer]:
        return []

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        raise NotImplementedError("nothing is trained")


class SumsInTurn(SumServer):
    """Opens each sum once every client has added to it, in however many rounds, and then goes on to the next.

    So any participation ends with the same sums, and none that is opened is over a few clients only. A subclass makes
    something of each sum (`opened`), and says what has come down by then (`needed`). It calls `refresh` once it is
    built.

    Sums span rounds, and one is opened at its end and not before: until then what has been added to it stays as it came
    (`Wire.opened`), and nothing looks at it.

    Args:
        sums: The names of the sums, in order; a name may stand there more than once.
        least_clients: How many clients must take part.
        seed: The shared one.
    """

    grows: tuple[str, ...] = ("part",)
    of_clients: tuple[str, ...] = ("enrolled", "there", "part")
    part: Tensor
    at: Tensor
    enrolled: Tensor
    there: Tensor
    gone: Tensor

    def __init__(self, sums: Sequence[str], least_clients: int, seed: int) -> None:
        super().__init__()
        self.sums, self.least_clients, self.seed = sums, least_clients, seed
        # Which sum is being counted, and what has been added to it so far, `[numbers]`: all its fields one by one.
        self.register_buffer("at", torch.tensor(0))
        self.register_buffer("part", torch.empty(0, dtype=torch.float64))

    @abstractmethod
    def field(self, name: str) -> Field | None:
        """What one client adds to the sum of this name, once that is to be counted; ``None`` for nothing."""

    @abstractmethod
    def opened(self, name: str, total: Tensor) -> dict[str, float]:
        """Make something of a sum `[...]` over all clients, and of what is to come next.

        Returns:
            What is worth logging, by name.
        """

    @abstractmethod
    def needed(self) -> dict[str, Bulletin]:
        """What clients need for the next sum, and to score: bulletins by name, asked for whenever a sum is opened."""

    def refresh(self) -> None:
        """Bring up to date what is sent and what is expected."""
        self.bulletins = self.needed()
        self.expects = {}
        if self.finished:
            return
        field = self.field(self.counting)
        if field is not None:
            self.expects = {self.counting: field}

    @property
    def counting(self) -> str:
        """The name of the sum that is being counted, or of none: the empty one."""
        if self.finished:
            return ""
        return self.sums[int(self.at)]

    @property
    def phase(self) -> str:
        return self.counting

    @property
    def preparing(self) -> bool:
        return not self.finished

    @property
    def finished(self) -> bool:
        return int(self.at) == len(self.sums)

    def enrol(self, users: Tensor) -> None:
        if len(users) < self.least_clients:
            check(f"method.least_clients: {self.least_clients} is more than the {len(users)} clients who take part")
        enrolled = torch.zeros(int(users.max()) + 1, dtype=torch.bool)
        enrolled[users] = True
        self.register_buffer("enrolled", enrolled)
        self.register_buffer("there", torch.zeros_like(enrolled))  # who has added to the present sum
        # Who will not come again. It is no state: who is there shows anew where a run goes on.
        self.register_buffer("gone", torch.zeros_like(enrolled), persistent=False)

    def wanted(self) -> Tensor:
        return (self.group() & ~self.there & ~self.gone).nonzero().squeeze(1)

    def leave(self, users: Tensor) -> dict[str, float]:
        """Wait for these clients no longer, `[clients]`; a sum that waited for them alone is opened without them.

        Raises:
            RunError: if too few are left to open any.
        """
        self.gone[users] = True
        left = int((self.enrolled & ~self.gone).sum())
        if left < self.least_clients:
            raise RunError(
                f"{left} clients are left, and no sum of fewer than {self.least_clients} is opened (least_clients)"
            )
        if self.part.numel() and self.complete():
            return self._open(self.counting)
        return {}

    def group(self) -> Tensor:
        """Who is to add to the present sum, `[users]`, bool: by default everybody."""
        return self.enrolled

    def most_added(self, participants: int) -> int:
        return int(self.enrolled.sum())

    def complete(self) -> bool:
        """Whether enough have added to the present sum: by default all."""
        return not len(self.wanted())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not 0 <= int(self.at) <= len(self.sums):
            raise ValueError(f"there is no sum {int(self.at)}")
        self.refresh()

    def welcome(self) -> Broadcast:
        return Broadcast({"seed": torch.tensor(self.seed)})

    def broadcast(self, users: Tensor, round: int) -> Broadcast:
        return Broadcast({"at": self.at.to(torch.uint8)}, kept=self.bulletins)

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """End a round, and open the sum once all have added to it.

        Raises:
            RunError: if more or fewer clients have added to it than were asked.
        """
        total = self.take_closed()
        name = self.counting
        asked = int((self.group() & ~self.there)[users].sum())
        if total.clients != asked:
            raise RunError(f"{total.clients} clients have added to the sum {name!r}, where {asked} were asked")
        added = torch.cat([value.flatten() for value in total.values.values()])
        if self.part.numel():
            added = self.part.flatten() + added
        self.part = added
        self.there[users] = True
        report: dict[str, float] = {f"{CLIENTS}{name}": int(self.there.sum())}
        if self.complete():
            report |= self._open(name)
        return report

    def _open(self, name: str) -> dict[str, float]:
        """Make something of the sum of this name, and go on to the next."""
        fields = self.wire.added(self.expects)
        numbers = self.part.flatten().split([math.prod(field.shape) for field in fields.values()])
        shaped = {one: part.view(field.shape) for (one, field), part in zip(fields.items(), numbers, strict=True)}
        total = self.wire.opened(Sum(shaped, int(self.there.sum())), self.expects)
        report = dict(total.told) | self.opened(name, total.values[name])
        self.at += 1
        self.part = self.part.new_empty(0)
        self.there.fill_(False)
        self.refresh()
        return report
