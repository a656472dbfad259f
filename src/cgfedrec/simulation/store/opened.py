"""Clients' state where a checkpoint has it, to be read and not trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cgfedrec.simulation.store.base import NONE, ClientStore
from cgfedrec.simulation.store.blocks import Blocks, MemoryBlocks


class OpenedStore(ClientStore):
    """Serves the records of a checkpoint from where they lie, for tests and recommendations. It keeps none itself.

    Records in the checkpoint take memory as they are used. Those in a file are read, and checked, each time.
    """

    def _new_blocks(self) -> Blocks:
        return MemoryBlocks(self.layout.block)

    def _take_over(self, state: dict[str, Any], source: Blocks) -> None:
        self._state = state
        used = max((int(state[name].max()) for name in ("blocks", "base_blocks") if len(state[name])), default=-1)
        self._forget(source, used + 1)
        self._refer(state)

    def state_dict(self) -> dict[str, Any]:
        """The state as it was loaded."""
        return self._state

    def write(self, users: Tensor, rows: Mapping[str, Tensor], bases: Mapping[str, Tensor] = NONE) -> None:
        """Raise ``RuntimeError``: nothing can be trained that was opened to be read."""
        raise RuntimeError("this federation was opened to be read; `fit` goes on from a checkpoint")

    def pin(self, name: str) -> None:
        """Nothing: a checkpoint that is only read needs nothing new."""
