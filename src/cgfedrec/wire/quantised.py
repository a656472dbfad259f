"""Quantised uploads: a step of the wire that sends numbers in few bits, rounded at random so that no sum is biased."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cgfedrec.errors import check, not_between
from cgfedrec.random import Stream, bits
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.messages import NotFiniteError, Upload
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Step

SCALE = "scale of "
"""Before the name of a value: the number that its largest level stands for."""


class Quantised(Step):
    """Sends each floating-point value in levels from -L to L, L = 2^(bits - 1) - 1, of a scale that each client's has.

    The scale is the largest magnitude in the value. Between two levels a number becomes the upper one with the
    probability that makes its mean right (stochastic rounding; QSGD, Alistarh et al. 2017, arXiv 1610.02132, section
    3.1, with the largest magnitude in place of the norm). So what arrives is unbiased, and the rounding of many clients
    averages out. Whole numbers travel as they are, and so do tables of which only some rows do.

    Args:
        bits: Of a number, from 2 to 16.

    Raises:
        InputError: for other numbers of bits.
    """

    def __init__(self, bits: int = 8) -> None:
        check(not_between("wire.steps: Quantised.bits", bits, 2, 16))
        self.bits = bits
        self.levels = 2 ** (bits - 1) - 1

    def fields(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
        sent: dict[str, Field] = {}
        for name, field in fields.items():
            sent[name] = field
            if _is_dense(field):
                largest = torch.tensor(self.levels).expand(field.shape)
                sent[name] = Field(field.shape, torch.int64, bounds=Bounds(largest, signed=True, bits=self.bits))
                sent[SCALE + name] = Field((), torch.float32)
        return sent

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        """As of any step. Raises `NotFiniteError` for numbers that are not finite, which have no level."""
        fields = upload.fields
        values: dict[str, Tensor] = {}
        for place, (name, value) in enumerate(upload.values.items()):
            values[name] = value
            if _is_dense(fields[name]):
                values[name], values[SCALE + name] = self._levels(upload.clients, value, round, seed, place)
        return Upload.of_fields(upload.clients, values, self.fields(fields))

    def _levels(self, clients: Tensor, value: Tensor, round: int, seed: int, place: int) -> tuple[Tensor, Tensor]:
        """Levels, int64, of the shape of ``value`` `[clients, ...]`, and each client's scale, `[clients]`."""
        flat = value.detach().float().flatten(1)  # [clients, numbers]
        finite = flat.isfinite().all(1)
        if not finite.all():
            raise NotFiniteError("upload", clients[~finite.to(clients.device)].tolist())
        scales = flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(len(flat))
        exact = flat / scales.where(scales > 0, 1)[:, None] * self.levels
        levels = torch.empty(flat.shape, dtype=torch.int64, device=flat.device)
        seeds = bits(seed, Stream.ROUNDING, clients.cpu().numpy(), round, place)
        for row, own in enumerate(seeds):  # a generator for each client: what is drawn depends on no other
            generator = torch.Generator().manual_seed(int(own >> np.uint64(1)))
            up = torch.rand(flat.shape[1], generator=generator).to(flat.device)
            levels[row] = (exact[row] + up).floor().clamp(-self.levels, self.levels).long()
        return levels.view(value.shape), scales

    def reverse(self, upload: Upload, round: int) -> Upload:
        fields, values = dict(upload.fields), dict(upload.values)
        for name in [name for name in values if SCALE + name in values]:
            scales = values.pop(SCALE + name) / self.levels  # [clients]
            shape = (-1, *[1] * (values[name].ndim - 1))
            values[name] = values[name].float() * scales.view(shape)
            del fields[SCALE + name]
            fields[name] = Field(fields[name].shape)
        return Upload.of_fields(upload.clients, values, fields)


def _is_dense(field: Field) -> bool:
    """Whether these are floating-point numbers that all travel."""
    return field.dtype.is_floating_point and not field.sparse
