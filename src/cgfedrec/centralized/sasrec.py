"""SASRec: what comes next, by attention to what came before (Kang and McAuley, ICDM 2018, arXiv 1808.09781)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from cgfedrec.centralized.vectors import SCORED_AT_ONCE, Vectors
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import RunError, check, no_count, not_between
from cgfedrec.random import Stream, bits, integers, normal

INIT_SCALE = 0.02
"""Standard deviation of every initial weight; RecBole's."""
WHOLE = 20_000
"""Items up to which a target is compared with all others."""


@dataclass(kw_only=True, eq=False)
class SASRec(Vectors):
    """SASRec (arXiv 1808.09781): a user's vector is what self-attention makes of the newest items of their history.

    Blocks as in section III-B, with layer norm before and dropout after each part, embeddings of items and of places
    that are learned, and scores against the same embeddings of items (eq. 7). Each item of a history is a target for
    what came before it. Of what the paper leaves open, dropout and batches are as its authors have them for MovieLens;
    vectors of 64, two heads and initial values are those of RecBole.

    The loss is a softmax over the whole catalogue, as in RecBole, and not the binary cross-entropy against one negative
    of the paper, which does much worse (Klenitskiy and Vasilev 2023, arXiv 2309.07602). Where the catalogue has more
    than 20,000 items, it is one over the target and items that are drawn for each batch: all would take too long.
    """

    length: int = 50
    """Items of a history that are read, the newest ones."""
    blocks: int = 2
    """Layers of attention, one after another."""
    heads: int = 2
    """Parts of a vector that attend for themselves; ``dim`` must be divisible by it."""
    dropout: float = 0.2
    """Share of what a block finds that is left out in training."""
    negatives: int = 1000
    """Items that targets are compared with where the catalogue has more than 20,000; drawn uniformly."""
    epochs: int = 200
    batch_size: int = 128
    """Users in a batch."""
    lr: float = 1e-3
    patience: int | None = 5

    def problems(self) -> Iterator[str | None]:
        yield from super().problems()
        yield no_count("method.length", self.length, most=10_000)
        yield no_count("method.blocks", self.blocks, most=100)
        problem = no_count("method.heads", self.heads)
        if problem is None and no_count("", self.dim) is None and self.dim % self.heads:
            problem = f"method.heads: {self.heads} does not divide method.dim, {self.dim}"
        yield problem
        yield not_between("method.dropout", self.dropout, 0, 0.99)
        yield no_count("method.negatives", self.negatives, most=WHOLE)

    def check(self, data: FederatedDataModule) -> None:
        super().check(data)
        if not data.has_times:
            check("method: SASRec reads the newest items, and the data have no times (data.format.timestamp_column)")

    def begin(self, data: FederatedDataModule) -> None:
        with torch.device("meta"):  # torch would draw initial values from its global generator
            network = Network(self, data.num_items)
        self.network = network.to_empty(device="cpu")
        for number, values in enumerate(self.network.parameters()):
            drawn = normal(data.seed, Stream.START, number, np.arange(values.numel())) * INIT_SCALE
            values.data.copy_(torch.from_numpy(drawn).reshape(values.shape))
        for part in self.network.modules():
            if isinstance(part, nn.Linear):
                part.bias.data.zero_()
            elif isinstance(part, nn.LayerNorm):
                part.reset_parameters()
        self.network.to(self.device)
        self.optimizer = Adam(self.network.parameters(), lr=self.lr)
        # One more than is read: each but the first is a target.
        self.training, self.scoring = (sequences(data, length) for length in (self.length + 1, self.length))

    def train(self, data: FederatedDataModule, epoch: int) -> None:
        """One pass over all users, in an order drawn for it."""
        order = torch.from_numpy(bits(data.seed, Stream.SHUFFLE, epoch, np.arange(data.num_users)).argsort())
        for step, users in enumerate(order.split(self.batch_size)):
            generator = torch.Generator(self.device)
            generator.manual_seed(int(bits(data.seed, Stream.DROPOUT, epoch, step) >> np.uint64(1)))
            history = self.training[users].to(self.device)
            targets = history[:, 1:]
            asked = targets >= 0
            found = self.network(history[:, :-1], self.dropout, generator)[asked]  # [targets, dim]
            drawn = None
            if data.num_items > WHOLE:
                random = bits(data.seed, Stream.NEGATIVES, epoch, step, np.arange(self.negatives))
                drawn = torch.from_numpy(integers(random, data.num_items)).to(self.device)
            loss = softmax(found, targets[asked], self.network.items, drawn)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if not self.network.items.isfinite().all():
            raise RunError(f"epoch {epoch}: the trained vectors are not finite; a lower learning rate may help")

    @torch.no_grad()
    def found(self) -> Tensor:
        users = []
        for history in self.scoring.split(SCORED_AT_ONCE):
            last = history.ge(0).sum(1) - 1
            read = self.network(history.to(self.device))  # [users, length, dim]
            users.append(read[torch.arange(len(history)), last])
        return torch.cat((*users, self.network.items))


