"""Which nodes are there, and which clients live on them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cgfedrec.data.module import Stage
from cgfedrec.deploy.exchange import Exchange
from cgfedrec.deploy.known import Known
from cgfedrec.deploy.parcels import DONE, Parcel
from cgfedrec.deploy.settings import Terms
from cgfedrec.errors import InputError, RunError


class Attendance:
    """The nodes of a federation, those that are there and those that are gone.

    Args:
        exchange: By which nodes are asked.
        terms: Of the run.

    Attributes:
        known: The nodes that have said who lives there.
        away: Those of them that nobody waits for, until they come back.
        taken: `[clients]`, int64: the last round of each that the server had taken in, where the run goes on.
    """

    def __init__(self, exchange: Exchange, terms: Terms) -> None:
        self.exchange, self.terms = exchange, terms
        self.known: dict[int, Known] = {}
        self.away: set[int] = set()
        self.taken = torch.zeros(terms.clients, dtype=torch.int64)

    def meet(self) -> None:
        """Wait for as many nodes as there are to be, and learn who lives there.

        Raises:
            InputError: where a node cannot take part, or two have a client of the same number.
            RunError: where none comes.
        """
        begun = self.exchange.clock()
        while len(self.known) < self.terms.nodes and self.exchange.clock() < begun + self.terms.start:
            self._ask_who(self.exchange.connected() - self.known.keys())
            if len(self.known) < self.terms.nodes:
                self.exchange.sleep(1.0)
        if not self.known:
            raise RunError(f"no node has come within {self.terms.start:.0f} s (start)")
        if len(self.known) < self.terms.nodes:
            self.exchange.say(f"{len(self.known)} of {self.terms.nodes} nodes have come; the run begins without others")
        self.exchange.say(f"{len(self.known)} nodes with {len(self.present())} of {self.terms.clients} clients")

    def _ask_who(self, nodes: Iterable[int]) -> None:
        for node, reply in self.exchange.ask("who", dict.fromkeys(nodes, Parcel({}, {}))):
            if reply.text("status") != DONE:
                raise InputError(f"node {node}: {reply.text('why')}")
            clients = reply.wholes("clients", self.terms.clients).sort().values
            for other, one in self.known.items():
                both = torch.isin(clients, one.clients)
                if other not in self.away and other in self.exchange.connected() and both.any():
                    raise InputError(f"nodes {other} and {node} both have client {int(clients[both][0])}")
            taken = self._taken(clients)
            for other in [one for one in self.known if torch.isin(clients, self.known[one].clients).any()]:
                taken = self.known.pop(other).taken  # it has come back under another name
                self.away.discard(other)
            holds_out = {stage: bool(reply.head.get(stage)) for stage in ("val", "test")}
            self.known[node] = Known(clients, holds_out, set(reply.texts("kept")), taken)
            self.exchange.say(f"node {node} is here, with {len(clients)} clients")

    def _taken(self, clients: Tensor) -> int:
        """The last round of a node with these clients `[clients]` that the server had taken in."""
        return int(self.taken[clients].max()) if len(clients) else 0

    def refresh(self) -> None:
        """Take in nodes that have come, or come back, since."""
        there = self.exchange.connected()
        for node in self.away & there:
            self.away.discard(node)
            self.exchange.say(f"node {node} is back, with {len(self.known[node].clients)} clients")
        self._ask_who(there - self.known.keys())

    def present(self) -> Tensor:
        """The clients of nodes that are not away, `[clients]`, ascending."""
        return self._clients(self.known.keys() - self.away)

    def gone(self) -> Tensor:
        """The clients of nodes that are away, `[clients]`, ascending."""
        return self._clients(self.away)

    def holds_out(self, stage: Stage) -> bool:
        """Whether there is anything to rank on any node."""
        return any(one.holds_out[stage] for one in self.known.values())

    def _clients(self, nodes: Iterable[int]) -> Tensor:
        parts = [torch.empty(0, dtype=torch.int64), *(self.known[node].clients for node in nodes)]
        return torch.cat(parts).sort().values

    def homes(self, clients: Tensor) -> dict[int, Tensor]:
        """Who of these clients `[clients]` lives on which node that is there, `[clients of the node]` each."""
        found = {}
        for node in sorted(self.known.keys() - self.away):
            of = self.known[node].clients
            if len(of := of[torch.isin(of, clients)]):
                found[node] = of
        return found

    def part_with(self, nodes: Iterable[int], round: int) -> None:
        """Go on without nodes that have not answered."""
        there = self.exchange.connected()
        for node in nodes:
            who = f"node {node}, with {len(self.known[node].clients)} clients,"
            if node in there:
                self.exchange.say(f"round {round} goes on without {who} which has not answered in time")
            else:
                self.exchange.say(f"{who} has gone: the run goes on without it")
                self.away.add(node)
