"""How a store becomes part of a checkpoint, and becomes what it was again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from cgfedrec.simulation.store.blocks import Blocks, FileBlocks, MemoryBlocks, checked
from cgfedrec.simulation.store.index import Index
from cgfedrec.simulation.store.layout import Layout
from cgfedrec.simulation.store.states import check_state, some_of

COPIED_AT_ONCE = 64
"""Records that are copied at a time from one kind of store to another: all at once would take twice the memory."""


class Checkpointed(ABC):
    """What a `ClientStore` does with checkpoints. Its attributes are those of the store."""

    order: Tensor
    num_users: int
    known: Tensor
    layout: Layout
    blocks: Blocks
    files: FileBlocks
    index: Index
    _lock: Lock

    def pin(self, name: str) -> None:
        """Keep all that is here now for the checkpoint ``name``, which is about to be written.

        What an earlier checkpoint of this name needed may be overwritten from now on.
        """
        with self._lock:
            self.index.room.find_free(self.index.used())

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        return self.index.state_dict(self.order)

    def load_state_dict(self, state: dict[str, Any], whose: Tensor | None = None) -> None:
        """Become what `state_dict` returned, whichever kind of store that was.

        Clients that the state does not name are at their start afterwards.

        Args:
            state: Of any kind of store; it may hold anything.
            whose: `[users]`, bool: of whom it is taken over; by default of all.

        Raises:
            DamagedError: if a record is no longer what was written.
            FileNotFoundError: if the state refers to a file that is not in this store's folder.
            ValueError: if it is no state of such a store.
        """
        check_state(state, self.num_users, self.layout, self.files)
        if whose is not None:
            state = some_of(state, whose, self.layout)
        source: Blocks = self.files
        if "pieces" in state:
            source = MemoryBlocks(self.layout.block, state["pieces"])
        self._take_over(state, source)

    @abstractmethod
    def _take_over(self, state: dict[str, Any], source: Blocks) -> None:
        """Become a checked state, whose records lie in ``source``."""

    def _refer(self, state: Mapping[str, Any]) -> None:
        """Have the records of a state, which lie where it says."""
        self.index.load_state_dict(state)
        self.index.room.find_free(self.index.used())
        self.known[state["users"]] = True

    def _copy(self, state: Mapping[str, Any], source: Blocks) -> dict[str, Any]:
        """The same state, once its records have been copied from ``source`` to where this store has its own."""
        bases = torch.tensor([self.layout.base_length(table) for table in state["base_tables"].tolist()])
        copied = dict(state)
        for blocks, sums, lengths in (
            ("blocks", "sums", self.layout.lengths(state["bases"] >= 0, state["numbers"])),
            ("base_blocks", "base_sums", bases.long()),
        ):
            new = []
            ends = lengths.cumsum(0).tolist()
            for start in range(0, len(lengths), COPIED_AT_ONCE):
                part = slice(start, start + COPIED_AT_ONCE)
                begin, end = ends[start] - int(lengths[start]), ends[part][-1]
                content = checked(source, state[blocks][begin:end], lengths[part], state[sums][part])
                new.append(self.index.room.take(len(content)))
                self.blocks.write(new[-1], content)
            copied[blocks] = torch.cat([torch.empty(0, dtype=torch.int64), *new])
        return copied
