"""The private state of all clients, loaded and saved a cohort at a time: in memory, or in memory-mapped files."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cgfedrec.client import Client

Rows = dict[str, Tensor]
Dtype = Literal["float32", "bfloat16"]


class ClientStore(ABC):
    """Holds every client's private tensors, a row each. A client that never took part has none: it is at the start.

    Args:
        order: All users, `[users]`, those next to each other that share cohorts.
        example: Private tensors of any clients, or of none, `[clients, ...]`.
        dtype: In which floating-point values are kept between rounds.
    """

    def __init__(self, order: Tensor, example: Mapping[str, Tensor], dtype: Dtype = "float32") -> None:
        self.order = order
        self.num_users = len(order)
        self.known = torch.zeros(self.num_users, dtype=torch.bool)
        kept = getattr(torch, dtype)
        self.dtypes = {name: kept if one.is_floating_point() else one.dtype for name, one in example.items()}
        self.computed = {name: one.dtype for name, one in example.items()}
        self.shapes = {name: tuple(one.shape[1:]) for name, one in example.items()}

    def load(self, client: Client, users: Tensor, to_train: bool = True) -> None:
        """Make ``client`` the cohort ``users``, each as it was left, or at its start.

        Args:
            client: Of any worker.
            users: `[clients]`.
            to_train: Whether the state will change; otherwise clients at one start may share its memory.
        """
        known = self.known[users]
        if known.all():
            client.load(users, {name: rows.to(self.computed[name]) for name, rows in self.read(users).items()})
            return
        private = client.start(users)
        if to_train or known.any():
            private = {name: value.clone(memory_format=torch.contiguous_format) for name, value in private.items()}
        if known.any():
            for name, rows in self.read(users[known]).items():
                private[name][known] = rows.to(private[name].dtype)
        client.load(users, private)

    def save(self, client: Client) -> None:
        """Keep the cohort's private state."""
        self.write(client.users, client.private())
        self.known[client.users] = True

    @abstractmethod
    def read(self, users: Tensor) -> Rows:
        """The rows of users who took part; they may be the store's own memory."""

    @abstractmethod
    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Replace users' rows. Several threads call it, each for users of its own."""

    @abstractmethod
    def pin(self, name: str) -> None:
        """Say that the checkpoint ``name``, about to be written, needs what is here now, and no longer what it did."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what `state_dict` returned, of either kind of store; clients that it does not name are at the start.

        Raises:
            FileNotFoundError: if the state lies in files that are not where the checkpoint is.
        """


