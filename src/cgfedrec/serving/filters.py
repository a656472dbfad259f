"""A low-pass filter of the item graph: what FedGF sends down, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgfedrec.serving.container import Arrays
from cgfedrec.serving.readers import Entries, Reader, check_vectors, number_of


class FilterReader(Reader):
    """Sends a history through a low-pass filter (`cgfedrec.methods.fedgf`): x V E V^T + alpha x D^-1/2 V V^T D^1/2.

    Args:
        basis: V, `[items, rank]`, float32.
        spectrum: E, `[rank]`, float32.
        counts: D, `[items]`, float32: how many clients have each item. It says what is popular.
        alpha: Weight of the ideal filter.
        least: An item that fewer clients have takes no part in that.
    """

    kind = "filter"

    def __init__(
        self,
        basis: NDArray[np.float32],
        spectrum: NDArray[np.float32],
        counts: NDArray[np.float32],
        alpha: float,
        least: float,
    ) -> None:
        super().__init__(counts, f"alpha {alpha:g}")
        self.basis, self.spectrum, self.alpha, self.least = basis, spectrum, alpha, least
        counted = counts.astype(np.float64)
        self._roots = np.sqrt(counted)
        self._inverse = np.where(counts < least, 0, 1 / np.maximum(self._roots, 1e-300))
        self._basis = basis.astype(np.float64)

    def parameters(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "least": self.least}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"basis": self.basis, "spectrum": self.spectrum, "counts": self.popular}

    @classmethod
    def of(cls, parameters: Mapping[str, Any], arrays: Arrays) -> FilterReader:
        basis, spectrum, counts = (arrays[name] for name in ("basis", "spectrum", "counts"))
        check_vectors({"basis": basis.reshape(-1), "spectrum": spectrum, "counts": counts})
        if basis.shape != (len(counts), len(spectrum)) or (counts < 0).any():
            raise ValueError("the basis is not one of so many items")
        return cls(basis, spectrum, counts, number_of(parameters, "alpha"), number_of(parameters, "least"))

    def scores(self, history: Entries, number: int) -> NDArray[np.float32]:
        linear, ideal = np.zeros((2, number, len(self.spectrum)))
        rows = self._basis[history.items]
        np.add.at(linear, history.users, rows)
        np.add.at(ideal, history.users, self._inverse[history.items, None] * rows)
        together = linear * self.spectrum @ self._basis.T + self.alpha * (ideal @ self._basis.T * self._roots)
        return together.astype(np.float32)

    def adds(self, own: NDArray[np.int64], ages: NDArray[np.int64], shown: NDArray[np.int64]) -> NDArray[np.float32]:
        both = self._basis[own] * self._basis[shown]  # [pairs, rank]
        ideal = self.alpha * self._inverse[own] * self._roots[shown] * both.sum(1)
        added: NDArray[np.float32] = (both @ self.spectrum + ideal).astype(np.float32)
        return added
