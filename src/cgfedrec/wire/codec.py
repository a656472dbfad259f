"""Values as bytes, and back.

A packed message is: the number of its fields (1 byte), then for each field the length of its name (1) and the name,
its encoding (1), the bits of a value (1), the number of axes (1), the axes (4 each, little-endian), and the values.
Labels have the axes (items, clusters) and are packed at ``bits`` bits a value, most significant bit first; sparse rows
have the axes (items, dim, count), and hold the numbers of the ``count`` items (4 bytes each), then their rows; other
tensors are raw little-endian values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cgfedrec.wire.values import Labels, SparseRows, Value

_PACKED = 255
_SPARSE = 128
"""Added to the encoding of the rows' values."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8)


def header(name: str, value: Value) -> bytes:
    """What stands before a field's values: its name, how they are encoded, and their axes, such as `[items, dim]`."""
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


def payload(value: Value) -> bytes:
    """A field's values as bytes: labels `[items]` in a few bits each, rows that are sent, or a tensor `[...]` as it is.

    Tensors on a GPU are copied to memory first.
    """
    if isinstance(value, Labels):
        return _pack_bits(value.values.cpu().numpy(), value.bits)
    if isinstance(value, SparseRows):
        touched = value.touched
        return payload(touched.nonzero().squeeze(1).int()) + payload(value.values[touched])
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _pack_bits(labels: np.ndarray, bits: int) -> bytes:
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits(((labels[:, None] >> shifts) & 1).astype(np.uint8)).tobytes()


def _unpack_bits(data: bytes, count: int, bits: int) -> np.ndarray:
    rows = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return rows.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))


def unpack(data: bytes, expected: Mapping[str, Value]) -> dict[str, Value]:
    """The values of a message, which must be laid out as the expected ones are.

    What a field's header must be follows from what is expected of it, so nothing that a message says of itself decides
    how much is allocated. Only sparse rows say how many they are, and that is compared with the bytes at hand first.
    """
    values: dict[str, Value] = {}
    if data[:1] != bytes([len(expected)]):
        raise ValueError(f"{len(data)} bytes that are no message of {len(expected)} fields")
    at = 1
    for name, like in expected.items():
        head = header(name, like)
        fixed = len(head) - (4 if isinstance(like, SparseRows) else 0)  # of sparse rows all but their number
        if data[at : at + fixed] != head[:fixed]:
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
