from __future__ import annotations

import numpy as np
import pytest
import torch

from cgfedrec.kit.means import MeanServer
from cgfedrec.structure.clusters import Clustering, ClusterServer
from cgfedrec.wire.messages import Broadcast, NotFiniteError, Upload
from cgfedrec.wire.values import Field, Labels

ONE = torch.tensor([0])


def blobs(clusters: int = 6, size: int = 30, seed: int = 0, spread: float = 0.05) -> tuple[torch.Tensor, np.ndarray]:
    generator = np.random.default_rng(seed)
    planted = generator.permutation(np.arange(clusters * size) % clusters)
    centers = generator.normal(size=(clusters, 5)) * 3
    return torch.from_numpy(centers[planted] + spread * generator.normal(size=(clusters * size, 5))).float(), planted


def labels_of(server: ClusterServer) -> torch.Tensor:
    broadcast = server.broadcast(ONE, 9)
    assert broadcast is not None
    labels = broadcast.values["labels"]
    assert isinstance(labels, Labels)
    return labels.values


def test_the_mean_is_over_this_round_s_participants() -> None:
    server = MeanServer({"table": Field((4, 3))}, seed=0)
    tables = torch.randn(5, 4, 3)
    for round, rows in enumerate((slice(0, 5), slice(1, 3)), 1):
        server.aggregate(server.reduce(Upload(torch.arange(5)[rows], {"table": tables[rows]})))
        server.update(ONE, round)
        torch.testing.assert_close(server.mean("table"), tables[rows].double().mean(0).float(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 7, 500])
def test_the_mean_does_not_depend_on_cohorts_or_order(size: int) -> None:
    tables = torch.randn(500, 40, 3) * torch.logspace(-4, 3, 40)[:, None]
    whole, parts = MeanServer({"table": Field((40, 3))}, 0), MeanServer({"table": Field((40, 3))}, 0)
    whole.aggregate(whole.reduce(Upload(torch.arange(500), {"table": tables})))
    for chosen in torch.randperm(500).split(size):
        parts.aggregate(parts.reduce(Upload(chosen, {"table": tables[chosen]})))
    for server in (whole, parts):
        server.update(ONE, 1)
    assert whole.mean("table").equal(parts.mean("table"))


def test_an_upload_that_is_not_finite_names_its_clients() -> None:
    server = MeanServer({"table": Field((4, 3))}, seed=0)
    tables = torch.randn(5, 4, 3)
    tables[2, 1, 1] = torch.nan
    tables[4, 0, 0] = torch.inf
    with pytest.raises(NotFiniteError) as error:
        server.aggregate(server.reduce(Upload(torch.arange(10, 15), {"table": tables})))
    assert error.value.clients == [12, 14]


@pytest.mark.parametrize("kmeans", ["minibatch", "full"])
def test_planted_clusters_are_found_and_keep_their_names(kmeans: str) -> None:
    table, planted = blobs()
    server = ClusterServer(len(table), 5, Clustering(6, kmeans), seed=0)  # type: ignore[arg-type]
    assert server.broadcast(ONE, 1) is None
    seen = []
    for round in range(1, 5):
        server.aggregate(server.reduce(Upload(ONE, {"table": table[None] + round * 0.01})))
        report = server.update(ONE, round)
        labels = labels_of(server)
        for cluster in labels.unique():
            assert len(np.unique(planted[labels == cluster])) == 1
        seen.append(report)
    assert seen[0] == {"clusters/used": 6}
    assert seen[1:] == [{"clusters/used": 6, "clusters/changed": 0}] * 3


@pytest.mark.parametrize("kmeans", ["minibatch", "full"])
def test_fewer_distinct_rows_than_clusters_leave_clusters_empty(kmeans: str) -> None:
    server = ClusterServer(20, 5, Clustering(8, kmeans), seed=0)  # type: ignore[arg-type]
    table = torch.eye(5)[torch.arange(20) % 3]
    for round in (1, 2):
        server.aggregate(server.reduce(Upload(ONE, {"table": table[None]})))
        report = server.update(ONE, round)
    assert 1 <= report["clusters/used"] <= 8
    assert (labels_of(server) < 8).all()
    assert server.centroids.isfinite().all()


def test_permuted_labels_have_the_same_sizes_and_say_nothing() -> None:
    table, planted = blobs()
    servers = [
        ClusterServer(len(table), 5, Clustering(6, labels=labels), seed=0) for labels in ("clustered", "permuted")
    ]
    for server in servers:
        server.aggregate(server.reduce(Upload(ONE, {"table": table[None]})))
        server.update(ONE, 1)
    honest, permuted = map(labels_of, servers)
    assert honest.bincount().equal(permuted.bincount())
    purity = sum(np.bincount(planted[permuted == c]).max() for c in permuted.unique()) / len(planted)
    assert purity < 0.5


def test_labels_go_down_after_the_silent_rounds() -> None:
    table, _ = blobs()
    server = ClusterServer(len(table), 5, Clustering(6, silent_rounds=3), seed=0)
    heard = []
    for round in range(1, 5):
        server.aggregate(server.reduce(Upload(ONE, {"table": table[None]})))
        server.update(ONE, round)
        heard.append(server.broadcast(ONE, round + 1) is not None)
    assert heard == [False, False, True, True]


def test_the_state_of_a_server_is_all_it_needs() -> None:
    table, _ = blobs(spread=2.0)
    servers = [ClusterServer(len(table), 5, Clustering(6), seed=0) for _ in range(2)]
    uploads = [Upload(ONE, {"table": table[None] + torch.randn(len(table), 5)}) for _ in range(4)]
    for round, upload in enumerate(uploads, 1):
        if round == 3:
            servers[1] = ClusterServer(len(table), 5, Clustering(6), seed=0)
            servers[1].load_state_dict(servers[0].state_dict())
        for server in servers:
            server.aggregate(server.reduce(upload))
            server.update(ONE, round)
        if round >= 3:
            assert labels_of(servers[0]).equal(labels_of(servers[1]))
            assert servers[0].centroids.equal(servers[1].centroids)


def test_the_welcome_is_a_seed_and_not_a_table() -> None:
    welcome = MeanServer({"table": Field((1000, 32))}, seed=7).welcome()
    assert welcome.values["seed"] == 7
    assert len(Broadcast(welcome.values).pack()) < 32


def test_frozen_labels_are_those_that_went_down_first() -> None:
    server = ClusterServer(60, 4, Clustering(5, labels="frozen", silent_rounds=2), seed=0)
    generator = torch.Generator().manual_seed(0)
    sent = []
    for round in range(1, 6):
        upload = Upload(ONE, {"table": torch.randn(1, 60, 4, generator=generator)})
        server.aggregate(server.reduce(upload))
        server.update(ONE, round)
        broadcast = server.broadcast(ONE, round + 1)
        if broadcast is not None:
            labels = broadcast.values["labels"]
            assert isinstance(labels, Labels)
            sent.append(labels.values.clone())
    assert len(sent) == 4
    assert all(labels.equal(sent[0]) for labels in sent)
