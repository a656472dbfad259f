"""Tensors: raw little-endian values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cgfedrec.wire.kind import Kind
from cgfedrec.wire.values import DTYPES, Field


class Tensors(Kind[Tensor]):
    """Any tensor whose type is one of `DTYPES`, `[...]`."""

    def code(self, field: Field) -> int:
        return DTYPES.index(field.dtype)

    def encode(self, value: Tensor, field: Field) -> tuple[bytes, int]:
        return packed(value), 0

    def size(self, field: Field, count: int) -> int:
        return int(np.prod(field.shape)) * field.dtype.itemsize

    def decode(self, payload: bytes, field: Field, count: int) -> Tensor:
        return unpacked(payload, field.dtype).reshape(field.shape)


def raw(values: Tensor) -> Tensor:
    """The bytes of a tensor where it lies, `[bytes]`, uint8. It is a view; only a tensor with gaps is copied."""
    flat = values.detach().contiguous().view(-1)
    if flat.numel() < 2:
        flat = flat.as_strided(flat.shape, (1,))  # torch takes one number for contiguous whatever its stride
    return flat.view(torch.uint8)


def packed(values: Tensor) -> bytes:
    """The bytes of a tensor `[...]`, one number after another."""
    return raw(values).cpu().numpy().tobytes()


def numbered(number: Tensor) -> Tensor:
    """A whole number from 0, `[]`, as it travels by itself: in one byte, or in four where that is too few."""
    return number.to(torch.uint8 if int(number) < 2**8 else torch.int32)


def unpacked(payload: bytes, dtype: torch.dtype) -> Tensor:
    """Values `[numbers]` in memory of their own, which begins where a tensor's does: some kernels round by place."""
    if not payload:  # `frombuffer` refuses it
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(payload), dtype=dtype).clone()
