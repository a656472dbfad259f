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
from collections.abc import Mapping, Sequence
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
        arrived = Broadcast(_unpack(packed, self.values), self.own)
        return arrived, len(packed) * clients + (0 if self.own is None else self.own.nbytes)

    def pack(self) -> bytes:
        """The bytes of what is the same for all; `own` is packed row by row, as an `Upload`."""
        fields = (_header(name, value) + _payload(value) for name, value in self.values.items())
        return bytes([len(self.values)]) + b"".join(fields)

    @classmethod
    def unpack(cls, data: bytes, expected: Mapping[str, Value]) -> Broadcast:
        """The inverse of `pack`, for bytes that may come from anyone.

        Args:
            data: A packed message.
            expected: Values of the names, kinds, types and shapes that it must have; what is in them does not matter.

        Raises:
            ValueError: for bytes that are no such message. No more has been allocated than one would take.
        """
        return cls(_unpack(data, expected))


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
    def unpack(cls, clients: Tensor, messages: Sequence[bytes], expected: Mapping[str, Value]) -> Upload:
        """The inverse of `pack`, for bytes that may come from anyone.

        Args:
            clients: `[clients]`, who sent them.
            messages: One of each.
            expected: Of one client, as for `Broadcast.unpack`.

        Raises:
            ValueError: for bytes that are no such message, naming the client.
        """
        if len(messages) != len(clients):
            raise ValueError(f"{len(messages)} messages of {len(clients)} clients")
        rows: list[dict[str, Any]] = []
        for client, message in zip(clients.tolist(), messages, strict=True):
            try:
                rows.append(_unpack(message, expected))
            except ValueError as error:
                raise ValueError(f"client {client}: {error}") from error
        sparse = frozenset(name for name, value in expected.items() if isinstance(value, SparseRows))
        values = {
            name: torch.stack([row[name].values if name in sparse else row[name] for row in rows]) for name in expected
        }
        return cls(clients, values, sparse)

    @property
    def expected(self) -> dict[str, Value]:
        """What a server can expect of one client's message: values like those of any other client here."""
        return self._row(0)

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


def _unpack(data: bytes, expected: Mapping[str, Value]) -> dict[str, Value]:
    """The values of a message, which must be laid out as the expected ones are.

    What a field's header must be follows from what is expected of it, so nothing that a message says of itself decides
    how much is allocated. Only sparse rows say how many they are, and that is compared with the bytes at hand first.
    """
    values: dict[str, Value] = {}
    if data[:1] != bytes([len(expected)]):
        raise ValueError(f"{len(data)} bytes that are no message of {len(expected)} fields")
    at = 1
    for name, like in expected.items():
        header = _header(name, like)
        fixed = len(header) - (4 if isinstance(like, SparseRows) else 0)  # of sparse rows all but their number
        if data[at : at + fixed] != header[:fixed]:
            raise ValueError(f"{len(data)} bytes that are no message: field {name!r} is not {_described(like)}")
        at += fixed
        values[name], at = _value(data, at, name, like)
    if at != len(data):
        raise ValueError(f"{len(data)} bytes that are no message: {len(data) - at} bytes follow its last field")
    return values


def _value(data: bytes, at: int, name: str, like: Value) -> tuple[Value, int]:
    """The value that begins at a place of the data, and where it ends. Raises ``ValueError`` if it is another."""
    count = 0
    if isinstance(like, SparseRows):
        number, at = data[at : at + 4], at + 4
        count = int.from_bytes(number, "little") if len(number) == 4 else 0
        if len(number) < 4 or count > len(like.values):
            raise ValueError(
                f"{len(data)} bytes that are no message: field {name!r} has more rows than there are items"
            )
    size = _size(like, count)
    payload = data[at : at + size]
    if len(payload) < size:
        raise ValueError(f"{len(data)} bytes that are no message: field {name!r} is cut off")
    if isinstance(like, Labels):
        labels = _unpack_bits(payload, len(like.values), like.bits)
        if labels.max(initial=0) >= like.clusters:
            raise ValueError(f"field {name!r}: label {labels.max()} is not below the {like.clusters} clusters")
        return Labels(torch.from_numpy(labels), like.clusters), at + size
    if isinstance(like, SparseRows):
        places = _tensor(payload[: 4 * count], torch.int32).long()
        rows = _tensor(payload[4 * count :], like.values.dtype).reshape(count, like.values.shape[1])
        rising = bool((places.diff() > 0).all())
        if count and not (rising and places[0] >= 0 and places[-1] < len(like.values)):
            raise ValueError(f"field {name!r}: its rows are not those of different items, in ascending order")
        return SparseRows(rows.new_zeros(like.values.shape).index_copy_(0, places, rows)), at + size
    return _tensor(payload, like.dtype).reshape(like.shape), at + size


def _size(like: Value, count: int) -> int:
    """The bytes of a field's values, of sparse rows of ``count`` of them."""
    if isinstance(like, Labels):
        return (len(like.values) * like.bits + 7) // 8
    if isinstance(like, SparseRows):
        return count * (4 + like.values.shape[1] * like.values.itemsize)
    return like.nbytes


def _described(like: Value) -> str:
    if isinstance(like, Labels):
        return f"{len(like.values)} labels of {like.clusters} clusters"
    values = like.values if isinstance(like, SparseRows) else like
    kind = "sparse " if isinstance(like, SparseRows) else ""
    return f"{kind}{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"


def _tensor(payload: bytes, dtype: torch.dtype) -> Tensor:
    """Values in memory of their own, which begins where a tensor's does: some kernels round by place."""
    return torch.frombuffer(bytearray(payload), dtype=dtype).clone() if payload else torch.empty(0, dtype=dtype)
