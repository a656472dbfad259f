"""What a curious server learns of one person: history and membership, from what it sees.

    python -m benchmarks.attacks [--data ../shared/data/ml-100k/ratings.csv]     (some minutes)

The server has the sum of what m clients sent, and is after one of them. Rows of that sum that go together are rows of
one history: rows moved alike by a table's training (IMIA's kind of attack, arXiv 2301.10964), or profiles alike.

- *history*: it knows half of the history, drawn at random, and ranks all other items i by S_i . mean of S_j over the
  known j. Of as many guesses as there are items to find, how many are right: precision, and recall, which are then one
  number. *without* is the same attack on the sum without the target: what other people's data tell anyway.
- *member*: it knows the whole history, and decides whether that person is in the sum, by how much larger the rows' mean
  is than one row. Half of the sums have the target. Of as many guesses as there are members, how many are right; 0.5 is
  chance.

What a sum of CGFedCo is over is its first sketch; under privacy each client's noise is its own part of all. Tables are
those of round 1, less the start that all share. A broadcast is the neighbours and labels that go down in the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from lightning import Fabric
from rich.console import Console
from torch import Tensor

from benchmarks.leak import ratings
from cgfedrec.data import FederatedDataModule
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import CGFedCo, CGFedRec, PFedRec
from cgfedrec.privacy.budget import Privacy
from cgfedrec.protocol import Protocol
from cgfedrec.structure.collect import SumsServer
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.values import Field, Weights
from cgfedrec.wire.wire import Wire

TARGETS = 40
SIZES = (1, 8, 64, 0)
"""Clients in a sum; 0 for all."""
Sent = Callable[[Tensor], Tensor]
"""The sum of what some clients `[clients]` sent, `[items, columns]`."""


class Watch(Wire):
    """A wire that keeps what came of the value of this name, by client."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.seen: dict[int, Tensor] = {}

    def up(self, upload: Upload, expected: Mapping[str, Field], round: int, seed: int) -> tuple[Upload, int]:
        if self.name in upload.values:
            values = upload.values[self.name].detach()
            for row, user in enumerate(upload.clients.tolist()):
                self.seen.setdefault(user, values[row].to_dense().float().clone())
        return super().up(upload, expected, round, seed)


def watched(method: Method, data: FederatedDataModule, name: str, rounds: int) -> tuple[FederatedLoop, Watch]:
    """A federation after so many rounds, and what was sent under a name."""
    wire = Watch(name)
    loop = FederatedLoop(rounds=rounds, evaluate_every=rounds)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method, Path("clients"), wire=wire)
    loop.fit()
    return loop, wire


def of_tables(method: Method, data: FederatedDataModule) -> Sent:
    """Sums of tables after the first round, less the shared start."""
    _, wire = watched(method, data, "table", 1)
    # The start is what rows of items that a client never touched are: most clients touch few.
    tables = torch.stack([wire.seen[user] for user in range(data.num_users)])  # [clients, items, dim]
    start = tables.median(0).values
    moved = tables - start
    return lambda users: moved[users].sum(0)


def of_sketches(method: CGFedCo, data: FederatedDataModule) -> tuple[Sent, Tensor]:
    """Sums of first sketches, and the neighbours that went down, `[items, items]`: how much each counts for each."""
    loop, wire = watched(method, data, "sketch", 20)
    server = loop.server
    assert isinstance(server, SumsServer)
    rows = server.known.the_rows.items

    def total(users: Tensor) -> Tensor:
        found = torch.zeros(data.num_items, server.total("sketch").shape[1])
        found[rows] = torch.stack([wire.seen[user] for user in users.tolist()]).sum(0)
        return found

    (structure,) = (one for name, one in server.bulletins.items() if name.startswith("structure/"))
    sent, pairs = structure.values["weights"], server.known.pairs
    assert isinstance(sent, Weights)
    assert pairs is not None
    targets, places = sent.kept.nonzero(as_tuple=True)
    weights = torch.zeros(data.num_items, data.num_items)
    weights[rows[pairs[targets, places]], rows[targets]] = (sent.levels * sent.scales[:, None])[targets, places].float()
    return total, weights


