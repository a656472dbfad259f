"""The kinds of value that cross the wire, and how one is declared before it arrives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8)
"""Types of the numbers that can travel, in the order of their codes on the wire."""


@dataclass(frozen=True)
class Labels:
    """A cluster label for each item.

    Args:
        values: `[items]`, int64, each in [0, clusters).
        clusters: K. A label takes ceil(log2 K) bits on the wire.
    """

    values: Tensor
    clusters: int


@dataclass(frozen=True)
class SparseRows:
    """A table of which only the rows that are not all zero cross the wire, each with the number of its item.

    Args:
        values: `[items, dim]`.
    """

    values: Tensor

    @property
    def touched(self) -> Tensor:
        """`[items]`, bool: the rows that are sent."""
        return self.values.ne(0).any(-1)


Value = Tensor | Labels | SparseRows


@dataclass(frozen=True)
class Field:
    """What one named value of a message is like: all that its receiver must know to read it.

    Args:
        shape: Of one client's value.
        dtype: Of its numbers; labels arrive as int64.
        sparse: Whether only the rows that are not all zero travel, `SparseRows`.
        clusters: K, where the values are `Labels`.

    >>> Field((1682, 32))
    float32 [1682, 32]
    >>> Field((1682,), clusters=60)
    1682 labels of 60 clusters
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    sparse: bool = False
    clusters: int | None = None

    @classmethod
    def of(cls, value: Value) -> Field:
        """The field that this value would fill."""
        if isinstance(value, Labels):
            return cls(tuple(value.values.shape), torch.int64, clusters=value.clusters)
        if isinstance(value, SparseRows):
            return cls(tuple(value.values.shape), value.values.dtype, sparse=True)
        return cls(tuple(value.shape), value.dtype)

    def problem(self) -> str | None:
        """Why no message can hold such a value, if none can."""
        if self.dtype not in DTYPES:
            return f"is of {self.dtype}, which does not travel"
        if self.sparse and len(self.shape) != 2:
            return f"is sparse, and so must be [clients, items, dim], not [clients, {', '.join(map(str, self.shape))}]"
        return None

    @property
    def bits(self) -> int:
        """Bits that one number takes on the wire."""
        if self.clusters is not None:
            return max(1, (self.clusters - 1).bit_length())  # ceil(log2 K) for integers, without rounding
        return self.dtype.itemsize * 8

    def __repr__(self) -> str:
        if self.clusters is not None:
            return f"{self.shape[0]} labels of {self.clusters} clusters"
        name = f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"
        if self.sparse:
            return f"sparse {name}"
        return name
