"""What crosses the wire: an `Upload` from each client of a cohort, a `Broadcast` from the server.

Both turn into bytes and back, and the communication that a run reports is the length of those bytes.

A packed message is: the number of its fields (1 byte), then for each field the length of its name (1) and the name,
its encoding (1), the bits of a value (1), the number of axes (1), the axes (4 each, little-endian), and the values.
Labels have the axes (items, clusters) and are packed at ``bits`` bits a value, most significant bit first; sparse rows
have the axes (items, dim, count), and hold the numbers of the ``count`` items (4 bytes each), then their rows; other
tensors are raw little-endian values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PACKED = 255
_SPARSE = 128
"""Added to the encoding of the rows' values."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8)


@dataclass(frozen=True)
class Labels:
    """A cluster label for each item.

    Args:
        values: `[items]`, int64, each in [0, clusters).
        clusters: K. A label takes ceil(log2 K) bits on the wire.
    """

    values: Tensor
    clusters: int

    @property
    def bits(self) -> int:
        return max(1, (self.clusters - 1).bit_length())


@dataclass(frozen=True)
class SparseRows:
    """A table of which only the rows that are not all zero cross the wire, and which they are.

    Args:
        values: `[items, dim]`.
    """

    values: Tensor

    @property
    def touched(self) -> Tensor:
        """`[items]`, bool: the rows that are sent."""
        return self.values.ne(0).any(-1)


Value = Tensor | Labels | SparseRows


