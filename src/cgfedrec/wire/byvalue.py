"""Equality of what holds tensors."""

from __future__ import annotations

from dataclasses import fields

import torch


class ByValue:
    """A frozen dataclass (``eq=False``) that equals another one of its class whose fields hold the same.

    Tensors `[...]` are compared as a whole, by shape, type and numbers, wherever they lie.
    """

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))  # type: ignore[arg-type]

    def __hash__(self) -> int:
        # Of tensors the shapes alone: equal ones have equal shapes, and to read the numbers would take long.
        parts = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return hash(tuple(part.shape if isinstance(part, torch.Tensor) else part for part in parts))


def _same(one: object, other: object) -> bool:
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.equal(other.to(one.device))
    return one == other
