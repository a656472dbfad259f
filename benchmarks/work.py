"""One piece of work for several frameworks: what it is, as files that all of them read, and how it goes here.

    python -m benchmarks.work FOLDER ROUNDS

Some rounds of FedMF (Adam) or PFedRec (SGD) by all clients, one local epoch each, nothing evaluated. Negatives are
drawn, shuffled and cut into batches before, for all, and are in the files with the values with which a client starts.
`benchmarks.peers` compares; `beside/` has the same clients in plain torch for the others.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from lightning import Fabric
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import threads
from benchmarks.leak import ratings
from benchmarks.once import status
from cgfedrec.data import FederatedDataModule
from cgfedrec.history import Row
from cgfedrec.kit.means import MeanServer
from cgfedrec.kit.optimisers import FactorAdam, TableSGD
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import FedMF, PFedRec
from cgfedrec.protocol import Protocol

Name = Literal["FedMF", "PFedRec"]
METHODS: dict[Name, FedMF | PFedRec] = {
    "FedMF": FedMF(optimizer=partial(FactorAdam, lr=0.01)),
    "PFedRec": PFedRec(optimizer=partial(TableSGD, lr=0.1)),
}
"""With their default settings, whose rates are here again to be seen."""
RATE = {"FedMF": 0.01, "PFedRec": 0.1}


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    method: Name
    path: str
    """Of the ratings, laid out as ML-100K's."""
    rounds: int
    """For how many there are negatives."""
    threads: int
    folder: str
    """Where the files are: ``settings.json``, ``work.npz``, and what comes of it."""
    users: int = 0
    items: int = 0
    dim: int = 32
    batch_size: int = 256
    rate: float = 0.0
    """Learning rate of all that a client trains, but for PFedRec's table."""
    table_rate: float = 0.0


class Timed(FederatedLoop):
    """Notes what a round takes, when the process had been busy for how long, and mean tables; evaluates nothing."""

    def record(self, seen: Tensor, report: Row, seconds: float) -> None:
        self.times.append(seconds)
        self.busy.append(time.process_time())
        assert isinstance(self.server, MeanServer)
        self.tables.append(self.server.mean("table").numpy().copy())

    times: list[float]
    busy: list[float]
    tables: list[NDArray[np.float32]]


def federation(work: Work, rounds: int) -> Timed:
    """Ready to train its first round."""
    loop = Timed(rounds, patience=None)
    loop.times, loop.busy, loop.tables = [], [], []
    data = ratings(Path(work.path), Protocol(), 0)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, METHODS[work.method])
    return loop


def write(work: Work) -> Work:
    """Write the files of a piece of work; it comes back with what it did not know before."""
    loop = federation(work, work.rounds)
    data, method = loop.data, METHODS[work.method]
    everyone = torch.arange(data.num_users)
    with loop.clients.workers.one() as worker:
        start = worker.client.start(everyone)
    arrays: dict[str, NDArray[Any]] = {"table": start.pop("table")[0].numpy()}
    arrays |= {f"private_{name}": values.numpy() for name, values in start.items()}
    arrays["starts"] = np.append(0, data.batches.counts.cumsum())
    for round in range(1, work.rounds + 1):
        arrays[f"items_{round}"], arrays[f"targets_{round}"] = in_order(data, round)
    folder = Path(work.folder)
    np.savez(folder / "work.npz", **arrays)  # type: ignore[arg-type]
    rate = RATE[work.method]
    table_rate = method.rate_of_table(rate, data.num_items) if isinstance(method, PFedRec) else rate
    whole = asdict(work) | {"users": data.num_users, "items": data.num_items, "rate": rate, "table_rate": table_rate}
    whole |= {"dim": method.dim, "batch_size": data.batch_size}
    (folder / "settings.json").write_text(json.dumps(whole))
    return Work(**whole)


def in_order(data: FederatedDataModule, round: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All clients' samples of a round's epoch, one client after another, in the order of training.

    Returns:
        Items and targets, `[samples]` each: the first ``batch_size`` of a client's are its first batch, and so on.
    """
    items, targets = [], []
    for user in range(data.num_users):
        for batch in data.draw(torch.tensor([user]), round, 1):
            real = batch.weights[0] > 0  # the rest is padding
            items.append(batch.items[0][real].numpy())
            targets.append(batch.targets[0][real].numpy())
    return np.concatenate(items), np.concatenate(targets)


def here(work: Work, rounds: int) -> None:
    """Do it with cgfedrec: ``cgfedrec.json`` with seconds and peak memory, ``cgfedrec.npy`` with mean tables.

    Negatives are drawn, shuffled and cut into batches before, as the others find them in the files.
    """
    threads.use(work.threads)
    loop = federation(work, rounds)
    data, everyone = loop.data, torch.arange(loop.data.num_users)
    drawn = {
        (int(users[0]), round): data.draw(users, round, 1)
        for users in data.cohorts(everyone, loop.clients.cohort_size)
        for round in range(1, rounds + 1)
    }
    with patch.object(type(data.batches), "draw", lambda _, users, when, *__: drawn[int(users[0]), when]):
        loop.busy.append(time.process_time())
        loop.fit()
    folder = Path(work.folder)
    np.save(folder / "cgfedrec.npy", np.stack(loop.tables))
    found = {"seconds": loop.times, "cpu": np.diff(loop.busy).tolist(), "peak": status("VmHWM")}
    (folder / "cgfedrec.json").write_text(json.dumps(found))


if __name__ == "__main__":
    here(Work(**json.loads((Path(sys.argv[1]) / "settings.json").read_text())), int(sys.argv[2]))
