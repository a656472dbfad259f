"""Where the machine code of loops is kept: a file for each, of which nothing is used that is damaged or out of date.

numba's own files are not enough here. They are taken for good as long as the file with the loop itself stays as it is,
though the loop may contain another file's functions; and a run ends where one of them is damaged, or the disk is full.
"""

from __future__ import annotations

import hashlib
import pickle
import time
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import xxhash
from numba.core.caching import FunctionCache, NullCache
from numba.core.serialize import dumps

from cgfedrec.errors import InputError, Notice, RunError
from cgfedrec.files import write_atomically

UNUSED = 30 * 24 * 3600
"""Seconds after which a file that nobody reads any more is removed."""


class Cache(FunctionCache):
    """Of one function: what numba asks for machine code before it compiles, and gives what it has compiled.

    Args:
        function: In Python.

    Raises:
        RuntimeError: where there is no folder to write to: beside the source, or the user's.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._cache_file: Any = Files(Path(self.cache_path), self._impl.filename_base)


class Nowhere(NullCache):
    """In place of a `Cache` where there is no folder to write to."""

    def save_overload(self, sig: object, data: object) -> None:
        """Say what that costs, once something has been compiled."""
        tell_of_nowhere()


@cache
def tell_of_nowhere() -> None:
    """Say, once in a process, that it compiles what the next one will have to compile again."""
    warnings.warn(
        "machine code can be kept neither beside the installation nor in ~/.cache: each process compiles its loops "
        "anew, which takes seconds; name a folder that can be written to by NUMBA_CACHE_DIR",
        Notice,
        stacklevel=2,
    )


class Files:
    """A file for each kind of arguments and processor.

    Args:
        folder: Of them.
        name: With which each begins.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def _path(self, key: object) -> Path:
        digest = hashlib.sha256(repr((source(), key)).encode()).hexdigest()
        return self.folder / f"{self.name}-{digest[:20]}.nbc"

    def load(self, key: object) -> Any:
        """What was kept under a key; ``None`` where it is not there, or not what was written."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        checksum, payload = content[:8], content[8:]
        if xxhash.xxh3_64_digest(payload) != checksum:
            return None
        return pickle.loads(payload)

    def save(self, key: object, data: object) -> None:
        """Keep something under a key; where it cannot be written, the next process compiles anew."""
        payload = dumps(data)  # type: ignore[no-untyped-call]
        try:
            write_atomically(self._path(key), xxhash.xxh3_64_digest(payload) + payload)
        except (InputError, RunError, OSError):
            tell_of_nowhere()
            return
        with suppress(OSError):  # another process clears too
            self._clear()

    def _clear(self) -> None:
        """Remove what nobody has read for long: files of other sources, above all, of which each upgrade leaves some.

        Another version may be at work in the same folder. It compiles anew what is gone.
        """
        for path in self.folder.glob("*.nbc"):
            status = path.stat()
            # Where a disk keeps no times of reading, they are those of writing.
            if max(status.st_atime, status.st_mtime) < time.time() - UNUSED:
                path.unlink(missing_ok=True)

    def flush(self) -> None:
        """Forget everything."""
        for path in self.folder.glob(f"{self.name}-*.nbc"):
            path.unlink(missing_ok=True)


@cache
def source() -> str:
    """A hash of what all loops are made of: their files, and numba."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
