"""Values as bytes, and back.

A packed message is: the number of its fields (1 byte), then for each field the length of its name (1) and the name,
its encoding (1), the bits of a value (1), the number of axes (1), the axes (4 each, little-endian), and the values.
Labels have the axes (items, clusters) and are packed at ``bits`` bits a value, most significant bit first; sparse rows
have the axes (items, dim, count), and hold the numbers of the ``count`` items (4 bytes each), then their rows. Other
tensors are raw little-endian values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cgfedrec.wire.values import DTYPES, Field, Labels, SparseRows, Value

# An encoding is the place of its type among `DTYPES`; of sparse rows that plus `_SPARSE`; of labels `_PACKED`.
_PACKED = 255
_SPARSE = 128
LONGEST_NAME = 255
"""Bytes of a field's name, whose length takes one byte."""
COUNT = 4
"""Bytes at the end of the header of sparse rows that say how many they are: all that a receiver cannot know before."""


def header(name: str, field: Field, count: int = 0) -> bytes:
    """What stands before a field's values: its name, how they are encoded, and their axes, such as `[items, dim]`.

    Args:
        name: Of the field.
        field: What its values are like.
        count: Of sparse rows, how many follow.
    """
    encoded = name.encode()
    axes = field.shape
    if field.clusters is not None:
        encoding, axes = _PACKED, (*axes, field.clusters)
    elif field.sparse:
        encoding, axes = _SPARSE + DTYPES.index(field.dtype), (*axes, count)
    else:
        encoding = DTYPES.index(field.dtype)
    layout = f"<B{len(encoded)}sBBB{len(axes)}I"
    return struct.pack(layout, len(encoded), encoded, encoding, field.bits, len(axes), *axes)


def fixed_length(head: bytes, field: Field) -> int:
    """How many bytes of a header a receiver knows before: all, and of sparse rows all but how many follow."""
    if field.sparse:
        return len(head) - COUNT
    return len(head)


def row_nbytes(field: Field) -> int:
    """The bytes of one sparse row: the number of its item, and its values."""
    return COUNT + field.shape[1] * field.dtype.itemsize


def raw(values: Tensor) -> Tensor:
    """The bytes of a tensor where it lies, `[bytes]`, uint8. It is a view; only a tensor with gaps is copied."""
    flat = values.detach().contiguous().view(-1)
    if flat.numel() < 2:
        flat = flat.as_strided(flat.shape, (1,))  # torch takes one number for contiguous whatever its stride
    return flat.view(torch.uint8)


def encode(values: Mapping[str, Value]) -> bytes:
    """The bytes of one message.

    >>> message = encode({"labels": Labels(torch.tensor([6, 1]), clusters=8)})
    >>> len(message)  # 1 byte, a header of 18, and two labels of 3 bits each in one byte
    20
    >>> f"{message[-1]:08b}"  # 110 for 6, 001 for 1, and two bits to fill the byte
    '11000100'
    """
    fields = (_encode(name, Field.of(value), value) for name, value in values.items())
    return bytes([len(values)]) + b"".join(fields)


def _encode(name: str, field: Field, value: Value) -> bytes:
    if isinstance(value, Labels):
        return header(name, field) + _pack_bits(value.values.cpu().numpy(), field.bits)
    if isinstance(value, SparseRows):
        touched = value.touched  # [items]
        items = touched.nonzero().squeeze(1).int()
        return header(name, field, len(items)) + _bytes(items) + _bytes(value.values[touched])
    return header(name, field) + _bytes(value)


def _bytes(values: Tensor) -> bytes:
    return raw(values).cpu().numpy().tobytes()


def _pack_bits(labels: np.ndarray, bits: int) -> bytes:
    # [items, bits]: each label's bits in a row, the most significant first, and then eight of them to a byte
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits(((labels[:, None] >> shifts) & 1).astype(np.uint8)).tobytes()


def _unpack_bits(data: bytes, count: int, bits: int) -> np.ndarray:
    rows = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return rows.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))


