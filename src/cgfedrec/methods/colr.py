"""CoLR: correlated low-rank structure (Nguyen et al., WWW 2024, arXiv 2401.03748).

All clients hold the same item table W, and nobody trains it. In a round each client trains its user vector and a
factor A, which starts from zero. The change of W is of low rank, A B. B is random and new in each round, and everybody
knows it from a seed. Only A goes up, and of A only the rows that training touched, since all others are still zero. The
mean A comes down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from cgfedrec.client import Batch, StepOutput, empty_parameter, shared_start
from cgfedrec.errors import no_count
from cgfedrec.kit.factors import FactorClient, FactorMethod
from cgfedrec.kit.means import MeanServer
from cgfedrec.kit.optimisers import LowRankSGD, OptimizerCallable
from cgfedrec.kit.rows import baddbmm, bmm, by_rows, linear_loss, rows_of
from cgfedrec.method import MOST_DIM
from cgfedrec.random import Stream, normal
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field, SparseRows


def random_basis(seed: int, round: int, rank: int, dim: int) -> Tensor:
    """B of a round, `[rank, dim]`: orthogonal rows of length sqrt(dim / rank).

    With this length B^T B is the identity on average over rounds: a change keeps its size, whatever the rank.

    >>> basis = random_basis(seed=7, round=1, rank=2, dim=8)
    >>> (basis @ basis.T).round(decimals=4).abs()  # dim / rank on the diagonal
    tensor([[4., 0.],
            [0., 4.]])
    """
    # [dim, rank]: its columns span a subspace of which every position is equally likely
    drawn = torch.from_numpy(normal(seed, Stream.BASIS, round, np.arange(dim)[:, None], np.arange(rank)))
    basis: Tensor = torch.linalg.qr(drawn).Q.T * (dim / rank) ** 0.5
    return basis.float().contiguous()


def change(factor: Tensor, basis: Tensor) -> Tensor:
    """A B, `[items, dim]`. Computed in float64, so that clients and server who add it to W all have the same W."""
    return (factor.double() @ basis.double()).float()


class CoLRClient(FactorClient):
    """A `FactorClient` that trains its user vector p and A: item i scores sigmoid(p . (w_i + a_i B)).

    Args:
        method: The settings.
        num_items: n.
        seed: The private one. Every round's B follows from the shared one.
    """

    method: CoLR

    def __init__(self, method: CoLR, num_items: int, seed: int) -> None:
        super().__init__(method, num_items, seed)
        self.factor = empty_parameter(num_items, method.rank)
        self.basis = empty_parameter(method.rank, method.dim)

    def start(self, users: Tensor) -> dict[str, Tensor]:
        return super().start(users) | {
            "factor": torch.zeros(1, 1, 1).expand(len(users), self.num_items, self.method.rank),
            "basis": self._basis_of(1).cpu().expand(len(users), -1, -1),
        }

    def _basis_of(self, round: int) -> Tensor:
        return random_basis(self.shared_seed, round, self.method.rank, self.dim).to(self.table.device)

    def configure_optimizers(self) -> list[Optimizer]:
        return [by_rows(self.method.optimizer([self.user, self.factor]))]

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        frozen = rows_of(self.table.detach(), batch.items)  # [clients, batch, dim]
        # w_i + a_i B, [clients, batch, dim]
        rows = baddbmm(frozen, rows_of(self.factor, batch.items), self.basis.detach())
        return StepOutput(linear_loss(rows, self.user, None, batch))

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """Bring W up to date, and begin the next A.

        A client that missed the last round first takes over W as it was before that round's change.
        """
        if broadcast is not None:
            factor = broadcast.values["factor"]
            assert isinstance(factor, SparseRows)
            if broadcast.own is not None:
                missed = torch.isin(self.users, broadcast.own.clients).to(self.table.device)
                self.table.data[missed] = broadcast.own.values["table"].to(self.table.device)
            # W += A B with the B of the round in which A was trained
            self.table.data += change(factor.values.to(self.table.device), self._basis_of(round - 1))
        self.factor.data.zero_()
        self.basis.data.copy_(self._basis_of(round))

    def alike(self, broadcast: Broadcast | None) -> Mapping[str, Tensor]:
        return {"table": self.table.data[0]}  # W, which all have by now

    def upload(self) -> Upload:
        return Upload(self.users, {"factor": self.factor.detach()}, frozenset({"factor"}))

    def score(self) -> Tensor:
        user = self.user.detach()[:, :, None]  # [clients, dim, 1]
        # (W + A B) p = W p + A (B p): A B itself, [clients, items, dim], is never made.
        learned = bmm(self.factor.detach(), bmm(self.basis.detach(), user))
        return baddbmm(learned, self.table.detach(), user).squeeze(2)


class CoLRServer(MeanServer):
    """Averages each row of A over the clients that touched it, and sends that mean down.

    That is enough for clients that took part in the last round. The others also receive W, as it was in that round.

    Args:
        method: The settings.
        start: The initial W, `[items, dim]`.
        seed: The shared one.
    """

    sees_single_uploads = True  # which of each client's rows are not zero
    grows = ("up_to_date",)
    table: Tensor
    up_to_date: Tensor
    trained: Tensor

    def __init__(self, method: CoLR, start: Tensor, seed: int) -> None:
        super().__init__({"factor": Field((len(start), method.rank), sparse=True)}, seed)
        self.register_buffer("table", start.clone())
        self.register_buffer("up_to_date", torch.empty(0, dtype=torch.int64))
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))  # the round of the mean A; 0 before any

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        if not self.trained:
            return None
        factor, table = self.mean("factor"), self.table
        missed = users[~torch.isin(users, self.up_to_date.cpu())]
        if self.trained != round - 1:
            # Nobody came through in the rounds between, whose B clients would take for that of A. So all get W with A.
            factor, table, missed = torch.zeros_like(factor), self._next(), users
        own = None
        if len(missed):
            own = Upload(missed, {"table": table.expand(len(missed), -1, -1)})
        return Broadcast({"factor": SparseRows(factor)}, own)

    def _next(self) -> Tensor:
        """W with the change by the mean A, `[items, dim]`."""
        factor = self.mean("factor")
        basis = random_basis(self.seed, int(self.trained), factor.shape[1], self.table.shape[1])
        return self.table + change(factor, basis.to(factor.device))

    def reduce(self, upload: Upload) -> Sum:
        """The sums of the rows of A, and how many clients touched each."""
        touched = SparseRows(upload.values["factor"]).touched  # [clients, items]
        return Upload(upload.clients, {**upload.values, "touched": touched.float()}).sum()

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        # W stays one round behind the mean A. So a client that missed the round can take it over, and then add A as all
        # the others do.
        if self.trained:
            self.table.copy_(self._next())
        self.trained.fill_(round)
        sums = self.take_sum().values
        touched = sums["touched"]  # [items]: by how many clients; a row that nobody touched stays zero
        self.mean("factor").copy_(sums["factor"] / touched.clamp_min(1)[:, None])
        self.up_to_date = users.to(self.table.device)
        return {"items/touched": float((touched > 0).double().mean())}


@dataclass(frozen=True, kw_only=True)
class CoLR(FactorMethod):
    """CoLR (arXiv 2401.03748): the touched rows of a low-rank change go up, the mean change comes down.

    Touched rows say which items were among a client's samples: its interactions and the negatives drawn for them.
    Weight decay is the optimiser's. It acts on A and the user vector, and not on the frozen table. Decided here: a
    client receives what it lacks. That is A of the last round, in sparse rows, and if it missed that round, also the
    table.
    """

    dim: int = 64
    rank: int = 4
    """r, at most dim: of the change of the table in one round."""
    optimizer: OptimizerCallable = LowRankSGD
    """Optimiser of the user vector and of A."""
    local_epochs: int = 2
    init_scale: float | None = None  # type: ignore[assignment]
    """Standard deviation of the initial embeddings; 1 / sqrt(dim) where ``null``."""

    client_class: ClassVar[type[FactorClient]] = CoLRClient

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.rank", self.rank)
        if self.rank > self.dim > 0:
            yield f"method.rank: {self.rank} is more than method.dim, {self.dim}"
        yield from super().problems()

    def scale(self) -> float:
        if self.init_scale is None:
            return float(min(max(self.dim, 1), MOST_DIM) ** -0.5)  # a dim out of bounds is refused under its own name
        return self.init_scale

    def server(self, num_items: int, seed: int) -> CoLRServer:
        start = shared_start(seed, self.scale(), num_items, self.dim)
        return CoLRServer(self, start, seed)
