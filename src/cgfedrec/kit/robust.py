"""Robust aggregation: in place of the mean, what a few hostile uploads cannot move far."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cgfedrec.errors import RunError, not_between
from cgfedrec.kit.gather import Gathered, GatherServer
from cgfedrec.kit.means import MeanServer, TableServer
from cgfedrec.method import Recommender
from cgfedrec.server import Server
from cgfedrec.wire.messages import NotFiniteError
from cgfedrec.wire.refusals import unsound
from cgfedrec.wire.sums import Sum

Aggregation = Literal["mean", "median", "trimmed_mean", "krum", "multi_krum"]


def trimmed_mean(rows: Tensor, cut: int) -> Tensor:
    """The mean of each number over clients, without the ``cut`` lowest and the ``cut`` highest of them.

    Yin et al. 2018 (arXiv 1803.01498), definition 2. With as many cut as can be it is the median, definition 1.

    Args:
        rows: `[clients, numbers]`.
        cut: Less than half of the clients.

    Returns:
        `[numbers]`, float64.

    >>> trimmed_mean(torch.tensor([[1.0], [2.0], [4.0], [1000.0]]), 1)
    tensor([3.], dtype=torch.float64)
    """
    return rows.sort(0).values[cut : len(rows) - cut].double().mean(0)


def krum_scores(distances: Tensor, hostile: int) -> Tensor:
    """How far each client's upload is from those nearest to it (Blanchard et al. 2017, section 4: Krum).

    Args:
        distances: `[clients, clients]`: the squares of the distances of any two uploads.
        hostile: How many clients may be hostile; at least 2 of them + 3 there must be.

    Returns:
        `[clients]`: the sum over the ``clients - hostile - 2`` nearest others.
    """
    others = distances.clone()
    others.fill_diagonal_(torch.inf)
    return others.sort(1).values[:, : len(others) - hostile - 2].sum(1)


class Robust(GatherServer):
    """Aggregates single uploads robustly, and does with that what another server does with the mean.

    It comes first, as in ``class Mine(Robust, ClusterServer)``.

    Args:
        aggregation: How.
        hostile: The share of a round's participants that may be hostile.
        arguments: Of the other server.
    """

    def __init__(self, aggregation: Aggregation, hostile: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.aggregation, self.hostile = aggregation, hostile

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """End a round, as the other server does.

        Raises:
            NotFiniteError: naming the clients, if a value is not finite.
            RunError: where so few took part that the hostile ones cannot be told from the others.
        """
        uploads = self.take_uploads()
        for piece in uploads.pieces:
            for name, value in piece.values.items():
                if not value.isfinite().all():
                    raise NotFiniteError(f"uploaded {name}", list(unsound(piece)))
        number, hostile = len(users), math.ceil(self.hostile * len(users))
        needed = 2 * hostile + 1
        if self.aggregation == "median":
            needed = 1  # of any number there is one: it bears as many hostile ones as can be
        elif "krum" in self.aggregation:
            needed += 2
        if number < needed:
            raise RunError(
                f"round {round}: {number} uploads of which {hostile} may be hostile are too few for the "
                f"{self.aggregation}; it needs {needed} (method.aggregation, method.hostile)"
            )
        self.sum = Sum(self._aggregated(uploads, hostile), clients=1)
        return super().update(users, round)

    def _aggregated(self, uploads: Gathered, hostile: int) -> dict[str, Tensor]:
        """What stands for the mean of each value, `[...]`, float64."""
        if "krum" in self.aggregation:
            return self._nearest(uploads, hostile)
        cut = hostile
        if self.aggregation == "median":
            cut = (len(uploads.clients) - 1) // 2
        found = {}
        for name, field in self.expects.items():
            parts = [trimmed_mean(rows, cut) for _, rows in uploads.slices(name)]
            found[name] = torch.cat(parts).view(field.shape)
        return found

    def _nearest(self, uploads: Gathered, hostile: int) -> dict[str, Tensor]:
        """The upload nearest to its neighbours; of ``multi_krum`` the mean of all that are not left out as hostile."""
        number = len(uploads.clients)
        distances = torch.zeros(number, number, dtype=torch.float64)
        for name in self.expects:
            for _, some in uploads.slices(name):
                rows = some.flatten(1).double()
                squares = rows.square().sum(1)
                distances += (squares[:, None] + squares - 2 * (rows @ rows.T)).cpu()  # |x - y|^2
        chosen = 1
        if self.aggregation == "multi_krum":
            chosen = number - hostile
        best = krum_scores(distances, hostile).argsort(stable=True)[:chosen]
        found = {}
        for name, field in self.expects.items():
            parts = [rows[best.to(rows.device)].double().mean(0) for _, rows in uploads.slices(name)]
            found[name] = torch.cat(parts).view(field.shape)
        return found


class RobustTableServer(Robust, TableServer):
    """A `TableServer` of what `Robust` makes of the uploads."""


@dataclass(frozen=True, kw_only=True)
class RobustMethod(Recommender):
    """The settings of a method whose server can aggregate robustly.

    It comes last among the bases. A method declares ``aggregation`` again: the parser looks for the types of settings
    in the modules of a class and of the first base of each, and in no others.
    """

    aggregation: Aggregation = "mean"
    """``mean``, which needs sums alone. Or what looks at single uploads, so that a few hostile ones do not move it far:
    the ``median`` of each number, the ``trimmed_mean``, ``krum``, or ``multi_krum``."""
    hostile: float = 0.1
    """Share of a round's participants that may be hostile, for all but the mean and the median."""

    def problems(self) -> Iterator[str | None]:
        yield not_between("method.hostile", self.hostile, 0, 0.49)
        yield from super().problems()

    def aggregating(self, plain: type[MeanServer], robust: type[Robust], *arguments: Any) -> Server:
        """A ``plain`` server with its ``arguments``, or the ``robust`` one that is like it but for the aggregation."""
        if self.aggregation == "mean":
            return plain(*arguments)
        return robust(self.aggregation, self.hostile, *arguments)
