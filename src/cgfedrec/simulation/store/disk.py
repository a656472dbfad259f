"""Clients' state in a file, so that a federation may outgrow memory."""

from __future__ import annotations

from typing import Any

import torch

from cgfedrec.simulation.store.base import ClientStore
from cgfedrec.simulation.store.blocks import Blocks


class DiskStore(ClientStore):
    """Keeps records in the blocks of a file.

    A block is never overwritten while a checkpoint needs it. A new record goes to blocks that no checkpoint refers to,
    and those of the client's old record are free again once none does. So a checkpoint need not hold records. It holds
    their blocks and checksums (XXH3, 64 bits), and a run that is killed at any moment finds there what its last
    checkpoint refers to. Each record that is read is checked against its sum.

    Args:
        order: As in `ClientStore`.
        example: As in `ClientStore`.
        dtype: As in `ClientStore`.
        folder: As in `ClientStore`.
    """

    def _new_blocks(self) -> Blocks:
        return self.files

    def pin(self, name: str) -> None:
        """As in `ClientStore`. All that is here is on the disk afterwards, even if the machine loses power then."""
        # Before the checkpoint is written: it must not refer to records that only the system's cache holds.
        self.blocks.sync()
        self.index.room.pins[name] = self.index.used()
        super().pin(name)

    def state_dict(self) -> dict[str, Any]:
        """As in `ClientStore`, with the blocks that other checkpoints need, `[blocks]` each."""
        # The checkpoint that will hold this is the last one: it needs what it refers to.
        others = {name: blocks for name, blocks in self.index.room.pins.items() if name != "last"}
        return super().state_dict() | {"pins": others}

    def _take_over(self, state: dict[str, Any], source: Blocks) -> None:
        if source is self.files:
            pins = dict(state["pins"]) | {"last": torch.cat((state["blocks"], state["base_blocks"]))}
            # Not the file's length: it may be almost all hole, and a list of so many blocks would fill the memory.
            size = 1 + max((int(blocks.max()) for blocks in pins.values() if len(blocks)), default=-1)
            self._forget(self.files, size)
        else:
            # The run went on in memory for a while. A file from before may lie here, and an older checkpoint may still
            # refer to any block of it: all stay, and the records go behind them.
            size = self.files.size() if self.files.path.exists() else 0
            self._forget(self.files, size)
            pins = {"before": torch.arange(size)}
            state = self._copy(state, source)
        self.index.room.pins = pins
        self._refer(state)
