"""Why an item is recommended: which of a user's own items speak for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cgfedrec.data.histories import History
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.export import reader_of
from cgfedrec.run.reference import ReferenceFit
from cgfedrec.structure.clusters import ClusterServer
from cgfedrec.structure.labelling import labels_of

NAMED = 3
"""Own items that are named for each that is recommended."""
PAIRS_AT_ONCE = 2**20


class Why(NamedTuple):
    """How own items speak for others."""

    adds: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Own items, their ages and items that are shown, `[pairs]` each, to how much the one speaks for the other."""
    said: str
    """What that is, in words."""


def why(training: FederatedLoop | ReferenceFit) -> Why:
    """How what is recommended can be explained: by the sum that a score is, else by labels.

    Args:
        training: A federation, or a reference that is fitted.
    """
    nothing = torch.zeros(0, dtype=torch.int64)
    if isinstance(training, ReferenceFit):
        reference = training.reference
        if reference.adds(nothing, nothing, nothing) is not None:
            return Why(lambda *pairs: reference.adds(*pairs), _SUM)  # type: ignore[arg-type]
    elif training.clients.no_newcomers() is None:
        reader = reader_of(training)
        return Why(lambda *pairs: torch.from_numpy(reader.adds(*(part.numpy() for part in pairs))), _SUM)
    elif isinstance(server := training.server, ClusterServer) and bool((server.labels >= 0).all()):
        return Why(_alike(server.labels.cpu()), _LABELS.format("its server sends down"))
    return Why(_alike(labels_of(training.data)), _LABELS.format("CGFedCo finds in these data"))


_SUM = "own items that add most to the score"
_LABELS = "the newest own items with the same label, of those that {}; scores of this method do not say more"


def _alike(labels: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Own items speak for those with the same label, `[items]`, -1 for none; the newer the more."""

    def adds(own: Tensor, ages: Tensor, shown: Tensor) -> Tensor:
        same = (labels[own] == labels[shown]) & (labels[own] >= 0)
        return same / (1 + ages.double())

    return adds


def because(why: Why, history: History, shown: Tensor) -> list[list[list[int]]]:
    """The own items that speak most for each that is shown, `NAMED` at most, and only such as do speak for it.

    Args:
        why: How they speak.
        history: Of some users.
        shown: `[users, k]`: what is shown to each.

    Returns:
        For each user and each item that is shown the numbers of own items, which speak most first.
    """
    found: list[list[list[int]]] = []
    longest = max(1, history.items.shape[1])
    at_once = max(1, PAIRS_AT_ONCE // (longest * max(1, shown.shape[1])))
    for part in torch.arange(len(shown)).split(at_once):
        own, ages = history.items[part], history.ages[part]  # [users, longest]
        shape = (len(part), shown.shape[1], own.shape[1])
        pairs = (own[:, None].expand(shape), ages[:, None].expand(shape), shown[part][:, :, None].expand(shape))
        there = pairs[0] >= 0
        adds = torch.zeros(shape, dtype=torch.float64)
        adds[there] = why.adds(*(one[there] for one in pairs)).double()
        most = adds.sort(dim=2, descending=True, stable=True)
        numbers = own[:, None].expand(shape).gather(2, most.indices)[..., :NAMED].tolist()
        speaks = (most.values > 0)[..., :NAMED].sum(2).tolist()
        found += [
            [named[:number] for named, number in zip(*of_user, strict=True)]
            for of_user in zip(numbers, speaks, strict=True)
        ]
    return found
