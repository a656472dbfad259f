"""Few-bit weights over lists: which entries have one, the levels of those, and a scale for each list."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cgfedrec.wire import bits
from cgfedrec.wire.kind import Kind
from cgfedrec.wire.tensors import packed, unpacked
from cgfedrec.wire.values import Field, WeightLayout, Weights


class WeightKind(Kind[Weights]):
    """Weights `[rows, most]`. Their header has the axes (rows, most, count), where ``count`` entries have a weight.

    First come the scales of all rows (2 bytes each). Then, without padding, a bit for each entry of each list, whether
    it has a weight, and the levels of those that have one. Zeros fill the last byte.
    """

    too_many = "has more weights than the lists have entries"

    def code(self, field: Field) -> int:
        return 250

    def most(self, field: Field) -> int:
        return int(_layout(field).sizes.sum())

    def encode(self, value: Weights, field: Field) -> tuple[bytes, int]:
        inside = _inside(value.sizes, field.shape[1])
        problem = _problem(value, inside, field)
        if problem is not None:
            raise ValueError(problem)
        mask = value.kept[inside].cpu().numpy().astype(np.uint8)  # [entries]
        levels = value.levels[value.kept].cpu().numpy()  # [count]
        packed_bits = bits.to_bytes(np.concatenate((mask, bits.of_width(levels, field.bits))))
        return packed(value.scales) + packed_bits, len(levels)

    def size(self, field: Field, count: int) -> int:
        return 2 * field.shape[0] + (self.most(field) + count * field.bits + 7) // 8

    def decode(self, payload: bytes, field: Field, count: int) -> Weights:
        layout, entries = _layout(field), self.most(field)
        scales, rest = payload[: 2 * field.shape[0]], payload[2 * field.shape[0] :]
        data = bits.split(rest, entries + count * field.bits)
        mask, levels = data[:entries], bits.read_width(data[entries:], field.bits, count)
        if int(mask.sum()) != count:
            raise ValueError(f"{int(mask.sum())} entries have weights, and there are {count}")
        inside = _inside(layout.sizes.cpu(), field.shape[1])
        kept = torch.zeros(field.shape, dtype=torch.bool)
        kept[inside] = torch.from_numpy(mask).bool()
        all_levels = torch.zeros(field.shape, dtype=torch.int64)
        all_levels[kept] = torch.from_numpy(levels)
        value = Weights(kept, all_levels, unpacked(scales, torch.float16), layout.sizes, layout.bits)
        problem = _problem(value, inside, field)
        if problem is not None:
            raise ValueError(problem)
        return value


def _layout(field: Field) -> WeightLayout:
    assert isinstance(field.lists, WeightLayout)
    return field.lists


def _inside(sizes: Tensor, most: int) -> Tensor:
    """`[rows, most]`, bool: where a list has an entry."""
    return torch.arange(most, device=sizes.device) < sizes[:, None]


def _problem(value: Weights, inside: Tensor, field: Field) -> str | None:
    """Why these are no weights over the lists whose entries are ``inside`` `[rows, most]`, if they are none."""
    wanted = {
        "kept": (torch.bool, field.shape),
        "levels": (torch.int64, field.shape),
        "scales": (torch.float16, field.shape[:1]),
    }
    for name, (dtype, shape) in wanted.items():
        part: Tensor = getattr(value, name)
        if part.dtype != dtype or tuple(part.shape) != shape:
            return f"its {name} are {part.dtype} {list(part.shape)}, not {dtype} {list(shape)}"
    if (value.kept & ~inside).any():
        return "it keeps entries beyond the sizes of its lists"
    if value.levels[~value.kept].any():
        return "it has levels for entries that it does not keep"
    if value.levels.numel() and not 0 <= int(value.levels.min()) <= int(value.levels.max()) < 1 << field.bits:
        return f"its levels are not all between 0 and {(1 << field.bits) - 1}"
    if not value.scales.isfinite().all() or (value.scales < 0).any():
        return "its scales are not all finite and at least 0"
    return None
