"""Bulletins: what a client downloads once and keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cgfedrec.wire.codec import decode, encode
from cgfedrec.wire.values import Field, Value


@dataclass(frozen=True)
class Bulletin:
    """A message that is the same for every client and holds for many rounds, such as the neighbours of all items.

    A client downloads it when it first needs it. It is encoded and decoded once, and not for every cohort anew.

    Args:
        values: Named values, as they arrive.
        nbytes: That it takes.

    >>> import torch
    >>> Bulletin.of({"seed": torch.tensor(7)}).nbytes
    17
    """

    values: Mapping[str, Value]
    nbytes: int

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> Bulletin:
        """Send values over the wire."""
        message = encode(values)
        return cls(decode(message, {name: Field.of(value) for name, value in values.items()}), len(message))
