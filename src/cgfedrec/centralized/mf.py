"""MF: matrix factorisation of everyone's interactions (Koren et al. 2009; BPR: Rendle et al., UAI 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cgfedrec.centralized.factors import Factors, bpr, logistic


@dataclass(kw_only=True, eq=False)
class MF(Factors):
    """Matrix factorisation: score p_u . q_i, as FedMF's, but trained in one place."""

    loss: Literal["logistic", "bpr"] = "bpr"
    """``logistic``, binary cross-entropy as federated clients have it, or ``bpr``."""
    epochs: int = 200
    batch_size: int = 1024
    weight_decay: float = 1e-2
    patience: int | None = 5

    def loss_of(self, logits: Tensor) -> Tensor:
        if self.loss == "bpr":
            return bpr(logits)
        return logistic(logits)
