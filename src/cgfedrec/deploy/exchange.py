"""Exchange: asks nodes, and waits for their answers as long as it makes sense."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from flwr.app import Message, RecordDict

from cgfedrec.deploy.parcels import Parcel

PAUSE = 1.0
"""Seconds between two looks at what has come."""
ATTEMPTS = 5
"""How often the same is asked of a node whose process fails."""
SENT_AGAIN = (3, 4, 5)
"""Flower's codes of errors that say that a node, or a message, was away: it is sent again as long as there is time."""


class Grid(Protocol):
    """What is used of Flower's grid."""

    def get_node_ids(self) -> Iterable[int]:
        """Of the nodes that are connected."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; their ids."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to messages, once there are any."""


class Exchange:
    """Asks nodes.

    Args:
        grid: Flower's.
        run: Which run it is.
        wait: Seconds that an answer may take.
        absent: Seconds that a node may be gone before nobody waits for it any longer.
        say: Tells people what happens.
        clock: Tells the time in seconds.
        sleep: Waits so many seconds.

    Attributes:
        messages: How many have been sent and answered so far.
    """

    def __init__(
        self,
        grid: Grid,
        run: str,
        wait: float,
        absent: float,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.grid, self.run, self.wait, self.absent, self.say = grid, run, wait, absent, say
        self.clock, self.sleep = clock, sleep
        self.messages = 0
        self._gone_since: dict[int, float] = {}

    def connected(self) -> set[int]:
        """Which nodes are connected."""
        there = set(self.grid.get_node_ids())
        for node in there:
            self._gone_since.pop(node, None)
        return there

    def ask(
        self, what: str, parcels: Mapping[int, Parcel], round: int = 0, most: float = math.inf
    ) -> Iterator[tuple[int, Parcel]]:
        """Ask nodes, each something of its own, and give their answers as they come.

        It ends when all have answered, or none is left to wait for: when its time is over, or a node has been gone for
        too long. A node that comes back in time is asked again, and answers the same.

        Args:
            what: ``who``, ``train`` or ``evaluate``.
            parcels: By node.
            round: From 1, where there is one.
            most: Seconds that an answer may take, where that is less than ever.
        """
        deadline = self.clock() + min(self.wait, most)
        to_send, waiting = set(parcels), dict[str, int]()
        failures = dict.fromkeys(parcels, 0)
        while to_send or waiting:
            there, now = self.connected(), self.clock()
            for node in self._given_up({*to_send, *waiting.values()} - there, now):
                to_send.discard(node)
                waiting = {id: one for id, one in waiting.items() if one != node}
            if now >= deadline:
                return
            for node in sorted(to_send & there):
                head = {**parcels[node].head, "what": what, "run": self.run, "round": round, "deadline": deadline}
                for id in self._sent(node, Parcel(head, parcels[node].body), what, round, deadline - now):
                    waiting[id] = node
                    to_send.discard(node)
            for id, reply in self._replies(waiting):
                node = waiting.pop(id)
                parcel = self._read(node, reply)
                if parcel is not None:
                    self.messages += 1
                    yield node, parcel
                    continue
                if not (reply.has_error() and reply.error.code in SENT_AGAIN):
                    failures[node] += 1
                if failures[node] < ATTEMPTS:
                    to_send.add(node)
            if to_send or waiting:
                self.sleep(PAUSE)

    def _given_up(self, gone: set[int], now: float) -> Iterator[int]:
        """Those who have been gone for too long."""
        for node in gone:
            if now - self._gone_since.setdefault(node, now) >= self.absent:
                yield node

    def _sent(self, node: int, parcel: Parcel, what: str, round: int, ttl: float) -> Iterable[str]:
        message = Message(
            parcel.records(), dst_node_id=node, message_type=f"query.{what}", ttl=ttl, group_id=str(round)
        )
        return [id for id in self.grid.push_messages([message]) if id]

    def _replies(self, waiting: Mapping[str, int]) -> list[tuple[str, Message]]:
        if not waiting:
            return []
        replies = list(self.grid.pull_messages(list(waiting)))
        ids = [(reply.metadata.reply_to_message_id, reply) for reply in replies]
        return [(id, reply) for id, reply in ids if id in waiting]

    def _read(self, node: int, reply: Message) -> Parcel | None:
        """What a node has answered; nothing where it has failed to."""
        if reply.has_error():
            self.say(f"node {node} did not answer: error {reply.error.code}, {reply.error.reason or 'no reason'}")
            return None
        records: RecordDict = reply.content
        try:
            return Parcel.of(records)
        except ValueError as error:
            self.say(f"node {node} answered {error}")
            return None
