"""FedRAP: additive personalisation (Li, Long and Zhou, ICLR 2024, arXiv 2301.09109).

An item is the sum of two embeddings. The personal one never leaves its client. The common one goes up, is averaged,
and comes down. The loss pushes the two apart, and the common one towards zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from cgfedrec.client import Batch, Client, StepOutput, empty_parameter, shared_start
from cgfedrec.errors import no_count, not_between, not_positive
from cgfedrec.kit.early_stop import EarlyStop
from cgfedrec.kit.means import TableServer
from cgfedrec.kit.rows import bmm, by_rows, linear_loss, rows_of
from cgfedrec.method import MOST_DIM, Method
from cgfedrec.random import Stream, uniform
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Field

Ramp = Literal["paper", "constant"]


class FedRAPClient(Client):
    """Score sigmoid(w . (D_i + C_i) + b), with a private table D, a private head, and the server's table C.

    The loss is binary cross-entropy - apart * mean (D - C)^2 + sparse * mean |C|, the means over a batch's rows.
    A client stops early where its mean loss changes by less than the tolerance from one epoch to the next
    (`EarlyStop`). For the rest of the round neither gradients nor decay move it.

    Args:
        method: The settings.
        num_items: n.
        seed: The private one.
    """

    scores_after = "aggregation"

    def __init__(self, method: FedRAP, num_items: int, seed: int) -> None:
        super().__init__()
        self.method, self.num_items, self.seed = method, num_items, seed
        self.personal = empty_parameter(num_items, method.dim)
        self.common = empty_parameter(num_items, method.dim)
        self.head_weight = empty_parameter(method.dim)
        self.head_bias = empty_parameter()
        self.strength = 0.0
        self.stop = EarlyStop(0, method.tolerance, self.device)
        self._moving = self.stop.active
        self._groups: list[dict[str, Any]] = []  # the optimiser's, whose rates fall from round to round

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """All clients begin alike: tables N(0, init_scale^2), the head uniform as `torch.nn.Linear` draws it."""
        dim = self.method.dim
        tables = shared_start(self.shared_seed, self.method.init_scale, 2, self.num_items, dim)
        drawn = uniform(self.shared_seed, Stream.START, 0, range(dim + 1))
        head = torch.from_numpy((2 * drawn - 1) * dim**-0.5).float()
        return {
            "personal": tables[0].expand(len(users), -1, -1),
            "common": tables[1].expand(len(users), -1, -1),
            "head_weight": head[:-1].expand(len(users), -1),
            "head_bias": head[-1].expand(len(users)),
        }

    def configure_optimizers(self) -> list[Optimizer]:
        head = {"params": [self.head_weight, self.head_bias], "lr": self.method.lr}
        tables = {"params": [self.personal, self.common], "lr": self.method.table_lr}
        optimizer = by_rows(SGD([head, tables]))
        if self.method.weight_decay:
            optimizer.register_step_pre_hook(lambda *_: self._shrink())
        self._groups = optimizer.param_groups
        for group in self._groups:
            group["initial_lr"] = group["lr"]
        return [optimizer]

    @torch.no_grad()
    def _shrink(self) -> None:
        """Decay the clients that move, before the step.

        Together with a step on the rows of the batch, this is SGD with weight decay. SGD's own decay would need a
        gradient for every row, and would move clients that have stopped.
        """
        for group in self._groups:
            # [clients]: 1 for a client that has stopped
            factor = 1 - self._moving * (group["lr"] * self.method.weight_decay)
            for parameter in group["params"]:
                parameter.mul_(factor.view(-1, *[1] * (parameter.ndim - 1)))

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        # [clients, batch, dim] each, of the batch's items; the penalties are means over these rows alone
        personal, common = rows_of(self.personal, batch.items), rows_of(self.common, batch.items)
        apart = (batch.weights * (personal - common).square().mean(2)).sum(1)
        sparse = (batch.weights * common.abs().mean(2)).sum(1)
        loss = linear_loss(personal + common, self.head_weight, self.head_bias, batch)
        # BCE - lambda MSE(D, C) + mu mean |C|, with both weights ramped up
        loss = loss + self.strength * (self.method.sparse * sparse - self.method.apart * apart)
        self._moving = self.stop.active[: len(loss)]
        self.stop.observe(loss.detach(), batch)
        # A constant has no gradient: so a client that has stopped stands still, and its loss is still told.
        return StepOutput(torch.where(self._moving, loss, loss.detach()))

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """The server's table replaces the client's. The round sets the penalties' strength and the learning rates."""
        if broadcast is not None:
            common = broadcast.values["common"]
            assert isinstance(common, Tensor)
            # A table for each client: training moves them apart again.
            self.common.data = common.to(self.common.device).repeat(len(self.users), 1, 1)
        before = round - 1
        self.strength = 1.0
        if self.method.ramp == "paper":
            self.strength = math.tanh(before / 10)
        for group in self._groups:
            group["lr"] = group["initial_lr"] * self.method.lr_decay**before
        self.stop = EarlyStop(len(self.users), self.method.tolerance, self.common.device)

    def upload(self) -> Upload:
        return Upload(self.users, {"common": self.common.detach()})

    def score(self) -> Tensor:
        items = self.personal.detach() + self.common.detach()  # [clients, items, dim]
        # Without the bias: it is the same for all of a client's items, and changes no order.
        return bmm(self.head_weight.detach()[:, None], items.mT).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class FedRAP(Method):
    """FedRAP (arXiv 2301.09109): of two item tables, the common one goes up and down and the personal one stays.

    The paper scores with a user vector and no bias. The published code scores with a linear head, and so does this. One
    step of SGD moves head and tables together. The paper lets both weights grow with the round as tanh(round / 10). The
    published code computes that, and trains with the full weights throughout. ``ramp`` chooses; the first round counts
    as 0. The code's early stop compares running means over all epochs so far. Some versions of it also decay the
    learning rates within a round. Here each epoch is compared with the one before it, and rates fall only between
    rounds. Published batches hold 2,048 samples (``data.batch_size``). For ML-100K its authors give sparse 1e-3,
    weight_decay 1e-6, lr 1e-4 and table_lr 1e3.
    """

    dim: int = 32
    """Size of an item embedding."""
    lr: float = 0.5
    """Learning rate of the head."""
    table_lr: float = 200.0
    """Learning rate of both tables."""
    lr_decay: float = 0.97
    """Both learning rates are multiplied by this after every round."""
    weight_decay: float = 1e-4
    """Of head and tables."""
    apart: float = 0.1
    """Full weight of the distance between personal and common embeddings (lambda)."""
    sparse: float = 0.1
    """Full weight of the size of common embeddings (mu)."""
    ramp: Ramp = "paper"
    """``paper``: both weights grow as tanh(round / 10); ``constant``: they are full from the start."""
    local_epochs: int = 10
    """Passes over a participant's own samples in each round, at most."""
    tolerance: float = 1e-4
    """A client stops before where its loss changes by less than this from one epoch to the next; 0 for never."""
    init_scale: float = 1.0
    """Standard deviation of both initial tables, which all clients share."""

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.dim", self.dim, most=MOST_DIM)
        yield not_positive("method.lr", self.lr)
        yield not_positive("method.table_lr", self.table_lr)
        yield not_positive("method.lr_decay", self.lr_decay, 10)
        yield not_positive("method.init_scale", self.init_scale)
        yield not_between("method.weight_decay", self.weight_decay, 0)
        yield not_between("method.apart", self.apart, 0)
        yield not_between("method.sparse", self.sparse, 0)
        yield not_between("method.tolerance", self.tolerance, 0)
        if self.ramp not in ("paper", "constant"):
            yield f"method.ramp: no {self.ramp!r}; choose paper or constant"
        yield from super().problems()

    def client(self, num_items: int, seed: int) -> FedRAPClient:
        return FedRAPClient(self, num_items, seed)

    def server(self, num_items: int, seed: int) -> TableServer:
        return TableServer({"common": Field((num_items, self.dim))}, seed)