def found_of(scores: Tensor, known: Tensor, hidden: Tensor) -> float:
    """Share of hidden items among as many with the highest scores `[items]`, those known left out."""
    scores = scores + 1e-9 * torch.rand(len(scores), generator=torch.Generator().manual_seed(0))
    scores[known] = -torch.inf
    return float(torch.isin(scores.topk(len(hidden)).indices, hidden).float().mean())


def alike(total: Tensor, known: Tensor) -> Tensor:
    """How much each item's row goes together with those of known items, `[items]`, of a sum `[items, columns]`."""
    return total @ total[known].mean(0)


def together(total: Tensor, items: Tensor) -> float:
    """How much larger the mean of some rows of a sum `[items, columns]` is than rows are by themselves."""
    return float(total[items].mean(0).square().sum() / total.square().sum(1).mean().clamp_min(1e-12))


def attacked(data: FederatedDataModule, sent: Sent, size: int) -> tuple[float, float, float]:
    """History with and without the target, and membership, from sums of so many clients."""
    random = np.random.default_rng(size)
    histories = data.training_matrix()
    targets = random.choice(np.flatnonzero(np.diff(histories.indptr) >= 20), TARGETS, replace=False)
    right, anyway, inside, outside = [], [], [], []
    for target in targets:
        items = torch.from_numpy(random.permutation(histories[[target]].indices)).long()
        known, hidden = items[: len(items) // 2], items[len(items) // 2 :]
        others = np.delete(np.arange(data.num_users), target)
        chosen = others if not size else random.choice(others, size - 1, replace=False)
        stranger = random.choice(np.setdiff1d(others, chosen)) if size else None
        without = chosen if stranger is None else np.append(chosen, stranger)
        one, other = sent(torch.from_numpy(np.append(chosen, target))), sent(torch.from_numpy(without))
        right.append(found_of(alike(one, known), known, hidden))
        anyway.append(found_of(alike(other, known), known, hidden))
        inside.append(together(one, items))
        outside.append(together(other, items))
    limit = float(np.median(inside + outside))
    return fmean(right), fmean(anyway), fmean(value > limit for value in inside)


def from_broadcast(data: FederatedDataModule, weights: Tensor) -> float:
    """History from neighbours alone: their weights `[items, items]` from known items are added up."""
    random = np.random.default_rng(0)
    histories = data.training_matrix()
    right = []
    for target in random.choice(np.flatnonzero(np.diff(histories.indptr) >= 20), TARGETS, replace=False):
        items = torch.from_numpy(random.permutation(histories[[target]].indices)).long()
        known, hidden = items[: len(items) // 2], items[len(items) // 2 :]
        right.append(found_of(weights[known].sum(0), known, hidden))
    return fmean(right)


def main() -> None:
    """Attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ml-100k/ratings.csv"))
    given = parser.parse_args()
    data, console = ratings(given.data, Protocol(), 0), Console()
    console.print("| method | sum of | history | without | member |\n|---|---|---|---|---|", markup=False)
    for name, method in (
        ("PFedRec", PFedRec()),
        ("CGFedRec", CGFedRec()),
        ("CGFedCo", CGFedCo()),
        *((f"CGFedCo, epsilon {epsilon}", CGFedCo(privacy=Privacy(epsilon=epsilon))) for epsilon in (8, 4, 1)),
    ):
        weights = None
        if isinstance(method, CGFedCo):
            sent, weights = of_sketches(method, data)
        else:
            sent = of_tables(method, data)
        for size in SIZES:
            right, anyway, member = attacked(data, sent, size)
            console.print(f"| {name} | {size or 'all'} | {right:.3f} | {anyway:.3f} | {member:.2f} |", markup=False)
        if weights is not None:
            console.print(f"| {name} | broadcast alone | {from_broadcast(data, weights):.3f} | | |", markup=False)


if __name__ == "__main__":
    main()
