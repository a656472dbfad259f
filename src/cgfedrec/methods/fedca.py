"""FedCA: composite aggregation (Zhang et al., 2024, arXiv 2406.03933).

Item tables stay with their clients. In every round a random tenth of the clients send theirs, and the server makes a
mix of these tables for each of them. Three things give a table weight in a client's mix: much data, a change like that
of the client's own table, and trained rows that span a space like the client's own. When that client next takes part,
it starts from 0.9 of its own table and 0.1 of its mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from cgfedrec.client import Batch, StepOutput, empty_parameter, shared_start
from cgfedrec.errors import no_count, not_between, not_positive
from cgfedrec.kit.early_stop import EarlyStop
from cgfedrec.kit.factors import FactorClient, FactorMethod
from cgfedrec.kit.gather import GatherServer, Mailbox
from cgfedrec.kit.rows import bmm, by_rows
from cgfedrec.random import Stream, uniform
from cgfedrec.wire.messages import Broadcast, NotFiniteError, Upload
from cgfedrec.wire.values import Field


class FedCAClient(FactorClient):
    """A `FactorClient` that keeps its own table. A mix that waits for it draws the table nearer to those of others.

    Whose turn it is to send follows from the seed and the round. A client can tell without being asked. It stops early
    where its mean loss changes by less than the tolerance from one epoch to the next (`EarlyStop`). It then stands
    still for the rest of the round.

    Args:
        method: The settings.
        num_items: n.
        seed: The private one. Whose turn it is follows from the shared one.
    """

    method: FedCA

    def __init__(self, method: FedCA, num_items: int, seed: int) -> None:
        super().__init__(method, num_items, seed)
        self.seen = empty_parameter(num_items)
        self.round = 1
        self.stop = EarlyStop(0, method.tolerance, self.device)
        self._moving = self.stop.active
        self._kept: tuple[Tensor, list[Tensor]] | None = None

    def start(self, users: Tensor) -> dict[str, Tensor]:
        return super().start(users) | {"seen": torch.zeros(1, 1).expand(len(users), self.num_items)}

    def configure_optimizers(self) -> list[Optimizer]:
        optimizer = by_rows(self.method.optimizer([self.user, self.table]))
        optimizer.register_step_pre_hook(lambda *_: self._hold())
        optimizer.register_step_post_hook(lambda *_: self._put_back())
        return [optimizer]

    def _hold(self) -> None:
        """Before a step, remember those who stand still: even without a gradient, momentum would move them."""
        still = (~self._moving).nonzero().squeeze(1)
        if len(still):
            self._kept = (still, [self.user.data[still], self.table.data[still]])

    def _put_back(self) -> None:
        if self._kept is not None:
            still, rows = self._kept
            self.user.data[still], self.table.data[still] = rows
        self._kept = None

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        loss = super().training_step(batch, step).loss
        # Padding has weight 0, and is no sample.
        self.seen.data.scatter_add_(1, batch.items, batch.weights.gt(0).to(self.seen.dtype))
        self._moving = self.stop.active[: len(loss)]
        self.stop.observe(loss.detach(), batch)
        return StepOutput(loss)

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """If there is a mix for a client, its table becomes ``own`` of itself and 1 - ``own`` of the mix."""
        self.round = round
        self.seen.data.zero_()
        self.stop = EarlyStop(len(self.users), self.method.tolerance, self.table.device)
        if broadcast is not None and broadcast.own is not None:
            places, mixes = broadcast.own.of(self.users, "table")
            self.table.data[places] = mixes.to(self.table.device).lerp(self.table.data[places], self.method.own)

    def upload(self) -> Upload:
        """The table, the leading directions of its trained rows, and the number of samples; zeros out of turn."""
        drawn = uniform(self.shared_seed, Stream.MIXES, self.round, self.users.numpy())
        turn = torch.from_numpy(drawn < self.method.share)
        # The directions are found by `eigh`, which fails on what is not finite and does not say whose it is.
        if not self.table.isfinite().all():
            bad = ~self.table.detach().flatten(1).isfinite().all(1).cpu()
            raise NotFiniteError("uploaded table", self.users[bad].tolist())
        turn = turn.to(self.table.device)[:, None, None]
        values = {
            "table": self.table.detach(),
            "directions": leading_directions(self.table.detach(), self.seen.detach(), self.method.directions),
            "samples": self.seen.detach().sum(1)[:, None, None],
        }
        sent = {name: torch.where(turn, value, 0) for name, value in values.items()}
        return Upload(self.users, sent, frozenset(sent))


def leading_directions(table: Tensor, seen: Tensor, number: int) -> Tensor:
    """The first principal directions of each client's trained rows, each row as often as it was seen.

    Args:
        table: `[clients, items, dim]`.
        seen: `[clients, items]`: how often each row was in a batch.
        number: How many directions.

    Returns:
        `[clients, number, dim]`, orthonormal, the leading one first.
    """
    share = (seen / seen.sum(1, keepdim=True).clamp_min(1))[:, None]  # [clients, 1, items]
    centred = table - bmm(share, table)  # [clients, items, dim]: without the mean of the rows that were seen
    covariance = torch.bmm(centred.mT * share, centred)  # [clients, dim, dim]
    rising: Tensor = torch.linalg.eigh(covariance).eigenvectors.mT  # [clients, dim, dim]: a direction each row
    return rising.flip(1)[:, :number].contiguous()


class MixServer(GatherServer):
    """Mixes the tables of those whose turn it was, for each of them. A mix waits until its client takes part again.

    Args:
        method: The settings.
        start: The shared initial table, `[items, dim]`.
        seed: The shared one, which goes down as this seed.
    """

    start: Tensor

    def __init__(self, method: FedCA, start: Tensor, seed: int) -> None:
        # Sparse: a client whose turn it is not has only zeros, and so sends three headers and nothing else.
        super().__init__(
            {
                "table": Field(tuple(start.shape), sparse=True),
                "directions": Field((method.directions, start.shape[1]), sparse=True),
                "samples": Field((1, 1), sparse=True),
            }
        )
        self.method, self.seed = method, seed
        self.register_buffer("start", start, persistent=False)
        self.mixes = Mailbox("table", *start.shape)

    def welcome(self) -> Broadcast:
        return Broadcast({"seed": torch.tensor(self.seed)})

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        mixes = self.mixes.of(users)
        if mixes is None:
            return None
        return Broadcast(own=mixes)

    def reduce(self, upload: Upload) -> Upload:
        """The messages of those whose turn it was. All others are zero, and are dropped."""
        sent = upload.values["samples"].flatten() > 0
        return Upload(upload.clients[sent.cpu()], {name: value[sent] for name, value in upload.values.items()})

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """Mix. Report how many tables were mixed, and how much a client's own weighs in its mix on average."""
        sent = self.take_uploads()
        clients = sent.clients
        table, directions, samples = (sent.of(name) for name in ("table", "directions", "samples"))
        weights = mix_weights(table - self.start, directions, samples.flatten(), self.method.alpha, self.method.beta)
        self.mixes.discard(users)  # who took part has received what waited
        self.mixes.put(clients, (weights.to(table.dtype) @ table.flatten(1)).view_as(table))
        report = {"mixes/clients": float(len(clients)), "mixes/own": 0.0}
        if len(clients):  # in a round it may be nobody's turn
            report["mixes/own"] = float(weights.diagonal().mean())
        return report


