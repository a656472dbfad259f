"""Hostile clients: how far some of them can push an item, or spoil what others learn, with and without a defence.

    python -m benchmarks.hostile [--method FedMF] [--rounds 20] [--seeds 1] [--data ../shared/data]

ML-100K, strict protocol, all clients in every round. Clients are hostile by a draw of the seed. They push one item that
few people have, drawn too. What they send:

- push, tables (FedMF, PFedRec): their own table, in which the row of the item is that of the most popular item, 1 /
  share times as large, so that the mean row becomes that row (model replacement, Bagdasaryan et al. 2020).
- push, sums (CGFedCo): what a client adds that has the item and the 3 most popular ones; `at bounds` its row as
  large as a quarter of the bounds allows to all of them together.
- sabotage: their tables with the sign turned and ten times as large; of sums as large numbers everywhere.
  Only by the largest share.

Measured over all others: the share of those without the item who see it among their first ten, and test NDCG@10.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from lightning import Fabric
from torch import Tensor

from benchmarks.leak import ratings
from cgfedrec.data import FederatedDataModule
from cgfedrec.data.histories import History
from cgfedrec.errors import Notice
from cgfedrec.evaluation.metrics import each_users
from cgfedrec.failures import Failures
from cgfedrec.kit.optimisers import FactorAdam
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import CGFedCo, FedMF, PFedRec
from cgfedrec.protocol import Protocol
from cgfedrec.structure.counting import CountingServer
from cgfedrec.wire.clipped import Clipped
from cgfedrec.wire.messages import Upload, dense
from cgfedrec.wire.wire import Step, Wire

SHARES = (0.01, 0.05, 0.1)
POPULAR = 3
"""Of 3, 10 and 30 the number with which an invented history pushes the most."""
FLIPPED = -10.0


def method_of(name: str, aggregation: str = "mean", hostile: float = 0.1) -> Method:
    """A method with the settings that `cgfedrec tune` has found for ML-100K (``configs/tuned``)."""
    robust: dict[str, Any] = {"aggregation": aggregation, "hostile": hostile}
    if name == "FedMF":

        def adam(parameters: Any) -> FactorAdam:
            return FactorAdam(parameters, lr=0.0549)

        return FedMF(dim=32, init_scale=0.0693, optimizer=adam, **robust)
    if name == "PFedRec":

        def sgd(parameters: Any) -> torch.optim.SGD:
            return torch.optim.SGD(parameters, lr=0.2604)

        return PFedRec(dim=32, init_scale=0.0382, lr_eta=111.3, optimizer=sgd, **robust)
    return CGFedCo()


class Hostile(Step):
    """What hostile clients send in place of what they should; it comes before all steps.

    Args:
        clients: `[clients]`: who they are.
        target: The item that they push.
        popular: `[popular]`: items that most people have, in falling order.
        attack: ``push``, ``push at bounds`` or ``sabotage``.
        share: Of all clients, that they are.
    """

    def __init__(self, clients: Tensor, target: int, popular: Tensor, attack: str, share: float) -> None:
        self.clients, self.target, self.popular, self.attack, self.share = clients, target, popular, attack, share
        self.loop: FederatedLoop | None = None

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        hostile = torch.isin(upload.clients, self.clients)
        if not hostile.any() or not upload.values:
            return upload
        values = {name: dense(value).clone() for name, value in upload.values.items()}
        for name, value in values.items():
            if name in upload.bounds:
                values[name] = self._counted(name, value, upload.clients, hostile, upload.bounds[name].largest)
            elif self.attack == "sabotage":
                value[hostile] *= FLIPPED
            else:
                value[hostile, self.target] = value[hostile, int(self.popular[0])] / self.share
        return Upload(upload.clients, values, upload.sparse, upload.bounds)

    def _counted(self, name: str, value: Tensor, users: Tensor, hostile: Tensor, largest: Tensor) -> Tensor:
        """What clients add to a sum, `[clients, rows, columns]`, once the ``hostile`` ones, `[clients]`, have lied."""
        assert self.loop is not None
        server = self.loop.server
        assert isinstance(server, CountingServer)
        tally = next((one for one in server.tallies if one.name == name), None)
        if tally is None:  # of how well a reading serves them: they tell the truth
            return value
        number = int(hostile.sum())
        # All of them together stay within a quarter of the bounds. A sum beyond its bounds would be noticed.
        part = largest // (4 * len(self.clients))
        added = part.expand(number, *largest.shape)
        if self.attack != "sabotage":
            items = torch.cat((torch.tensor([self.target]), self.popular)).expand(number, -1)
            history = History(items, torch.zeros_like(items), torch.zeros(items.shape, dtype=torch.float64))
            added = tally.of(history, users[hostile], server.known, 0).to_dense()
        if self.attack == "push at bounds":
            row = self.target
            if server.known.rows is not None:
                row = int(server.known.rows.row_of[self.target])
            there = added[0, row] != 0
            times = int((part[row][there] // added[0, row][there].abs()).min()) if there.any() else 1
            added[:, row] *= max(1, times)
        value[hostile] = added
        return value

    def reverse(self, upload: Upload, round: int) -> Upload:
        return upload


class Norms(Step):
    """Keeps the norms of what is sent."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        tables = [value.flatten(1) for value in upload.values.values() if value.dtype.is_floating_point]
        if tables:
            self.norms += torch.cat(tables, 1).norm(dim=1).tolist()
        return upload

    def reverse(self, upload: Upload, round: int) -> Upload:
        return upload


