"""The files of a store on disk: one for each private tensor, one client's row behind the other, and nothing else.

A file has no header. Row s of every file is slot s, so its bytes begin at s times the length of a row. Which client a
slot belongs to, and what the bytes in it must add up to, stands in the checkpoint that refers to it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.files import DamagedError, room_for, sync_folder

Rows = dict[str, Tensor]
"""Rows of each private tensor, by its name: `[clients, ...]`."""
Dtype = Literal["float32", "bfloat16"]
"""The type in which floating-point values may be kept between rounds."""
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""The errors by which a file system says that it cannot reserve room."""


class RowFiles:
    """Reads and writes rows by their slots. Only the rows that are being read or written are in memory.

    Files are read and written, not mapped into memory, for two reasons. A file larger than the machine's memory would
    fill it with pages that the system counts as ours. And where a disk is full, a write says so, while a map ends the
    process.

    Args:
        folder: Where the files are, or will be.
        shapes: The shape of one row of each tensor.
        dtypes: The type in which each is kept; it is part of the file's name.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]) -> None:
        self.folder, self.shapes, self.dtypes = folder, shapes, dtypes

    def grow(self, slots: int, grown: int) -> None:
        """Take room on the disk for ``grown`` slots where there were ``slots``.

        Raises:
            RunError: if the disk is full. The files are then as long as before.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.shapes:
            row, path = self._nbytes(name), self._path(name)
            with self._opened(name, os.O_RDWR | os.O_CREAT) as file, room_for(path, slots * row, grown * row):
                before = os.fstat(file).st_size
                try:
                    _allocate(file, slots * row, (grown - slots) * row)
                except OSError:
                    os.truncate(file, before)  # part of the room may have been reserved: give it back
                    raise

    def size(self, if_missing: int | None = None) -> int:
        """How many slots the files hold.

        Args:
            if_missing: What to say if a file is missing.

        Raises:
            FileNotFoundError: if a file is missing and ``if_missing`` is not given.
        """
        if if_missing is not None and not all(self._path(name).exists() for name in self.shapes):
            return if_missing
        # Files grow one after another, so a killed run may leave one longer than the next.
        return min(self._path(name).stat().st_size // self._nbytes(name) for name in self.shapes)

    def sync(self) -> None:
        """Return once all that was written is on the disk. Raises `RunError` if it is full."""
        for name in self.shapes:
            if self._path(name).exists():
                with self._opened(name, os.O_RDWR) as file, room_for(self._path(name)):
                    os.fsync(file)
        if self.folder.is_dir():
            sync_folder(self.folder)

    def read(self, slots: Tensor, sums: Tensor) -> Rows:
        """The rows in some slots.

        Args:
            slots: `[rows]`, in any order; neighbours are read together.
            sums: `[rows, tensors]`: the checksums that `write` returned for them.

        Raises:
            DamagedError: naming the file, if a row is not what was written.
        """
        read = {}
        for name, expected in zip(self.shapes, sums.T, strict=True):
            read[name] = torch.empty(len(slots), *self.shapes[name], dtype=self.dtypes[name])
            into = raw(read[name])  # the tensor's own memory, so filling it fills the tensor
            with self._opened(name, os.O_RDONLY) as file:
                whole = all(_read(file, into[rows], offset) for rows, offset in self._runs(name, slots))
            if not (whole and _checksums(into, len(slots)).equal(expected)):
                raise DamagedError(
                    f"{self._path(name)}: a client's state in it is not what was written: the file is damaged, or a "
                    "run at work in this folder is changing it. If one is, wait until it has ended; else try the other "
                    "checkpoint in the folder above, which may not need what is damaged"
                )
        return read

    def write(self, slots: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Put rows into slots.

        Args:
            slots: `[rows]`, in ascending order.
            rows: `[rows, ...]` of each tensor.

        Returns:
            Their checksums, `[rows, tensors]`, int64.

        Raises:
            RunError: if the disk is full.
        """
        sums = []
        for name in self.shapes:
            content = raw(rows[name].to("cpu", self.dtypes[name]).contiguous())
            path = self._path(name)
            with self._opened(name, os.O_RDWR) as file, room_for(path, os.fstat(file).st_size):
                for part, offset in self._runs(name, slots):
                    _write(file, content[part], offset)
            sums.append(_checksums(content, len(slots)))
        return torch.stack(sums, dim=1)

    def _runs(self, name: str, slots: Tensor) -> Iterator[tuple[slice, int]]:
        """Runs of slots that lie next to each other in the file: one call to the system serves each.

        Yields:
            Which bytes of the rows a run is, and where in the file it begins.
        """
        nbytes, numbers = self._nbytes(name), slots.numpy()
        # A run ends wherever the next slot is not the following one.
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
        """Bytes of one row of a tensor."""
        return torch.Size(self.shapes[name]).numel() * self.dtypes[name].itemsize


def raw(rows: Tensor) -> NDArray[np.uint8]:
    """The bytes of contiguous rows, `[bytes]`, not copied: numpy has no bfloat16, but every type is bytes."""
    content: NDArray[np.uint8] = rows.detach().view(-1).view(torch.uint8).numpy()
    return content


def _checksums(content: NDArray[np.uint8], number: int) -> Tensor:
    """The checksum of each of ``number`` rows, `[rows]`; int64, since torch computes little with unsigned numbers."""
    sums = [xxhash.xxh3_64_intdigest(row.data) for row in content.reshape(number, -1)]
    return torch.from_numpy(np.array(sums, dtype=np.uint64).view(np.int64))


def _read(file: int, into: NDArray[np.uint8], offset: int) -> bool:
    """Fill ``into`` from ``offset`` on; False if the file ends before that."""
    done = 0
    # The system may give less than was asked for, above all where 2 GiB or more are.
    while done < len(into):
        count = os.preadv(file, [into[done:].data], offset + done)
        if count == 0:
            return False
        done += count
    return True


def _write(file: int, content: NDArray[np.uint8], offset: int) -> None:
    done = 0
    while done < len(content):  # likewise
        done += os.pwrite(file, content[done:].data, offset + done)


def _allocate(file: int, offset: int, length: int) -> None:
    """Take room in a file, so that a full disk says so now and not in the middle of a round.

    Some file systems cannot reserve room. The C library then writes a byte to each block, or says that it cannot
    either. In the second case the file is only made longer, and a full disk is found when rows are written.
    """
    try:
        os.posix_fallocate(file, offset, length)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
        os.truncate(file, max(offset + length, os.fstat(file).st_size))