def mix_weights(changes: Tensor, directions: Tensor, samples: Tensor, alpha: float, beta: float) -> Tensor:
    """How much each table weighs in each client's mix: the paper's quadratic program, row by row.

    It minimises |w|^2 - 2 <p, w> - 2 alpha <comp, w> + 2 beta <sim, w> over w on the simplex, where p are the shares of
    the samples. But for a constant, that is the squared distance of w from p + alpha comp - beta sim. So w is the point
    of the simplex nearest to that.

    Args:
        changes: `[clients, items, dim]`: how far each table is from the start of all.
        directions: `[clients, directions, dim]`, orthonormal.
        samples: `[clients]`.
        alpha: Weight of complementarity.
        beta: Weight of similarity.

    Returns:
        `[clients, clients]`, float64, rows that sum to 1.
    """
    wished = (samples.double() / samples.sum()).expand(len(samples), -1)
    wished = wished + alpha * complementarity(directions.double()) - beta * similarity(changes.double())
    return project_to_simplex(wished)


def complementarity(directions: Tensor) -> Tensor:
    """The cosine of the mean principal angle between any two clients' directions, `[clients, clients]`."""
    products = torch.einsum("ukd,vld->uvkl", directions, directions)  # [clients, clients, directions, directions]
    # The singular values for two orthonormal bases are the cosines of the principal angles between what they span.
    cosines: Tensor = torch.linalg.svdvals(products)  # [clients, clients, directions]
    return cosines.clamp(max=1).acos().mean(2).cos()  # rounding may take a cosine above 1, where acos is nan


