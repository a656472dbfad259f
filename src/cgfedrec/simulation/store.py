"""The private state of all clients, loaded and saved a cohort at a time: in memory, or in files."""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.client import Client
from cgfedrec.files import DamagedError, room_for, sync_folder

Rows = dict[str, Tensor]
Dtype = Literal["float32", "bfloat16"]
_AT_ONCE = 64
"""Rows that are copied from one kind of store to another at a time."""
_CANNOT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What a file system says that cannot reserve room."""


class ClientStore(ABC):
    """Holds every client's private tensors, a row each. A client that never took part has none: it is at the start.

    Args:
        order: All users, `[users]`, those next to each other that share cohorts.
        example: Private tensors of any clients, or of none, `[clients, ...]`.
        dtype: In which floating-point values are kept between rounds.
        folder: Where a `DiskStore` keeps rows; each kind can read the state of each.
    """

    def __init__(
        self, order: Tensor, example: Mapping[str, Tensor], dtype: Dtype = "float32", folder: Path | None = None
    ) -> None:
        self.order = order
        self.num_users = len(order)
        self.known = torch.zeros(self.num_users, dtype=torch.bool)
        kept = getattr(torch, dtype)
        self.dtypes = {name: kept if one.is_floating_point() else one.dtype for name, one in example.items()}
        self.computed = {name: one.dtype for name, one in example.items()}
        self.shapes = {name: tuple(one.shape[1:]) for name, one in example.items()}
        self._files = _Files(folder or Path(), self.shapes, self.dtypes)

    def load(self, client: Client, users: Tensor, to_train: bool = True) -> None:
        """Make ``client`` the cohort ``users``, each as it was left, or at its start.

        Args:
            client: Of any worker.
            users: `[clients]`.
            to_train: Whether the state will change; otherwise clients at one start may share its memory.

        Raises:
            DamagedError: if what was kept is no longer there as it was, naming the file.
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
        """Keep the cohort's private state. Raises `RunError` where there is no room for it."""
        self.write(client.users, client.private())
        self.known[client.users] = True

    def expect(self, users: Tensor) -> None:  # noqa: B027  # most need nothing
        """Make room for users, `[clients]`, who are about to take part, in the order of their cohorts."""

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
        """Become what `state_dict` returned, of any kind of store; clients that it does not name are at the start.

        Raises:
            DamagedError: if the state lies in files in which it is no longer as it was.
            FileNotFoundError: if the state lies in files that are not where the checkpoint is.
            ValueError: if it is no state of such a store.
        """

    def _check(self, state: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` if a state, which may come from anybody, is none of this store."""
        users = state["users"]
        _check_numbers("users", users, (-1,), self.num_users)
        if len(users.unique()) != len(users):
            raise ValueError("the clients' state names a user twice")
        if "rows" in state:
            self._check_rows(state["rows"], len(users))
            return
        slots = self._files.size() if len(users) else 0
        _check_numbers("slots", state["slots"], (len(users),), slots)
        _check_numbers("sums", state["sums"], (len(users), len(self.shapes)))
        for name, pinned in dict(state["pins"]).items():
            _check_numbers(f"pins.{name}", pinned, (-1,), slots)
        if len(state["slots"].unique()) != len(users):
            raise ValueError("the clients' state gives two users one slot")

    def _check_rows(self, rows: Mapping[str, Any], number: int) -> None:
        if set(rows) != set(self.shapes):
            raise ValueError(f"the clients' state holds {sorted(rows)} where {sorted(self.shapes)} are expected")
        for name, value in rows.items():
            shape, kept = (number, *self.shapes[name]), self.dtypes[name]
            alike = isinstance(value, Tensor) and (value.dtype == kept or kept.is_floating_point)
            if not alike or value.shape != shape or value.is_floating_point() != kept.is_floating_point:
                raise ValueError(f"the clients' {name} is not {list(shape)} numbers of {kept}")


def _check_numbers(name: str, value: Any, shape: tuple[int, ...], below: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is whole numbers of a shape, -1 for any length, in [0, below)."""
    fits = isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == len(shape)
    if not fits or any(wanted not in (-1, found) for wanted, found in zip(shape, value.shape, strict=True)):
        raise ValueError(f"the clients' {name} are not {list(shape)} whole numbers")
    if below is not None and len(value) and not 0 <= int(value.min()) <= int(value.max()) < below:
        raise ValueError(f"the clients' {name} are not all in [0, {below})")


class MemoryStore(ClientStore):
    """Keeps rows in memory, in the order in which clients first took part.

    A cohort whose rows lie next to each other is trained in place, without a copy.

    Args:
        order: As in `ClientStore`.
        example: As in `ClientStore`.
        dtype: As in `ClientStore`.
        folder: As in `ClientStore`.
        expected: For how many clients to reserve room at first; an ordinary operating system gives it as it is used.
            More rows than that are moved once to a larger place.
    """

    def __init__(
        self,
        order: Tensor,
        example: Mapping[str, Tensor],
        dtype: Dtype = "float32",
        folder: Path | None = None,
        expected: int = 0,
    ) -> None:
        super().__init__(order, example, dtype, folder)
        self._expected = expected
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.known.zero_()
        self.place = torch.full((self.num_users,), -1)
        self.owners = torch.empty(0, dtype=torch.int64)
        self.rows = {name: torch.empty(0, *shape, dtype=self.dtypes[name]) for name, shape in self.shapes.items()}
        self._room = 0

    def expect(self, users: Tensor) -> None:
        with self._lock:
            new = users[self.place[users] < 0]
            self.place[new] = torch.arange(len(self.owners), len(self.owners) + len(new))
            self.owners = torch.cat((self.owners, new))
            if len(self.owners) > self._room:
                self._grow()

    def _grow(self) -> None:
        kept = self._room
        self._room = min(self.num_users, max(len(self.owners), self._expected, kept + kept // 2))
        for name, before in self.rows.items():
            self.rows[name] = torch.empty(self._room, *self.shapes[name], dtype=self.dtypes[name])
            self.rows[name][:kept] = before

    def read(self, users: Tensor) -> Rows:
        where = self._where(users)
        return {name: rows[where] for name, rows in self.rows.items()}

    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        if (self.place[users] < 0).any():
            self.expect(users)
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
        """The clients that took part, and their rows, not copied unless somebody was expected who did not come."""
        written = self.known[self.owners]
        if written.all():
            rows = {name: _first(value, len(written)) for name, value in self.rows.items()}
        else:
            rows = {name: value[: len(written)][written] for name, value in self.rows.items()}
        return {"users": self.owners[written], "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._check(state)
        users = state["users"]
        self._forget()
        self.expect(users)
        for part in _parts(len(users)):
            self.write(users[part], _rows_of(state, part, self._files))
        self.known[users] = True


def _first(rows: Tensor, number: int) -> Tensor:
    """The first rows, as a tensor that owns no more memory than these: a checkpoint holds all that a tensor owns."""
    if number == len(rows):
        return rows
    return torch.from_numpy(_raw(rows[:number])).view(rows.dtype).view(number, *rows.shape[1:])


def _parts(number: int) -> Iterator[Tensor]:
    """[0, number), some at a time."""
    for start in range(0, number, _AT_ONCE):
        yield torch.arange(start, min(start + _AT_ONCE, number))


def _rows_of(state: Mapping[str, Any], part: Tensor, files: _Files) -> Rows:
    """Some of the rows that a state holds, or refers to: those that stand at ``part`` in it."""
    if "rows" in state:
        return {name: rows[part] for name, rows in state["rows"].items()}
    return files.read(state["slots"][part], state["sums"][part])


class DiskStore(ClientStore):
    """Keeps rows in files, so that a federation may outgrow memory.

    A row that is written goes to a slot to which no checkpoint refers. So whenever a run is killed, what its
    checkpoints need is there, and a checkpoint holds no rows, but the slot of each client, and the checksums (XXH3, 64
    bits) of what is in it. Each row that is read is checked.

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
        self.slots = torch.full((self.num_users,), -1)
        self.sums = torch.zeros(self.num_users, len(self.shapes), dtype=torch.int64)
        self.pins: dict[str, Tensor] = {}
        self._size = 0
        self._pinned = torch.zeros(0, dtype=torch.bool)
        self._free: list[int] = []

    def read(self, users: Tensor) -> Rows:
        return self._files.read(self.slots[users], self.sums[users])

    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        with self._lock:
            new = self._take(len(users))
        sums = self._files.write(new, rows)
        with self._lock:
            before = self.slots[users]
            before = before[before >= 0]
            self._free += before[~self._pinned[before]].tolist()
            self.slots[users] = new
            self.sums[users] = sums

    def _take(self, number: int) -> Tensor:
        """Slots that nothing needs, in ascending order; the files grow when none are left."""
        if number > len(self._free):
            grown = self._size + max(number, self._size // 8)
            self._files.grow(self._size, grown)
            self._free = [*range(grown - 1, self._size - 1, -1), *self._free]
            self._pinned = torch.cat((self._pinned, torch.zeros(grown - self._size, dtype=torch.bool)))
            self._size = grown
        taken = self._free[-number:]
        del self._free[-number:]
        return torch.tensor(sorted(taken))

    def pin(self, name: str) -> None:
        """As in `ClientStore`; what is here is on the disk then, whatever happens to the machine."""
        self._files.sync()
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
        return {"users": users, "slots": self.slots[users], "sums": self.sums[users], "pins": dict(self.pins)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._check(state)
        users = state["users"]
        self._forget()
        if "rows" in state:
            self._size = self._files.size(if_missing=0)  # a checkpoint may still refer to what is there
            self._pinned = torch.ones(self._size, dtype=torch.bool)
            for part in _parts(len(users)):
                self.write(users[part], _rows_of(state, part, self._files))
        else:
            self.slots[users], self.sums[users] = state["slots"], state["sums"]
            self.pins = dict(state["pins"]) | {"last": state["slots"]}
            # Not the files' length, which is no measure of what is in them.
            self._size = 1 + max((int(slots.max()) for slots in self.pins.values() if len(slots)), default=-1)
            self._find_free()
        self.known[users] = True


class OpenedStore(ClientStore):
    """Serves the rows of a checkpoint where they lie, and keeps none: for what tests a state or asks it for something.

    Rows in the checkpoint itself take memory as they are used; rows in files are read, and checked, as they are used.
    """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._check(state)
        self._state = state
        self._place = torch.full((self.num_users,), -1)
        self._place[state["users"]] = torch.arange(len(state["users"]))
        self.known.zero_()
        self.known[state["users"]] = True

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def read(self, users: Tensor) -> Rows:
        return _rows_of(self._state, self._place[users], self._files)

    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Raise ``RuntimeError``: nothing can be trained that was opened to be read."""
        raise RuntimeError("this federation was opened to be read; `fit` goes on from a checkpoint")

    def pin(self, name: str) -> None:
        """Nothing: what lies there stays there."""


class _Files:
    """A file of rows for each private tensor, of which no more is in memory than is being read or written.

    Nothing is mapped: the system counts a map as memory that a file larger than memory would not leave, and a full disk
    behind a map ends the process.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]) -> None:
        self.folder, self.shapes, self.dtypes = folder, shapes, dtypes

    def grow(self, slots: int, grown: int) -> None:
        """Take room on the disk for more slots. Raises `RunError` where there is none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.shapes:
            row, path = self._nbytes(name), self._path(name)
            with self._opened(name, os.O_RDWR | os.O_CREAT) as file, room_for(path, slots * row, grown * row):
                before = os.fstat(file).st_size
                try:
                    _allocate(file, slots * row, (grown - slots) * row)
                except OSError:
                    os.truncate(file, before)  # gives back what it got
                    raise

    def size(self, if_missing: int | None = None) -> int:
        """How many slots the files hold. Raises ``FileNotFoundError`` if there are none, unless that has a value."""
        if if_missing is not None and not all(self._path(name).exists() for name in self.shapes):
            return if_missing
        return min(self._path(name).stat().st_size // self._nbytes(name) for name in self.shapes)

    def sync(self) -> None:
        """Return once all that was written is on the disk."""
        for name in self.shapes:
            if self._path(name).exists():
                with self._opened(name, os.O_RDWR) as file, room_for(self._path(name)):
                    os.fsync(file)
        if self.folder.is_dir():
            sync_folder(self.folder)

    def read(self, slots: Tensor, sums: Tensor) -> Rows:
        """The rows in some slots. Raises `DamagedError` if their checksums, `[slots, tensors]`, are others."""
        read = {}
        for name, expected in zip(self.shapes, sums.T, strict=True):
            read[name] = torch.empty(len(slots), *self.shapes[name], dtype=self.dtypes[name])
            raw = _raw(read[name])
            with self._opened(name, os.O_RDONLY) as file:
                whole = all(_read(file, raw[rows], offset) for rows, offset in self._runs(name, slots))
            if not (whole and _checksums(raw, len(slots)).equal(expected)):
                raise DamagedError(
                    f"{self._path(name)}: a client's state in it is not what was written: the file is damaged, or a "
                    "run at work in this folder is changing it. If one is, wait until it has ended; else try the other "
                    "checkpoint in the folder above, which may not need what is damaged"
                )
        return read

    def write(self, slots: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Put rows into slots, in ascending order, and return their checksums, `[slots, tensors]`."""
        sums = []
        for name in self.shapes:
            raw = _raw(rows[name].to("cpu", self.dtypes[name]).contiguous())
            path = self._path(name)
            with self._opened(name, os.O_RDWR) as file, room_for(path, os.fstat(file).st_size):
                for part, offset in self._runs(name, slots):
                    _write(file, raw[part], offset)
            sums.append(_checksums(raw, len(slots)))
        return torch.stack(sums, dim=1)

    def _runs(self, name: str, slots: Tensor) -> Iterator[tuple[slice, int]]:
        """Where slots lie next to each other: which bytes of the rows these are, and where in the file they begin."""
        nbytes, numbers = self._nbytes(name), slots.numpy()
        ends = [*(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        for start, end in zip([0, *ends], ends, strict=False):
            yield slice(start * nbytes, end * nbytes), int(numbers[start]) * nbytes

    @contextmanager
    def _opened(self, name: str, flags: int) -> Iterator[int]:
        file = os.open(self._path(name), flags, 0o644)
        try:
            yield file
        finally:
            os.close(file)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.{str(self.dtypes[name]).removeprefix('torch.')}"

    def _nbytes(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel() * self.dtypes[name].itemsize


def _raw(rows: Tensor) -> NDArray[np.uint8]:
    """The bytes of contiguous rows, not copied."""
    raw: NDArray[np.uint8] = rows.detach().view(-1).view(torch.uint8).numpy()
    return raw


def _checksums(raw: NDArray[np.uint8], number: int) -> Tensor:
    """Of each of ``number`` rows, `[rows]`."""
    sums = [xxhash.xxh3_64_intdigest(row.data) for row in raw.reshape(number, -1)]
    return torch.from_numpy(np.array(sums, dtype=np.uint64).view(np.int64))


def _read(file: int, into: NDArray[np.uint8], offset: int) -> bool:
    """Fill ``into`` from ``offset`` on; whether the file is long enough for that."""
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:].data], offset + done)
        if count == 0:
            return False
        done += count
    return True


def _write(file: int, raw: NDArray[np.uint8], offset: int) -> None:
    done = 0
    while done < len(raw):
        done += os.pwrite(file, raw[done:].data, offset + done)


def _allocate(file: int, offset: int, length: int) -> None:
    """Take room in a file, so that a full disk says so now.

    Where a file system cannot, the C library writes a byte to each block, or says that it cannot: then the file is only
    as long, and a full disk says so when it is written to.
    """
    try:
        os.posix_fallocate(file, offset, length)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        os.truncate(file, max(offset + length, os.fstat(file).st_size))
