"""Beyond accuracy: whether what is recommended is new, diverse and fair to items, and for whom a model is accurate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from cgfedrec.evaluation.metrics import NO_RANK, each_users
from cgfedrec.evaluation.ranking import SHOWN, Ranked

GROUPS = "groups/"
"""Before these names, of how many users or items a group has."""
HEAD = 0.2
"""The share of the catalogue that is its head: the items that most users have."""


class Exposure(Metric):
    """What all lists together show: how surprising it is, and how unevenly it is shared out among the catalogue.

    Args:
        holders: `[items]`, int64: how many users have each item in training.
        num_users: Of all.
        k: The length of the recommended list.

    Example:
        Of two items, one that half of the users have is shown alone.

        >>> metric = Exposure(torch.tensor([1, 1]), num_users=3, k=1)
        >>> metric.update(torch.tensor([[0], [0], [0]]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'novelty@1': 1.0, 'gini@1': 0.5}
    """

    full_state_update = False
    shown: Tensor

    def __init__(self, holders: Tensor, num_users: int, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.holders, self.num_users, self.k = holders, num_users, k
        self.add_state("shown", torch.zeros(len(holders), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, lists: Tensor) -> None:
        """Add recommended lists, `[lists, k]`, -1 where there is none."""
        self.shown += torch.bincount(lists[lists >= 0], minlength=len(self.shown))

    def compute(self) -> dict[str, Tensor]:
        """Novelty in bits, and the Gini coefficient, `[]` each.

        ``novelty@k``: the mean over what is shown of -log2((1 + n) / (1 + users)), with n users who have the item: 0
        for what everybody has (Zhou et al. 2010, arXiv 0808.2670; the ones keep an item that nobody has finite).
        ``gini@k``: of how often each item is shown: 0 where all are shown alike, near 1 where all lists show the same.
        """
        shown = self.shown.double()
        surprise = math.log2(1 + self.num_users) - (1 + self.holders.double()).log2()  # [items]
        places = torch.arange(1, len(shown) + 1, dtype=torch.float64)
        number, total = len(shown), shown.sum()
        gini = (2 * (places * shown.sort().values).sum() / total - (number + 1)) / number
        return {f"novelty@{self.k}": (shown * surprise).sum() / total, f"gini@{self.k}": gini}


class Diversity(Metric):
    """How unlike each other the items of a list are, by the labels of their clusters; the mean over lists.

    Args:
        labels: `[items]`, int64; -1 for an item without one, which is unlike all others.
        k: The length of the recommended list.

    Example:
        Two of the three pairs of the list have different labels.

        >>> metric = Diversity(torch.tensor([0, 0, 1]), k=3)
        >>> metric.update(torch.tensor([[0, 1, 2]]))
        >>> round(metric.compute()["diversity@3"].item(), 4)
        0.6667
    """

    full_state_update = False
    total: Tensor
    lists: Tensor

    def __init__(self, labels: Tensor, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels, self.k = labels, k
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("lists", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, lists: Tensor) -> None:
        """Add recommended lists, `[lists, k]`, -1 where there is none; those of one item alone do not count."""
        there = lists >= 0
        labels = torch.where(there, self.labels[lists.clamp_min(0)], -1)
        pairs, alike = torch.zeros(len(lists), dtype=torch.int64), torch.zeros(len(lists), dtype=torch.int64)
        for apart in range(1, lists.shape[1]):  # every pair once, without `[lists, k, k]`
            both = there[:, apart:] & there[:, :-apart]
            same = (labels[:, apart:] == labels[:, :-apart]) & (labels[:, apart:] >= 0)
            pairs += both.sum(1)
            alike += (both & same).sum(1)
        counted = pairs > 0
        self.total += (1 - alike[counted] / pairs[counted].double()).sum()
        self.lists += counted.sum()

    def compute(self) -> dict[str, Tensor]:
        """``diversity@k``, `[]`: the share of a list's pairs whose labels differ (Ziegler et al., WWW 2005, with the
        distance of two items 0 or 1).
        """
        return {f"diversity@{self.k}": self.total / self.lists}


class Asked(NamedTuple):
    """What an evaluation knows of users and items, all of it from training."""

    lengths: Tensor
    """`[asked users]`, int64: how many items each has in training, in the order of `Ranked.users`."""
    holders: Tensor
    """`[items]`, int64: how many users have each in training."""
    num_users: int
    """Of all who trained."""
    labels: Tensor
    """`[items]`, int64, as `Diversity` takes them."""


def beyond_accuracy(found: Ranked, asked: Asked, metric: str) -> dict[str, float]:
    """What a ranking is like beside accurate, and how accurate it is for groups of users and of items.

    Args:
        found: The ranking.
        asked: Of the same users.
        metric: Such as ``ndcg@10``, for the groups.

    Returns:
        ``novelty@10``, ``gini@10`` (`Exposure`) and, where items have labels, ``diversity@10`` (`Diversity`); and
        ``METRIC/users/few``, ``some``, ``many`` and ``METRIC/items/head``, ``tail``, as far as a group has anybody.
    """
    k = min(SHOWN, len(asked.holders))
    alone = {"sync_on_compute": False}  # as in `summarise`
    kinds: list[Metric] = [Exposure(asked.holders, asked.num_users, k, **alone)]
    if (asked.labels >= 0).any():
        kinds.append(Diversity(asked.labels, k, **alone))
    told: dict[str, float] = {}
    for kind in kinds:
        kind.update(found.shown)
        told |= {name: value.item() for name, value in kind.compute().items()}
    for name, ranks in _groups(found, asked):
        if len(ranks):
            told[f"{metric}/{name}"] = each_users(metric, ranks).mean().item()
    return told


def group_sizes(found: Ranked, asked: Asked) -> dict[str, int]:
    """How many users, or held-out items, each group has: ``groups/users/few``; and as ``groups/users/few/most`` and
    ``groups/users/some/most`` with how many training items its users end. Arguments are those of `beyond_accuracy`.
    """
    of_items = [(name, ranks) for name, ranks in _groups(found, asked) if name.startswith("items/")]
    told = {f"{GROUPS}{name}": int((ranks != NO_RANK).sum()) for name, ranks in of_items}
    for place, name in enumerate(("few", "some", "many")):
        in_group = _thirds(asked.lengths) == place
        told[f"{GROUPS}users/{name}"] = int(in_group.sum())
        if name != "many" and in_group.any():
            told[f"{GROUPS}users/{name}/most"] = int(asked.lengths[in_group].max())
    return told


def _groups(found: Ranked, asked: Asked) -> Iterator[tuple[str, Tensor]]:
    """The name of each group, and the ranks that are its own, `[users, relevant]`, as of `Ranked`."""
    thirds = _thirds(asked.lengths)
    for place, name in enumerate(("few", "some", "many")):
        yield f"users/{name}", found.ranks[thirds == place]
    popular = asked.holders.argsort(descending=True, stable=True)
    head = torch.zeros(len(popular), dtype=torch.bool)
    head[popular[: math.ceil(HEAD * len(popular))]] = True
    there = found.items >= 0  # an item that is not in the catalogue is in neither
    of_head = head[found.items.clamp_min(0)]
    for name, wanted in (("head", of_head), ("tail", ~of_head)):
        ranks = found.ranks.masked_fill(~(wanted & there), NO_RANK).sort(1).values
        yield f"items/{name}", ranks[(ranks != NO_RANK).any(1)]


def _thirds(lengths: Tensor) -> Tensor:
    """The third of each user, `[users]`, 0 to 2, by how many items they have; users with as many are in one."""
    order = lengths.sort().values
    ends = torch.stack([order[(len(order) * part - 1) // 3] for part in (1, 2)]) if len(order) else order
    return torch.bucketize(lengths, ends)
