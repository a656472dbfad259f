"""cgfedrec is held to the numbers of its plain twin: `examples/plain_cgfedrec.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from examples import plain_cgfedrec as plain
from sklearn.cluster import MiniBatchKMeans
from torch.utils.data import TensorDataset

from cgfedrec.client import Batch
from cgfedrec.methods import CGFedRec
from cgfedrec.testing import distance, prepared, trained

ROUNDS = 3
TOLERANCE = 1e-5


def samples_of(batches: list[Batch]) -> list[TensorDataset]:
    """One client's batches as the samples of each epoch, in their order."""
    epochs = []
    items, targets = [], []
    for batch in batches:
        real = batch.weights[0] > 0  # the rest is padding
        items.append(batch.items[0, real])
        targets.append(batch.targets[0, real])
        if batch.ends[0]:
            epochs.append(TensorDataset(torch.cat(items), torch.cat(targets)))
            items, targets = [], []
    return epochs


def test_three_rounds_of_the_framework_are_those_of_the_plain_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same start, same batches, same seeds of k-means: the same labels, losses, tables and heads."""
    seeds: list[int] = []

    def noted(**settings: Any) -> MiniBatchKMeans:
        seeds.append(settings["random_state"])
        return MiniBatchKMeans(**settings)

    monkeypatch.setattr("sklearn.cluster.MiniBatchKMeans", noted)
    data = prepared(batch_size=16)
    method = CGFedRec(dim=8, clusters=6, reg=0.5, optimizer=partial(torch.optim.SGD, lr=0.1), table_lr=10.0)
    loop = trained(method, data, cohort_size=7, rounds=ROUNDS)

    users = [torch.tensor([user]) for user in range(data.num_users)]
    clients = [plain.Client(data.num_items, method.dim) for _ in users]
    with loop.clients.workers.one() as worker, torch.no_grad():
        for user, client in zip(users, clients, strict=True):
            private = worker.client.start(user)
            client.table.weight.copy_(private["table"][0])
            client.head.weight.copy_(private["head_weight"])
            client.head.bias.copy_(private["head_bias"])
    labels = centroids = None
    for round, seed in zip(range(1, ROUNDS + 1), seeds, strict=True):
        losses = [
            plain.train(
                client,
                samples_of(data.draw(user, round, method.local_epochs)),
                labels,
                table_lr=10.0,
                reg=method.reg,
                batch_size=data.batch_size,
            )
            for user, client in zip(users, clients, strict=True)
        ]
        labels, centroids = plain.cluster(
            plain.mean([client.table.weight for client in clients]), method.clusters, centroids, seed
        )
        assert loop.history[round - 1]["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=TOLERANCE)

    assert loop.server.state_dict()["labels"].equal(labels)
    ours = loop.clients.store.read(torch.arange(data.num_users))
    for place, client in enumerate(clients):
        assert distance(ours["table"][place], client.table.weight.detach()) < TOLERANCE
        assert distance(ours["head_weight"][place], client.head.weight.detach()[0]) < TOLERANCE
        assert distance(ours["head_bias"][place], client.head.bias.detach()[0]) < TOLERANCE


def test_the_plain_twin_runs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    plain.main(users=12, rounds=3, silent_rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["round  1", "round  2", "round  3"]
    assert "cgfedrec" not in {name.split(".")[0] for name in vars(plain)}