def sequences(data: FederatedDataModule, length: int) -> Tensor:
    """The newest training items of all users, the oldest of them first, `[users, length]`; -1 behind shorter ones."""
    found = torch.full((data.num_users, length), -1)
    for users in torch.arange(data.num_users).split(SCORED_AT_ONCE):
        newest = data.histories(users).items[:, :length]
        # Turned round, shorter histories have their -1 in front: they are moved behind.
        turned = newest.flip(1)
        order = turned.lt(0).sort(dim=1, stable=True).indices
        found[users, : newest.shape[1]] = turned.gather(1, order)
    return found


def softmax(found: Tensor, targets: Tensor, items: Tensor, drawn: Tensor | None) -> Tensor:
    """Cross-entropy of targets among all items, or among themselves and some that were drawn; mean over them, `[]`.

    Args:
        found: `[targets, dim]`
        targets: `[targets]`: which items they are.
        items: `[items, dim]`
        drawn: `[negatives]`: which items were drawn; ``None`` for all.
    """
    if drawn is None:
        return F.cross_entropy(found @ items.T, targets)
    own = (found * items[targets]).sum(1, keepdim=True)
    others = (found @ items[drawn].T).masked_fill(targets[:, None] == drawn, -torch.inf)  # [targets, negatives]
    return F.cross_entropy(torch.cat((own, others), dim=1), torch.zeros_like(targets))


def dropped(values: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Values `[...]` of which a share is 0, and the others larger for it; all as they are without a generator."""
    if generator is None:
        return values
    kept = torch.rand(values.shape, generator=generator, device=values.device) >= share
    return values * kept / (1 - share)


class Network(nn.Module):
    """Embeddings and blocks. Each place sees itself and those before it, so what stands behind a history is not seen.

    Args:
        method: Its settings.
        num_items: Of the catalogue.
    """

    def __init__(self, method: SASRec, num_items: int) -> None:
        super().__init__()
        self.items = nn.Parameter(torch.empty(num_items, method.dim))
        self.places = nn.Parameter(torch.empty(method.length, method.dim))
        self.blocks = nn.ModuleList(Block(method.dim, method.heads) for _ in range(method.blocks))
        self.norm = nn.LayerNorm(method.dim)

    def forward(self, history: Tensor, share: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """What is found at each place of histories `[users, length]`, the oldest first: `[users, length, dim]`."""
        found = self.items[history.clamp_min(0)] + self.places[: history.shape[1]]
        found = dropped(found, share, generator)
        for block in self.blocks:
            found = block(found, share, generator)
        normed: Tensor = self.norm(found)
        return normed


class Block(nn.Module):
    """Attention to earlier places, then two layers at each place by itself (section III-B)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.projections, self.joined = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, found: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
        """`[users, length, dim]` to the same."""
        users, length, dim = found.shape
        projected = self.projections(self.before_attention(found)).reshape(users, length, 3, self.heads, -1)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)  # [users, heads, length, dim / heads] each
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        found = found + dropped(self.joined(seen.transpose(1, 2).reshape(users, length, dim)), share, generator)
        layers = self.outer(self.inner(self.before_layers(found)).relu())
        return found + dropped(layers, share, generator)
