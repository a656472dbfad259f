"""ItemKNN: similar items, found by who has them (Sarwar et al., WWW 2001; Deshpande and Karypis, ACM TOIS 2004)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, vstack
from torch import Tensor

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import no_count, not_between

PAIRS_AT_ONCE = 2**20
"""Pairs of items whose similarities are computed in one block: some 80 MB, if all of them are similar."""


@dataclass(kw_only=True, eq=False)
class ItemKNN(Reference):
    """Item-kNN (Sarwar et al. 2001): an item is scored by its similarity to its neighbours among what the user has.

    With c_ij users who have both items and n_i who have item i, the similarity is the cosine of two columns of the
    training matrix (section 3.1.1), made smaller where few users stand behind it, which is not in the paper:
    s_ij = c_ij / (sqrt(n_i n_j) + shrinkage). Of its similarities each item keeps the largest alone (section 3.3). A
    score is the sum of those to the user's training items; not their weighted mean (section 3.2.1), which predicts a
    rating, since interactions have none (Deshpande and Karypis 2004).

    Memory grows with items x neighbours, and with no square of the catalogue.
    """

    neighbours: int = 100
    """Most similar items that each item keeps; of equal ones, the first in the catalogue."""
    shrinkage: float = 10.0
    """What is added to the norm of a pair; the larger, the less similar are items that few users have."""

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.neighbours", self.neighbours)
        yield not_between("method.shrinkage", self.shrinkage, 0, 1e12)

    def fit(self, data: FederatedDataModule) -> Self:
        self.interactions = data.training_matrix()
        by_item = self.interactions.T.tocsr()  # [items, users]
        norms = np.sqrt(np.diff(by_item.indptr))  # sqrt(n_i), [items]
        at_once = max(1, PAIRS_AT_ONCE // data.num_items)
        blocks = []
        for start in range(0, data.num_items, at_once):
            # c_ij of some items with all: only pairs that some user has are stored.
            together = (by_item[start : start + at_once] @ self.interactions).tocoo()
            apart = together.row + start != together.col  # no item is a neighbour of itself
            items, others = together.row[apart], together.col[apart]
            similar = together.data[apart] / (norms[start + items] * norms[others] + self.shrinkage)
            blocks.append(_largest(coo_array((similar, (items, others)), shape=together.shape), self.neighbours))
        # Turned round: a user's row of the interactions times it gives their scores, [items, items].
        self.weights = vstack(blocks).T.tocsr()
        return self

    def learned(self) -> dict[str, Tensor]:
        parts = {"starts": self.weights.indptr, "items": self.weights.indices, "similarities": self.weights.data}
        return {name: torch.from_numpy(part) for name, part in parts.items()}

    def recall(self, data: FederatedDataModule, learned: Mapping[str, Tensor]) -> None:
        self.interactions = data.training_matrix()
        starts = self._known(learned, "starts", data.num_items + 1)
        number = int(starts[-1])
        parts = self._known(learned, "similarities", number), self._known(learned, "items", number), starts
        self.weights = csr_array(tuple(part.numpy() for part in parts), shape=(data.num_items, data.num_items))
        self.weights.check_format(full_check=True)  # indices that are out of bounds would read other memory

    def score(self, users: Tensor) -> Tensor:
        return torch.from_numpy((self.interactions[users.numpy()] @ self.weights).toarray())

    def adds(self, own: Tensor, ages: Tensor, shown: Tensor) -> Tensor:
        """As of any reference, `[pairs]`."""
        if not len(own):  # of which scipy makes no sparse array
            return torch.zeros(0)
        pairs = own.numpy().copy(), shown.numpy().copy()  # scipy wants memory of numpy's own
        return torch.from_numpy(np.asarray(self.weights[pairs]))


def _largest(rows: coo_array, number: int) -> csr_array:
    """The largest entries of each row, so many at most; of equal ones those in the first columns."""
    order = np.lexsort((rows.col, -rows.data, rows.row))
    row, col, data = rows.row[order], rows.col[order], rows.data[order]
    first = np.searchsorted(row, np.arange(rows.shape[0]))  # where each row begins
    kept = np.arange(len(row)) - first[row] < number
    return csr_array((data[kept], (row[kept], col[kept])), shape=rows.shape)
