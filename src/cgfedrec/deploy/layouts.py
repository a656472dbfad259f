"""Layouts: what a message from the server is like, as bytes that travel beside it.

In a simulation a client is told by the server's own memory. Over a network it is told so. What a layout says is bounded
before anything is allocated, and the message is then decoded by it (`cgfedrec.wire.codec.decode`).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.values import DTYPES, Field, IdLayout, WeightLayout

MOST_NUMBERS = 2**28
"""Of one value: a layout that says more is refused."""
LONGEST = 2**30
"""Bytes of a layout, unpacked."""
_LENGTH = 4


def pack_layout(fields: Mapping[str, Field]) -> bytes:
    """Fields, by name and in order, as bytes."""
    said, numbers = [], b""
    for name, field in fields.items():
        one: dict[str, Any] = {"name": name, "shape": field.shape, "dtype": DTYPES.index(field.dtype)}
        if field.sparse:
            one["sparse"] = True
        if field.clusters is not None:
            one["clusters"] = field.clusters
        known = None
        if field.bounds is not None:
            # An axis along which all bounds are one number in memory travels as that number.
            largest = field.bounds.largest
            known = largest[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in largest.stride())]
            one["bounds"] = [field.bounds.signed, field.bounds.bits]
        elif isinstance(field.lists, IdLayout):
            known, one["ids"] = field.lists.sizes, [field.lists.high, field.lists.coding]
        elif field.lists is not None:
            known, one["weights"] = field.lists.sizes, field.lists.bits
        if known is not None:
            one["known"] = list(known.shape)
            numbers += known.contiguous().numpy().astype("<i8").tobytes()
        said.append(one)
    head = json.dumps(said).encode()
    return zlib.compress(len(head).to_bytes(_LENGTH, "little") + head + numbers)


def unpack_layout(data: bytes) -> dict[str, Field]:
    """The inverse of `pack_layout`, for bytes that may come from anyone.

    Raises:
        ValueError: for bytes that are no layout, or the layout of too large a message.
    """
    unpacking = zlib.decompressobj()
    try:
        raw = unpacking.decompress(data, LONGEST)
        end = _LENGTH + int.from_bytes(raw[:_LENGTH], "little")
        said = json.loads(raw[_LENGTH:end])
        fields, at = {}, end
        for one in said:
            known = None
            if "known" in one:
                shape = _shape(one["known"])
                length = 8 * math.prod(shape)
                known = torch.from_numpy(np.frombuffer(raw[at : at + length], "<i8").reshape(shape).copy())
                at += length
            fields[str(one["name"])] = _field(one, known)
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{len(data)} bytes that are no layout of a message ({error})") from error
    if at != len(raw) or not unpacking.eof:
        raise ValueError(f"{len(data)} bytes that are no layout of a message: they do not end where they should")
    return fields


def _shape(said: Any) -> tuple[int, ...]:
    shape = tuple(said)
    if not all(type(axis) is int and axis >= 0 for axis in shape) or math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"no value may be {said}")
    return shape


def _field(one: Mapping[str, Any], known: Tensor | None) -> Field:
    """A field as it was said.

    Args:
        one: What was said of it.
        known: `[...]`: the numbers that were said of it, if any.
    """
    shape, dtype = _shape(one["shape"]), DTYPES[int(one["dtype"])]
    clusters = one.get("clusters")
    if clusters is not None and not (type(clusters) is int and 1 <= clusters <= MOST_NUMBERS):
        raise ValueError(f"there are no {clusters} clusters")
    bounds: Bounds | None = None
    lists: IdLayout | WeightLayout | None = None
    if known is not None and "bounds" in one:
        signed, bits = one["bounds"]
        bounds = Bounds(known.expand(shape), bool(signed), bits)
    elif known is not None and "ids" in one:
        high, coding = one["ids"]
        lists = IdLayout(known, int(high), coding)
    elif known is not None:
        lists = WeightLayout(known, int(one["weights"]))
    return Field(shape, dtype, bool(one.get("sparse", False)), clusters, bounds, lists)
