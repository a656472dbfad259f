"""Nodes: what stands in for `cgfedrec.simulation.clients.Clients` on a server whose clients are elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from cgfedrec.data.module import Stage
from cgfedrec.deploy.exchange import Exchange
from cgfedrec.deploy.known import Known
from cgfedrec.deploy.node import DONE, FAILED, MISSING
from cgfedrec.deploy.parcels import Parcel, pack_broadcast, pack_bulletin, unpack_uploads
from cgfedrec.deploy.settings import Terms
from cgfedrec.errors import InputError, RunError, check
from cgfedrec.evaluation.metrics import METRICS
from cgfedrec.history import Row
from cgfedrec.method import Method
from cgfedrec.processes import Processes
from cgfedrec.server import Server
from cgfedrec.simulation import together
from cgfedrec.simulation.together import Told, Trained
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.refusals import carried
from cgfedrec.wire.sums import GRID
from cgfedrec.wire.wire import Wire, WireError

T = TypeVar("T")
R = TypeVar("R")


class Alone:
    """Workers of a server that has no clients: one, which is the caller."""

    number = 1

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results of ``function``, in the order of ``items``."""
        yield from map(function, items)


class Nodes:
    """The clients of a federation over a network, by the nodes on which they live.

    Args:
        exchange: By which nodes are asked.
        terms: Of the run.
        method: Whose clients they are.
        server: Whose broadcasts go down, and which reduces what comes up.
        wire: Carries both.
        cutoffs: Of metrics.
        seed: The shared one.
        refusing: Whether a round goes on without single clients whose uploads cannot be taken in.

    Attributes:
        reports: What clients report of their training beside the loss.
        known: The nodes that have said who lives there.
        away: Those of them that nobody waits for, until they come back.
        bytes_scoring: That have come down so far to score with, to all clients.
    """

    def __init__(
        self,
        exchange: Exchange,
        terms: Terms,
        method: Method,
        server: Server,
        wire: Wire,
        cutoffs: Sequence[int],
        seed: int,
        refusing: bool = False,
    ) -> None:
        self.exchange, self.terms, self.server, self.wire = exchange, terms, server, wire
        self.cutoffs, self.seed, self.refusing = cutoffs, seed, refusing
        check(*wire.problems(server.sees_single_uploads, type(method).__name__))
        example = method.client(terms.items, 0)
        self.reports, self._scores_after = type(example).reports, example.scores_after
        self.workers = Alone()
        self.known: dict[int, Known] = {}
        self.away: set[int] = set()
        self.bytes_scoring = 0
        self._packed: dict[str, tuple[bytes, bytes]] = {}

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
            taken = 0
            for other in [one for one in self.known if torch.isin(clients, self.known[one].clients).any()]:
                taken = self.known.pop(other).taken  # it has come back under another name
                self.away.discard(other)
            holds_out = {stage: bool(reply.head.get(stage)) for stage in ("val", "test")}
            self.known[node] = Known(clients, holds_out, set(reply.texts("kept")), taken)
            self.exchange.say(f"node {node} is here, with {len(clients)} clients")

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

    def named(self, told: Mapping[int, str]) -> dict[str, str]:
        """What is told of clients, by their numbers: the server knows no other names."""
        return {str(client): what for client, what in told.items()}

    def in_order(self, users: Tensor) -> Tensor:
        """The same users `[users]`, in ascending order."""
        return users.sort().values

    def train(self, participants: Tensor, round: int, attempt: int = 0) -> Iterator[Trained]:
        """Let participants train, node by node as they answer. Arguments and errors as of `Clients.train`.

        Args:
            participants: `[participants]`.
            round: From 1.
            attempt: Always 0: no round is tried again.

        Raises:
            RunError: where a node says that its training has failed.
        """
        asked = {}
        for node in sorted(self.known.keys() - self.away):
            of = self.known[node].clients
            if len(of := of[torch.isin(of, participants)]):
                asked[node] = of
        for node, reply in self._asked("train", asked, round, self.server.broadcast):
            try:
                yield self._trained(asked[node], reply, round)
            except (ValueError, WireError) as error:
                self.exchange.say(f"round {round} goes on without node {node}, whose answer cannot be read: {error}")
                continue
            self.known[node].taken = round

    def _trained(self, asked: Tensor, reply: Parcel, round: int) -> Trained:
        """What a node has sent, read and checked, for clients `[clients]`.

        Raises:
            ValueError: if it is anything else.
        """
        expects, refused = self.server.expects, dict[int, str]()
        unread = refused if self.refusing else None
        upload = unpack_uploads(reply, "uploads", self.wire.travelling(expects), unread)
        users = reply.wholes("users", self.terms.clients)
        if not users.sort().values.equal(asked.sort().values) or not torch.isin(upload.clients, users).all():
            raise ValueError("it is not of the clients who were asked")
        up, down = reply.wholes("bytes").tolist()
        means = reply.head["means"]
        if not isinstance(means, list) or not all(type(mean) is float for mean in means):
            raise ValueError("means are no numbers")

        def take(one: Upload) -> tuple[Upload, int]:
            return self.wire.arrived(one, expects, round), 0

        arrived, _, unsound = carried(upload, take, expects, self.refusing, self.server.doubted)
        refused |= unsound
        users = users[~torch.isin(users, torch.tensor(list(refused), dtype=torch.int64))]
        rows = torch.tensor(means).expand(len(users), -1) if means else torch.empty(len(users), 0)
        return Trained(self.server.reduced(arrived), Told(users, up, down, rows, refused))

    def together(self, cohorts: Sequence[Told]) -> Told:
        """What all nodes have to tell, clients in the order in which their uploads came."""
        return together.told(Processes(), cohorts, torch.empty(0, dtype=torch.int64), self.wire)

    def metrics(self, stage: Stage, round: int) -> Row:
        """Metrics of all clients' present state, named like ``val/ndcg@10``, from the nodes' sums.

        What needs lists, such as coverage, is not among them.
        """
        nodes = {node: self.known[node].clients for node in sorted(self.known.keys() - self.away)}
        sent = self.server.broadcast if self._scores_after == "aggregation" else None
        sums = {name: torch.zeros(len(self.cutoffs), dtype=torch.int64) for name in METRICS}
        users = 0
        for _, reply in self._asked("evaluate", nodes, round, sent, stage):
            number, told = reply.whole("users"), reply.head.get("sums", {})
            if number:
                users += number
                self.bytes_scoring += reply.whole("bytes_scoring")
                for name in METRICS:
                    sums[name] += torch.tensor(told[name], dtype=torch.int64)
        if not users:
            return {}
        return {
            f"{stage}/{name}@{k}": total / GRID / users
            for name, totals in sums.items()
            for k, total in zip(self.cutoffs, totals.tolist(), strict=True)
        }

    def _asked(
        self,
        what: str,
        nodes: Mapping[int, Tensor],
        round: int,
        broadcast: Callable[[Tensor, int], Broadcast | None] | None,
        stage: str = "",
    ) -> Iterator[tuple[int, Parcel]]:
        """Ask nodes, with what goes down to their clients, and give answers of those who have done it."""
        of_round = round if what == "train" else round + 1
        left = dict(nodes)
        again = True
        while again and left:
            parcels = {
                node: self._parcel(node, users, broadcast and broadcast(users, of_round), of_round, stage)
                for node, users in left.items()
            }
            again = False
            for node, reply in self.exchange.ask(what, parcels, round):
                status = reply.text("status")
                if status == MISSING:  # it has lost what it had
                    self.known[node].kept -= set(reply.texts("kept"))
                    again = True
                    continue
                del left[node]
                if status == FAILED:
                    raise RunError(f"node {node}: {reply.text('why')}")
                if status != DONE:
                    self.exchange.say(f"round {round} goes on without node {node}: {reply.text('why')}")
                    continue
                if note := reply.text("note"):
                    self.exchange.say(f"node {node}: {note}")
                self.known[node].kept |= set(parcels[node].texts("broadcast/kept"))
                yield node, reply
        self._part_with(left, round)

    def _part_with(self, nodes: Mapping[int, Tensor], round: int) -> None:
        """Go on without nodes that have not answered."""
        there = self.exchange.connected()
        for node in nodes:
            who = f"node {node}, with {len(self.known[node].clients)} clients,"
            if node in there:
                self.exchange.say(f"round {round} goes on without {who} which has not answered in time")
            else:
                self.exchange.say(f"{who} has gone: the run goes on without it")
                self.away.add(node)

    def _parcel(self, node: int, users: Tensor, broadcast: Broadcast | None, round: int, stage: str) -> Parcel:
        """What a node is asked, with all that its clients `[clients]` are sent before a round."""
        known = self.known[node]
        broadcast = self.wire.sending(broadcast, round, self.seed)
        welcome = pack_broadcast("welcome", self.wire.sending(self.server.welcome(), 0, self.seed))
        sent = pack_broadcast("broadcast", broadcast)
        head = {"clients": users.tolist(), "taken": known.taken, "stage": stage, **welcome.head, **sent.head}
        body = {**welcome.body, **sent.body}
        missing = [name for name in sent.texts("broadcast/kept") if name not in known.kept]
        for place, name in enumerate(missing):
            assert broadcast is not None
            if name not in self._packed:
                self._packed[name] = pack_bulletin(broadcast.kept[name])
            body[f"bulletin/{place}"], body[f"bulletin/{place} layout"] = self._packed[name]
        return Parcel({**head, "bulletins": missing}, body)

    def check_scores(self, round: int) -> None:
        """Nothing: nodes look at their scores when they rank."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the state of clients is on their nodes."""
        return {}
