"""Cluster labels: ceil(log2 K) bits each, most significant bit first."""

from __future__ import annotations

import torch

from cgfedrec.wire import bits
from cgfedrec.wire.kind import Kind
from cgfedrec.wire.values import Field, Labels


class LabelKind(Kind[Labels]):
    """Labels `[items]`. Their header has the axes (items, clusters)."""

    def code(self, field: Field) -> int:
        return 255

    def axes(self, field: Field) -> tuple[int, ...]:
        assert field.clusters is not None
        return (*field.shape, field.clusters)

    def encode(self, value: Labels, field: Field) -> tuple[bytes, int]:
        return bits.to_bytes(bits.of_width(value.values.cpu().numpy(), field.bits)), 0

    def size(self, field: Field, count: int) -> int:
        return (field.shape[0] * field.bits + 7) // 8

    def decode(self, payload: bytes, field: Field, count: int) -> Labels:
        assert field.clusters is not None
        items = field.shape[0]
        labels = bits.read_width(bits.from_bytes(payload)[: items * field.bits], field.bits, items)
        if labels.max(initial=0) >= field.clusters:
            raise ValueError(f"label {labels.max()} is not below the {field.clusters} clusters")
        return Labels(torch.from_numpy(labels), field.clusters)