def similarity(changes: Tensor) -> Tensor:
    """-1 / (1 + distance) of any two clients' changes along the first principal component of each.

    A principal component may point either way. Of the two distances that this gives, the smaller one is taken.

    Returns:
        `[clients, clients]`, -1 for those who changed alike.
    """
    centred = changes - changes.mean(1, keepdim=True)  # [clients, items, dim]
    first: Tensor = torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, :, -1:]  # [clients, dim, 1]
    scores = (centred @ first).squeeze(2)  # [clients, items]: each row along its client's first component
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b; where a.b is negative, the other sign of b is nearer.
    products = scores @ scores.T
    squares = products.diagonal()
    distance: Tensor = (squares[:, None] + squares - 2 * products.abs()).clamp_min(0).sqrt()
    return -1 / (1 + distance)


def project_to_simplex(points: Tensor) -> Tensor:
    """The nearest point of the probability simplex to each row (Held, Wolfe and Crowder 1974).

    Args:
        points: `[rows, size]`.

    Returns:
        `[rows, size]`

    >>> project_to_simplex(torch.tensor([[0.5, 0.25, -1.0], [2.0, 0.0, 0.0]]))
    tensor([[0.6250, 0.3750, 0.0000],
            [1.0000, 0.0000, 0.0000]])
    """
    # The solution is the point less one number, cut off at zero. If the k largest values stay positive, that number is
    # (their sum - 1) / k; and k is the last place at which the value is still above it.
    falling = points.sort(1, descending=True).values
    excess = (falling.cumsum(1) - 1) / torch.arange(1, points.shape[1] + 1, dtype=points.dtype, device=points.device)
    last = (falling > excess).sum(1, keepdim=True) - 1
    return (points - excess.gather(1, last)).clamp_min(0)


@dataclass(frozen=True, kw_only=True)
class FedCA(FactorMethod):
    """FedCA (arXiv 2406.03933), with matrix factorisation for its backbone.

    Decided here: a tenth is drawn by lot, each client with that probability. Only they send their tables, and a mix is
    of these tables alone. Clients find the directions of their trained rows themselves, so that the server need not
    know which rows those are. The early stop is that of FedRAP.

    The published code departs from this in three ways. It subtracts the principal component of the start from that of
    each table, with signs as they fall, and so the start cancels. It counts a similarity below -0.9 as -1. It pairs
    directions greedily instead of taking principal angles.
    """

    dim: int = 16
    local_epochs: int = 10
    """Passes over a participant's own samples in each round, at most."""
    init_scale: float = 1.0
    share: float = 0.1
    """How likely a participant exchanges its table in a round."""
    own: float = 0.9
    """Weight of a client's own table when its mix arrives; the rest is the mix's."""
    alpha: float = 0.3
    """Weight of complementarity in a mix."""
    beta: float = 0.3
    """Weight of similarity in a mix."""
    directions: int = 4
    """How many leading directions of clients' trained rows are compared, at most dim."""
    tolerance: float = 1e-4
    """A client stops early where its loss changes by less than this from one epoch to the next; 0 for never."""

    client_class: ClassVar[type[FactorClient]] = FedCAClient

    def problems(self) -> Iterator[str | None]:
        yield not_positive("method.share", self.share, 1)
        yield not_between("method.own", self.own, 0, 1)
        yield not_between("method.alpha", self.alpha, 0, 1e6)
        yield not_between("method.beta", self.beta, 0, 1e6)
        yield not_between("method.tolerance", self.tolerance, 0)
        yield no_count("method.directions", self.directions)
        if self.directions > self.dim > 0:
            yield f"method.directions: {self.directions} is more than method.dim, {self.dim}"
        yield from super().problems()

    def server(self, num_items: int, seed: int) -> MixServer:
        start = shared_start(seed, self.init_scale, num_items, self.dim)
        return MixServer(self, start, seed)
