"""What is recommended, as a `torchmetrics.Metric`, whoever likes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Recommended(Metric):
    """What is recommended: the share of the catalogue that anyone is shown, and how popular that is on average.

    Args:
        popularity: `[items]`, the share of users who have each item in training.
        k: The length of the recommended list.

    Example:
        Two of four items are shown, one twice.

        >>> metric = Recommended(torch.tensor([0.5, 0.2, 0.1, 0.0]), k=1)
        >>> metric.update(torch.tensor([[0], [0], [1]]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'coverage@1': 0.5, 'popularity@1': 0.4}
    """

    full_state_update = False
    shown: Tensor

    def __init__(self, popularity: Tensor, k: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k
        self.popularity = popularity
        self.add_state("shown", torch.zeros(len(popularity), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, items: Tensor) -> None:
        """Add recommended lists, `[users, k]`, -1 where there is none."""
        self.shown += torch.bincount(items[items >= 0], minlength=len(self.shown))

    def compute(self) -> dict[str, Tensor]:
        """``coverage@k``, the share of the catalogue, and ``popularity@k``, a mean over what was shown."""
        shown = self.shown.double()
        return {
            f"coverage@{self.k}": (shown > 0).double().mean(),
            f"popularity@{self.k}": (shown * self.popularity.to(shown)).sum() / shown.sum(),
        }
