"""FedRAP: additive personalisation (Li, Long and Zhou, ICLR 2024, arXiv 2301.09109).

An item is the sum of two embeddings: a personal one that never leaves its client, and a common one that goes up, is
averaged, and comes down. The loss pushes the two apart and the common one towards zeros.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from cgfedrec.client import Batch, Client, StepOutput, empty_parameter, shared_start
from cgfedrec.errors import check, no_count, not_between, not_positive
from cgfedrec.kit.early_stop import EarlyStop
from cgfedrec.kit.rows import bmm, by_rows, linear_loss, rows_of
from cgfedrec.method import MOST_DIM, MOST_EPOCHS, Method
from cgfedrec.random import Stream, uniform
from cgfedrec.server import TableServer
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Field

Ramp = Literal["paper", "constant"]


class FedRAPClient(Client):
    """Score sigmoid(w . (D_i + C_i) + b), with a private table D, a private head, and the server's table C.

    The loss is binary cross-entropy - apart * mean (D - C)^2 + sparse * mean |C|, the means over a batch's rows.
    A client whose mean loss over an epoch differs from that of the epoch before by less than the tolerance stands
    still for the rest of the round: neither gradients nor decay move it.

    Args:
        num_items: n.
        seed: Of the start.
        dim: d.
        lr: Learning rate of the head.
        table_lr: Learning rate of both tables.
        lr_decay: Factor of both, for each round that has been.
        weight_decay: Of all parameters, as in `torch.optim.SGD`.
        apart: Full weight of the distance between D and C.
        sparse: Full weight of the size of C.
        ramp: How the weights grow over rounds.
        tolerance: Of the early stop.
        init_scale: Standard deviation of both initial tables, which all clients share.
    """

    scores_after = "aggregation"

    def __init__(
        self,
        num_items: int,
        seed: int,
        dim: int,
        lr: float,
        table_lr: float,
        lr_decay: float,
        weight_decay: float,
        apart: float,
        sparse: float,
        ramp: Ramp,
        tolerance: float,
        init_scale: float,
    ) -> None:
        super().__init__()
        self.num_items, self.seed, self.dim, self.init_scale = num_items, seed, dim, init_scale
        self.lr, self.table_lr, self.lr_decay, self.weight_decay = lr, table_lr, lr_decay, weight_decay
        self.apart, self.sparse, self.ramp, self.tolerance = apart, sparse, ramp, tolerance
        self.personal = empty_parameter(num_items, dim)
        self.common = empty_parameter(num_items, dim)
        self.head_weight = empty_parameter(dim)
        self.head_bias = empty_parameter()
        self.strength = 0.0
        self.stop = EarlyStop(0, tolerance, self.device)
        self._moving = self.stop.active
        self._groups: list[dict[str, Any]] = []

    def start(self, users: Tensor) -> dict[str, Tensor]:
        """All clients begin alike: tables N(0, init_scale^2), the head uniform as `torch.nn.Linear` draws it."""
        tables = shared_start(self.shared_seed, self.init_scale, 2, self.num_items, self.dim)
        drawn = uniform(self.shared_seed, Stream.START, 0, range(self.dim + 1))
        head = torch.from_numpy((2 * drawn - 1) * self.dim**-0.5).float()
        return {
            "personal": tables[0].expand(len(users), -1, -1),
            "common": tables[1].expand(len(users), -1, -1),
            "head_weight": head[:-1].expand(len(users), -1),
            "head_bias": head[-1].expand(len(users)),
        }

    def configure_optimizers(self) -> list[Optimizer]:
        head = {"params": [self.head_weight, self.head_bias], "lr": self.lr}
        tables = {"params": [self.personal, self.common], "lr": self.table_lr}
        optimizer = by_rows(SGD([head, tables]))
        if self.weight_decay:
            optimizer.register_step_pre_hook(lambda *_: self._shrink())
        self._groups = optimizer.param_groups
        for group in self._groups:
            group["initial_lr"] = group["lr"]
        return [optimizer]

    @torch.no_grad()
    def _shrink(self) -> None:
        """Decay what moves, before a step on the rows of a batch alone: together that of SGD with weight decay.

        SGD's own decay would need a gradient for every row, and would move clients that have stopped.
        """
        for group in self._groups:
            factor = 1 - self._moving * (group["lr"] * self.weight_decay)
            for parameter in group["params"]:
                parameter.mul_(factor.view(-1, *[1] * (parameter.ndim - 1)))

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        personal, common = rows_of(self.personal, batch.items), rows_of(self.common, batch.items)
        apart = (batch.weights * (personal - common).square().mean(2)).sum(1)
        sparse = (batch.weights * common.abs().mean(2)).sum(1)
        loss = linear_loss(personal + common, self.head_weight, self.head_bias, batch)
        loss = loss + self.strength * (self.sparse * sparse - self.apart * apart)
        self._moving = self.stop.active[: len(loss)]
        self.stop.observe(loss.detach(), batch)
        return StepOutput(torch.where(self._moving, loss, loss.detach()))

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """The server's table replaces the client's; how many rounds have been says how to weigh and to learn."""
        if broadcast is not None:
            common = broadcast.values["common"]
            assert isinstance(common, Tensor)
            self.common.data = common.to(self.common.device).repeat(len(self.users), 1, 1)
        before = round - 1
        self.strength = math.tanh(before / 10) if self.ramp == "paper" else 1.0
        for group in self._groups:
            group["lr"] = group["initial_lr"] * self.lr_decay**before
        self.stop = EarlyStop(len(self.users), self.tolerance, self.common.device)

    def upload(self) -> Upload:
        return Upload(self.users, {"common": self.common.detach()})

    def score(self) -> Tensor:
        items = self.personal.detach() + self.common.detach()
        return bmm(self.head_weight.detach()[:, None], items.mT).squeeze(1)


class FedRAP(Method):
    """FedRAP (arXiv 2301.09109): of two item tables, the common one goes up and down and the personal one stays.

    The paper scores with a user vector and no bias, the published code with a linear head; here the head. One step of
    SGD moves head and tables together. The paper lets both weights grow with the round as tanh(round / 10); the
    published code computes that and trains with the full weights throughout (``ramp`` chooses; the first round counts
    as 0). The code's early stop compares running means over all epochs so far, and in some versions decays the
    learning rates within a round too; here epochs are compared with each other, and rates fall between rounds alone.
    Published batches hold 2,048 samples (``data.batch_size``). For ML-100K its authors give sparse 1e-3, weight_decay
    1e-6, lr 1e-4 and table_lr 1e3.

    Args:
        dim: Size of an item embedding.
        lr: Learning rate of the head.
        table_lr: Learning rate of both tables.
        lr_decay: Both learning rates are multiplied by this after every round.
        weight_decay: Of head and tables.
        apart: Full weight of the distance between personal and common embeddings (lambda).
        sparse: Full weight of the size of common embeddings (mu).
        ramp: ``paper``: both weights grow as tanh(round / 10); ``constant``: they are full from the start.
        local_epochs: Passes over a participant's own samples in each round, at most.
        tolerance: A client stops before where its loss changes by less than this from one epoch to the next; 0 for
            never.
        init_scale: Standard deviation of both initial tables, which all clients share.
    """

    def __init__(
        self,
        dim: int = 32,
        lr: float = 0.5,
        table_lr: float = 200.0,
        lr_decay: float = 0.97,
        weight_decay: float = 1e-4,
        apart: float = 0.1,
        sparse: float = 0.1,
        ramp: Ramp = "paper",
        local_epochs: int = 10,
        tolerance: float = 1e-4,
        init_scale: float = 1.0,
    ) -> None:
        check(
            no_count("method.dim", dim, most=MOST_DIM),
            not_positive("method.lr", lr),
            not_positive("method.table_lr", table_lr),
            not_positive("method.lr_decay", lr_decay, 10),
            not_positive("method.init_scale", init_scale),
            no_count("method.local_epochs", local_epochs, most=MOST_EPOCHS),
            not_between("method.weight_decay", weight_decay, 0),
            not_between("method.apart", apart, 0),
            not_between("method.sparse", sparse, 0),
            not_between("method.tolerance", tolerance, 0),
            f"method.ramp: no {ramp!r}; choose paper or constant" if ramp not in ("paper", "constant") else None,
        )
        super().__init__(local_epochs)
        self.dim = dim
        self.lr = lr
        self.table_lr = table_lr
        self.lr_decay = lr_decay
        self.weight_decay = weight_decay
        self.apart = apart
        self.sparse = sparse
        self.ramp: Ramp = ramp
        self.tolerance = tolerance
        self.init_scale = init_scale

    def client(self, num_items: int, seed: int) -> FedRAPClient:
        return FedRAPClient(
            num_items,
            seed,
            dim=self.dim,
            lr=self.lr,
            table_lr=self.table_lr,
            lr_decay=self.lr_decay,
            weight_decay=self.weight_decay,
            apart=self.apart,
            sparse=self.sparse,
            ramp=self.ramp,
            tolerance=self.tolerance,
            init_scale=self.init_scale,
        )

    def server(self, num_items: int, seed: int) -> TableServer:
        return TableServer({"common": Field((num_items, self.dim))}, seed)
