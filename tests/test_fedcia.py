"""FedCIA: Adam goes on where it was, tables are fitted along the true gradient, noise is Laplace's."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from cgfedrec.data import FederatedDataModule
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import FedCIA
from cgfedrec.methods.fedcia import Distance, FedCIAClient, KeptAdam, SimilarityServer, fit
from cgfedrec.testing import Conformance, trained
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.values import Field


def test_kept_adam_is_adam_for_each_client_with_steps_of_its_own() -> None:
    gradients = torch.randn(7, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    ours = nn.Parameter(torch.ones(2, 3, 4).double())
    mean, square = nn.Parameter(torch.zeros_like(ours)), nn.Parameter(torch.zeros_like(ours))
    steps = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    adam = KeptAdam({ours: (mean, square)}, steps, 0.01)
    theirs = [nn.Parameter(torch.ones(3, 4).double()) for _ in range(2)]
    others = [torch.optim.Adam([parameter], lr=0.01) for parameter in theirs]
    everything = [parameter.data for parameter in (ours, mean, square, steps)]
    for number, gradient in enumerate(gradients):
        clients = 1 if number in (3, 4) else 2
        for parameter, whole in zip((ours, mean, square, steps), everything, strict=True):
            parameter.grad = None
            parameter.data = whole[:clients]
        ours.grad = gradient[:clients].clone()
        adam.step()
        adam.state.clear()
        for client in range(clients):
            theirs[client].grad = gradient[client]
            others[client].step()
    torch.testing.assert_close(everything[0], torch.stack([parameter.data for parameter in theirs]))
    assert steps.tolist() == [7, 5]


@pytest.mark.parametrize("distance", ["norm", "squared"])
def test_a_table_is_fitted_along_the_gradient(distance: Distance) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3, 6, 2, generator=generator).double()
    target = torch.randn(6, 6, generator=generator).double()
    target = target + target.T
    ours = fit(table, target, 5, 0.01, distance)
    theirs = table.clone().requires_grad_()
    for _ in range(5):
        gap = (theirs @ theirs.mT - target).square().sum((1, 2))
        loss = gap.sqrt().sum() if distance == "norm" else gap.sum()
        (slope,) = torch.autograd.grad(loss, theirs)
        theirs = (theirs - 0.01 * slope).detach().requires_grad_()
    torch.testing.assert_close(ours, theirs.detach())


def test_the_server_sends_the_symmetric_part_of_the_mean() -> None:
    server = SimilarityServer({"similarity": Field((2, 2))}, seed=0)
    similarity = torch.tensor([[[1.0, 2], [4, 8]], [[3, 0], [0, 0]]])
    server.aggregate(server.reduce(Upload(torch.arange(2), {"similarity": similarity})))
    server.update(torch.arange(2), 1)
    assert server.mean("similarity").tolist() == [[2, 1.5], [1.5, 4]]


def test_the_noise_is_laplace_and_new_for_each_client_and_round(data: FederatedDataModule) -> None:
    noises = []
    for rounds in (1, 2):
        loop = trained(FedCIA(dim=4, noise=0.5), data, 100, rounds=rounds)
        with loop.clients.workers.one() as worker:
            client = worker.client
            assert isinstance(client, FedCIAClient)
            loop.clients.store.load(client, torch.arange(data.num_users))
            table = client.table.detach()
            noise = client.upload().values["similarity"] - table @ table.mT
            assert noise.allclose(client.upload().values["similarity"] - table @ table.mT)
        noises.append(noise.flatten(1))
    one = torch.cat(noises)
    assert one.corrcoef().sub(torch.eye(len(one))).abs().max() < 0.1
    assert one.mean().item() == pytest.approx(0, abs=0.01)
    assert one.abs().mean().item() == pytest.approx(0.5, rel=0.02)
    assert one.square().mean().item() == pytest.approx(2 * 0.5**2, rel=0.05)


@pytest.fixture
def data(make_data: Any) -> FederatedDataModule:
    module: FederatedDataModule = make_data()
    return module


class TestFedCIA(Conformance):
    uploads: ClassVar = {"similarity"}
    optimizers: ClassVar = {}
    good: ClassVar = {"dim": 16, "lr": 0.03, "local_epochs": 4}
    good_rounds: ClassVar = 12

    def method(self, **settings: Any) -> Method:
        return FedCIA(**{"dim": 8, "fit_steps": 10} | settings)

    def test_adam_goes_on_where_it_was(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 5, rounds=3)
        state = loop.clients.store.read(torch.arange(data.num_users))
        batches = [len(data.draw(torch.tensor([user]), 1, 1)) for user in range(data.num_users)]
        assert state["steps"].tolist() == [3 * number for number in batches]
        assert state["table_mean"].any()

    def test_a_client_comes_nearer_to_what_the_server_sent(self, data: FederatedDataModule) -> None:
        loop: FederatedLoop = trained(self.method(fit_steps=100, fit_lr=0.02), data, 100, rounds=2)
        assert isinstance(loop.server, SimilarityServer)
        target = loop.server.mean("similarity")
        users = torch.arange(data.num_users)
        with loop.clients.workers.one() as worker:
            client = worker.client
            assert isinstance(client, FedCIAClient)
            loop.clients.store.load(client, users)
            before = (client.table @ client.table.mT - target).norm(dim=(1, 2))
            client.receive(loop.server.broadcast(users, 3), 3)
            after = (client.table @ client.table.mT - target).norm(dim=(1, 2))
        assert (after < 0.5 * before).all()