class MemoryStore(ClientStore):
    """Keeps rows in memory, which on an ordinary operating system only the rows written take.

    A cohort whose rows lie next to each other is trained in place, without a copy.

    Args:
        order: As in `ClientStore`.
        example: As in `ClientStore`.
        dtype: As in `ClientStore`.
        folder: Where a `DiskStore` would keep rows: the state of one can be read.
    """

    def __init__(
        self, order: Tensor, example: Mapping[str, Tensor], dtype: Dtype = "float32", folder: Path | None = None
    ) -> None:
        super().__init__(order, example, dtype)
        self.folder = folder
        self.place = order.argsort()
        self._reserve()

    def _reserve(self) -> None:
        self.rows = {
            name: torch.empty(self.num_users, *shape, dtype=self.dtypes[name]) for name, shape in self.shapes.items()
        }

    def read(self, users: Tensor) -> Rows:
        where = self._where(users)
        return {name: rows[where] for name, rows in self.rows.items()}

    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        where = self._where(users)
        for name, value in rows.items():
            trained_in_place = isinstance(where, slice) and self.rows[name][where].data_ptr() == value.data_ptr()
            if not trained_in_place:
                self.rows[name][where] = value.to("cpu", self.dtypes[name])

    def pin(self, name: str) -> None:
        """Nothing: a checkpoint holds the rows themselves."""

    def _where(self, users: Tensor) -> Tensor | slice:
        """The rows of some users: a slice where they are neighbours, in this order."""
        place = self.place[users]
        first = int(place[0])
        neighbours = place.equal(torch.arange(first, first + len(place)))
        return slice(first, first + len(place)) if neighbours else place

    def state_dict(self) -> dict[str, Any]:
        """The clients that took part, and their rows, not copied where all did."""
        written = self.known[self.order]
        rows = self.rows if written.all() else {name: rows[written] for name, rows in self.rows.items()}
        return {"users": self.order[written], "rows": dict(rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        users = state["users"]
        self.known.zero_()
        self.known[users] = True
        self._reserve()
        rows = state["rows"] if "rows" in state else _Files(self.folder, self).read(state["slots"])
        for name, saved in rows.items():
            self.rows[name][self.place[users]] = saved


class DiskStore(ClientStore):
    """Keeps rows in memory-mapped files, so that a federation may outgrow memory.

    A row that is written goes to a slot to which no checkpoint refers. So whenever a run is killed, what its
    checkpoints need is there, and a checkpoint holds no rows, but the slot of each client.

    Args:
        order: As in `ClientStore`.
        example: As in `ClientStore`.
        dtype: As in `ClientStore`.
        folder: Where the files go.
    """

    def __init__(
        self, order: Tensor, example: Mapping[str, Tensor], dtype: Dtype = "float32", folder: Path | None = None
    ) -> None:
        super().__init__(order, example, dtype)
        self._files = _Files(folder, self)
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.known.zero_()
        self.slots = torch.full((self.num_users,), -1)
        self.pins: dict[str, Tensor] = {}
        self._size = 0
        self._pinned = torch.zeros(0, dtype=torch.bool)
        self._free: list[int] = []

    def read(self, users: Tensor) -> Rows:
        return self._files.read(self.slots[users])

    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        with self._lock:
            new = self._take(len(users))
        self._files.write(new, rows)
        with self._lock:
            before = self.slots[users]
            before = before[before >= 0]
            self._free += before[~self._pinned[before]].tolist()
            self.slots[users] = new

    def _take(self, number: int) -> Tensor:
        """Slots that nothing needs, in ascending order; the files grow when none are left."""
        if number > len(self._free):
            grown = self._size + max(number, self._size // 8)
            self._free = [*range(grown - 1, self._size - 1, -1), *self._free]
            self._pinned = torch.cat((self._pinned, torch.zeros(grown - self._size, dtype=torch.bool)))
            self._size = grown
            self._files.grow(grown)
        taken = self._free[-number:]
        del self._free[-number:]
        return torch.tensor(sorted(taken))

    def pin(self, name: str) -> None:
        self.pins[name] = self.slots[self.slots >= 0]
        self._find_free()

    def _find_free(self) -> None:
        used = torch.zeros(self._size, dtype=torch.bool)
        for slots in self.pins.values():
            used[slots] = True
        self._pinned = used.clone()
        used[self.slots[self.slots >= 0]] = True
        self._free = (~used).nonzero().squeeze(1).flip(0).tolist()

    def state_dict(self) -> dict[str, Any]:
        users = self.order[self.known[self.order]]
        return {"users": users, "slots": self.slots[users], "pins": dict(self.pins)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        users = state["users"]
        self._forget()
        if "rows" in state:
            self._size = self._files.size(if_missing=0)  # a checkpoint may still refer to what is there
            self._pinned = torch.ones(self._size, dtype=torch.bool)
            for part in torch.arange(len(users)).split(64):
                self.write(users[part], {name: rows[part] for name, rows in state["rows"].items()})
        else:
            self.slots[users] = state["slots"]
            self.pins = dict(state["pins"]) | {"last": state["slots"]}
            self._size = self._files.size()
            self._find_free()
        self.known[users] = True


class _Files:
    """A file of rows for each private tensor, mapped only while it is read or written, so as not to stay resident."""

    def __init__(self, folder: Path | None, store: ClientStore) -> None:
        self.folder = folder or Path()
        self.shapes, self.dtypes = store.shapes, store.dtypes

    def grow(self, slots: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.shapes:
            path = self._path(name)
            path.touch()
            if path.stat().st_size < slots * self._nbytes(name):
                os.truncate(path, slots * self._nbytes(name))

    def size(self, if_missing: int | None = None) -> int:
        """How many slots the files hold. Raises ``FileNotFoundError`` if there are none, unless that has a value."""
        if if_missing is not None and not all(self._path(name).exists() for name in self.shapes):
            return if_missing
        return min(self._path(name).stat().st_size // self._nbytes(name) for name in self.shapes)

    def read(self, slots: Tensor) -> Rows:
        return {name: self._mapped(name, shared=False)[slots] for name in self.shapes}

    def write(self, slots: Tensor, rows: Mapping[str, Tensor]) -> None:
        for name, value in rows.items():
            self._mapped(name, shared=True)[slots] = value.to("cpu", self.dtypes[name])

    def _mapped(self, name: str, shared: bool) -> Tensor:
        slots = self._path(name).stat().st_size // self._nbytes(name)
        shape = (slots, *self.shapes[name])
        numbers = slots * self._nbytes(name) // self.dtypes[name].itemsize
        return torch.from_file(str(self._path(name)), shared, numbers, dtype=self.dtypes[name]).view(shape)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.{str(self.dtypes[name]).removeprefix('torch.')}"

    def _nbytes(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel() * self.dtypes[name].itemsize
