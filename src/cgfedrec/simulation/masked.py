"""Clients that play the whole protocol of secure sums in a simulation: keys, sealed shares, masks, and what opens sums.

It changes no result, and is there to be seen at work, with dropouts too. It takes too long for many clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import check
from cgfedrec.failures import NONE, Failures, Fate
from cgfedrec.method import Method
from cgfedrec.processes import Processes
from cgfedrec.random import shared_seed
from cgfedrec.server import Server
from cgfedrec.simulation import together
from cgfedrec.simulation.clients import Clients
from cgfedrec.simulation.demand import Plans
from cgfedrec.simulation.together import Trained
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.secure.neighbours import Traffic
from cgfedrec.wire.secure.step import SecureSums, masking
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire

if TYPE_CHECKING:
    from cgfedrec.wire.secure.member import Member

MOST_SECONDS = 60.0
"""That the masks of one round may take, by an estimate (`seconds`)."""


class Masking(Wire):
    """A wire on which clients mask what they send, in rounds in which they are members of a sum. See `Wire`."""

    members: Mapping[int, Member] = {}

    def up(self, upload: Upload, expected: Mapping[str, Field], round: int, seed: int) -> tuple[Upload, int]:
        """What arrives, `[clients, ...]`, and its bytes, which masks leave as many."""
        arrived, nbytes = super().up(upload, expected, round, seed)
        if not self.members:
            return arrived, nbytes
        from cgfedrec.wire.secure.member import masked

        return masked(arrived, self.members), nbytes


class MaskedClients(Clients):
    """Clients that mask what they send. Arguments are those of `Clients`.

    Raises:
        InputError: where masks cannot be made.
    """

    wire: Masking

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        step = masking(self.wire)
        assert step is not None
        self.step, self.wire = step, Masking(self.wire.steps)

    def settle(self, plans: Plans, *others: Any) -> None:
        """As of `Clients`. Raises `InputError` too where masks would take too long, or parts of a sum stay closed."""
        check(*self._problems(plans.participants))
        super().settle(plans, *others)

    def _problems(self, participants: int) -> Iterator[str]:
        name = "wire.steps: SecureSums.masked"
        if self.processes.number > 1:
            yield f"{name}: masks are made in one process, and there are {self.processes.number}"
        everybody = participants == self.data.num_users and self.failures == NONE
        if self.server.wanted() is not None and not everybody:
            yield (
                f"{name}: {self._method}'s sums span rounds, and masks open each round's part by itself: all must take "
                "part in every round, and nobody may fail; or leave masks out, which gives the same results"
            )
        fields = self.server.expects.values()
        numbers = sum(torch.Size(field.shape).numel() for field in fields)
        takes = seconds(self.step, participants, numbers)
        neighbours = Traffic(participants, self.step.neighbours).neighbours
        if takes > MOST_SECONDS:
            fewer = int(participants * MOST_SECONDS / takes)
            yield (
                f"{name}: the masks of {participants:,} clients with {neighbours} neighbours and {numbers:,} numbers "
                f"each take about {takes:,.0f} s a round, and at most {MOST_SECONDS:.0f} may be: "
                f"some {fewer:,} clients (loop.participants), fewer neighbours (SecureSums.neighbours), or no masks, "
                "which give the same results"
            )

    def train(self, participants: Tensor, round: int, attempt: int = 0) -> Iterator[Trained]:
        """As of `Clients`, `[participants]`; and the sum of all cohorts comes at the end, without its masks.

        Raises:
            RunError: where too few have come through to open it.
        """
        fates = self.failures.fates(shared_seed(self.data.seed), participants, round, attempt)
        there = participants[fates != Fate.ABSENT].tolist()
        self.wire.members = {}
        if not self.server.expects or not there:
            yield from super().train(participants, round, attempt)
            return
        from cgfedrec.wire.secure.collector import Collector
        from cgfedrec.wire.secure.member import Member

        # 1. Keys, and shares for neighbours. Who gets too few is not part of the round.
        step, context = self.step, b"round %d, attempt %d" % (round, attempt)
        members = {one: Member(one, context, step.neighbours, step.least_clients) for one in there}
        collector = Collector({one: member.keys() for one, member in members.items()}, context, step.neighbours)
        sealed = {one: member.shares(len(members), collector.roster(one)) for one, member in members.items()}
        for one, messages in collector.passed_on(sealed).items():
            members[one].take(messages)

        # 2. Masked messages. Of those who have failed none comes.
        self.wire.members = members
        parts, cohorts = list[Sum](), []
        for trained in super().train(participants, round, attempt):
            assert isinstance(trained.part, Sum)
            parts.append(trained.part)
            cohorts.append(trained.told)
        told = together.told(Processes(), cohorts, Wire())
        if not len(told.users):
            yield Trained(parts[0], told)
            return

        # 3. Shares, by which masks are taken off the sum of all.
        sent = set(told.users.tolist())
        shares = {one: members[one].told(beside) for one, beside in collector.asked(sent).items()}
        closed = parts[0].dense()
        for part in parts[1:]:
            closed += part
        yield Trained(collector.opened(closed, sent, shares, self.wire.travelling(self.server.expects)), told)


def clients_of(
    fabric: Fabric, data: FederatedDataModule, method: Method, server: Server, processes: Processes, failures: Failures
) -> Clients:
    """The clients of a server, at the near end of its wire. Arguments and errors are those of `Clients`."""
    masked = any(isinstance(step, SecureSums) and step.masked for step in server.wire.steps)
    kind = MaskedClients if masked else Clients
    return kind(fabric, data, method, server, server.wire, processes, failures)


def seconds(step: SecureSums, clients: int, numbers: int) -> float:
    """How long one thread takes for the masks of a round, about.

    Args:
        step: With how many neighbours.
        clients: How many.
        numbers: Of one client's message.
    """
    traffic = Traffic(clients, step.neighbours)
    # Measured (python -m benchmarks.secure --masks): what sharing multiplies, in pure Python; what recovers a secret;
    # an agreement on a key; and a number of a mask.
    sharing = 4 * (traffic.neighbours + 1) * traffic.threshold * 10e-6
    recovery = 2 * traffic.threshold**2 * 25e-6
    agreements = 3 * traffic.neighbours * 70e-6
    masks = (traffic.neighbours + 2) * numbers * 15e-9
    return clients * (sharing + recovery + agreements + masks)
