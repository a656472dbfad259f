"""Where records lie: blocks of one length, one behind the other, in a file or in memory.

The file has no header. What lies in a block, and what it must add up to, stands in the checkpoint that refers to it.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xxhash
from torch import Tensor

from cgfedrec.files import DamagedError, room_for, sync_folder
from cgfedrec.simulation.store.differing import Bytes, raw

Dtype = Literal["float32", "bfloat16"]
"""The type in which floating-point values may be kept between rounds."""
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""The errors by which a file system says that it cannot reserve room."""


class Blocks(ABC):
    """Reads and writes blocks by their numbers.

    Args:
        length: Bytes of a block.

    Attributes:
        name: What to call it where something in it is damaged.
    """

    name: str

    def __init__(self, length: int) -> None:
        self.length = length

    @abstractmethod
    def size(self) -> int:
        """How many blocks there are."""

    @abstractmethod
    def grow(self, blocks: int, grown: int) -> None:
        """Take room for ``grown`` blocks where there were ``blocks``. Raises `RunError` if there is none."""

    @abstractmethod
    def read(self, blocks: Tensor) -> Bytes | None:
        """What lies in some blocks `[blocks]`, as `[blocks, length]`; ``None`` if there is less.

        Neighbours are read together.
        """

    @abstractmethod
    def write(self, blocks: Tensor, content: Bytes) -> None:
        """Put ``content``, `[blocks, length]`, into ``blocks``, `[blocks]`. Raises `RunError` if the disk is full."""

    def sync(self) -> None:  # noqa: B027  # memory has no need of it
        """Return once all that was written is on the disk. Raises `RunError` if it is full."""