@dataclass(frozen=True)
class Broadcast:
    """A message from the server to a cohort.

    Args:
        values: Named values, the same for every client that receives it.
        own: What only some of the clients receive besides, a row of their own each.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    own: Upload | None = None

    def deliver(self, clients: int) -> tuple[Broadcast, int]:
        """Send it to so many clients: the message as it arrives, and the bytes that all of them receive."""
        packed = self.pack()
        arrived = Broadcast(_unpack(packed), self.own)
        return arrived, len(packed) * clients + (0 if self.own is None else self.own.nbytes)

    def pack(self) -> bytes:
        """The bytes of what is the same for all; `own` is packed row by row, as an `Upload`."""
        fields = (_header(name, value) + _payload(value) for name, value in self.values.items())
        return bytes([len(self.values)]) + b"".join(fields)

    @classmethod
    def unpack(cls, data: bytes) -> Broadcast:
        """The inverse of `pack`. Raises ``ValueError`` for bytes that are no message."""
        return cls(_unpack(data))


@dataclass(frozen=True)
class Upload:
    """One message for each of some clients: those of a cohort to the server, or the server's to some of a cohort.

    Args:
        clients: `[clients]`, who sends or receives.
        values: Named tensors `[clients, ...]`; row c belongs to ``clients[c]``.
        sparse: The names of tables `[clients, items, dim]` that travel as `SparseRows`, so that each client's message
            has its own length.
    """

    clients: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)
    sparse: frozenset[str] = frozenset()

    def pack(self) -> list[bytes]:
        """The bytes that each client would send, in the order of ``clients``."""
        return [Broadcast(self._row(row)).pack() for row in range(len(self.clients))]

    @property
    def nbytes(self) -> int:
        """The length of all clients' packed messages, without joining them: their headers and their raw values."""
        if not self.values:
            return 0
        headers = sum(len(_header(name, value)) for name, value in self._row(0).items())
        return len(self.clients) * (1 + headers) + sum(map(self._payload_nbytes, self.values))

    def _payload_nbytes(self, name: str) -> int:
        value = self.values[name]
        if name not in self.sparse:
            return value.nbytes
        return int(SparseRows(value).touched.sum()) * (4 + value.shape[-1] * value.itemsize)

    @classmethod
    def unpack(cls, clients: Tensor, messages: list[bytes]) -> Upload:
        """The inverse of `pack`. Raises ``ValueError`` for bytes that are no message."""
        rows: list[dict[str, Any]] = [_unpack(message) for message in messages]
        first = rows[0] if rows else {}
        sparse = frozenset(name for name, value in first.items() if isinstance(value, SparseRows))
        values = {
            name: torch.stack([row[name].values if name in sparse else row[name] for row in rows]) for name in first
        }
        return cls(clients, values, sparse)

    def of(self, users: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The places among ``users`` of those that have a row here, and their rows of the value ``name``."""
        places, rows = (users[:, None] == self.clients).nonzero(as_tuple=True)
        value = self.values[name]
        return places, value[rows.to(value.device)]

    def _row(self, row: int) -> dict[str, Value]:
        return {
            name: SparseRows(value[row]) if name in self.sparse else value[row] for name, value in self.values.items()
        }


def _header(name: str, value: Value) -> bytes:
    encoded = name.encode()
    shape: tuple[int, ...]
    if isinstance(value, Labels):
        encoding, bits, shape = _PACKED, value.bits, (len(value.values), value.clusters)
    elif isinstance(value, SparseRows):
        rows = value.values
        encoding, bits = _SPARSE + _DTYPES.index(rows.dtype), rows.itemsize * 8
        shape = (*rows.shape, int(value.touched.sum()))
    else:
        encoding, bits, shape = _DTYPES.index(value.dtype), value.itemsize * 8, tuple(value.shape)
    layout = f"<B{len(encoded)}sBBB{len(shape)}I"
    return struct.pack(layout, len(encoded), encoded, encoding, bits, len(shape), *shape)


def _payload(value: Value) -> bytes:
    if isinstance(value, Labels):
        return _pack_bits(value.values.cpu().numpy(), value.bits)
    if isinstance(value, SparseRows):
        touched = value.touched
        return _payload(touched.nonzero().squeeze(1).int()) + _payload(value.values[touched])
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _pack_bits(labels: np.ndarray, bits: int) -> bytes:
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits(((labels[:, None] >> shifts) & 1).astype(np.uint8)).tobytes()


def _unpack_bits(data: bytes, count: int, bits: int) -> np.ndarray:
    rows = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return rows.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))


def _unpack(data: bytes) -> dict[str, Value]:
    try:
        return _parse(data)
    except (struct.error, IndexError, UnicodeDecodeError, RuntimeError) as error:
        raise ValueError(f"{len(data)} bytes that are no message: {error}") from error


def _parse(data: bytes) -> dict[str, Value]:
    values: dict[str, Value] = {}
    at = 1
    for _ in range(data[0]):
        length = data[at]
        name = data[at + 1 : at + 1 + length].decode()
        at += 1 + length
        encoding, bits, ndim = struct.unpack_from("BBB", data, at)
        shape = struct.unpack_from(f"<{ndim}I", data, at + 3)
        at += 3 + 4 * ndim
        size = _size(encoding, bits, shape)
        payload = data[at : at + size]
        if len(payload) < size:
            raise ValueError(f"{len(data)} bytes that are no message: field {name!r} is cut off")
        if encoding == _PACKED:
            values[name] = Labels(torch.from_numpy(_unpack_bits(payload, shape[0], bits)), shape[1])
        elif encoding >= _SPARSE:
            items, dim, count = shape
            rows = _tensor(payload[4 * count :], _DTYPES[encoding - _SPARSE]).reshape(count, dim)
            places = _tensor(payload[: 4 * count], torch.int32).long()
            values[name] = SparseRows(rows.new_zeros(items, dim).index_copy_(0, places, rows))
        else:
            values[name] = _tensor(payload, _DTYPES[encoding]).reshape(shape)
        at += size
    if at != len(data):
        raise ValueError(f"{len(data)} bytes that are no message: {len(data) - at} bytes follow its last field")
    return values


def _size(encoding: int, bits: int, shape: tuple[int, ...]) -> int:
    """The bytes of a field's values."""
    if encoding == _PACKED:
        return (shape[0] * bits + 7) // 8
    if encoding >= _SPARSE:
        _, dim, count = shape
        return count * (4 + dim * bits // 8)
    return int(np.prod(shape, dtype=np.int64)) * bits // 8


def _tensor(payload: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=dtype) if payload else torch.empty(0, dtype=dtype)
