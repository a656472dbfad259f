"""One file of named arrays and a header: safetensors, with JSON in its metadata.

Exports and the states of devices are such files. Reading one executes nothing, imports nothing, and allocates no more
than the file's size. What is damaged, foreign or of another format is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cgfedrec import __version__
from cgfedrec.errors import InputError
from cgfedrec.files import DamagedError, write_atomically

FORMAT = 1
"""Of these files, raised whenever what they hold changes."""
METADATA = "cgfedrec"
"""The key of a safetensors file's metadata under which the header stands, and `CHECKSUM` beside it."""
CHECKSUM = "checksum"
Arrays = Mapping[str, NDArray[Any]]


class Contents(NamedTuple):
    """What a file holds."""

    header: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    checksum: str
    """Of all of it: two files with the same one say the same."""


def write_container(path: Path, kind: str, header: Mapping[str, object], arrays: Arrays) -> str:
    """Write a file in one atomic step.

    Args:
        path: Where to.
        kind: What it is, such as ``recommender``.
        header: Plain values, beside which the kind, the format and the version are written.
        arrays: Named numbers, `[...]` each.

    Returns:
        Its checksum.

    Raises:
        RunError: if there is no room for it.
    """
    whole = {"kind": kind, "format": FORMAT, "version": __version__, **header}
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False)
    # Numbers lie in rows, least significant byte first, whatever made them.
    plain = {name: np.ascontiguousarray(one, one.dtype.newbyteorder("<")) for name, one in arrays.items()}
    checksum = _digest(text, plain)
    write_atomically(path, save(plain, {METADATA: text, CHECKSUM: checksum}))
    return checksum


def read_container(path: Path, kind: str) -> Contents:
    """Read what `write_container` wrote.

    Args:
        path: The file.
        kind: What it must be.

    Raises:
        InputError: naming the file, if it is anything else.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if METADATA not in metadata:
                raise InputError(f"{path}: is a safetensors file, but none that cgfedrec export wrote")
            header = json.loads(metadata[METADATA])
            if isinstance(header, dict):
                _check_kind(path, header, kind)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: is damaged, or no file that cgfedrec export wrote") from error
    if not isinstance(header, dict) or metadata.get(CHECKSUM) != _digest(metadata[METADATA], arrays):
        raise DamagedError(f"{path}: is damaged, or was changed by hand: its checksum does not agree")
    return Contents(header, arrays, metadata[CHECKSUM])


def _check_kind(path: Path, header: Mapping[str, Any], kind: str) -> None:
    """Refuse what is of another format, or is something else."""
    wrote = f"cgfedrec {header.get('version')!s:.20}, in format {header.get('format')!s:.20}"
    if header.get("format") != FORMAT:
        raise InputError(f"{path}: is of {wrote}; this is {__version__}, which reads format {FORMAT} alone")
    if header.get("kind") != kind:
        raise InputError(f"{path}: holds a {header.get('kind')!s:.20}, and not a {kind}")


def _digest(header: str, arrays: Arrays) -> str:
    """The checksum of a header and of arrays with their names, types and shapes, 32 hexadecimal digits."""
    running = xxhash.xxh3_128(header.encode())
    for name, one in sorted(arrays.items()):
        running.update(f"{name} {one.dtype.str} {one.shape}".encode())
        running.update(np.ascontiguousarray(one).tobytes())
    return running.hexdigest()


def packed_texts(name: str, texts: Sequence[str | None]) -> dict[str, NDArray[Any]]:
    """Texts as arrays: their UTF-8 in a row, where each ends, and which are there at all.

    >>> {name: one.tolist() for name, one in packed_texts("ids", ["ab", None, "c"]).items()}
    {'ids.text': [97, 98, 99], 'ids.ends': [2, 2, 3], 'ids.there': [1, 0, 1]}
    """
    each = [(text or "").encode() for text in texts]
    return {
        f"{name}.text": np.frombuffer(b"".join(each), np.uint8),
        f"{name}.ends": np.cumsum([len(one) for one in each], dtype=np.int64),
        f"{name}.there": np.array([text is not None for text in texts], np.uint8),
    }


def unpacked_texts(name: str, arrays: Arrays) -> list[str | None]:
    """The inverse of `packed_texts`. Raises ``ValueError`` for arrays that are none of its.

    >>> unpacked_texts("ids", packed_texts("ids", ["ab", None, "c"]))
    ['ab', None, 'c']
    """
    text, ends, there = (arrays[f"{name}.{part}"] for part in ("text", "ends", "there"))
    shapes = (text.ndim, ends.shape, text.dtype, ends.dtype)
    if shapes != (1, there.shape, np.dtype(np.uint8), np.dtype(np.int64)) or ends.ndim != 1:
        raise ValueError(f"{name}: are no texts")
    starts = np.concatenate((np.zeros(1, np.int64), ends))
    if (np.diff(starts) < 0).any() or starts[-1] != len(text):
        raise ValueError(f"{name}: are no texts")
    data, places = text.tobytes(), starts.tolist()
    return [
        data[start:end].decode() if one else None
        for start, end, one in zip(places, places[1:], there.tolist(), strict=False)
    ]
