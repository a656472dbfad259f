"""Which nodes are there, and which clients live on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from cgfedrec.data.module import Stage
from cgfedrec.deploy.exchange import Exchange
from cgfedrec.deploy.known import Known
from cgfedrec.deploy.parcels import DONE, REFUSED, Parcel
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
        self._turned_away: set[int] = set()

    def meet(self) -> None:
        """Wait for as many nodes as there are to be, and learn who lives there.

        Raises:
            InputError: where a node cannot take part, or two have a client of the same number.
            RunError: where none comes.
        """
        begun = self.exchange.clock()
        while len(self.known) < self.terms.nodes and self.exchange.clock() < begun + self.terms.start:
            left = begun + self.terms.start - self.exchange.clock()
            for wrong in self._ask_who(left):
                raise InputError(wrong)
            if len(self.known) < self.terms.nodes:
                self.exchange.sleep(1.0)
        if not self.known:
            raise RunError(f"no node has come within {self.terms.start:.0f} s (start)")
        if len(self.known) < self.terms.nodes:
            self.exchange.say(f"{len(self.known)} of {self.terms.nodes} nodes have come; the run begins without others")
        self.exchange.say(f"{len(self.known)} nodes with {len(self.present())} of {self.terms.clients} clients")

    def _ask_who(self, most: float) -> Iterator[str]:
        """Ask nodes that have come who lives there, and wait at most so many seconds for their answers.

        Returns:
            Why nodes cannot take part. They are not asked again before they have been away.
        """
        there = self.exchange.connected()
        self._turned_away &= there
        new = there - self.known.keys() - self._turned_away
        silent = set(new)
        for node, reply in self.exchange.ask("who", dict.fromkeys(new, Parcel({}, {})), most=most):
            silent.discard(node)
            try:
                self._take_in(node, reply)
            except ValueError as error:
                self._turned_away.add(node)
                yield f"node {node}: {error}"
        for node in silent & self.exchange.connected():
            self._turned_away.add(node)
            self.exchange.say(f"node {node} has not said in {most:.0f} s who lives there, and is not waited for")

    def _take_in(self, node: int, reply: Parcel) -> None:
        """Know a node by its answer, from anyone. Raises ``ValueError`` where it cannot take part."""
        status = reply.text("status")
        if status == REFUSED:
            self.exchange.say(f"node {node}: {reply.text('why')}")
            return  # it is asked again
        if status != DONE:
            raise ValueError(reply.text("why"))
        clients, kept = reply.wholes("clients", self.terms.clients).sort().values, set(reply.texts("kept"))
        there = self.exchange.connected()
        for other, one in self.known.items():
            both = torch.isin(clients, one.clients)
            if other not in self.away and other in there and both.any():
                raise ValueError(f"node {other} has client {int(clients[both][0])} too")
        taken = self._taken(clients)
        for other in [one for one in self.known if torch.isin(clients, self.known[one].clients).any()]:
            taken = self.known.pop(other).taken  # it has come back under another name
            self.away.discard(other)
        holds_out = {stage: bool(reply.head.get(stage)) for stage in ("val", "test")}
        self.known[node] = Known(clients, holds_out, kept, taken)
        self.exchange.say(f"node {node} is here, with {len(clients)} clients")

    def _taken(self, clients: Tensor) -> int:
        """The last round of a node with these clients `[clients]` that the server had taken in."""
        return int(self.taken[clients].max()) if len(clients) else 0

    def refresh(self) -> None:
        """Take in nodes that have come, or come back, since; and go on without those that cannot take part."""
        there = self.exchange.connected()
        for node in self.away & there:
            self.away.discard(node)
            self.exchange.say(f"node {node} is back, with {len(self.known[node].clients)} clients")
        for wrong in self._ask_who(self.terms.absent):
            self.exchange.say(f"{wrong}; the run goes on without it, until it is started anew")

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
