"""FedCA: the weights solve the paper's program, and a client that stops early stands still."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import Fabric
from scipy.optimize import minimize

from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.method import Method
from cgfedrec.methods import FedCA
from cgfedrec.methods.fedca import (
    FedCAClient,
    MixServer,
    complementarity,
    leading_directions,
    mix_weights,
    project_to_simplex,
    similarity,
)
from cgfedrec.processes import Processes
from cgfedrec.testing import OPTIMIZERS, Conformance, trained
from cgfedrec.wire.messages import Upload


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    points = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[4] = 0.25
    for ours, point in zip(project_to_simplex(points).numpy(), points.numpy(), strict=True):
        found = minimize(
            lambda w, point=point: ((w - point) ** 2).sum(),
            np.full(4, 0.25),
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            tol=1e-12,
        )
        np.testing.assert_allclose(ours, found.x, atol=1e-5)


def test_complementarity_is_the_cosine_of_the_mean_principal_angle() -> None:
    angles = torch.tensor([0.3, 1.1], dtype=torch.float64)
    one = torch.eye(4, dtype=torch.float64)[:2]
    other = torch.zeros(2, 4, dtype=torch.float64)
    other[0, 0], other[0, 2] = angles[0].cos(), angles[0].sin()
    other[1, 1], other[1, 3] = -angles[1].cos(), angles[1].sin()
    ours = complementarity(torch.stack((one, other.flip(0))))
    expected = torch.tensor([[1, np.cos(0.7)], [np.cos(0.7), 1]], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, atol=1e-7, rtol=0)


def test_similarity_is_the_distance_along_first_principal_components() -> None:
    along = torch.tensor([[2.0, -1, -1], [-2, 1, 1], [4, -2, -2]], dtype=torch.float64)
    changes = torch.zeros(3, 3, 2, dtype=torch.float64)
    changes[0, :, 0], changes[1, :, 1], changes[2, :, 0] = along
    far = -1 / (1 + np.sqrt(6))
    ours = similarity(changes + 7)
    expected = torch.tensor([[-1, -1, far], [-1, -1, far], [far, far, -1]], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_leading_directions_are_those_of_the_rows_seen_as_often_as_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    table, seen = torch.randn(2, 9, 5, generator=generator), torch.randint(0, 3, (2, 9), generator=generator)
    seen[1] = torch.tensor([1, 2, 3, 4, 0, 0, 0, 0, 0])
    ours = leading_directions(table, seen.float(), 2)
    for client in range(2):
        rows = table[client].repeat_interleave(seen[client], 0)
        theirs = torch.linalg.svd(rows - rows.mean(0)).Vh[:2]
        torch.testing.assert_close((ours[client] * theirs).sum(1).abs(), torch.ones(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("clients", [0, 1])
def test_nobody_or_one_alone_has_nothing_to_mix_with(clients: int) -> None:
    server, table = (
        MixServer(FedCA(dim=3, alpha=0.3, beta=0.3, directions=2), torch.zeros(6, 3), seed=0),
        torch.randn(2, 6, 3),
    )
    turn = (torch.arange(2) < clients).float()[:, None, None]
    values = {"table": table * turn, "directions": torch.eye(3)[:2] * turn, "samples": 9 * turn}
    server.aggregate(server.reduce(Upload(torch.arange(2), values)))
    server.gather(Processes())
    server.update(torch.arange(2), 1)
    torch.testing.assert_close(server.mixes.rows, table[:clients])


def test_mixes_go_to_those_whose_turn_it_was_and_wait_for_them() -> None:
    generator = torch.Generator().manual_seed(0)
    server = MixServer(FedCA(dim=3, alpha=0.3, beta=0.3, directions=2), torch.zeros(6, 3), seed=0)
    table, samples = torch.randn(4, 6, 3, generator=generator), torch.tensor([10.0, 0, 30, 20])
    directions = torch.linalg.qr(torch.randn(4, 3, 2, generator=generator)).Q.mT
    values = {"table": table, "directions": directions, "samples": samples[:, None, None]}
    server.aggregate(server.reduce(Upload(torch.tensor([5, 1, 7, 3]), values)))
    server.gather(Processes())
    assert server.update(torch.tensor([1, 3, 5, 7]), 1)["mixes/clients"] == 3
    sent = torch.tensor([0, 2, 3])
    weights = mix_weights(table[sent], directions[sent], samples[sent], 0.3, 0.3)
    assert weights.sum(1).tolist() == pytest.approx([1, 1, 1])
    mixes = torch.einsum("uv,vnd->und", weights, table[sent].double()).float()
    for users in ([3, 1, 5], [9, 3]):
        broadcast = server.broadcast(torch.tensor(users), 2)
        assert broadcast is not None
        assert broadcast.own is not None
        assert broadcast.own.clients.tolist() == [user for user in users if user in (3, 5)]
        torch.testing.assert_close(broadcast.own.values["table"][0], mixes[2])
    none = {name: value[:1] * 0 for name, value in values.items()}
    server.aggregate(server.reduce(Upload(torch.tensor([3]), none)))
    server.gather(Processes())
    server.update(torch.tensor([3]), 2)
    assert server.mixes.clients.tolist() == [5, 7]


class TestFedCA(Conformance):
    uploads: ClassVar = {"table", "directions", "samples"}
    wrong: ClassVar = {"directions": 9}
    good: ClassVar = {"dim": 16, "init_scale": 0.1, "local_epochs": 2, "share": 1.0, "own": 0.0, "directions": 2}

    def method(self, **settings: Any) -> Method:
        return FedCA(**{"dim": 8, "directions": 3, "share": 0.5, "local_epochs": 3, "tolerance": 0.01} | settings)

    def test_a_mix_draws_a_table_near(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(own=0.75), data, 100, rounds=1)
        assert isinstance(loop.server, MixServer)
        users = torch.arange(data.num_users)
        before = loop.clients.store.read(users)["table"].clone()
        with loop.clients.workers.one() as worker:
            client = worker.client
            loop.clients.store.load(client, users)
            client.receive(loop.server.broadcast(users, 2), 2)
        expected = before.clone()
        waiting = loop.server.mixes.clients
        assert 2 <= len(waiting) < data.num_users
        expected[waiting] = 0.75 * before[waiting] + 0.25 * loop.server.mixes.rows
        assert isinstance(client, FedCAClient)
        torch.testing.assert_close(client.table.detach(), expected)

    def test_only_those_whose_turn_it_is_send_their_tables(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(share=0.3), data, 100, rounds=1)
        assert isinstance(loop.server, MixServer)
        sent, header = len(loop.server.mixes.clients), 100
        table = data.num_items * (8 * 4 + 4)
        assert 0 < sent < data.num_users
        assert sent * table < loop.bytes_up < sent * (table + 3 * 36 + 8) + data.num_users * header

    @pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=str)
    def test_a_client_that_stops_early_stands_still(
        self, data: FederatedDataModule, fabric: Fabric, optimizer: Any
    ) -> None:
        """With a tolerance above any change of the loss all stop after two epochs, with any optimiser."""
        states = []
        for tolerance, epochs in ((1e6, 5), (1e6, 2), (0, 2), (0, 5)):
            loop = trained(self.method(optimizer=optimizer, tolerance=tolerance, local_epochs=epochs), data, 100, 1)
            states.append(loop.clients.store.read(torch.arange(data.num_users)))
        for name in ("user", "table"):
            assert states[0][name].equal(states[1][name])
            assert states[1][name].equal(states[2][name])
            assert not states[2][name].equal(states[3][name])

    def test_settings_that_cannot_be_are_named(self) -> None:
        with pytest.raises(InputError) as error:
            FedCA(share=0, own=1.5, alpha=-1, directions=20)
        assert [problem.split(":")[0] for problem in error.value.problems] == [
            f"method.{name}" for name in ("share", "own", "alpha", "directions")
        ]
