"""What a curious server learns of one person: history and membership, from what it sees.

    python -m benchmarks.attacks [--data ../shared/data/ml-100k/ratings.csv] [--only PFedRec]     (half an hour)

The server has the sum of what m clients sent, and is after one of them. Rows of that sum that go together are rows of
one history: rows moved alike by a table's training (IMIA's kind of attack, arXiv 2301.10964), or profiles alike.

- *history*: it knows half of the history, drawn at random, and ranks all other items i by S_i . mean of S_j over the
  known j. Of as many guesses as there are items to find, how many are right: precision, and recall, which are then one
  number. *without* is the same attack on the sum without the target: what other people's data tell anyway.
- *member*: it knows the whole history, and decides whether that person is in the sum, by how much larger the rows' mean
  is than one row. Half of the sums have the target. Of as many guesses as there are members, how many are right; 0.5 is
  chance.

What a sum of CGFedCo is over is its first sketch; under privacy each client's noise is its own part of all. Tables are
those of round 1, less the start that all share; under privacy they are clipped at the median norm, and the budget is
that of this one round. A broadcast of CGFedCo is the neighbours that go down in the end, one of PFedRec the mean table
of round 10, less the start, and one of CGFedRec the labels of round 1: an item counts as often as known ones have its
label. *without* is then a run in which that person takes part with nothing, for five people, and *history* is told for
the same five beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from lightning import Fabric
from rich.console import Console
from torch import Tensor

from benchmarks.leak import ratings
from cgfedrec.data import FederatedDataModule
from cgfedrec.kit.means import MeanServer
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import CGFedCo, CGFedRec, PFedRec
from cgfedrec.privacy.budget import Privacy
from cgfedrec.protocol import Protocol
from cgfedrec.structure.collect import SumsServer
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.noised import Noised
from cgfedrec.wire.values import Weights
from cgfedrec.wire.wire import Step, Wire

TARGETS = 40
SIZES = (1, 8, 64, 0)
"""Clients in a sum; 0 for all."""
EPSILONS = (8, 4, 1)
FEW = 5
"""People without whom a run is made."""
BROADCAST_AFTER = 10
"""Rounds after which a mean table is attacked."""
Sent = Callable[[Tensor], Tensor]
"""The sum of what some clients `[clients]` sent, `[items, columns]`."""
Scores = Callable[[Tensor], Tensor]
"""How likely each item goes with known ones `[known]`, `[items]`."""


class Watch(Wire):
    """A wire that keeps what came of the value of this name, by client, less what everybody knows of it.

    Args:
        name: Of a value.
        steps: Of the wire: none, or `Noised`.
        absent: Who takes part with nothing.
    """

    def __init__(self, name: str, steps: Sequence[Step] = (), absent: int | None = None) -> None:
        super().__init__(steps)
        self.name, self.absent = name, absent
        self.seen: dict[int, Tensor] = {}

    def sent(self, upload: Upload, round: int, seed: int) -> Upload:
        if self.name not in upload.values:
            return super().sent(upload, round, seed)
        public = upload.public().get(self.name, torch.zeros(()))
        if self.absent in upload.clients.tolist():
            values = upload.values[self.name].detach().clone()
            values[upload.clients == self.absent] = public
            upload = replace(upload, values={self.name: values})
        arrived = made = super().sent(upload, round, seed)
        if set(made.clients.tolist()) <= self.seen.keys():
            return made
        for step in self.steps:
            arrived = step.reverse(arrived, round)
        for row, user in enumerate(made.clients.tolist()):
            self.seen.setdefault(user, arrived.values[self.name][row].detach().to_dense() - public)
        return made


def watched(method: Method, data: FederatedDataModule, wire: Watch, rounds: int) -> tuple[FederatedLoop, Watch]:
    """A federation after so many rounds, and the wire that watches."""
    loop = FederatedLoop(rounds=rounds, evaluate_every=rounds)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method, Path("clients"), wire=wire)
    loop.fit()
    return loop, wire


def of_tables(method: Method, data: FederatedDataModule, steps: Sequence[Step]) -> Sent:
    """Sums of tables after the first round, less the shared start."""
    _, wire = watched(method, data, Watch("table", steps), 1)
    moved = torch.stack([wire.seen[user] for user in range(data.num_users)])  # [clients, items, dim]
    everybody = moved.sum(0, dtype=torch.float64)

    def total(users: Tensor) -> Tensor:
        left = torch.ones(len(moved), dtype=torch.bool)
        left[users] = False
        if left.sum() < len(users):  # what few have not sent is sooner taken away
            return (everybody - moved[left].sum(0, dtype=torch.float64)).float()
        return moved[users].sum(0)

    return total


def median_norm(method: Method, data: FederatedDataModule) -> float:
    """Of what clients change in the first round."""
    _, wire = watched(method, data, Watch("table"), 1)
    return float(torch.stack([one.norm() for one in wire.seen.values()]).median())


def table_scores(method: Method, data: FederatedDataModule, steps: Sequence[Step], absent: int | None = None) -> Scores:
    """What a broadcast says of items, by known ones: the mean table of PFedRec, or the labels of CGFedRec."""
    rounds = BROADCAST_AFTER if isinstance(method, PFedRec) else 1
    loop, _ = watched(method, data, Watch("table", steps, absent), rounds)
    if isinstance(method, PFedRec):
        with loop.clients.workers.one() as worker:
            start = worker.client.public(None)["table"]
        assert isinstance(loop.server, MeanServer)
        moved = loop.server.mean("table") - start
        return lambda known: alike(moved, known)
    labels = loop.server.get_buffer("labels")
    return lambda known: torch.bincount(labels[known], minlength=int(labels.max()) + 1)[labels].float()


def of_sketches(method: CGFedCo, data: FederatedDataModule) -> tuple[Sent, Tensor]:
    """Sums of first sketches, and the neighbours that went down, `[items, items]`: how much each counts for each."""
    loop, wire = watched(method, data, Watch("sketch"), 20)
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


def people(data: FederatedDataModule) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Who is attacked by a broadcast, and the known and hidden half of the history of each."""
    random = np.random.default_rng(0)
    histories = data.training_matrix()
    for target in random.choice(np.flatnonzero(np.diff(histories.indptr) >= 20), TARGETS, replace=False):
        items = torch.from_numpy(random.permutation(histories[[target]].indices)).long()
        yield int(target), items[: len(items) // 2], items[len(items) // 2 :]


def from_broadcast(data: FederatedDataModule, scores: Scores) -> float:
    """History from a broadcast alone."""
    return fmean(found_of(scores(known), known, hidden) for _, known, hidden in people(data))


def with_and_without(data: FederatedDataModule, scores: Callable[[int | None], Scores]) -> tuple[float, float]:
    """History of a few people, from a broadcast with them and from one without each of them."""
    few = list(people(data))[:FEW]
    everybody = scores(None)
    there = [found_of(everybody(known), known, hidden) for _, known, hidden in few]
    gone = [found_of(scores(target)(known), known, hidden) for target, known, hidden in few]
    return fmean(there), fmean(gone)


def main() -> None:
    """Attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ml-100k/ratings.csv"))
    parser.add_argument("--only", choices=[kind.__name__ for kind in (PFedRec, CGFedRec, CGFedCo)])
    given = parser.parse_args()
    data, console = ratings(given.data, Protocol(), 0), Console(width=200)
    console.print("| method | sum of | history | without | member |\n|---|---|---|---|---|", markup=False)
    for method in (PFedRec(), CGFedRec(), CGFedCo()):
        name = type(method).__name__
        if given.only in (None, name):
            attacks = of_counts(data) if isinstance(method, CGFedCo) else of_all_tables(method, data)
            for told, of, *figures in attacks:
                shown = " | ".join("" if figure is None else f"{figure:.3f}" for figure in figures)
                console.print(f"| {name}{told} | {of} | {shown} |", markup=False)


Found = tuple[str, str, float, float | None, float | None]
"""Of which budget, the sum of what, and the three figures."""


def of_counts(data: FederatedDataModule) -> Iterator[Found]:
    """Attacks on CGFedCo."""
    for epsilon in (None, *EPSILONS):
        method = CGFedCo(privacy=Privacy(epsilon=epsilon)) if epsilon else CGFedCo()
        told = f", epsilon {epsilon}" if epsilon else ""
        sent, weights = of_sketches(method, data)
        for size in SIZES:
            yield told, str(size or "all"), *attacked(data, sent, size)
        yield told, "broadcast alone", from_broadcast(data, _added_up(weights)), None, None


def _added_up(weights: Tensor) -> Scores:
    """Weights `[items, items]` of neighbours from known items, added up."""
    return lambda known: weights[known].sum(0)


def of_all_tables(method: PFedRec | CGFedRec, data: FederatedDataModule) -> Iterator[Found]:
    """Attacks on a method that sends tables, without and with noise."""
    norm = median_norm(method, data)
    budgets: list[tuple[str, tuple[Step, ...]]] = [("", ())]
    for local, where in ((False, ""), (True, ", local")):
        for epsilon in EPSILONS:
            budgets.append((f", epsilon {epsilon}{where}", (Noised(norm, epsilon, local=local),)))
    for told, steps in budgets:
        sent = of_tables(method, data, steps)
        for size in SIZES:
            yield told, str(size or "all"), *attacked(data, sent, size)
        del sent
        yield told, "broadcast alone", from_broadcast(data, table_scores(method, data, steps)), None, None
        if told in ("", f", epsilon {EPSILONS[0]}"):
            there, gone = with_and_without(data, partial(table_scores, method, data, steps))
            yield told, f"broadcast alone, {FEW} people", there, gone, None


if __name__ == "__main__":
    main()
