"""Clients' state in memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cgfedrec.simulation.store.base import ClientStore
from cgfedrec.simulation.store.blocks import Blocks, MemoryBlocks


class MemoryStore(ClientStore):
    """Keeps records in blocks of memory; a checkpoint holds them.

    Args:
        order: As in `ClientStore`.
        example: As in `ClientStore`.
        dtype: As in `ClientStore`.
        folder: As in `ClientStore`.
    """

    blocks: MemoryBlocks

    def _new_blocks(self) -> Blocks:
        return MemoryBlocks(self.layout.block)

    def state_dict(self) -> dict[str, Any]:
        """As in `ClientStore`, with the blocks themselves (``pieces``), `[blocks, block]`; nothing is copied."""
        state = super().state_dict()
        used = max((int(state[name].max()) for name in ("blocks", "base_blocks") if len(state[name])), default=-1)
        return state | {"pieces": self.blocks.first(used + 1)}

    def bases_of(self, users: Tensor) -> dict[tuple[int, ...], dict[str, Tensor]]:
        """The bases of users' tables, `[items, dim]` by name, once for all users `[records]` with the same ones.

        Returns:
            By their numbers, as they stand in ``index.bases``.
        """
        found = {}
        for numbers in sorted(set(map(tuple, self.index.bases[users].tolist()))):
            tables = [(name, number) for name, number in zip(self.layout.tables, numbers, strict=True) if number >= 0]
            found[numbers] = {name: self.layout.table(name, self._base(number)) for name, number in tables}
        return found

    def _take_over(self, state: dict[str, Any], source: Blocks) -> None:
        self._forget(self._new_blocks())
        self._refer(self._copy(state, source))