class FileBlocks(Blocks):
    """Blocks of a file.

    It is read and written, not mapped into memory, for two reasons. A file larger than the machine's memory would
    fill it with pages that the system counts as ours. And where a disk is full, a write says so, while a map ends the
    process.

    Args:
        path: Of the file, which may not be there yet.
        length: Bytes of a block.
    """

    def __init__(self, path: Path, length: int) -> None:
        super().__init__(length)
        self.path, self.name = path, str(path)

    def size(self) -> int:
        """How many blocks the file holds. Raises ``FileNotFoundError`` if there is none."""
        return self.path.stat().st_size // self.length

    def grow(self, blocks: int, grown: int) -> None:
        """As in `Blocks`. If the disk is full, the file is then as long as before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begin, end = blocks * self.length, grown * self.length
        with self._opened(os.O_RDWR | os.O_CREAT) as file, room_for(self.path, begin, end):
            before = os.fstat(file).st_size
            try:
                _allocate(file, begin, end - begin)
            except OSError:
                os.truncate(file, before)  # part of the room may have been reserved: give it back
                raise

    def sync(self) -> None:
        if self.path.exists():
            with self._opened(os.O_RDWR) as file, room_for(self.path):
                os.fsync(file)
            sync_folder(self.path.parent)

    def read(self, blocks: Tensor) -> Bytes | None:
        content = np.empty((len(blocks), self.length), np.uint8)
        with self._opened(os.O_RDONLY) as file:
            for part, first in _runs(blocks):
                if not _read(file, content[part].reshape(-1), first * self.length):
                    return None
        return content

    def write(self, blocks: Tensor, content: Bytes) -> None:
        with self._opened(os.O_RDWR) as file, room_for(self.path, os.fstat(file).st_size):
            for part, first in _runs(blocks):
                _write(file, content[part].reshape(-1), first * self.length)

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        file = os.open(self.path, flags, 0o644)
        try:
            yield file
        finally:
            os.close(file)


class MemoryBlocks(Blocks):
    """Blocks in memory, in pieces that never move: one thread may write while another makes room.

    Args:
        length: Bytes of a block.
        pieces: What lies there at first, `[blocks, length]` each.
    """

    name = "the clients' state in memory"

    def __init__(self, length: int, pieces: Sequence[Tensor] = ()) -> None:
        super().__init__(length)
        self.pieces = list(pieces)

    def size(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    def grow(self, blocks: int, grown: int) -> None:
        # Most systems give numpy's zeros only once they are written to: what nobody needs costs nothing.
        self.pieces.append(torch.from_numpy(np.zeros((grown - blocks, self.length), np.uint8)))

    def read(self, blocks: Tensor) -> Bytes | None:
        found = [piece[first : first + length] for piece, first, length in self._runs(blocks)]
        if len(found) == 1:
            return raw(found[0]).reshape(-1, self.length)
        return np.concatenate([np.empty((0, self.length), np.uint8), *(one.numpy() for one in found)])

    def write(self, blocks: Tensor, content: Bytes) -> None:
        at = 0
        for piece, first, length in self._runs(blocks):
            piece.numpy()[first : first + length] = content[at : at + length]
            at += length

    def _runs(self, blocks: Tensor) -> Iterator[tuple[Tensor, int, int]]:
        """Runs of blocks that lie next to each other in one piece: the piece, where in it, and how many."""
        ends = np.cumsum([len(piece) for piece in self.pieces])
        for part, first in _runs(blocks):
            left = part.stop - part.start
            while left:
                place = int(np.searchsorted(ends, first, side="right"))
                begin = first - int(ends[place]) + len(self.pieces[place])
                length = min(left, len(self.pieces[place]) - begin)
                yield self.pieces[place], begin, length
                first, left = first + length, left - length

    def first(self, number: int) -> list[Tensor]:
        """The first ``number`` blocks, in tensors that own no memory beyond them, `[blocks, length]` each.

        A plain slice would still own what lies behind it, and torch saves all that a tensor owns.
        """
        found = [torch.empty(0, self.length, dtype=torch.uint8)]
        for piece in self.pieces:
            if number > 0:
                found.append(torch.from_numpy(piece.numpy()[:number]))
            number -= len(piece)
        return found


def checked(source: Blocks, blocks: Tensor, lengths: Tensor, sums: Tensor) -> Bytes:
    """The content of records, `[blocks, block]`, if it is what was written.

    Args:
        source: Where they lie.
        blocks: `[blocks]`: where in it, one record after another.
        lengths: `[records]`: how many blocks each has.
        sums: `[records]`: what `checksums` said of them.

    Raises:
        DamagedError: if it is not.
    """
    content = source.read(blocks)
    if content is None or not checksums(content, lengths).equal(sums):
        raise DamagedError(
            f"{source.name}: a client's state in it is not what was written: it is damaged, or a run at work in this "
            "folder is changing it. If one is, wait until it has ended; else try the other checkpoint in the folder "
            "above, which may not need what is damaged"
        )
    return content


def checksums(content: Bytes, lengths: Tensor) -> Tensor:
    """The checksum (XXH3, 64 bits) of each of some records, `[records]`; int64, as torch computes little with unsigned
    numbers.

    Args:
        content: `[blocks, block]`
        lengths: `[records]`: how many blocks each has.
    """
    ends = lengths.cumsum(0).tolist()
    sums = [
        xxhash.xxh3_64_intdigest(content[end - length : end].data)
        for end, length in zip(ends, lengths.tolist(), strict=True)
    ]
    return torch.from_numpy(np.array(sums, dtype=np.uint64).view(np.int64))


def _runs(blocks: Tensor) -> Iterator[tuple[slice, int]]:
    """Runs of blocks that lie next to each other: which of ``blocks`` a run is, and the number of its first."""
    numbers = blocks.numpy()
    # A run ends wherever the next block is not the following one.
    ends = [*(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    for start, end in zip([0, *ends], ends, strict=False):
        if start < end:
            yield slice(start, end), int(numbers[start])


def _read(file: int, into: Bytes, offset: int) -> bool:
    """Fill ``into`` from ``offset`` on; False if the file ends before that."""
    done = 0
    # The system may give less than was asked for, above all where 2 GiB or more are.
    while done < len(into):
        count = os.preadv(file, [into[done:].data], offset + done)
        if count == 0:
            return False
        done += count
    return True


def _write(file: int, content: Bytes, offset: int) -> None:
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
