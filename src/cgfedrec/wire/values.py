"""The kinds of value that cross the wire, and how one is declared before it arrives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.byvalue import ByValue

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8)
"""Types of the numbers that can travel, in the order of their codes on the wire."""


@dataclass(frozen=True, eq=False)
class Labels(ByValue):
    """A cluster label for each item.

    Args:
        values: `[items]`, int64, each in [0, clusters).
        clusters: K. A label takes ceil(log2 K) bits on the wire.
    """

    values: Tensor
    clusters: int


@dataclass(frozen=True, eq=False)
class SparseRows(ByValue):
    """A table of which only the rows that are not all zero cross the wire, each with the number of its item.

    Args:
        values: `[items, dim]`.
    """

    values: Tensor

    @property
    def touched(self) -> Tensor:
        """`[items]`, bool: the rows that are sent."""
        return self.values.ne(0).any(-1)


@dataclass(frozen=True, eq=False)
class Counts(ByValue):
    """Whole numbers, each in as many bits as what it can reach.

    Args:
        values: `[...]`, int64, within the bounds.
        bounds: Of the same shape.
    """

    values: Tensor
    bounds: Bounds


Coding = Literal["rice", "plain"]
"""How ids travel: by the gaps between them, or each as it is in ceil(log2 high) bits."""


@dataclass(frozen=True, eq=False)
class IdLists(ByValue):
    """Lists of ids, such as some items for each item.

    Args:
        ids: `[rows, most]`, int64: in each row different ids in ascending order, and then -1.
        sizes: `[rows]`, int64: how many ids each row has.
        high: All ids lie in [0, high).
        coding: See `Coding`. Both say the same, in more or fewer bytes.
    """

    ids: Tensor
    sizes: Tensor
    high: int
    coding: Coding = "rice"


@dataclass(frozen=True, eq=False)
class Weights(ByValue):
    """Few-bit weights over lists that the receiver has already: some entries of each list, and a number for each.

    Args:
        kept: `[rows, most]`, bool: which entries of a row have a weight. False beyond its size.
        levels: `[rows, most]`, int64: the weights in units of the row's scale, in [0, 2^bits). 0 where not kept.
        scales: `[rows]`, float16: finite and not negative.
        sizes: `[rows]`, int64: how many entries each row has.
        bits: Of a level, from 1 to 16.
    """

    kept: Tensor
    levels: Tensor
    scales: Tensor
    sizes: Tensor
    bits: int = 4


Value = Tensor | Labels | SparseRows | Counts | IdLists | Weights


@dataclass(frozen=True, eq=False)
class IdLayout(ByValue):
    """What the receiver of `IdLists` knows before.

    Args:
        sizes: `[rows]`, int64: how many ids each row has.
        high: All ids lie in [0, high).
        coding: See `Coding`.
    """

    sizes: Tensor
    high: int
    coding: Coding = "rice"

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """Why there are no such lists of a shape `[rows, most]`, if there are none."""
        if not 1 <= self.high <= 1 << 31:
            return f"has ids below {self.high}, and that must be between 1 and {1 << 31}"
        if self.coding not in get_args(Coding):
            return f"has the coding {self.coding!r}, which is none of {', '.join(get_args(Coding))}"
        if self.sizes.numel() and int(self.sizes.max()) > self.high:
            return f"has {int(self.sizes.max())} different ids below {self.high}"
        return _no_sizes(self.sizes, shape)


@dataclass(frozen=True, eq=False)
class WeightLayout(ByValue):
    """What the receiver of `Weights` knows before.

    Args:
        sizes: `[rows]`, int64: how many entries each row has.
        bits: Of a level.
    """

    sizes: Tensor
    bits: int = 4

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """Why there are no such weights of a shape `[rows, most]`, if there are none."""
        if not 1 <= self.bits <= 16:
            return f"has {self.bits} bits a level, and that must be between 1 and 16"
        return _no_sizes(self.sizes, shape)


def _no_sizes(sizes: Tensor, shape: tuple[int, ...]) -> str | None:
    """Why these are no sizes of lists `[rows, most]`, if they are none."""
    if len(shape) != 2 or sizes.dtype != torch.int64 or tuple(sizes.shape) != shape[:1]:
        return f"is {list(shape)} with {sizes.dtype} sizes {list(sizes.shape)}: not [rows, most] with int64 [rows]"
    if len(sizes) and not 0 <= int(sizes.min()) <= int(sizes.max()) <= shape[1]:
        return f"has lists of {int(sizes.min())} to {int(sizes.max())} entries, and at most {shape[1]} fit"
    return None


@dataclass(frozen=True)
class Field:
    """What one named value of a message is like: all that its receiver must know to read it.

    Args:
        shape: Of one client's value.
        dtype: Of its numbers; labels arrive as int64.
        sparse: Whether only the rows that are not all zero travel, `SparseRows`.
        clusters: K, where the values are `Labels`.
        bounds: Of whole numbers that travel in as many bits as what they can reach, `Counts`. Of one client's.
        lists: Of `IdLists` or `Weights`, ``shape`` being `[rows, most]`: what is known of them before.

    Examples:
        >>> Field((1682, 32))
        float32 [1682, 32]
        >>> Field((1682,), clusters=60)
        1682 labels of 60 clusters
        >>> Field((4,), torch.int64, bounds=Bounds(torch.tensor([0, 1, 4, 7])))
        int64 [4] of known bounds
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    sparse: bool = False
    clusters: int | None = None
    bounds: Bounds | None = None
    lists: IdLayout | WeightLayout | None = None

    @classmethod
    def of(cls, value: Value) -> Field:
        """The field that this value would fill."""
        if isinstance(value, Labels):
            return cls(tuple(value.values.shape), torch.int64, clusters=value.clusters)
        if isinstance(value, SparseRows):
            return cls(tuple(value.values.shape), value.values.dtype, sparse=True)
        if isinstance(value, Counts):
            return cls(tuple(value.values.shape), value.values.dtype, bounds=value.bounds)
        if isinstance(value, IdLists):
            return cls(tuple(value.ids.shape), torch.int64, lists=IdLayout(value.sizes, value.high, value.coding))
        if isinstance(value, Weights):
            return cls(tuple(value.levels.shape), torch.float16, lists=WeightLayout(value.sizes, value.bits))
        return cls(tuple(value.shape), value.dtype)

    def problem(self) -> str | None:
        """Why no message can hold such a value, if none can."""
        if self.dtype not in DTYPES:
            return f"is of {self.dtype}, which does not travel"
        if self.sparse and len(self.shape) != 2:
            return f"is sparse, and so must be [clients, items, dim], not [clients, {', '.join(map(str, self.shape))}]"
        if self.bounds is not None:
            return self._problem_of_bounds(self.bounds)
        if self.lists is not None:
            return self.lists.problem(self.shape)
        return None

    def _problem_of_bounds(self, bounds: Bounds) -> str | None:
        if self.dtype != torch.int64:
            return f"is of {self.dtype}, and numbers of known bounds are int64"
        if self.shape != bounds.shape:
            return f"is {list(self.shape)}, with bounds for {list(bounds.shape)}"
        if self.sparse:
            return "has bounds, and so all its rows travel: it cannot be one of those of which only some do"
        return None

    @property
    def bits(self) -> int:
        """Bits that one number takes on the wire; 0 where that differs from number to number."""
        if self.clusters is not None:
            return max(1, (self.clusters - 1).bit_length())  # ceil(log2 K) for integers, without rounding
        if self.bounds is not None:
            return self.bounds.bits or 0
        if isinstance(self.lists, WeightLayout):
            return self.lists.bits
        if self.lists is not None and self.lists.coding == "plain":
            return (self.lists.high - 1).bit_length()
        if self.lists is not None:
            return 0
        return self.dtype.itemsize * 8

    def __repr__(self) -> str:
        if self.clusters is not None:
            return f"{self.shape[0]} labels of {self.clusters} clusters"
        if isinstance(self.lists, IdLayout):
            return f"{self.shape[0]} lists of {self.lists.coding} ids below {self.lists.high}"
        if self.lists is not None:
            return f"{self.lists.bits}-bit weights over {self.shape[0]} lists"
        name = f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"
        if self.sparse:
            return f"sparse {name}"
        if self.bounds is not None and self.bounds.signed:
            return f"{name} of known bounds, signed"
        if self.bounds is not None:
            return f"{name} of known bounds"
        return name
