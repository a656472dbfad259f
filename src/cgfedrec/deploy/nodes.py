"""Nodes: what stands in for `cgfedrec.simulation.clients.Clients` on a server whose clients are elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from cgfedrec.data.module import Stage
from cgfedrec.deploy.answers import evaluated, trained, without
from cgfedrec.deploy.attendance import Attendance
from cgfedrec.deploy.exchange import Exchange
from cgfedrec.deploy.parcels import (
    DONE,
    FAILED,
    MISSING,
    Parcel,
    pack_broadcast,
    pack_bulletin,
)
from cgfedrec.deploy.settings import Terms
from cgfedrec.errors import RunError, check
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
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire, WireError

T = TypeVar("T")
R = TypeVar("R")


class Alone:
    """Workers of a server that has no clients: one, which is the caller."""

    number = 1

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results of ``function``, in the order of ``items``."""
        yield from map(function, items)


class Nodes(Attendance):
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
        super().__init__(exchange, terms)
        self.server, self.wire = server, wire
        self.cutoffs, self.seed, self.refusing = cutoffs, seed, refusing
        check(*wire.problems(server.sees_single_uploads, type(method).__name__))
        example = method.client(terms.items, 0)
        self.reports, self._scores_after = type(example).reports, example.scores_after
        self.workers = Alone()
        self.bytes_scoring = 0
        self._packed: dict[str, tuple[bytes, bytes]] = {}

    @property
    def least(self) -> int:
        """Fewer clients cannot take part in the next round."""
        return 1

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
        asked = self.homes(participants)
        for node, reply in self.asked("train", asked, round, self.server.broadcast):
            try:
                yield self._trained(asked[node], reply, round)
            except (ValueError, WireError) as error:
                self.unread(node, round, error)
                continue
            self.known[node].taken = round

    def unread(self, node: int, round: int, error: Exception) -> None:
        """Say that a round goes on without a node whose answer cannot be read."""
        self.exchange.say(f"round {round} goes on without node {node}, whose answer cannot be read: {error}")

    def _trained(self, asked: Tensor, reply: Parcel, round: int) -> Trained:
        """What a node has sent, checked, for clients `[clients]`. Raises as `read` does."""
        expects = self.server.expects
        upload, told = self.read(asked, reply, self.wire.travelling(expects))

        def take(one: Upload) -> tuple[Upload, int]:
            return self.wire.arrived(one, expects, round), 0

        arrived, _, unsound = carried(upload, take, expects, self.refusing, self.server.doubted)
        return Trained(self.server.reduced(arrived), without(told, unsound))

    def read(self, asked: Tensor, reply: Parcel, expected: Mapping[str, Field]) -> tuple[Upload, Told]:
        """What a node has sent for clients `[clients]`, and tells of them.

        Args:
            asked: `[clients]`, whose it is to be.
            reply: From anyone.
            expected: The fields of one client's message as it travels.

        Raises:
            ValueError: if it is anything else.
        """
        return trained(asked, reply, expected, len(self.reports), self.refusing)

    def together(self, cohorts: Sequence[Told]) -> Told:
        """What all nodes have to tell."""
        return together.told(Processes(), cohorts, self.wire)

    def metrics(self, stage: Stage, round: int) -> Row:
        """Metrics of all clients' present state, named like ``val/ndcg@10``, from the nodes' sums.

        What needs lists, such as coverage, is not among them.
        """
        nodes = {node: self.known[node].clients for node in sorted(self.known.keys() - self.away)}
        sent = self.server.broadcast if self._scores_after == "aggregation" else None
        sums = {name: torch.zeros(len(self.cutoffs), dtype=torch.int64) for name in METRICS}
        users = 0
        for node, reply in self.asked("evaluate", nodes, round, sent, stage):
            try:
                number, nbytes, told = evaluated(len(nodes[node]), reply, len(self.cutoffs))
            except ValueError as error:
                self.unread(node, round, error)
                continue
            users, self.bytes_scoring = users + number, self.bytes_scoring + nbytes
            for name, value in told.items():
                sums[name] += value
        if not users:
            return {}
        return {
            f"{stage}/{name}@{k}": total / GRID / users
            for name, totals in sums.items()
            for k, total in zip(self.cutoffs, totals.tolist(), strict=True)
        }

    def asked(
        self,
        what: str,
        nodes: Mapping[int, Tensor],
        round: int,
        broadcast: Callable[[Tensor, int], Broadcast | None] | None,
        stage: str = "",
        besides: Mapping[int, Parcel] = MappingProxyType({}),
    ) -> Iterator[tuple[int, Parcel]]:
        """Ask nodes, with what goes down to their clients, and give answers of those who have done it.

        Args:
            what: As of `Exchange.ask`.
            nodes: Whom, and which clients of each, `[clients]`.
            round: From 1.
            broadcast: Makes what goes down to clients `[clients]` before a round.
            stage: Of an evaluation.
            besides: What else single nodes are sent.
        """
        of_round, repeated = round if what == "train" else round + 1, False
        while nodes:
            parcels = {
                node: self._parcel(node, users, broadcast and broadcast(users, of_round), of_round, stage)
                for node, users in nodes.items()
            }
            parcels |= {node: parcels[node].joined(more) for node, more in besides.items() if node in parcels}
            again = {}
            for node, reply in self.answers(what, parcels, round):
                if reply.text("status") == MISSING:  # it has lost what it had
                    try:
                        self.known[node].kept -= set(reply.texts("kept"))
                        if repeated:
                            raise ValueError("it misses what it has been sent")
                        again[node] = nodes[node]
                    except ValueError as error:
                        self.unread(node, round, error)
                    continue
                if note := reply.text("note"):
                    self.exchange.say(f"node {node}: {note}")
                self.known[node].kept |= set(parcels[node].texts("broadcast/kept"))
                yield node, reply
            nodes, repeated = again, True

    def answers(self, what: str, parcels: Mapping[int, Parcel], round: int) -> Iterator[tuple[int, Parcel]]:
        """Ask nodes, give the answers of those who can do it, and go on without the others. Arguments as of `asked`.

        Raises:
            RunError: where a node says that it has failed.
        """
        silent = set(parcels)
        for node, reply in self.exchange.ask(what, parcels, round):
            silent.discard(node)
            status = reply.text("status")
            if status == FAILED:
                raise RunError(f"node {node}: {reply.text('why')}")
            if status in (DONE, MISSING):
                yield node, reply
            else:
                self.exchange.say(f"round {round} goes on without node {node}: {reply.text('why')}")
        self.part_with(silent, round)

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
        """What a run needs to go on: which rounds of clients have been taken in. Their state is on their nodes."""
        taken = self.taken.clone()
        for one in self.known.values():
            taken[one.clients] = one.taken
        return {"taken": taken}

    def load_state_dict(self, state: Mapping[str, Any], bytes_scoring: int) -> None:
        """Go back to where `state_dict` was taken.

        Args:
            state: Of the nodes, `[clients]` and more.
            bytes_scoring: That had come down to score with by then.

        Raises:
            ValueError: if it is of other clients.
        """
        taken = state["taken"]
        if not isinstance(taken, Tensor) or taken.shape != self.taken.shape or taken.dtype != torch.int64:
            raise ValueError(f"rounds taken in are not those of {len(self.taken)} clients")
        self.taken, self.bytes_scoring = taken.clone(), bytes_scoring
        for one in self.known.values():
            one.taken = self._taken(one.clients)
