"""Replays what the published implementation did, file by file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.client import Batch
from cgfedrec.kit.means import MeanServer
from cgfedrec.lent import Lent
from cgfedrec.methods.cgfedrec import CGFedRec
from cgfedrec.structure.alignment import AlignedClient
from cgfedrec.train import Worker, train
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.values import Field, Labels
from tests.conftest import ROOT

FOLDER = Path(os.environ.get("CGFEDREC_PARITY", ROOT.parent / "shared" / "parity"))
FILES = sorted(FOLDER.glob("*.npz"))
RESTARTED, CHAINED = 2e-5, 1e-3
"""Relative tolerances that the files' README names."""
STATE = {"table": "item_after", "head_weight": "head_weight_after", "head_bias": "head_bias_after"}


class Reference:
    """One file."""

    def __init__(self, path: Path) -> None:
        self.values = np.load(path)
        self.config: dict[str, Any] = json.loads(str(self.values["config"]))
        self.rounds = sum(name.endswith("/aggregate") for name in self.values)
        self.clients = self.config["clients"]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.values[name])

    def state(self, round: int) -> dict[str, Tensor]:
        """All clients' private state before a round, `[clients, ...]`."""
        if round == 0:
            names = {"table": "init/item", "head_weight": "init/head_weight", "head_bias": "init/head_bias"}
            return self._shaped({k: torch.stack([self.tensor(v)] * self.clients) for k, v in names.items()})
        return self.state_after(round - 1)

    def state_after(self, round: int) -> dict[str, Tensor]:
        """All clients' private state after a round."""
        return self._shaped(
            {
                k: torch.stack([self.tensor(f"round{round}/client{c}/{v}") for c in range(self.clients)])
                for k, v in STATE.items()
            }
        )

    def _shaped(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "table": state["table"],
            "head_weight": state["head_weight"].reshape(self.clients, -1),
            "head_bias": state["head_bias"].reshape(self.clients),
        }

    def batch(self, round: int, clients: list[int]) -> Batch:
        """The clients' one batch, padded to the longest."""
        items = [self.tensor(f"round{round}/client{c}/items") for c in clients]
        targets = [self.tensor(f"round{round}/client{c}/targets").float() for c in clients]
        weights = [torch.full((len(one),), 1 / len(one)) for one in items]
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        sizes = torch.tensor([float(len(one)) for one in items])
        return Batch(pad(items), pad(targets), pad(weights), sizes, torch.ones(len(items), dtype=torch.bool))

    def broadcast(self, round: int) -> Broadcast | None:
        labels = self.tensor(f"round{round}/labels_used").long()
        return None if labels[0] < 0 else Broadcast({"labels": Labels(labels, self.config["clusters"])})

    def client(self) -> AlignedClient:
        config = self.config
        optimizer = partial(getattr(torch.optim, config["optimizer"]), lr=config["lr"])
        assert config["base_temperature"] == 0.5
        method = CGFedRec(
            dim=config["latent_dim"],
            optimizer=optimizer,
            table_lr=config["item_lr"],
            reg=config["reg"],
            temperature=config["temperature"],
        )
        return AlignedClient(method, config["items"], seed=0)


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).double().norm() / theirs.double().norm()).item())


def cohorts(reference: Reference, size: int) -> Iterator[list[int]]:
    for start in range(0, reference.clients, size):
        yield list(range(start, min(start + size, reference.clients)))


@pytest.mark.skipif(not FILES, reason=f"no parity files in {FOLDER}: CGFEDREC_PARITY names the folder")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("chained", [False, True], ids=["restarted", "chained"])
@pytest.mark.parametrize("cohort_size", [1, 4, 1000], ids=["alone", "cohorts of 4", "one cohort"])
def test_every_round_ends_where_the_published_code_ends(
    path: Path, chained: bool, cohort_size: int, fabric: Fabric
) -> None:
    reference = Reference(path)
    assert reference.rounds > 1
    tolerance = CHAINED if chained else RESTARTED
    client = reference.client()
    module, *optimizers = fabric.setup(client, *client.configure_optimizers())
    worker = Worker(client, module, optimizers, Lent())
    server = MeanServer({"table": Field((reference.config["items"], reference.config["latent_dim"]))}, seed=0)
    state = reference.state(0)
    for round in range(reference.rounds):
        state = state if chained else reference.state(round)
        after = {name: torch.empty_like(value) for name, value in state.items()}
        for users in cohorts(reference, cohort_size):
            client.load(torch.tensor(users), {name: value[users].clone() for name, value in state.items()})
            client.receive(reference.broadcast(round), round + 1)
            batches = [reference.batch(round, users)] * reference.config["local_epochs"]
            means = train(fabric, worker, batches)
            losses = torch.stack([reference.tensor(f"round{round}/client{c}/loss").squeeze() for c in users])
            assert distance(means[:, 0], losses) < tolerance, f"loss of round {round}"
            server.aggregate(server.reduce(client.upload()))
            for name, value in client.private().items():
                after[name][users] = value
        server.update(torch.arange(reference.clients), round + 1)
        assert distance(server.mean("table"), reference.tensor(f"round{round}/aggregate")) < tolerance
        for name, theirs in reference.state_after(round).items():
            for c in range(reference.clients):
                assert distance(after[name][c], theirs[c]) < tolerance, f"{name} of client {c} after round {round}"
        state = after


def test_one_millionth_in_the_log_sum_is_seen(monkeypatch: pytest.MonkeyPatch, fabric: Fabric) -> None:
    """The tolerance is tight enough: without the published code's 1e-6 the replay fails."""
    if not FILES:
        pytest.skip(f"no parity files in {FOLDER}")
    monkeypatch.setattr("cgfedrec.structure.exact.EPSILON", 0.0)
    with pytest.raises(AssertionError):
        test_every_round_ends_where_the_published_code_ends(FILES[0], False, 1000, fabric)
