"""A server's whole numbers as a checkpoint holds them: compressed, since sums are mostly small ones.

All else stays as it is: float32 values look like noise, and would only lose the map of the file.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

KINDS = {"bool": torch.bool, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64}
"""The types that are compressed, by the name under which the file holds them."""
_NAMES = {kind: name for name, kind in KINDS.items()}
_LEAST = 1024
"""Bytes of the smallest tensor for which it is worth it."""
_LEVEL = 1
"""Of zlib. Higher ones are slower and leave no less."""
_MARKS = {"zlib", "kind", "shape"}


def packed(state: Mapping[str, Tensor]) -> dict[str, object]:
    """A server's state, tensors `[any]`, with its whole numbers compressed where that saves anything."""
    return {name: _packed(value) for name, value in state.items()}


def _packed(value: Tensor) -> object:
    if value.dtype not in _NAMES or value.nbytes < _LEAST:
        return value
    data = zlib.compress(value.cpu().numpy().tobytes(), _LEVEL)
    if len(data) >= value.nbytes:
        return value
    stored = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return {"zlib": stored, "kind": _NAMES[value.dtype], "shape": list(value.shape)}


def unpacked(state: Mapping[str, object]) -> dict[str, object]:
    """A server's state as it was given to `packed`. What is not compressed is returned as it is.

    Raises:
        ValueError: if what is compressed does not unfold to what it says it is. No more than that is unfolded.
    """
    return {name: _unpacked(value) if isinstance(value, dict) else value for name, value in state.items()}


def _unpacked(stored: Mapping[str, object]) -> Tensor:
    data, kind, shape = stored.get("zlib"), KINDS.get(str(stored.get("kind"))), stored.get("shape")
    if set(stored) != _MARKS or not isinstance(data, Tensor) or data.dtype != torch.uint8 or kind is None:
        raise ValueError("a tensor is compressed in a way that is not known")
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError("a compressed tensor has no shape")
    length = torch.Size(shape).numel() * kind.itemsize
    unfolding = zlib.decompressobj()
    try:
        # One byte more than there may be: so what is longer shows, and is not unfolded.
        found = unfolding.decompress(data.numpy().tobytes(), length + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed tensor cannot be unfolded ({error})") from error
    if len(found) != length or not unfolding.eof:
        raise ValueError(f"a compressed tensor unfolds to another length than the {length} bytes of {shape}")
    return torch.frombuffer(bytearray(found), dtype=kind).view(shape)
