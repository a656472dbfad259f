"""Quantised messages: a step of the wire that sends numbers in few bits, rounded at random so that no sum is biased."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgfedrec.errors import check, not_between
from cgfedrec.random import Stream, bits
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.messages import Broadcast, NotFiniteError, Upload
from cgfedrec.wire.values import Counts, Field, Value
from cgfedrec.wire.wire import Step

SCALE = "scale of "
"""Before the name of a value: the number that its largest level stands for."""


class Quantised(Step):
    """Sends each floating-point value in levels from -L to L, L = 2^(bits - 1) - 1, of a scale that each client's has.

    The scale is the largest magnitude in the value. Between two levels a number becomes the upper one with the
    probability that makes its mean right (stochastic rounding; QSGD, Alistarh et al. 2017, arXiv 1610.02132, section
    3.1, with the largest magnitude in place of the norm). So what arrives is unbiased, and the rounding of many clients
    averages out. Whole numbers travel as they are, and so do tables of which only some rows do.

    Broadcasts may be rounded too, from the shared seed: all clients receive the same numbers.

    Args:
        bits: Of a number, from 2 to 16.
        down: Of a number of a broadcast, likewise; ``null`` for broadcasts as they are.

    Raises:
        InputError: for other numbers of bits.
    """

    def __init__(self, bits: int = 8, down: int | None = None) -> None:
        check(
            not_between("wire.steps: Quantised.bits", bits, 2, 16),
            None if down is None else not_between("wire.steps: Quantised.down", down, 2, 16),
        )
        self.bits, self.down = bits, down

    def fields(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
        sent: dict[str, Field] = {}
        for name, field in fields.items():
            sent[name] = field
            if _is_dense(field):
                sent[name] = Field(field.shape, torch.int64, bounds=_bounds(field.shape, self.bits))
                sent[SCALE + name] = Field((), torch.float32)
        return sent

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        """As of any step. Raises `NotFiniteError` for numbers that are not finite, which have no level."""
        fields = upload.fields
        values: dict[str, Tensor] = {}
        for place, (name, value) in enumerate(upload.values.items()):
            values[name] = value
            if _is_dense(fields[name]):
                seeds = bits(seed, Stream.ROUNDING, upload.clients.cpu().numpy(), round, place)
                values[name], values[SCALE + name] = _rounded(upload.clients, value, self.bits, seeds)
        return Upload.of_fields(upload.clients, values, self.fields(fields))

    def reverse(self, upload: Upload, round: int) -> Upload:
        fields, values = dict(upload.fields), dict(upload.values)
        for name in [name for name in values if SCALE + name in values]:
            scales = values.pop(SCALE + name) / _most(self.bits)  # [clients]
            shape = (-1, *[1] * (values[name].ndim - 1))
            values[name] = values[name].float() * scales.view(shape)
            del fields[SCALE + name]
            fields[name] = Field(fields[name].shape)
        return Upload.of_fields(upload.clients, values, fields)

    def send(self, broadcast: Broadcast, round: int, seed: int) -> Broadcast:
        """As of any step. What is for single clients alone travels as it is. Raises `NotFiniteError` as `forward`."""
        if self.down is None:
            return broadcast
        values: dict[str, Value] = {}
        for place, (name, value) in enumerate(broadcast.values.items()):
            values[name] = value
            if isinstance(value, Tensor) and value.dtype.is_floating_point:
                # One row, as of a single client; uploads are drawn from another seed.
                seeds = bits(seed, Stream.ROUNDING, [0], round, place)
                levels, scales = _rounded(torch.zeros(1, dtype=torch.int64), value[None], self.down, seeds)
                values[name] = Counts(levels[0], _bounds(tuple(value.shape), self.down))
                values[SCALE + name] = scales[0]
        return replace(broadcast, values=values)

    def receive(self, broadcast: Broadcast) -> Broadcast:
        values = dict(broadcast.values)
        for name in [name for name in values if SCALE + name in values]:
            scale, levels = values.pop(SCALE + name), values[name]
            assert self.down is not None
            assert isinstance(scale, Tensor)
            assert isinstance(levels, Counts)
            values[name] = levels.values.float() * (scale / _most(self.down))
        return replace(broadcast, values=values)


def _most(bits: int) -> int:
    """L, the number of the largest level."""
    return int(2 ** (bits - 1) - 1)


def _bounds(shape: tuple[int, ...], bits: int) -> Bounds:
    return Bounds(torch.tensor(_most(bits)).expand(shape), signed=True, bits=bits)


def _rounded(clients: Tensor, value: Tensor, bits: int, seeds: NDArray[np.uint64]) -> tuple[Tensor, Tensor]:
    """Levels, int64, of the shape of ``value`` `[clients, ...]`, and each client's scale, `[clients]`.

    Args:
        clients: `[clients]`, to name who sends what is not finite.
        value: `[clients, ...]`
        bits: Of a level.
        seeds: `[clients]`: of what each draws.
    """
    most = _most(bits)
    flat = value.detach().float().flatten(1)  # [clients, numbers]
    finite = flat.isfinite().all(1)
    if not finite.all():
        raise NotFiniteError("upload", clients[~finite.to(clients.device)].tolist())
    scales = flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(len(flat))
    exact = flat / scales.where(scales > 0, 1)[:, None] * most
    levels = torch.empty(flat.shape, dtype=torch.int64, device=flat.device)
    for row, own in enumerate(seeds):  # a generator for each client: what is drawn depends on no other
        generator = torch.Generator().manual_seed(int(own >> np.uint64(1)))
        up = torch.rand(flat.shape[1], generator=generator).to(flat.device)
        levels[row] = (exact[row] + up).floor().clamp(-most, most).long()
    return levels.view(value.shape), scales


def _is_dense(field: Field) -> bool:
    """Whether these are floating-point numbers that all travel."""
    return field.dtype.is_floating_point and not field.sparse
