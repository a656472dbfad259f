"""EASE: a linear autoencoder without hidden layers, in closed form (Steck, WWW 2019, arXiv 1905.03375)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import RunError, not_between


@dataclass(kw_only=True, eq=False)
class EASE(Reference):
    """EASE (arXiv 1905.03375): an item is scored by a weighted sum over the user's training items.

    With X `[users, items]` of zeros and ones, the weights B minimise |X - X B|^2 + lambda |B|^2 under diag(B) = 0. With
    P = (X^T X + lambda I)^-1 they are B_ij = -P_ij / P_jj outside the diagonal (eq. 8). They are computed in float64.
    Memory grows with the square of the catalogue.
    """

    lambda_: float = 200.0
    """Weight of the penalty; the larger, the smaller the weights of rare items."""

    def problems(self) -> Iterator[str | None]:
        yield not_between("method.lambda_", self.lambda_, 1e-6, 1e12)

    def fit(self, data: FederatedDataModule) -> Self:
        self.interactions = data.training_matrix()
        # X^T X, [items, items]: how many users have both items
        gram = torch.from_numpy((self.interactions.T @ self.interactions).toarray()).to(self.device)
        gram.diagonal().add_(self.lambda_)
        # P. X^T X + lambda I is positive definite, and so a Cholesky factor is the quickest way to its inverse.
        try:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        except RuntimeError as error:
            raise RunError(f"the weights cannot be computed ({error}); a larger method.lambda_ may help") from error
        # B: each column j divided by -P_jj, in the memory of P.
        self.weights = inverse.div_(-inverse.diagonal())
        self.weights.fill_diagonal_(0)
        return self

    def score(self, users: Tensor) -> Tensor:
        return torch.from_numpy(self.interactions[users.numpy()].toarray()).to(self.device) @ self.weights
