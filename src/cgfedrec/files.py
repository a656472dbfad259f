"""Files: written beside their target, synced and renamed; read back only if they are what was written.

Every file that a run, a comparison or a search writes goes through here. A kill or a full disk leaves the file of
before or the file of after, and never a part of one. Checksums are XXH3. They find damage. They are no defence against
somebody who writes a file on purpose; `cgfedrec.settings.trust` is.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash

from cgfedrec.errors import BusyError, InputError, RunError

CHECKSUM = "checksum"
"""The key under which a JSON file holds the checksum of the rest of it."""
LOCK = ".lock"
"""In a folder that somebody may hold; see `locked`."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
"""The numbers of errors by which nothing can be written at a place, however much room there is."""
_CHUNK = 2**20


class DamagedError(InputError):
    """A file is not what was written: it was cut off, changed, or is something else."""


def write_atomically(
    path: Path,
    content: str | bytes | Callable[[BinaryIO], object],
    size: int | None = None,
    private: bool = False,
) -> None:
    """Write a file so that at no moment, whatever happens, a part of it is there.

    It is written under another name in the same folder, synced to the disk, and renamed; then the folder is synced.

    Args:
        path: Its folder is made where there is none; for its owner alone, if the file is private.
        content: What to write, or what writes it into an open file.
        size: Bytes that it will take at least, if that is known before.
        private: Whether it is for its owner alone, from its first byte on.

    Raises:
        InputError: if nothing can be written there.
        RunError: if there is no room for it, naming the folder. What was there before is still there.
    """
    if isinstance(content, str):
        content = content.encode()
    with open_to_us(path):
        path.parent.mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)
    partial, heard = partial_of(path), list[OSError]()
    try:
        with open_to_us(path):
            with _opened(partial, private) as file:
                if callable(content):
                    content(cast(BinaryIO, _Heard(file, heard)))
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except BaseException as error:  # an interrupt too leaves a part behind
        full = next((one for one in (error, *heard) if isinstance(one, OSError) and one.errno in _FULL), None)
        problem = ""
        if full is not None:  # said before the part is removed, which makes room again
            problem = no_room(path, _size(partial), size)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if full is not None:
            raise RunError(problem) from full
        raise
    sync_folder(path.parent)


class _Heard:
    """A file that keeps what the system says when a write fails: libraries raise an error of their own in its place.

    Polars writes Parquet so, and often says no more than "transport error". To this file, which is none of Python's
    own, it writes by `write`, as all others do.
    """

    def __init__(self, file: BinaryIO, heard: list[OSError]) -> None:
        self.file, self.heard = file, heard

    def write(self, data: bytes | memoryview) -> int:
        with self._hearing():
            return self.file.write(data)

    def flush(self) -> None:
        with self._hearing():
            self.file.flush()

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.heard.append(error)
            raise


def _opened(path: Path, private: bool) -> BinaryIO:
    """A new file, to be written."""
    if not private:
        return path.open("wb")
    path.unlink(missing_ok=True)  # what a killed writer left may be open to others
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def _size(path: Path) -> int:
    """Bytes of a file that may not be there."""
    if not path.exists():
        return 0
    return path.stat().st_size


def append(path: Path, text: str) -> None:
    """Add to the end of a file. Raises `RunError` if there is no room for it; a part of it may be there then.

    Raises `InputError` if nothing can be written there.
    """
    with open_to_us(path), room_for(path, wanted=len(text)), path.open("a") as file:
        file.write(text)


def partial_of(path: Path) -> Path:
    """The name under which a file is written before it has its own."""
    return path.with_name(f".{path.name}.part")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder; only where nobody else can be writing (see `locked`)."""
    for partial in folder.glob(".*.part"):
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make sure that a rename in this folder outlives a loss of power, where the file system can say so."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems sync no folders
            os.fsync(handle)
    finally:
        os.close(handle)


def no_room(path: Path, written: int = 0, wanted: int | None = None) -> str:
    """What to say if a disk is full.

    Args:
        path: The file for which there is no room.
        written: Bytes of it that there was room for.
        wanted: Its whole length in bytes, if that is known.
    """
    free = shutil.disk_usage(path.parent).free
    missing = "none is left"
    if wanted and wanted > written + free:
        missing = f"{wanted - written - free:,} bytes are missing"
    return (
        f"{path}: the disk of {path.parent} is full: {written:,} bytes were written, and {missing}; what was there "
        "before is intact. Make room, or choose another folder"
    )


@contextmanager
def room_for(path: Path, written: int = 0, wanted: int | None = None) -> Iterator[None]:
    """Raise `RunError` with what `no_room` says if the body finds the disk full."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RunError(no_room(path, written, wanted)) from error
        raise


@contextmanager
def open_to_us(path: Path) -> Iterator[None]:
    """Raise `InputError`, naming a file or folder, if the body finds that nothing can be written there."""
    try:
        yield
    except OSError as error:
        if error.errno in _CLOSED:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
        raise


def digest(data: bytes | memoryview) -> str:
    """The checksum of some bytes, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def file_digest(path: Path) -> str:
    """The checksum of a file's bytes."""
    running = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            running.update(chunk)
    return running.hexdigest()


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON file that `read_json` can check."""
    sealed = {**values, CHECKSUM: digest(_canonical(values))}
    write_atomically(path, json.dumps(sealed, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        DamagedError: naming the file, if it is anything else.
        FileNotFoundError: if there is none.
    """
    data = path.read_bytes()
    try:
        values = json.loads(data)
        found = values.pop(CHECKSUM)
        intact = found == digest(_canonical(values))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise DamagedError(f"{path}: is damaged, or was changed by hand: its checksum does not agree")
    return dict(values)


def _canonical(values: Mapping[str, object]) -> bytes:
    """Values as bytes that depend neither on the order of the keys nor on white space."""
    return json.dumps(values, sort_keys=True).encode()


def no_folder(option: str, folder: Path) -> str | None:
    """The problem with a folder that is to be written into, and may be there or not."""
    shown, name = f"{option}: {str(folder)[:80]}", os.fsencode(folder)
    # The limits of Linux. Beyond them even asking whether the folder is there fails.
    if b"\0" in name or len(name) >= 4096 or any(len(part) > 255 for part in name.split(b"/")):
        return f"{shown}... is no name that a folder can have"
    way = (folder.absolute(), *folder.absolute().parents)
    above = next(path for path in way if path.exists() or path.is_symlink())
    if not above.exists():
        return f"{shown}: {above} is a link that leads nowhere"
    if above.is_dir():
        if os.access(above, os.W_OK | os.X_OK):
            return None
        return f"{shown}: nothing may be written into {above}"
    if above == folder.absolute():
        return f"{shown} is a file"
    return f"{shown} lies below {above}, which is a file"


@contextmanager
def locked(folder: Path, problem: str, wait: float = 0.0) -> Iterator[int]:
    """Hold a folder's lock, which the operating system gives back however its holder ends.

    Args:
        folder: It is made where there is none.
        problem: What to say where somebody else holds it.
        wait: Seconds for which somebody else may go on to hold it.

    Returns:
        The open lock; a process that is given it holds it too.

    Raises:
        BusyError: with ``problem``.
        InputError: if nothing can be written there.
    """
    with open_to_us(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        if not _taken(lock, wait):
            raise BusyError(problem)
        yield lock
    finally:
        os.close(lock)


def _taken(lock: int, wait: float) -> bool:
    """Hold an open lock. False where somebody else holds it for longer than these seconds."""
    until = time.monotonic() + wait
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)
