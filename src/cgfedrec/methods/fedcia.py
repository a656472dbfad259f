"""FedCIA: collaborative information aggregation (Han et al., 2025, arXiv 2504.14208).

The item table V stays with its client. What goes up is how alike the client's items are: V V^T, with Laplace noise.
The mean of these matrices comes down, and each client then fits its own table to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cgfedrec.client import empty_parameter
from cgfedrec.errors import no_count, not_between, not_positive
from cgfedrec.kit.factors import FactorBase, FactorClient
from cgfedrec.kit.means import TableServer
from cgfedrec.kit.rows import by_rows
from cgfedrec.memory import aligned
from cgfedrec.random import Stream, laplace
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Field

Distance = Literal["norm", "squared"]


class KeptAdam(Optimizer):
    """Adam (Kingma and Ba 2015) whose moments and counts of steps are kept from round to round.

    They are private state of their clients. The state of any other optimiser is cleared in every round.

    Args:
        moments: For each parameter, the running mean of its gradients and that of their squares.
        steps: `[clients]`, int64: how many steps each client has taken.
        lr: Learning rate.
    """

    MEAN, SQUARE, EPSILON = 0.9, 0.999, 1e-8

    def __init__(
        self, moments: dict[nn.Parameter, tuple[nn.Parameter, nn.Parameter]], steps: nn.Parameter, lr: float
    ) -> None:
        super().__init__(list(moments), {"lr": lr})
        self.moments, self.steps = moments, steps

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps.add_(1)
        (group,) = self.param_groups
        for parameter, (mean, square) in self.moments.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            # [clients, 1, ...]: a client that missed rounds is corrected by its own count
            steps = self.steps.double().view(-1, *[1] * (parameter.ndim - 1))
            mean.lerp_(gradient, 1 - self.MEAN)
            # The paper's algorithm 1: m and v, both divided by what starting from zero has taken from them.
            square.mul_(self.SQUARE).addcmul_(gradient, gradient, value=1 - self.SQUARE)
            size = (square / (1 - self.SQUARE**steps).to(square)).sqrt_().add_(self.EPSILON)
            parameter.sub_((mean / (1 - self.MEAN**steps).to(mean)).div_(size), alpha=group["lr"])


class FedCIAClient(FactorClient):
    """A `FactorClient` that sends V V^T, and fits its table V to the mean that comes down.

    Args:
        method: The settings.
        num_items: n.
        seed: The private one, of the noise too.
    """

    method: FedCIA

    def __init__(self, method: FedCIA, num_items: int, seed: int) -> None:
        super().__init__(method, num_items, seed)
        dim = method.dim
        # Parameters only so that they are kept with the client's state. No gradient reaches them.
        self.user_mean, self.user_square = empty_parameter(dim), empty_parameter(dim)
        self.table_mean, self.table_square = empty_parameter(num_items, dim), empty_parameter(num_items, dim)
        self.steps = nn.Parameter(torch.empty(0, dtype=torch.int64), requires_grad=False)

    def configure_optimizers(self) -> list[Optimizer]:
        moments = {
            self.user: (self.user_mean, self.user_square),
            self.table: (self.table_mean, self.table_square),
        }
        return [by_rows(KeptAdam(moments, self.steps, self.method.lr))]

    def start(self, users: Tensor) -> dict[str, Tensor]:
        zero = torch.zeros(1, 1, 1)
        user, table = zero[0].expand(len(users), self.dim), zero.expand(len(users), self.num_items, self.dim)
        moments = {"user_mean": user, "user_square": user, "table_mean": table, "table_square": table}
        return super().start(users) | moments | {"steps": torch.zeros_like(users)}

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        if broadcast is not None:
            target = aligned(broadcast.values["similarity"].to(self.table.device))  # type: ignore[union-attr]
            ours = self.method
            self.table.data = fit(self.table.data, target, ours.fit_steps, ours.fit_lr, ours.distance)

    def upload(self) -> Upload:
        table = self.table.detach()
        similarity = torch.bmm(table, table.mT)  # [clients, items, items]
        if self.method.noise:
            # One client at a time: the float64 numbers of a whole cohort would not fit memory.
            # A client's steps are the counter: they grow from round to round, so no noise is sent twice.
            for row, user, steps in zip(similarity, self.users.tolist(), self.steps.tolist(), strict=True):
                drawn = laplace(self.seed, Stream.NOISE, user, steps, np.arange(self.num_items**2))
                row += torch.from_numpy(self.method.noise * drawn).view_as(row).to(row)
        return Upload(self.users, {"similarity": similarity})


def fit(table: Tensor, target: Tensor, steps: int, lr: float, distance: Distance) -> Tensor:
    """Gradient descent on the distance of each client's V V^T from ``target``.

    The gradient of the squared distance is 4 (V V^T - S) V. It needs only V^T V and S V, and so does the distance
    itself. No matrix of items x items is made anew.

    Args:
        table: V, `[clients, items, dim]`; not changed.
        target: S, symmetric, `[items, items]`.
        steps: How many.
        lr: Learning rate.
        distance: The Frobenius ``norm`` of the difference, or that ``squared``.

    Returns:
        `[clients, items, dim]`
    """
    each = target.expand(len(table), -1, -1)  # [clients, items, items], all of them the same memory
    whole = target.square().sum()
    for _ in range(steps):
        square = torch.bmm(table.mT, table)  # V^T V, [clients, dim, dim]
        wished = torch.bmm(each, table)  # S V, [clients, items, dim]
        slope = torch.baddbmm(wished, table, square, beta=-4, alpha=4)  # 4 V (V^T V) - 4 S V
        if distance == "norm":
            # |V V^T - S|^2 = |V^T V|^2 - 2 <V, S V> + |S|^2, [clients]. Near zero it is all rounding, so it is not let
            # fall below what rounding of |S|^2 makes.
            left = square.square().sum((1, 2)) - 2 * (table * wished).sum((1, 2)) + whole
            slope /= 2 * left.clamp_min(torch.finfo(left.dtype).eps * whole).sqrt()[:, None, None]
        table = table.sub(slope, alpha=lr)
    return table


class SimilarityServer(TableServer):
    """A `TableServer` of similarities. Noise makes their mean asymmetric; its symmetric part is what goes down."""

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        report = super().update(users, round)
        mean = self.mean("similarity")  # [items, items]
        mean.copy_((mean + mean.T) / 2)
        return report


@dataclass(frozen=True, kw_only=True)
class FedCIA(FactorBase):
    """FedCIA (arXiv 2504.14208), with matrix factorisation for its backbone: similarities of items go up and down.

    This is a method for small catalogues: a client sends and receives items x items numbers a round, and a step of the
    fit costs items^2 x dim. Published batches hold 4,096 samples (``data.batch_size``).

    The paper squares the distance to the server's matrix, and takes SGD at 0.1. That diverges as soon as 8 x 0.1 x the
    square of V's largest singular value exceeds 2. With the published start it does, from some hundred items on. The
    published code takes its steps on the norm itself, and these do not diverge. So ``norm`` is the default here. In
    local training the code's loss multiplies embeddings element by element; here it is that of their inner product.
    Clients share one start, and score after training. They fit their tables at the beginning of the next round.
    """

    dim: int = 256
    lr: float = 0.01
    """Learning rate of Adam, whose state is kept from round to round."""
    noise: float = 0.001
    """Scale of the Laplace noise on every number that is sent."""
    fit_steps: int = 100
    """Gradient steps with which a client fits its table to the server's matrix."""
    fit_lr: float = 0.1
    """Their learning rate."""
    distance: Distance = "norm"
    """What they make smaller: the Frobenius ``norm`` of the difference, or that ``squared``."""

    client_class: ClassVar[type[FactorClient]] = FedCIAClient

    def problems(self) -> Iterator[str | None]:
        yield not_positive("method.lr", self.lr)
        yield not_between("method.noise", self.noise, 0)
        yield no_count("method.fit_steps", self.fit_steps)
        yield not_positive("method.fit_lr", self.fit_lr)
        if self.distance not in ("norm", "squared"):
            yield f"method.distance: no {self.distance!r}; choose norm or squared"
        yield from super().problems()

    def server(self, num_items: int, seed: int) -> SimilarityServer:
        return SimilarityServer({"similarity": Field((num_items, num_items))}, seed, {"similarity": 2})
