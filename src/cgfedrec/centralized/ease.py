"""EASE: a linear autoencoder without hidden layers, in closed form (Steck, WWW 2019, arXiv 1905.03375)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, Literal, Self

import torch
from torch import Tensor

from cgfedrec.centralized.popularity import counted
from cgfedrec.centralized.reference import Reference
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import RunError, check, not_between
from cgfedrec.forgetting import (
    DECAYS,
    RECENT_WEIGHTS,
    RECENTS,
    HalfLife,
    days_untold,
    fixed,
    half_lives,
    kept,
    not_half_life,
)

RECENT = (None, *RECENTS)
"""What ``recent: chosen`` stands for."""


@dataclass(kw_only=True, eq=False)
class EASE(Reference):
    """EASE (arXiv 1905.03375): an item is scored by a weighted sum over the user's training items.

    With X `[users, items]` of zeros and ones, the weights B minimise |X - X B|^2 + lambda |B|^2 under diag(B) = 0. With
    P = (X^T X + lambda I)^-1 they are B_ij = -P_ij / P_jj outside the diagonal (eq. 8). They are computed in float64.
    Memory grows with the square of the catalogue.

    The paper knows no time. Here it may come in three ways, all of them off by default: X^T X forgets (`half_life`),
    the newest items of a history count more (`decay`), and what is popular of late is added (`recent`).
    """

    lambda_: float = 200.0
    """Weight of the penalty; the larger, the smaller the weights of rare items."""
    half_life: HalfLife = None
    """Days after which two items that a user has count half in X^T X; ``null``: they always count. ``chosen``: the
    earlier cuts of a rolling evaluation choose it; elsewhere it is ``null``."""
    decay: float | Literal["chosen"] = 0.0
    """rho: to score, a user's a-th newest item counts (1 + a)^-rho, with a from 0. ``chosen``: by validation, one of 0,
    0.25, 0.5 and 1."""
    recent: HalfLife = None
    """Half-life in days of a popularity that is added to the scores; ``null`` for none. ``chosen``: by validation, none
    or one of 365, 30, 14, 7 and 2."""
    recent_weight: float | Literal["chosen"] = 1.0
    """Of that popularity, which is log(1 + sum) as a share of the largest. ``chosen``: by validation, one of 0.1, 0.3,
    1, 3 and 10."""

    def problems(self) -> Iterator[str | None]:
        yield not_between("method.lambda_", self.lambda_, 1e-6, 1e12)
        yield not_half_life("method.half_life", self.half_life)
        yield not_half_life("method.recent", self.recent)
        for name, value in (("decay", self.decay), ("recent_weight", self.recent_weight)):
            if value != "chosen":
                yield not_between(f"method.{name}", value, 0, 1e6)

    def check(self, data: FederatedDataModule) -> None:
        orderless = None
        if not data.has_times and self.decay not in (0, "chosen"):
            orderless = f"method.decay: the data have no times, and {self.decay} needs them; 0 reads all items alike"
        check(
            days_untold("method.half_life", self.half_life, data.days),
            days_untold("method.recent", self.recent, data.days),
            orderless,
        )

    @property
    def alternatives(self) -> Sequence[Mapping[str, Any]]:
        return half_lives("half_life", self.half_life)

    @property
    def readings(self) -> Mapping[str, Mapping[str, Any]]:
        found = {}
        chosen = (_choices(self.decay, DECAYS), _choices(self.recent, RECENT))
        for decay, recent, weight in product(*chosen, _choices(self.recent_weight, RECENT_WEIGHTS)):
            if recent is None:  # whatever the weight
                found[f"rho {decay:g}"] = {"decay": decay, "recent": None}
            else:
                name = f"rho {decay:g}, {weight:g} x recent {recent:g} days"
                found[name] = {"decay": decay, "recent": recent, "recent_weight": weight}
        return found

    def fit(self, data: FederatedDataModule) -> Self:
        self.check(data)
        self.num_items, self.histories = data.num_items, data.histories
        interactions = data.training_matrix()
        half_life = fixed(self.half_life)
        if half_life is not None:
            assert data.days is not None
            interactions.data = kept(data.days, 2 * half_life)  # the product of two halves with the half-life itself
        # X^T X, [items, items]: how many users have both items
        gram = torch.from_numpy((interactions.T @ interactions).toarray()).to(self.device)
        gram.diagonal().add_(self.lambda_)
        # P. X^T X + lambda I is positive definite, and so a Cholesky factor is the quickest way to its inverse.
        try:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        except RuntimeError as error:
            raise RunError(f"the weights cannot be computed ({error}); a larger method.lambda_ may help") from error
        # B: each column j divided by -P_jj, in the memory of P.
        self.weights = inverse.div_(-inverse.diagonal())
        self.weights.fill_diagonal_(0)
        self.popularity = {}  # by half-life, [items] each
        for recent in _choices(self.recent, RECENT):
            if recent is not None and data.days is not None:
                popularity = counted(data, recent).log1p().to(self.device)
                self.popularity[recent] = popularity / popularity.max().clamp_min(1e-12)
        self.read_by(next(iter(self.readings)))
        return self

    def learned(self) -> dict[str, Tensor]:
        recent = {_of_days(days): popularity for days, popularity in self.popularity.items()}
        return {"weights": self.weights, **recent}

    def recall(self, data: FederatedDataModule, learned: Mapping[str, Tensor]) -> None:
        self.num_items, self.histories = data.num_items, data.histories
        self.weights = self._known(learned, "weights", data.num_items, data.num_items)
        days = [one for one in _choices(self.recent, RECENT) if one is not None and _of_days(one) in learned]
        self.popularity = {one: self._known(learned, _of_days(one), data.num_items) for one in days}
        self.read_by(next(iter(self.readings)))

    def score(self, users: Tensor) -> Tensor:
        return self._beside(self._linear(users, self.reading["decay"]), self.reading)

    def adds(self, own: Tensor, ages: Tensor, shown: Tensor) -> Tensor:
        """As of any reference, `[pairs]`."""
        return self.weights.cpu()[own, shown] * (1 + ages.double()).pow(-self.reading["decay"])

    def read_all(self, users: Tensor) -> Iterator[tuple[str, Tensor]]:
        """As any reference's, `[users, items]` each; those with a recent popularity only where times tell days."""
        # Readings that differ in popularity alone follow one another, and share what takes the time.
        for decay, readings in groupby(self.readings.items(), key=lambda named: named[1]["decay"]):
            scores = self._linear(users, decay)
            for name, reading in readings:
                if reading["recent"] is None or reading["recent"] in self.popularity:
                    yield name, self._beside(scores, reading)

    def _linear(self, users: Tensor, decay: float) -> Tensor:
        """The weighted sums over what users have, `[users, items]`."""
        rows, items, ages = self.histories(users).entries()
        counts = torch.zeros(len(users), self.num_items, dtype=torch.float64)
        counts[rows, items] = (1 + ages.double()).pow(-decay)
        return counts.to(self.device) @ self.weights

    def _beside(self, scores: Tensor, reading: Mapping[str, Any]) -> Tensor:
        """Scores, `[users, items]`, with what a reading adds to them."""
        if reading["recent"] is None:
            return scores
        added: Tensor = reading["recent_weight"] * self.popularity[reading["recent"]]  # [items]
        return scores + added


def _of_days(half_life: float) -> str:
    """The name of a popularity of late."""
    return f"popularity of {half_life:g} days"


def _choices(value: Any, candidates: Sequence[Any]) -> Sequence[Any]:
    """The values that a setting may take."""
    if value == "chosen":
        return candidates
    return [value]
