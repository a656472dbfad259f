"""The clients of FedMF and PFedRec in plain torch, one at a time, as their frameworks' users would write them.

The environments of the others have torch and numpy, and no cgfedrec: nothing here needs it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Work:
    """Some rounds of a piece of work, as `benchmarks.work` has written it."""

    def __init__(self, folder: str, rounds: int) -> None:
        self.folder, self.rounds = Path(folder), rounds
        self.settings = SimpleNamespace(**json.loads((self.folder / "settings.json").read_text()))
        with np.load(self.folder / "work.npz") as file:
            self.arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        self.starts = self.arrays["starts"].tolist()

    def samples(self, user: int, round: int) -> tuple[Tensor, Tensor]:
        """A client's items and targets in a round from 1, `[samples]` each, in the order of training."""
        mine = slice(self.starts[user], self.starts[user + 1])
        return self.arrays[f"items_{round}"][mine], self.arrays[f"targets_{round}"][mine]

    def private(self, user: int) -> dict[str, Tensor]:
        """What a client starts with and keeps to itself."""
        return {
            name.removeprefix("private_"): values[user].clone()
            for name, values in self.arrays.items()
            if name.startswith("private_")
        }

    def net(self) -> Net:
        """The method's network; its values are still to be set."""
        methods: dict[str, type[Net]] = {"FedMF": FedMF, "PFedRec": PFedRec}
        return methods[self.settings.method](self.settings)

    def write(self, name: str, times: list[tuple[float, float]], tables: list[Tensor], peak: int = 0) -> None:
        """Say what it took and what came of it.

        Args:
            name: Of the framework.
            times: What `now` said when the first round began and when each ended.
            tables: The mean ones after each round, `[items, dim]`.
            peak: Of memory, in bytes, where that of one process is all.
        """
        np.save(self.folder / f"{name}.npy", torch.stack(tables).numpy())
        seconds, cpu = np.diff(np.array(times), axis=0).T.tolist()
        (self.folder / f"{name}.json").write_text(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak}))


class Net(nn.Module):
    """An item table that is shared, and a part that is private."""

    own: tuple[str, ...]
    """Names of the private parameters."""

    def __init__(self, settings: SimpleNamespace) -> None:
        super().__init__()
        self.settings = settings
        self.table = nn.Parameter(torch.empty(settings.items, settings.dim))

    @torch.no_grad()
    def put(self, values: dict[str, Tensor]) -> None:
        """Set some parameters."""
        for name, parameter in self.named_parameters():
            if name in values:
                parameter.copy_(values[name])

    def private(self) -> dict[str, Tensor]:
        """A copy of the private parameters."""
        return {name: self.get_parameter(name).detach().clone() for name in self.own}

    def optimizer(self) -> torch.optim.Optimizer:
        """A new one, for one round."""
        raise NotImplementedError

    def step(self, optimizer: torch.optim.Optimizer, items: Tensor, targets: Tensor) -> None:
        """Train on one batch."""
        raise NotImplementedError

    def train_epoch(self, items: Tensor, targets: Tensor) -> None:
        """Train on samples in their order; the optimiser starts afresh."""
        optimizer, size = self.optimizer(), self.settings.batch_size
        for start in range(0, len(items), size):
            self.step(optimizer, items[start : start + size], targets[start : start + size])


class FedMF(Net):
    """Scores sigmoid(user . row); one Adam moves both."""

    own = ("user",)

    def __init__(self, settings: SimpleNamespace) -> None:
        super().__init__(settings)
        self.user = nn.Parameter(torch.empty(settings.dim))

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam in its fastest form on a CPU."""
        return torch.optim.Adam(self.parameters(), self.settings.rate, fused=True)

    def step(self, optimizer: torch.optim.Optimizer, items: Tensor, targets: Tensor) -> None:
        """Train on one batch."""
        logits = F.embedding(items, self.table) @ self.user
        F.binary_cross_entropy_with_logits(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()


class PFedRec(Net):
    """Scores sigmoid(weight . row + bias); SGD moves the head first, and then the table, at a rate of its own."""

    own = ("head_weight", "head_bias")

    def __init__(self, settings: SimpleNamespace) -> None:
        super().__init__(settings)
        self.head_weight = nn.Parameter(torch.empty(settings.dim))
        self.head_bias = nn.Parameter(torch.empty(()))

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD; what has no gradient stays where it is."""
        rates = self.settings
        groups = [
            {"params": [self.head_weight, self.head_bias], "lr": rates.rate},
            {"params": [self.table], "lr": rates.table_rate},
        ]
        return torch.optim.SGD(groups)

    def step(self, optimizer: torch.optim.Optimizer, items: Tensor, targets: Tensor) -> None:
        """Train on one batch: the head, then the table on the loss as it is now."""
        rows = F.embedding(items, self.table)
        logits = rows.detach() @ self.head_weight + self.head_bias
        F.binary_cross_entropy_with_logits(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        logits = rows @ self.head_weight.detach() + self.head_bias.detach()
        F.binary_cross_entropy_with_logits(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()


def now() -> tuple[float, float]:
    """Seconds of the clock, and those that this process has been busy."""
    return time.perf_counter(), time.process_time()


def peak() -> int:
    """The most memory that this process has had so far, in bytes, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
