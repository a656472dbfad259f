"""Who agrees with whom on masks, and what that sends beside the masked message itself.

With all others, as Bonawitz et al. have it (CCS 2017), the bytes of a client grow with the number of clients. With some
neighbours, drawn anew in each round, they do not, and a sum stays as safe against a server that does as it should and
some clients who tell it all they know (Bell et al., CCS 2020, eprint 2020/704).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

PUBLIC = 32
"""Bytes of a public key of X25519; a client has two."""
SECRET = 32
"""Bytes of a secret that is shared: the private key of the masks, and the seed of the client's own mask."""
SEALED = 16
"""Bytes that authenticated encryption adds."""
SHARES = 2 * SECRET + SEALED
"""Bytes of what a client seals for a neighbour: its shares of two secrets."""
ID = 4
"""Bytes of a client's number."""


@dataclass(frozen=True)
class Traffic:
    """What the protocol sends for one round beside masked messages, where all who begin it end it.

    Args:
        clients: Who take part.
        wished: With how many each is to agree, where there are so many others. An odd number becomes the even one
            below: there are as many on the one side of a circle as on the other.

    >>> Traffic(3, 64).neighbours, Traffic(3, 64).threshold
    (2, 2)
    >>> Traffic(1000, 64).neighbours, Traffic(1000, 64).threshold
    (64, 33)
    >>> Traffic(1000, 64).nbytes  # of all clients, up and down
    (7264000, 9481000)
    """

    clients: int
    wished: int

    @property
    def neighbours(self) -> int:
        """With how many others each client agrees."""
        others = self.clients - 1
        if others <= self.wished:
            return others
        return self.wished - self.wished % 2

    @property
    def threshold(self) -> int:
        """How many must tell their share for a secret to be known: more than half of those who have one.

        These are the neighbours and the client itself. So no two different stories of who has sent can both be told to
        enough of them.
        """
        return (self.neighbours + 1) // 2 + 1

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes up and down, of all clients."""
        each = self.neighbours
        # Up: two public keys; two sealed shares for each neighbour; one share of each neighbour and of oneself.
        up = 2 * PUBLIC + each * SHARES + (each + 1) * SECRET
        # Down: the neighbours' numbers and keys; their sealed shares; who has sent, a bit for each neighbour.
        down = each * (ID + 2 * PUBLIC) + each * SHARES + (each + 8) // 8
        return self.clients * up, self.clients * down


def circle(clients: Iterable[int], context: bytes, wished: int) -> dict[int, list[int]]:
    """Each client's neighbours, ascending: those next to it on a circle whose order the context gives.

    Args:
        clients: Their numbers.
        context: Which run and round it is; everybody can tell the neighbours from it.
        wished: With how many each is to agree: see `Traffic`.

    >>> circle([3, 5, 9], b"run, round 1", wished=64)
    {3: [5, 9], 5: [3, 9], 9: [3, 5]}
    """
    there = sorted(clients)
    number = Traffic(len(there), wished).neighbours
    if number == len(there) - 1:
        return {one: [other for other in there if other != one] for one in there}
    order = sorted(there, key=lambda one: hashlib.sha256(context + one.to_bytes(8, "little")).digest())
    reach = number // 2
    found = {}
    for place, one in enumerate(order):
        beside = [order[(place + step) % len(order)] for step in range(-reach, reach + 1) if step]
        found[one] = sorted(beside)
    return found
