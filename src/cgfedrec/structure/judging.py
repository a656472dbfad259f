"""Judging: what clients say of readings, summed up, by which one is chosen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from cgfedrec.errors import Notice
from cgfedrec.server import READINGS
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.private import judged_bounds
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.values import Field

UNIT = 2**16
"""A client's validation metric, from 0 to 1, travels as a whole number of such parts."""
JUDGED_BY = "ndcg@10"
"""The metric by which clients compare readings."""


def judgement(readings: int, discovery: Discovery, clients: int) -> Field:
    """What a client says of so many readings: its validation metric by each, in units of `UNIT`, or `judged`.

    As of all sums, the bounds are those of what so many clients say together.
    """
    bounds = Bounds(torch.tensor(UNIT * clients).expand(readings))
    if discovery.privacy is not None:
        bounds = judged_bounds(readings, discovery.privacy, clients)
    return Field((readings,), torch.int64, bounds=bounds)


def chosen_by(judged: Tensor, before: int, readings: Sequence[str]) -> int:
    """Which reading clients have chosen. Where nobody could judge any, it is said, and the one of before stays.

    Args:
        judged: `[readings]`: what all have said of each.
        before: By which they have read so far.
        readings: Their names.
    """
    if judged.any():
        return int(judged.argmax())
    warnings.warn(
        "choose: nobody holds anything out for validation, so nothing is chosen, and histories are read by "
        f"{readings[before]!r}. Give what a run has chosen that holds out: --method.read_by",
        Notice,
        stacklevel=2,
    )
    return before


def told_of(judged: Tensor, unit: int, clients: int, readings: Sequence[str]) -> dict[str, float]:
    """What a server reports of readings: clients' mean of each, by its name.

    Args:
        judged: `[readings]`, in parts of ``unit``: what all have said of each.
        unit: As said.
        clients: How many they are.
        readings: Their names.
    """
    means = (judged.double() / unit / clients).tolist()
    return {f"{READINGS}{name}": mean for name, mean in zip(readings, means, strict=True)}
