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
from cgfedrec.wire.values import Field


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
            messages: By sender, then by receiver. Those who have sent none take part no longer.
        """
        self.shared = set(messages)
        return {
            client: {other: messages[other][client] for other in self.neighbours[client] if other in messages}
            for client in messages
        }

    def masks(
        self, sent: Collection[int], told: Mapping[int, Mapping[int, bytes]], fields: Mapping[str, Field]
    ) -> dict[str, Tensor]:
        """What is to be taken off the sum of masked messages, by name, `[...]`, modulo two to the bits of each number.

        Args:
            sent: Whose messages are in the sum.
            told: By whom, then of whom: a share of the own mask of those who have sent, and else of the masking key.
            fields: Of one client's message before it was masked.

        Raises:
            RunError: where too few have told their shares: the sum stays closed.
        """
        total = {name: torch.zeros(field.shape, dtype=torch.int64) for name, field in fields.items()}
        for client in sorted(self.shared):
            secret = self._secret(client, told)
            seeds = [(1, secret)]
            if client not in sent:  # whose neighbours have the masks between the two in their messages
                if public_of(secret) != self.keys[client].masking:
                    raise RunError(f"the shares of client {client}'s key are not what it has shared")
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
            raise RunError(f"the sum stays closed: of client {client}, {error}") from error
