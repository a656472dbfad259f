"""Which blocks are free, and which follow one another in a record."""

from __future__ import annotations

import torch
from torch import Tensor

from cgfedrec.simulation.store.blocks import Blocks


class Room:
    """Shares out blocks. A block is free, or some record's, or pinned: a checkpoint needs what lies in it.

    Args:
        blocks: That are shared out; they grow when too few are free.
        size: How many of them count. None is free before `find_free`.

    Attributes:
        pins: The blocks that each checkpoint needs, by its name.
    """

    def __init__(self, blocks: Blocks, size: int = 0) -> None:
        self.blocks, self.size = blocks, size
        self.pins: dict[str, Tensor] = {}
        self._next = torch.full((size,), -1)  # [size]: the block that follows in the same record
        self._pinned = torch.zeros(size, dtype=torch.bool)
        # [free]. Blocks are taken from its end, so it is kept in descending order: records that are written together
        # then lie next to each other.
        self._free = torch.empty(0, dtype=torch.int64)

    def take(self, number: int) -> Tensor:
        """Free blocks, `[number]`, in ascending order. Raises `RunError` if there is no room for more."""
        if number > len(self._free):
            # By an eighth at least: a file system is asked rarely, and little room is reserved in vain.
            more = max(number, self.size // 8)
            self.blocks.grow(self.size, self.size + more)
            self._free = torch.cat((torch.arange(self.size + more - 1, self.size - 1, -1), self._free))
            self._next = torch.cat((self._next, torch.full((more,), -1)))
            self._pinned = torch.cat((self._pinned, torch.zeros(more, dtype=torch.bool)))
            self.size += more
        kept = len(self._free) - number
        taken = self._free[kept:].sort().values
        self._free = self._free[:kept]
        return taken

    def give_back(self, blocks: Tensor) -> None:
        """Have blocks `[blocks]` be free again. Pinned ones stay until their checkpoint is replaced."""
        self._free = torch.cat((self._free, blocks[~self._pinned[blocks]].flip(0)))

    def link(self, blocks: Tensor) -> None:
        """Let each of some blocks `[blocks]` be followed by the next. Where a record ends, its length says."""
        self._next[blocks[:-1]] = blocks[1:]

    def chains(self, firsts: Tensor, lengths: Tensor) -> Tensor:
        """The blocks of records, one record after another, `[blocks]`.

        Args:
            firsts: `[records]`: the first block of each.
            lengths: `[records]`: how many each has.
        """
        ends = lengths.cumsum(0)
        begins = ends - lengths
        total = int(lengths.sum())
        found = (firsts - begins).repeat_interleave(lengths) + torch.arange(total)
        # Most often each record's blocks lie next to each other.
        inside = torch.ones(total, dtype=torch.bool)
        inside[ends - 1] = False
        before = found[inside]
        if not len(before) or (int(before.max()) < self.size and self._next[before].equal(before + 1)):
            return found
        left, at = torch.arange(len(firsts)), firsts
        for step in range(int(lengths.max())):
            longer = lengths[left] > step
            left, at = left[longer], at[longer]
            found[begins[left] + step] = at
            at = self._next[at]
        return found

    def find_free(self, used: Tensor) -> None:
        """Find anew which blocks are pinned, and which nobody needs.

        Args:
            used: `[blocks]`: those of all records that are now.
        """
        self._pinned.zero_()
        for blocks in self.pins.values():
            self._pinned[blocks] = True
        taken = self._pinned.clone()
        taken[used] = True
        self._free = (~taken).nonzero().squeeze(1).flip(0)
