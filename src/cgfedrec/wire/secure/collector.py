"""The server's half of a secure sum: it passes on what clients seal for each other, and takes masks off a sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from cgfedrec.errors import RunError
from cgfedrec.wire.secure.masks import agreed, mask, public_of
from cgfedrec.wire.secure.member import Keys, sign
from cgfedrec.wire.secure.neighbours import Traffic, circle
from cgfedrec.wire.secure.shares import joined
from cgfedrec.wire.secure.step import of_residues
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field


class ClosedError(RunError):
    """A sum that cannot be opened."""


class Collector:
    """The server in one round.

    Args:
        keys: Of all who take part: those who have not told them in time take no part.
        context: Which run and round it is, alike for all.
        wished: With how many others each is to agree.
    """

    def __init__(self, keys: Mapping[int, Keys], context: bytes, wished: int) -> None:
        self.keys, self.context = dict(keys), context
        self.neighbours = circle(keys, context, wished)
        self.threshold = Traffic(len(keys), wished).threshold
        self.shared: set[int] = set()

    def roster(self, client: int) -> dict[int, Keys]:
        """The keys of a client's neighbours."""
        return {other: self.keys[other] for other in self.neighbours[client]}

    def passed_on(self, messages: Mapping[int, Mapping[int, bytes]]) -> dict[int, dict[int, bytes]]:
        """What each client gets of what all have sealed: by receiver, then by sender.

        Args:
            messages: By sender, then by receiver. Those who have sent none take part no longer, nor do those who would
                get too few to go on.
        """
        there = set(messages)
        while few := {one for one in there if 1 + len(there & set(self.neighbours[one])) < self.threshold}:
            there -= few
        self.shared = there
        return {one: {other: messages[other][one] for other in self.neighbours[one] if other in there} for one in there}

    def asked(self, sent: Collection[int]) -> dict[int, set[int]]:
        """Who tells shares, and for each who has sent of those whose shares it has: enough of them, and itself."""
        found = {}
        for client in sorted(self.shared.intersection(sent)):
            beside = {client, *self.neighbours[client]}.intersection(self.shared, sent)
            if len(beside) >= self.threshold:
                found[client] = beside
        return found

    def holds(self, client: int) -> list[int]:
        """Whose shares a client has, ascending: its own too."""
        return sorted({client, *self.neighbours[client]} & self.shared)

    def opened(
        self, closed: Sum, sent: Collection[int], told: Mapping[int, Mapping[int, bytes]], fields: Mapping[str, Field]
    ) -> Sum:
        """The sum `[...]` by name without its masks, as a sum that never had any. Other arguments are those of `masks`.

        Args:
            closed: The sum of masked messages.
            sent: As of `masks`.
            told: As of `masks`.
            fields: As of `masks`.

        Raises:
            ClosedError: as `masks`.
        """
        off, values = self.masks(sent, told, fields), {}
        for name, field in fields.items():
            assert field.bounds is not None
            values[name] = of_residues(closed.values[name] - off[name], field.bounds)
        return Sum(values, closed.clients)

    def masks(
        self, sent: Collection[int], told: Mapping[int, Mapping[int, bytes]], fields: Mapping[str, Field]
    ) -> dict[str, Tensor]:
        """What is to be taken off the sum of masked messages, by name, `[...]`, modulo two to the bits of each number.

        Args:
            sent: Whose messages are in the sum.
            told: By whom, then of whom: a share of the own mask of those who have sent, and else of the masking key.
            fields: Of one client's message before it was masked.

        Raises:
            ClosedError: where too few have told their shares, or other ones than were made.
        """
        total = {name: torch.zeros(field.shape, dtype=torch.int64) for name, field in fields.items()}
        for client in sorted(self.shared):
            secret = self._secret(client, told)
            seeds = [(1, secret)]
            if client not in sent:  # whose neighbours have the masks between the two in their messages
                if public_of(secret) != self.keys[client].masking:
                    raise ClosedError(f"the sum stays closed: the shares of client {client}'s key are not its own")
                beside = [other for other in self.neighbours[client] if other in sent]
                purpose = b"mask " + self.context
                seeds = [(sign(other, client), agreed(secret, self.keys[other].masking, purpose)) for other in beside]
            for way, seed in seeds:
                for name, part in mask(seed, fields).items():
                    total[name] += way * part
        return total

    def _secret(self, client: int, told: Mapping[int, Mapping[int, bytes]]) -> bytes:
        holders = sorted([client, *self.neighbours[client]])
        shares = {
            place: told[holder][client]
            for place, holder in enumerate(holders)
            if holder in told and client in told[holder]
        }
        try:
            return joined(shares, self.threshold)
        except ValueError as error:
            raise ClosedError(f"the sum stays closed: of client {client}, {error}") from error
