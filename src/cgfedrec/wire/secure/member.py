"""The client's half of a secure sum: Bonawitz et al. 2017 (CCS, figure 4), against a server that does as it should.

A client masks its message twice: with a mask for each neighbour, which the neighbour takes away again, and with one of
its own. It shares both secrets among its neighbours. Of each neighbour it tells one share in the end: of the own mask
where the neighbour's message has come, else of the key by which the masks between the two are known. It tells one story
of who has sent, and no other: with both shares, a message that was late would be open.

Who asks it the same once more is given the same answer. What it remembers between two messages is `Member.state`: a
member that goes on from an older state could tell both.

It trusts that public keys are those of whom the server says: a server that makes them up could read everything. Where
that is not so, keys must be signed by somebody whom all know.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from cgfedrec.errors import RunError
from cgfedrec.wire.messages import Upload, dense
from cgfedrec.wire.secure.masks import agreed, mask, public_of, residues, sealed, unsealed
from cgfedrec.wire.secure.neighbours import SECRET, Traffic
from cgfedrec.wire.secure.shares import split
from cgfedrec.wire.values import Field


class Keys(NamedTuple):
    """A client's public keys of one round, 32 bytes each."""

    sealing: bytes
    masking: bytes


class Member:
    """One client in one round. Its methods are called in this order.

    Args:
        client: Its number.
        context: Which run and round it is, alike for all.
        wished: With how many others each is to agree.
        least: It takes part in no sum of fewer clients.

    Attributes:
        spent: Whether its masks have hidden a message: the difference of two under the same masks could be read.
    """

    def __init__(self, client: int, context: bytes, wished: int, least: int) -> None:
        self.client, self.context, self.wished, self.least = client, context, wished, least
        self._sealing, self._masking, self._own = (secrets.token_bytes(SECRET) for _ in range(3))
        self._clients = 0
        self._keys: dict[int, Keys] = {}
        self._sealed: dict[int, bytes] = {}  # for whom: what it has sealed
        self._held: dict[int, tuple[bytes, bytes]] = {}  # whose: a share of the masking key, and one of the own mask
        self.spent = False
        self._sent: set[int] | None = None  # who has sent, once it has told its shares

    def keys(self) -> Keys:
        """What all may know."""
        return Keys(public_of(self._sealing), public_of(self._masking))

    def shares(self, clients: int, neighbours: Mapping[int, Keys]) -> dict[int, bytes]:
        """A sealed message for each neighbour, with its shares of both secrets.

        Args:
            clients: How many take part.
            neighbours: Their keys.

        Raises:
            RunError: where they are too few, or not so many as there should be; and for others than it has sealed for.
        """
        if self._sealed:
            if (clients, dict(neighbours)) != (self._clients, self._keys):
                raise RunError(f"client {self.client} has sealed its shares of this round for other neighbours")
            return self._sealed
        traffic = Traffic(clients, self.wished)
        if clients < self.least or len(neighbours) != traffic.neighbours or self.client in neighbours:
            raise RunError(
                f"client {self.client} takes no part in a sum of {clients} clients with {len(neighbours)} neighbours: "
                f"it wants at least {self.least}, and {traffic.neighbours}"
            )
        self._clients, self._keys = clients, dict(neighbours)
        holders = sorted([self.client, *neighbours])
        both = [split(secret, self._threshold, len(holders)) for secret in (self._masking, self._own)]
        pairs = dict(zip(holders, zip(*both, strict=True), strict=True))
        self._held[self.client] = pairs.pop(self.client)
        self._sealed = {
            other: sealed(self._key(other, self.client, other), b"".join(pair), self.context)
            for other, pair in pairs.items()
        }
        return self._sealed

    @property
    def _threshold(self) -> int:
        return Traffic(self._clients, self.wished).threshold

    def take(self, messages: Mapping[int, bytes]) -> None:
        """Read what neighbours have sealed for it. Those who have sent nothing are left out from here on.

        Raises:
            ValueError: for a message that is not what a neighbour has sent.
            RunError: where so few have that the sum could never be opened.
        """
        for other, message in messages.items():
            if other not in self._keys:
                raise ValueError(f"client {self.client} has no neighbour {other}")
            try:
                plain = unsealed(self._key(other, other, self.client), message, self.context)
            except ValueError as error:
                raise ValueError(f"from client {other} to client {self.client}: {error}") from error
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
            RunError: where it has masked a message already, or shares none of its secrets with enough others.
        """
        if self.spent:
            raise RunError(f"client {self.client} has masked a message already, and its masks hide one")
        if len(self._held) < max(self._threshold, 2):
            raise RunError(f"client {self.client} masks nothing: too few others share their secrets with it")
        total = {name: dense(value).clone() for name, value in values.items()}
        for name, field in fields.items():
            assert field.bounds is not None
            if problem := field.bounds.problem(total[name][None]):
                raise ValueError(f"field {name!r}: {problem}")
        self.spent = True
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
            RunError: where it has told another story, or too few have sent.
        """
        mine = set(sent) & self._held.keys()
        if self._sent is not None and mine != self._sent:
            raise RunError(
                f"client {self.client} has told its shares of this round already, and tells them for one list of those "
                "who have sent"
            )
        if len(mine) < self._threshold or self.client not in mine:
            raise RunError(f"client {self.client} tells nothing: too few of its neighbours have sent something")
        self._sent = mine
        return {one: own if one in mine else key for one, (key, own) in self._held.items()}

    def state(self) -> dict[str, Any]:
        """All that it must remember between two messages, in plain values, secrets among them: `of` goes on from it."""
        return {
            "secrets": [one.hex() for one in (self._sealing, self._masking, self._own)],
            "clients": self._clients,
            "keys": {other: [keys.sealing.hex(), keys.masking.hex()] for other, keys in self._keys.items()},
            "sealed": {other: message.hex() for other, message in self._sealed.items()},
            "held": {other: [share.hex() for share in pair] for other, pair in self._held.items()},
            "spent": self.spent,
            "sent": None if self._sent is None else sorted(self._sent),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], client: int, context: bytes, wished: int, least: int) -> Self:
        """A member that goes on from a `state`, perhaps by way of JSON. Other arguments are those of the class.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        member = cls(client, context, wished, least)
        member._sealing, member._masking, member._own = map(bytes.fromhex, state["secrets"])
        member._clients = int(state["clients"])
        member._keys = {int(one): Keys(*map(bytes.fromhex, keys)) for one, keys in state["keys"].items()}
        member._sealed = {int(one): bytes.fromhex(message) for one, message in state["sealed"].items()}
        for other, (key, own) in state["held"].items():
            member._held[int(other)] = bytes.fromhex(key), bytes.fromhex(own)
        member.spent = bool(state["spent"])
        member._sent = None if state["sent"] is None else set(state["sent"])
        return member

    def _key(self, other: int, sender: int, receiver: int) -> bytes:
        """With which one seals for the other."""
        purpose = b"seal %d %d " % (sender, receiver) + self.context
        return agreed(self._sealing, self._keys[other].sealing, purpose)

    def _agreed(self, other: int) -> bytes:
        return agreed(self._masking, self._keys[other].masking, b"mask " + self.context)


def masked(upload: Upload, members: Mapping[int, Member]) -> Upload:
    """What clients send, `[clients, ...]` by name, each under its own masks.

    Args:
        upload: What they would send: whole numbers of known bounds.
        members: By client.

    Raises:
        ValueError, RunError: as of `Member.masked`.
    """
    fields, rows = upload.fields, []
    for row, client in enumerate(upload.clients.tolist()):
        values = {name: dense(value[row]).cpu() for name, value in upload.values.items()}
        rows.append(members[client].masked(values, fields))
    travelling = {name: residues(field) for name, field in fields.items()}
    nobody = {name: torch.zeros(0, *field.shape, dtype=torch.int64) for name, field in fields.items()}
    values = {name: torch.stack([one[name] for one in rows]) if rows else nobody[name] for name in fields}
    return Upload.of_fields(upload.clients, values, travelling)


def sign(client: int, other: int) -> int:
    """Whether a client adds the mask that it has with another, or takes it away."""
    return 1 if client < other else -1


def _modulo(total: Tensor, field: Field) -> Tensor:
    bounds = residues(field).bounds
    assert bounds is not None
    return torch.bitwise_and(total, bounds.largest)
