"""The kinds of value that cross the wire: tensors, labels, sparse rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """A cluster label for each item.

    Args:
        values: `[items]`, int64, each in [0, clusters).
        clusters: K. A label takes ceil(log2 K) bits on the wire.
    """

    values: Tensor
    clusters: int

    @property
    def bits(self) -> int:
        """How many bits a label takes: ceil(log2 K), and 1 where there is one cluster.

        >>> import torch
        >>> Labels(torch.tensor([59, 0, 7]), clusters=60).bits
        6
        """
        return max(1, (self.clusters - 1).bit_length())


@dataclass(frozen=True)
class SparseRows:
    """A table of which only the rows that are not all zero cross the wire, and which they are.

    Args:
        values: `[items, dim]`.
    """

    values: Tensor

    @property
    def touched(self) -> Tensor:
        """`[items]`, bool: the rows that are sent."""
        return self.values.ne(0).any(-1)


Value = Tensor | Labels | SparseRows