def trained(data: FederatedDataModule, method: Method, steps: list[Step], refused: float, rounds: int) -> FederatedLoop:
    """A federation after so many rounds, or once all is counted."""
    loop = FederatedLoop(rounds=rounds, evaluate_every=rounds, patience=None, failures=Failures(refused=refused))
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method, wire=Wire(steps))
    for step in steps:
        if isinstance(step, Hostile):
            step.loop = loop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        loop.fit()
    return loop


def measured(loop: FederatedLoop, hostile: Tensor, target: int) -> tuple[float, float]:
    """The target's exposure among those who are not hostile and do not have it, and their test NDCG@10."""
    found = loop.ranked("test")
    others = ~torch.isin(found.users, hostile)
    has = torch.from_numpy(loop.data.training_matrix()[:, [target]].toarray()[:, 0] > 0)[found.users]
    seen = (found.shown[:, :10] == target).any(1)
    exposure = seen[others & ~has].double().mean().item()
    return exposure, each_users("ndcg@10", found.ranks)[others].double().mean().item()


def drawn(data: FederatedDataModule, share: float, seed: int) -> tuple[Tensor, int, Tensor]:
    """Who is hostile, which item they push, and which items are popular."""
    counts = np.bincount(data.training_matrix().indices, minlength=data.num_items)
    generator = np.random.default_rng(seed)
    rare = np.flatnonzero((counts >= 5) & (counts <= 10))
    order = generator.permutation(data.num_users)  # the same ones, and more of them, for larger shares
    target = int(generator.choice(rare))
    hostile = torch.from_numpy(np.sort(order[: round(share * data.num_users)]))
    return hostile, target, torch.from_numpy(np.argsort(-counts, kind="stable")[:POPULAR].copy())


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("FedMF", "PFedRec", "CGFedCo"), default="FedMF")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CGFEDREC_DATA", "../shared/data")))
    arguments = parser.parse_args()
    cells: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for seed in range(arguments.seeds):
        data = ratings(arguments.data / "ml-100k" / "ratings.csv", Protocol(), seed)
        norms = Norms()
        hostile, target, popular = drawn(data, max(arguments.shares), seed)
        clean = trained(data, method_of(arguments.method), [norms], 0.0, arguments.rounds)
        cells.setdefault(("none", "0%", "none"), []).append((*measured(clean, hostile, target), 0.0))
        bound = float(np.median(norms.norms[-data.num_users :])) if norms.norms else 1.0
        attacks = ["push", "sabotage"]
        defences: dict[str, tuple[str, list[Step]]] = {
            "none": ("mean", []),
            f"clipped at {bound:.3g}": ("mean", [Clipped(bound)]),
            "median": ("median", []),
            "trimmed mean": ("trimmed_mean", []),
            "multi-krum": ("multi_krum", []),
        }
        if arguments.method == "CGFedCo":
            attacks = ["push", "push at bounds", "sabotage"]
            defences = {"none": ("mean", []), "what one client can add": ("refused", [])}
        for attack in attacks:
            shares = arguments.shares
            if attack == "sabotage":
                shares = [max(shares)]
            for share in shares:
                hostile, target, popular = drawn(data, share, seed)
                for name, (aggregation, steps) in defences.items():
                    started = time.perf_counter()
                    refused, kind = 0.0, aggregation
                    if kind == "refused":
                        refused, kind = 0.2, "mean"
                    lies = Hostile(hostile, target, popular, attack, share)
                    method = method_of(arguments.method, kind, max(share, 0.1))
                    # Who does not clip is refused, and so hostile clients clip their lies too.
                    loop = trained(data, method, [lies, *steps], refused, arguments.rounds)
                    found = (*measured(loop, hostile, target), float(loop.refused))
                    cells.setdefault((attack, f"{share:.0%}", name.split(" at ")[0]), []).append(found)
                    took = time.perf_counter() - started
                    print(f"# seed {seed} {attack} {share:.0%} {name}: {found} in {took:.0f} s", flush=True)
    print(f"| {arguments.method}: attack | hostile | defence | exposure@10 | NDCG@10 | refused |")
    print("|---|---|---|---|---|---|")
    for (attack, share, name), values in cells.items():
        exposure, ndcg, refused = (mean(column) for column in zip(*values, strict=True))
        print(f"| {attack} | {share} | {name} | {exposure:.3f} | {ndcg:.4f} | {refused:.0f} |")


if __name__ == "__main__":
    main()
