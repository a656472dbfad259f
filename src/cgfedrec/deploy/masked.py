"""Nodes whose clients mask what they send: the server opens a round's sum, and never sees a single upload.

A round takes four exchanges: clients tell keys; they seal shares for each other, which the server passes on; they train
and send masked messages; and of whoever has sent, or has not, they tell the shares that take masks off the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cgfedrec.deploy.members import context_of
from cgfedrec.deploy.nodes import Nodes
from cgfedrec.deploy.parcels import Parcel
from cgfedrec.processes import Processes
from cgfedrec.simulation import together
from cgfedrec.simulation.together import Told, Trained
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.secure.collector import ClosedError, Collector
from cgfedrec.wire.secure.masks import agreed, residues
from cgfedrec.wire.secure.member import Keys
from cgfedrec.wire.secure.neighbours import ID, PUBLIC, SECRET, SHARES
from cgfedrec.wire.secure.step import SecureSums
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire

NOBODY = torch.empty(0, dtype=torch.int64)


class MaskedNodes(Nodes):
    """Nodes whose clients mask what they send. Other arguments are those of `Nodes`.

    Args:
        step: Whose messages are masked.
    """

    def __init__(self, step: SecureSums, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.step = step

    @property
    def least(self) -> int:
        if not self.server.expects:  # nothing is sent
            return 1
        return self.step.least_clients

    def train(self, participants: Tensor, round: int, attempt: int = 0) -> Iterator[Trained]:
        """Let participants train, and give the sum of all that they have sent, or nothing where it stays closed.

        Arguments `[participants]` and errors are those of `Nodes.train`.
        """
        if not self.server.expects:
            yield from super().train(participants, round, attempt)
            return
        playing = Round(self, round)
        total: Upload | Sum
        try:
            total, told = playing.opened(participants)
        except ClosedError as error:
            self.exchange.say(f"round {round}: {error}")
            # Nobody has taken part, but for the bytes.
            total, told = self.server.of_nobody(), Told(NOBODY, 0, 0, torch.empty(0, 0))
        bytes_up, bytes_down = told.bytes_up + playing.up, told.bytes_down + playing.down
        yield Trained(total, told._replace(bytes_up=bytes_up, bytes_down=bytes_down))

    def together(self, cohorts: Sequence[Told]) -> Told:
        """As of `Nodes`. What the protocol sends has been counted as it was sent."""
        return together.told(Processes(), cohorts, Wire())


class Round:
    """One round.

    Args:
        nodes: With whom.
        number: From 1.

    Attributes:
        up, down: Bytes of keys and shares so far.
    """

    def __init__(self, nodes: MaskedNodes, number: int) -> None:
        self.nodes, self.number, self.step = nodes, number, nodes.step
        self.context = context_of(nodes.exchange.run, number)
        self.up = self.down = 0

    def opened(self, participants: Tensor) -> tuple[Sum, Told]:
        """The sum over those who have sent something, and what they tell, `[clients]` and more.

        Args:
            participants: `[participants]`.

        Raises:
            ClosedError: where too few are left to open it.
        """
        keys = self._keys(participants)
        self._check(len(keys), "have told their keys")
        collector = Collector(keys, self.context, self.step.neighbours)
        passed = collector.passed_on(self._sealed(collector))
        self._check(len(passed), "have shared their secrets with enough others")
        total, told = self._sent(passed)
        self._check(total.clients, "have sent something")
        sent = set(told.users.tolist())
        opened = collector.opened(total, sent, self._shares(collector, sent), self._fields)
        for one in self.nodes.known.values():  # those too that have gone since they sent: it is in the sum
            if torch.isin(one.clients, told.users).any():
                one.taken = self.number
        return opened, told

    @property
    def _fields(self) -> Mapping[str, Field]:
        """Of one client's message before it is masked."""
        return self.nodes.wire.travelling(self.nodes.server.expects)

    def _check(self, clients: int, what: str) -> None:
        if clients < self.step.least_clients:
            raise ClosedError(
                f"the sum stays closed: {clients} clients {what}, and SecureSums opens none of fewer than "
                f"{self.step.least_clients} (least_clients)"
            )

    def _asked(self, what: str, parcels: dict[int, Parcel]) -> Iterator[tuple[int, Parcel]]:
        return self.nodes.answers(what, parcels, self.number)

    def _keys(self, participants: Tensor) -> dict[int, Keys]:
        """The keys of those who have any that can be used."""
        found: dict[int, Keys] = {}
        homes = self.nodes.homes(participants)
        asked = {node: Parcel({"clients": clients.tolist()}, {}) for node, clients in homes.items()}
        for node, reply in self._asked("keys", asked):
            clients = homes[node].tolist()
            try:
                pieces = [Keys(one[:PUBLIC], one[PUBLIC:]) for one in reply.cut("keys", 2 * PUBLIC, len(clients))]
                for key in (key for one in pieces for key in one):
                    agreed(bytes(PUBLIC), key, b"")
            except ValueError as error:
                self.nodes.unread(node, self.number, error)
                continue
            found |= zip(clients, pieces, strict=True)
            self.up += 2 * PUBLIC * len(clients)
        return found

    def _sealed(self, collector: Collector) -> dict[int, dict[int, bytes]]:
        """What clients have sealed, by sender and receiver."""
        found: dict[int, dict[int, bytes]] = {}
        homes = self.nodes.homes(torch.tensor(sorted(collector.keys)))
        asked = {}
        for node, clients in homes.items():
            neighbours = [other for client in clients.tolist() for other in collector.neighbours[client]]
            others = sorted(set(neighbours))
            head = {"clients": clients.tolist(), "total": len(collector.keys), "others": others}
            head |= {"neighbours": neighbours, "each": len(neighbours) // len(clients)}
            asked[node] = Parcel(head, {"keys": b"".join(b"".join(collector.keys[other]) for other in others)})
        for node, reply in self._asked("shares", asked):
            neighbours = asked[node].head["neighbours"]
            try:
                pieces = iter(reply.cut("sealed", SHARES, len(neighbours)))
            except ValueError as error:
                self.nodes.unread(node, self.number, error)
                continue
            for client in homes[node].tolist():
                found[client] = {other: next(pieces) for other in collector.neighbours[client]}
            self.up += SHARES * len(neighbours)
            self.down += (ID + 2 * PUBLIC) * len(neighbours)
        return found

    def _sent(self, passed: dict[int, dict[int, bytes]]) -> tuple[Sum, Told]:
        """The sum of masked messages, and what those tell who have sent them."""
        nodes, number = self.nodes, self.number
        fields = {name: residues(field) for name, field in self._fields.items()}
        homes = nodes.homes(torch.tensor(sorted(passed)))
        besides = {}
        for node, clients in homes.items():
            messages = [passed[client] for client in clients.tolist()]
            head = {"senders": [one for each in messages for one in each], "senders/numbers": list(map(len, messages))}
            besides[node] = Parcel(head, {"sealed": b"".join(one for each in messages for one in each.values())})
        total = Sum({name: torch.zeros(field.shape, dtype=torch.int64) for name, field in fields.items()}, 0)
        all_told = []
        for node, reply in nodes.asked("train", homes, number, nodes.server.broadcast, besides=besides):
            try:
                upload, told = nodes.read(homes[node], reply, fields)
                if not upload.clients.sort().values.equal(told.users.sort().values):
                    raise ValueError("some have sent nothing")
            except ValueError as error:
                nodes.unread(node, number, error)
                continue
            total += upload.sum()
            all_told.append(told)
            self.down += len(besides[node].body["sealed"])
        return total, nodes.together(all_told)

    def _shares(self, collector: Collector, sent: set[int]) -> dict[int, dict[int, bytes]]:
        """The shares that take off masks: by whom, then of whom."""
        found: dict[int, dict[int, bytes]] = {}
        telling = collector.asked(sent)
        homes = self.nodes.homes(torch.tensor(sorted(telling), dtype=torch.int64))
        asked = {}
        for node, clients in homes.items():
            beside = sorted(set().union(*(telling[client] for client in clients.tolist())))
            asked[node] = Parcel({"clients": clients.tolist(), "sent": beside}, {})
        for node, reply in self._asked("unmask", asked):
            held = {client: collector.holds(client) for client in homes[node].tolist()}
            number = sum(map(len, held.values()))
            try:
                pieces = iter(reply.cut("shares", SECRET, number))
            except ValueError as error:
                self.nodes.unread(node, self.number, error)
                continue
            for client, of in held.items():
                found[client] = {one: next(pieces) for one in of}
                self.down += (len(collector.neighbours[client]) + 8) // 8
            self.up += SECRET * number
        return found
