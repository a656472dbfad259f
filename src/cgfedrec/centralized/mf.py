"""MF: matrix factorisation of everyone's interactions (Koren et al. 2009; BPR: Rendle et al., UAI 2009)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cgfedrec.centralized.factors import Factors, bpr, logistic


class MF(Factors):
    """Matrix factorisation: score p_u . q_i, as FedMF's, but trained in one place.

    Args:
        loss: ``logistic``, binary cross-entropy as federated clients have it, or ``bpr``.
        dim: Size of a vector.
        epochs: Passes over the training interactions, at most.
        batch_size: Positives in a batch, each with its negatives.
        lr: Of Adam.
        weight_decay: Weight of half the squared norm of the vectors in a batch.
        init_scale: Standard deviation of every initial value.
        evaluate_every: Epochs between two evaluations; the last epoch is always evaluated.
        patience: Stop after this many evaluations without a better one; ``null`` for never.
        monitor: The validation metric that chooses the best epoch.
    """

    def __init__(
        self,
        loss: Literal["logistic", "bpr"] = "bpr",
        dim: int = 64,
        epochs: int = 200,
        batch_size: int = 1024,
        lr: float = 0.005,
        weight_decay: float = 1e-2,
        init_scale: float = 0.1,
        evaluate_every: int = 5,
        patience: int | None = 5,
        monitor: str = "val/ndcg@10",
    ) -> None:
        super().__init__(dim, epochs, batch_size, lr, weight_decay, init_scale, evaluate_every, patience, monitor)
        self.loss_name = loss

    def loss(self, logits: Tensor) -> Tensor:
        return bpr(logits) if self.loss_name == "bpr" else logistic(logits)
