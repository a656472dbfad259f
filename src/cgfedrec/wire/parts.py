"""Values taken apart into named tensors and a few plain words, as a file keeps them, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.codec import encode
from cgfedrec.wire.values import Counts, IdLists, Labels, SparseRows, Value, Weights

_KINDS: Mapping[str, type[Labels | SparseRows | Counts | IdLists | Weights]] = {
    kind.__name__: kind for kind in (Labels, SparseRows, Counts, IdLists, Weights)
}
_TENSOR = "Tensor"
Words = dict[str, Any]
"""Plain values: which kind it is, and what it has beside tensors."""


def taken_apart(value: Value) -> tuple[Words, dict[str, Tensor]]:
    """What a value is, in words, and its tensors, `[...]` each by name.

    >>> import torch
    >>> taken_apart(Labels(torch.tensor([6, 1]), clusters=8))
    ({'kind': 'Labels', 'clusters': 8}, {'values': tensor([6, 1])})
    """
    if isinstance(value, Tensor):
        return {"kind": _TENSOR}, {"": value}
    words: Words = {"kind": type(value).__name__}
    tensors: dict[str, Tensor] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, Bounds):
            words |= {"signed": part.signed, "bits": part.bits}
            part = part.largest
        if isinstance(part, Tensor):
            tensors[field.name] = part
        else:
            words[field.name] = part
    return words, tensors


def put_together(words: Words, tensors: Mapping[str, Tensor]) -> Value:
    """The inverse of `taken_apart`, for what may come from anyone.

    Args:
        words: Which kind it is, and what it has beside tensors.
        tensors: `[...]` each, by name.

    Raises:
        ValueError: for parts of which there is no such value, or one that no message can hold.
    """
    parts: dict[str, Any] = {**words, **tensors}
    kind = parts.pop("kind", None)
    value: Value
    try:
        if kind == _TENSOR:
            (value,) = tensors.values()
        elif kind == Counts.__name__:
            bounds = Bounds(parts.pop("bounds"), bool(parts.pop("signed")), parts.pop("bits"))
            value = Counts(bounds=bounds, **parts)
        else:
            value = _KINDS[kind](**parts)
        encode({"value": value})  # which looks at every part of it
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError, OverflowError) as error:
        raise ValueError(f"there is no {kind!s:.20} of such parts: {error}") from error
    return value
