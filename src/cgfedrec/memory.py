"""Where clients' values lie in memory: once for all who share them, and where a new tensor would begin."""

from __future__ import annotations

from torch import Tensor

ALIGNMENT = 64
"""Bytes: a multiple of this is where torch begins a new tensor."""
VECTOR = 16
"""How many float32 numbers the widest vector of a CPU holds."""


def aligned(value: Tensor) -> Tensor:
    """The same values where a new tensor would begin: at a multiple of `ALIGNMENT`, copied if they do not.

    How a product of matrices rounds may depend on where its operands begin. Without this, a cohort's place in a store
    would show in the results, and so would a message's place in memory. Values that are expanded along the first axis
    are shared by all clients, and stay where they are.

    Args:
        value: `[...]`

    Returns:
        `[...]`
    """
    if is_shared(value) or value.data_ptr() % ALIGNMENT == 0:
        return value
    return value.clone()


def shared_by(value: Tensor, clients: int) -> Tensor:
    """One value `[...]` for each of some clients, in the memory of one, `[clients, ...]`. Nobody may change it."""
    value = aligned(value)
    return value.as_strided((clients, *value.shape), (0, *value.stride()))


def is_shared(value: Tensor) -> bool:
    """Whether the rows of `[clients, ...]` lie in the memory of one."""
    return value.ndim > 0 and value.stride(0) == 0
