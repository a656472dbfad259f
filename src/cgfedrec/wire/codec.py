"""Values as bytes, and back.

A packed message is: the number of its fields (1 byte), then for each field the length of its name (1) and the name,
the code of its kind (1), the bits of a number (1; 0 where they differ), the number of axes (1), the axes (4 each,
little-endian), and the bytes of the value. The axes are the shape; of labels also how many clusters there are; and at
the end, where the length does not follow from what the receiver knows, how many of something follow. Each kind of value
has a file of its own, which says what its bytes are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from cgfedrec.wire.idlists import IdKind
from cgfedrec.wire.integers import IntegerKind
from cgfedrec.wire.kind import Kind
from cgfedrec.wire.labels import LabelKind
from cgfedrec.wire.sparse import SparseKind
from cgfedrec.wire.tensors import Tensors
from cgfedrec.wire.values import Field, IdLayout, Value
from cgfedrec.wire.weights import WeightKind

_TENSORS, _LABELS, _SPARSE, _INTEGERS, _IDS, _WEIGHTS = (
    Tensors(),
    LabelKind(),
    SparseKind(),
    IntegerKind(),
    IdKind(),
    WeightKind(),
)
LONGEST_NAME = 255
"""Bytes of a field's name, whose length takes one byte."""
COUNT = 4
"""Bytes at the end of a header that say how many of something follow: all that a receiver cannot know before."""


def kind_of(field: Field) -> Kind[Any]:
    """How the values of a field become bytes."""
    if field.clusters is not None:
        return _LABELS
    if field.bounds is not None:
        return _INTEGERS
    if isinstance(field.lists, IdLayout):
        return _IDS
    if field.lists is not None:
        return _WEIGHTS
    if field.sparse:
        return _SPARSE
    return _TENSORS


def header(name: str, field: Field, count: int = 0) -> bytes:
    """What stands before a field's values: its name, how they are encoded, and their axes, such as `[items, dim]`.

    Args:
        name: Of the field.
        field: What its values are like.
        count: How many follow, for a kind whose header says so.
    """
    encoded, kind = name.encode(), kind_of(field)
    axes = kind.axes(field)
    if kind.counts:
        axes = (*axes, count)
    layout = f"<B{len(encoded)}sBBB{len(axes)}I"
    return struct.pack(layout, len(encoded), encoded, kind.code(field), field.bits, len(axes), *axes)


def fixed_length(head: bytes, field: Field) -> int:
    """How many bytes of a header a receiver knows before: all, or all but how many follow."""
    if kind_of(field).counts:
        return len(head) - COUNT
    return len(head)


def check(name: str, field: Field) -> None:
    """Refuse a field that no message can hold, by a ValueError that names it."""
    problem = field.problem()
    if problem is None and len(name.encode()) > LONGEST_NAME:
        problem = "has too long a name"
    if problem is not None:
        raise ValueError(f"field {name!r} {problem}")


def encode(values: Mapping[str, Value]) -> bytes:
    """The bytes of one message.

    Raises:
        ValueError: for a value that no message can hold, naming the field.

    >>> import torch
    >>> from cgfedrec.wire.values import Labels
    >>> message = encode({"labels": Labels(torch.tensor([6, 1]), clusters=8)})
    >>> len(message)  # 1 byte, a header of 18, and two labels of 3 bits each in one byte
    20
    >>> f"{message[-1]:08b}"  # 110 for 6, 001 for 1, and two bits to fill the byte
    '11000100'
    """
    fields = (_encode(name, Field.of(value), value) for name, value in values.items())
    return bytes([len(values)]) + b"".join(fields)


def _encode(name: str, field: Field, value: Value) -> bytes:
    check(name, field)
    try:
        payload, count = kind_of(field).encode(value, field)
    except ValueError as error:
        raise ValueError(f"field {name!r}: {error}") from error
    return header(name, field, count) + payload


def decode(data: bytes, expected: Mapping[str, Field]) -> dict[str, Value]:
    """The values of one message, which may come from anyone: it must be laid out as is expected.

    What a field's header must be follows from what is expected of it. So nothing that a message says of itself decides
    how much is allocated. Some kinds say how many of something follow, and that is first compared with what is possible
    and with the bytes at hand.

    Raises:
        ValueError: for bytes that are no such message, saying where they differ.
    """
    values: dict[str, Value] = {}
    what = f"{len(data)} bytes that are no message"
    if data[:1] != bytes([len(expected)]):
        raise ValueError(f"{what} of {len(expected)} fields")
    at = 1
    for name, field in expected.items():
        check(name, field)
        kind, head = kind_of(field), header(name, field)
        fixed = fixed_length(head, field)
        if data[at : at + fixed] != head[:fixed]:
            raise ValueError(f"{what}: field {name!r} is not {field}")
        at += len(head)
        count = 0
        if kind.counts:
            number = data[at - COUNT : at]
            count = int.from_bytes(number, "little")
            if len(number) < COUNT or count > kind.most(field):
                raise ValueError(f"{what}: field {name!r} {kind.too_many}")
        end = at + kind.size(field, count)
        if len(data) < end:
            raise ValueError(f"{what}: field {name!r} is cut off")
        try:
            values[name] = kind.decode(data[at:end], field, count)
        except ValueError as error:
            raise ValueError(f"field {name!r}: {error}") from error
        at = end
    if at != len(data):
        raise ValueError(f"{what}: {len(data) - at} bytes follow its last field")
    return values
