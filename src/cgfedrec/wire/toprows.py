"""Sparse uploads: a step of the wire that sends only some rows of each table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cgfedrec.errors import check, not_between
from cgfedrec.random import Stream, uniform
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Step

ROWS = "rows of "
"""Before the name of a table: some of its rows."""


class TopRows(Step):
    """Sends a share of the rows of each table `[items, dim]`, with their items; the others arrive as zeros.

    By default rows are drawn, the larger their norm the likelier, and what is drawn is made as much larger as that was
    unlikely: what arrives is unbiased (Wangni et al. 2018, arXiv 1710.09854, with rows in place of single numbers).
    Otherwise the rows of the largest norms are sent as they are. That is biased towards zero: it is of use only where a
    row of zeros says that nothing has changed. Which rows travel tells of a client's items.

    Args:
        share: Of the rows that travel, in the mean where they are drawn.
        unbiased: Whether they are drawn.

    Raises:
        InputError: for other shares.
    """

    def __init__(self, share: float = 0.1, unbiased: bool = True) -> None:
        check(not_between("wire.steps: TopRows.share", share, 1e-6, 1))
        self.share, self.unbiased = share, unbiased

    def fields(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
        sent: dict[str, Field] = {}
        for name, field in fields.items():
            if _is_table(field):
                sent[ROWS + name] = Field(field.shape, field.dtype, sparse=True)
            else:
                sent[name] = field
        return sent

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        values: dict[str, Tensor] = {}
        fields = upload.fields
        for place, (name, value) in enumerate(upload.values.items()):
            if not _is_table(fields[name]):
                values[name] = value
                continue
            norms = value.detach().double().norm(dim=2).cpu()  # [clients, items]
            most = max(1, int(self.share * norms.shape[1] + 0.5))
            if self.unbiased:
                counters = upload.clients.cpu().numpy()[:, None], round, place, np.arange(norms.shape[1])
                chances = _chances(norms, most)
                drawn = torch.from_numpy(uniform(seed, Stream.ROWS, *counters)) < chances
                factors = torch.where(drawn, 1 / chances.clamp_min(1e-300), 0.0)
            else:
                factors = torch.zeros_like(norms).scatter_(1, norms.topk(most, dim=1).indices, 1.0)
            factors = factors.to(value.device, value.dtype)[:, :, None]
            values[ROWS + name] = torch.where(factors > 0, value * factors, 0.0)
        return Upload.of_fields(upload.clients, values, self.fields(fields))

    def reverse(self, upload: Upload, round: int) -> Upload:
        fields, values = dict(upload.fields), dict(upload.values)
        for sent in [sent for sent in values if sent.startswith(ROWS)]:
            name, field = sent.removeprefix(ROWS), fields.pop(sent)
            values[name], fields[name] = values.pop(sent), Field(field.shape, field.dtype)
        return Upload.of_fields(upload.clients, values, fields)


def _is_table(field: Field) -> bool:
    """Whether these are floating-point numbers of rows, all of which would travel."""
    return field.dtype.is_floating_point and not field.sparse and len(field.shape) == 2


def _chances(norms: Tensor, number: int) -> Tensor:
    """With which chance each row is drawn, `[clients, items]`: in proportion to its norm, at most 1, ``number`` in all.

    Rows of zeros are never drawn. Where there are fewer others than ``number``, all of them are.
    """
    chances = torch.zeros_like(norms)
    sure = torch.zeros_like(norms, dtype=torch.bool)
    # What would have a chance above 1 is sure, and the others share what is left. Each turn makes more of them sure.
    while True:
        left = (number - sure.sum(1, keepdim=True)).clamp_min(0)  # [clients, 1]
        others = norms.masked_fill(sure, 0)
        total = others.sum(1, keepdim=True)
        chances = torch.where(total > 0, left * others / total.clamp_min(1e-300), 0.0)
        more = (chances >= 1) & ~sure
        if not more.any():
            return chances.masked_fill(sure, 1.0)
        sure |= more
