"""The client's half of a secure sum: Bonawitz et al. 2017 (CCS, figure 4), against a server that does as it should.

A client masks its message twice: with a mask for each neighbour, which the neighbour takes away again, and with one of
its own. It shares both secrets among its neighbours. Of each neighbour it tells one share in the end: of the own mask
where the neighbour's message has come, else of the key by which the masks between the two are known. It tells neither
twice: with both, a message that was late would be open.

It trusts that public keys are those of whom the server says: a server that makes them up could read everything. Where
that is not so, keys must be signed by somebody whom all know.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cgfedrec.errors import RunError
from cgfedrec.wire.messages import dense
from cgfedrec.wire.secure.masks import agreed, mask, public_of, residues, sealed, unsealed
from cgfedrec.wire.secure.neighbours import SECRET, Traffic
from cgfedrec.wire.secure.shares import split
from cgfedrec.wire.values import Field


class Keys(NamedTuple):
    """A client's public keys of one round, 32 bytes each."""

    sealing: bytes
    masking: bytes


class Member:
    """One client in one round. Its methods are called once each, in this order.

    Args:
        client: Its number.
        context: Which run and round it is, alike for all.
        wished: With how many others each is to agree.
        least: It takes part in no sum of fewer clients.
    """

    def __init__(self, client: int, context: bytes, wished: int, least: int) -> None:
        self.client, self.context, self.wished, self.least = client, context, wished, least
        self._sealing, self._masking, self._own = (secrets.token_bytes(SECRET) for _ in range(3))
        self._keys: Mapping[int, Keys] = {}
        self._threshold = 0
        self._held: dict[int, tuple[bytes, bytes]] = {}  # whose: a share of the masking key, and one of the own mask
        self._told = False

    def keys(self) -> Keys:
        """What all may know."""
        return Keys(public_of(self._sealing), public_of(self._masking))

    def shares(self, clients: int, neighbours: Mapping[int, Keys]) -> dict[int, bytes]:
        """A sealed message for each neighbour, with its shares of both secrets.

        Args:
            clients: How many take part.
            neighbours: Their keys.

        Raises:
            RunError: where they are too few, or not so many as there should be.
        """
        traffic = Traffic(clients, self.wished)
        if clients < self.least or len(neighbours) != traffic.neighbours or self.client in neighbours:
            raise RunError(
                f"client {self.client} takes no part in a sum of {clients} clients with {len(neighbours)} neighbours: "
                f"it wants at least {self.least}, and {traffic.neighbours}"
            )
        self._keys, self._threshold = dict(neighbours), traffic.threshold
        holders = sorted([self.client, *neighbours])
        both = [split(secret, self._threshold, len(holders)) for secret in (self._masking, self._own)]
        pairs = dict(zip(holders, zip(*both, strict=True), strict=True))
        self._held[self.client] = pairs.pop(self.client)
        return {
            other: sealed(self._key(other, self.client, other), b"".join(pair), self.context)
            for other, pair in pairs.items()
        }

    def take(self, messages: Mapping[int, bytes]) -> None:
        """Read what neighbours have sealed for it. Those who have sent nothing are left out from here on.

        Raises:
            ValueError: for a message that is not what a neighbour has sent.
            RunError: where so few have that the sum could never be opened.
        """
        for other, message in messages.items():
            if other not in self._keys:
                raise ValueError(f"client {self.client} has no neighbour {other}")
            plain = unsealed(self._key(other, other, self.client), message, self.context)
            self._held[other] = plain[:SECRET], plain[SECRET:]
        if len(self._held) < self._threshold:
            raise RunError(
                f"client {self.client} has shares of {len(self._held)} clients, and needs those of {self._threshold}"
            )

    def masked(self, values: Mapping[str, Tensor], fields: Mapping[str, Field]) -> dict[str, Tensor]:
        """Its message, which says nothing to anybody alone: by name, `[...]`, whole numbers modulo two to their bits.

        Args:
            values: Whole numbers by name, `[...]`, within the bounds of what their sum can reach.
            fields: With these bounds.

        Raises:
            ValueError: for numbers out of bounds.
        """
        total = {name: dense(value).clone() for name, value in values.items()}
        for name, field in fields.items():
            assert field.bounds is not None
            if problem := field.bounds.problem(total[name][None]):
                raise ValueError(f"field {name!r}: {problem}")
        masks = [(1, self._own)]
        masks += [(sign(self.client, other), self._agreed(other)) for other in self._held if other != self.client]
        for way, seed in masks:
            for name, part in mask(seed, fields).items():
                total[name] += way * part
        return {name: _modulo(total[name], field) for name, field in fields.items()}

    def told(self, sent: Collection[int]) -> dict[int, bytes]:
        """A share of each neighbour's secret, and of its own, once everybody's message has come or never will.

        Args:
            sent: Those among its neighbours and itself whose messages have come.

        Raises:
            RunError: where it is asked twice, or too few have sent.
        """
        if self._told:
            raise RunError(f"client {self.client} has told its shares of this round already, and tells them once")
        if len(set(sent) & self._held.keys()) < self._threshold or self.client not in sent:
            raise RunError(f"client {self.client} tells nothing: too few of its neighbours have sent something")
        self._told = True
        return {one: own if one in sent else key for one, (key, own) in self._held.items()}

    def _key(self, other: int, sender: int, receiver: int) -> bytes:
        """With which one seals for the other."""
        purpose = b"seal %d %d " % (sender, receiver) + self.context
        return agreed(self._sealing, self._keys[other].sealing, purpose)

    def _agreed(self, other: int) -> bytes:
        return agreed(self._masking, self._keys[other].masking, b"mask " + self.context)


def sign(client: int, other: int) -> int:
    """Whether a client adds the mask that it has with another, or takes it away."""
    return 1 if client < other else -1


def _modulo(total: Tensor, field: Field) -> Tensor:
    bounds = residues(field).bounds
    assert bounds is not None
    return torch.bitwise_and(total, bounds.largest)