def decode(data: bytes, expected: Mapping[str, Field]) -> dict[str, Value]:
    """The values of one message, which may come from anyone: it must be laid out as is expected.

    What a field's header must be follows from what is expected of it. So nothing that a message says of itself decides
    how much is allocated. Only sparse rows say how many they are, and that is first compared with the bytes at hand.

    Raises:
        ValueError: for bytes that are no such message, saying where they differ.
    """
    values: dict[str, Value] = {}
    what = f"{len(data)} bytes that are no message"
    if data[:1] != bytes([len(expected)]):
        raise ValueError(f"{what} of {len(expected)} fields")
    at = 1
    for name, field in expected.items():
        head = header(name, field)
        fixed = fixed_length(head, field)
        if data[at : at + fixed] != head[:fixed]:
            raise ValueError(f"{what}: field {name!r} is not {field}")
        at += len(head)
        count = 0
        if field.sparse:
            count = _count(data[at - COUNT : at], name, field, what)
        end = at + size(field, count)
        if len(data) < end:
            raise ValueError(f"{what}: field {name!r} is cut off")
        values[name], at = _value(data[at:end], name, field, count), end
    if at != len(data):
        raise ValueError(f"{what}: {len(data) - at} bytes follow its last field")
    return values


def _count(number: bytes, name: str, field: Field, what: str) -> int:
    count = int.from_bytes(number, "little")
    if len(number) < COUNT or count > field.shape[0]:
        raise ValueError(f"{what}: field {name!r} has more rows than there are items")
    return count


def size(field: Field, count: int = 0) -> int:
    """The bytes of a field's values; of sparse rows, of ``count`` of them."""
    if field.clusters is not None:
        return (field.shape[0] * field.bits + 7) // 8
    if field.sparse:
        return count * row_nbytes(field)
    return int(np.prod(field.shape)) * field.dtype.itemsize


def _value(payload: bytes, name: str, field: Field, count: int) -> Value:
    if field.clusters is not None:
        labels = _unpack_bits(payload, field.shape[0], field.bits)
        if labels.max(initial=0) >= field.clusters:
            raise ValueError(f"field {name!r}: label {labels.max()} is not below the {field.clusters} clusters")
        return Labels(torch.from_numpy(labels), field.clusters)
    if field.sparse:
        items = _tensor(payload[: COUNT * count], torch.int32).long()
        rows = _tensor(payload[COUNT * count :], field.dtype).reshape(count, field.shape[1])
        return SparseRows(scatter_rows(name, field, torch.zeros_like(items), items, rows, 1)[0])
    return _tensor(payload, field.dtype).reshape(field.shape)


def _tensor(payload: bytes, dtype: torch.dtype) -> Tensor:
    """Values in memory of their own, which begins where a tensor's does: some kernels round by place."""
    if not payload:  # `frombuffer` refuses it
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(payload), dtype=dtype).clone()


def scatter_rows(name: str, field: Field, owners: Tensor, items: Tensor, rows: Tensor, clients: int) -> Tensor:
    """The tables of which some rows arrived, zeros elsewhere.

    Args:
        name: Of the field.
        field: What one client's table is like.
        owners: `[rows]`, int64, rising: whose each row is, a number below ``clients``.
        items: `[rows]`, int64: of which item.
        rows: `[rows, dim]`.
        clients: How many tables.

    Returns:
        `[clients, items, dim]`

    Raises:
        ValueError: where the rows of a client are not those of different items in ascending order.
    """
    num_items = field.shape[0]
    places = owners * num_items + items  # in all tables, one under another
    # Places that rise mean both: within a client its items rise, and clients come one after another.
    if len(items) and not ((items >= 0).all() and (items < num_items).all() and (places.diff() > 0).all()):
        raise ValueError(f"field {name!r}: its rows are not those of different items, in ascending order")
    tables = rows.new_zeros(clients * num_items, field.shape[1]).index_copy_(0, places, rows)
    return tables.view(clients, *field.shape)
