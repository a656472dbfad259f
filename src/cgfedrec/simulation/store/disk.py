"""Clients' state in files, so that a federation may outgrow memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgfedrec.simulation.store.base import ClientStore, parts, rows_of
from cgfedrec.simulation.store.rowfiles import Dtype, Rows


class DiskStore(ClientStore):
    """Keeps rows in the slots of files; a slot is a place for one client's row in each file.

    A row is never overwritten while a checkpoint needs it. A new row goes to a slot that no checkpoint refers to, and
    the client's old slot is free again once none does. So a checkpoint need not hold rows. It holds each client's slot
    and the checksums (XXH3, 64 bits) of what is in it, and a run that is killed at any moment finds there what its last
    checkpoint refers to. Each row that is read is checked against its sums.

    Args:
        order: As in `ClientStore`.
        example: As in `ClientStore`.
        dtype: As in `ClientStore`.
        folder: As in `ClientStore`.
    """

    def __init__(
        self, order: Tensor, example: Mapping[str, Tensor], dtype: Dtype = "float32", folder: Path | None = None
    ) -> None:
        super().__init__(order, example, dtype, folder)
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.known.zero_()
        # [users]: the slot of each user's latest row, -1 where there is none; and [users, tensors], its checksums.
        self.slots = torch.full((self.num_users,), -1)
        self.sums = torch.zeros(self.num_users, len(self.shapes), dtype=torch.int64)
        # The slots that each checkpoint needs, by its name.
        self.pins: dict[str, Tensor] = {}
        # Slots that the files have. Each is pinned ([slots], bool), or some user's latest, or free.
        self._size = 0
        self._pinned = torch.zeros(0, dtype=torch.bool)
        self._free: list[int] = []

    def read(self, users: Tensor) -> Rows:
        """The rows of ``users``, `[clients, ...]`. Raises `DamagedError` if one is not what was written."""
        return self._files.read(self.slots[users], self.sums[users])

    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        """As in `ClientStore`. Raises `RunError` if the disk is full."""
        # The lock is held to share out slots, and not while writing: a slot belongs to one thread by then.
        with self._lock:
            new = self._take(len(users))
        sums = self._files.write(new, rows)
        with self._lock:
            before = self.slots[users]
            before = before[before >= 0]
            # An old row that a checkpoint needs stays; `pin` frees its slot when that checkpoint is replaced.
            self._free += before[~self._pinned[before]].tolist()
            self.slots[users] = new
            self.sums[users] = sums

    def _take(self, number: int) -> Tensor:
        """Free slots, `[number]`, in ascending order; the files grow when too few are left."""
        if number > len(self._free):
            # By an eighth at least: a file system is asked rarely, and little room is reserved in vain.
            grown = self._size + max(number, self._size // 8)
            self._files.grow(self._size, grown)
            # Slots are taken from the end of the list, so it is kept in descending order: a cohort's rows then lie next
            # to each other in the file and are written in one go.
            self._free = [*range(grown - 1, self._size - 1, -1), *self._free]
            self._pinned = torch.cat((self._pinned, torch.zeros(grown - self._size, dtype=torch.bool)))
            self._size = grown
        taken = self._free[-number:]
        del self._free[-number:]
        return torch.tensor(sorted(taken))

    def pin(self, name: str) -> None:
        """As in `ClientStore`. All that is here is on the disk afterwards, even if the machine loses power then."""
        # Before the checkpoint is written: it must not refer to rows that only the system's cache holds.
        self._files.sync()
        self.pins[name] = self.slots[self.slots >= 0]
        self._find_free()

    def _find_free(self) -> None:
        """Find anew which slots checkpoints need, and which nobody does."""
        used = torch.zeros(self._size, dtype=torch.bool)
        for slots in self.pins.values():
            used[slots] = True
        self._pinned = used.clone()
        used[self.slots[self.slots >= 0]] = True
        self._free = (~used).nonzero().squeeze(1).flip(0).tolist()

    def state_dict(self) -> dict[str, Any]:
        """The users who took part, `[rows]`, their slots and checksums, and what other checkpoints need."""
        users = self.order[self.known[self.order]]
        return {"users": users, "slots": self.slots[users], "sums": self.sums[users], "pins": dict(self.pins)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `ClientStore`."""
        self._check(state)
        users = state["users"]
        self._forget()
        if "rows" in state:
            # The run went on in memory for a while. Files from before may lie here, and an older checkpoint may still
            # refer to any slot of them: all count as pinned, and the rows go behind them.
            self._size = self._files.size(if_missing=0)
            self._pinned = torch.ones(self._size, dtype=torch.bool)
            for part in parts(len(users)):
                self.write(users[part], rows_of(state, part, self._files))
        else:
            self.slots[users], self.sums[users] = state["slots"], state["sums"]
            # The state was taken before its own checkpoint was pinned.
            self.pins = dict(state["pins"]) | {"last": state["slots"]}
            # Not the files' length: a file may be almost all hole, and a list of so many slots would fill the memory.
            self._size = 1 + max((int(slots.max()) for slots in self.pins.values() if len(slots)), default=-1)
            self._find_free()
        self.known[users] = True
