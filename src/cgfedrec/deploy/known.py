"""What a server knows of a node between rounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Known:
    """What the server knows of a node."""

    clients: Tensor
    """`[clients]`, int64, ascending: who lives there."""
    holds_out: dict[str, bool]
    """Whether there is anything to rank, for each stage."""
    kept: set[str] = field(default_factory=set)
    """Which bulletins it has."""
    taken: int = 0
    """The last round of it that the server has taken in."""
