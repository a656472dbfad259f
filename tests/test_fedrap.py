from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from cgfedrec.client import Batch
from cgfedrec.data import FederatedDataModule
from cgfedrec.kit.early_stop import EarlyStop
from cgfedrec.kit.means import TableServer
from cgfedrec.methods import FedRAP
from cgfedrec.methods.fedrap import FedRAPClient
from cgfedrec.testing import Conformance, trained
from cgfedrec.wire.messages import Broadcast, Upload

BATCH = Batch(
    torch.tensor([[0, 2, 2, 4], [1, 3, 0, 0]]),
    torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]]),
    torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0]]),
    torch.tensor([4.0, 2.0]),
    torch.tensor([False, True]),
)
"""A batch of four samples, one item twice, and one of two."""


class TestFedRAP(Conformance):
    uploads: ClassVar[set[str]] = {"common"}
    optimizers: ClassVar[dict[str, Any]] = {}
    good: ClassVar[dict[str, Any]] = {
        "dim": 16,
        "lr": 1.0,
        "table_lr": 20.0,
        "lr_decay": 1.0,
        "weight_decay": 0.015,
        "local_epochs": 4,
    }

    def method(self, **settings: Any) -> FedRAP:
        return FedRAP(**{"dim": 8, "local_epochs": 3} | settings)

    def test_a_client_that_stopped_stands_still(self, data: FederatedDataModule) -> None:
        """With a tolerance that every second epoch meets, ten epochs are two; with none, they are not."""
        everyone = torch.arange(data.num_users)
        ended = []
        for epochs, tolerance in ((2, 0.0), (10, 1e9), (10, 0.0)):
            loop = trained(self.method(local_epochs=epochs, tolerance=tolerance), data, 5, rounds=2)
            ended.append(loop.clients.store.read(everyone))
        for name, value in ended[0].items():
            assert ended[1][name].equal(value), name
            assert not ended[2][name].equal(value), name

    def test_weights_and_rates_follow_the_round(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 100)
        users = torch.arange(3)
        with loop.clients.workers.one() as worker:
            client = worker.client
            assert isinstance(client, FedRAPClient)
            loop.clients.store.load(client, users, to_train=False)
            for broadcast, rounds in ((None, 0), (loop.server.broadcast(users, 4), 3)):
                client.receive(broadcast, rounds + 1)
                assert client.strength == pytest.approx(math.tanh(rounds / 10))
                rates = [group["lr"] for group in worker.optimizers[0].param_groups]
                assert rates == pytest.approx([0.5 * 0.97**rounds, 200 * 0.97**rounds])
        constant = self.method(ramp="constant").client(5, 0)
        constant.receive(None, 1)
        assert constant.strength == 1

    def test_it_scores_with_the_servers_table_and_its_own(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 100)
        assert isinstance(loop.server, TableServer)
        users = torch.tensor([4, 0])
        private = loop.clients.store.read(users)
        before = {name: value.clone() for name, value in private.items()}
        items = private["personal"] + loop.server.mean("common")
        expected = torch.einsum("cd,cnd->cn", private["head_weight"], items)
        torch.testing.assert_close(loop.score(users), expected)
        for name, value in loop.clients.store.read(users).items():
            assert value.equal(before[name])


def test_a_step_is_that_of_sgd_with_weight_decay_on_the_loss_of_the_paper() -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"lr": 0.3, "table_lr": 2.0, "weight_decay": 0.05, "apart": 0.4, "sparse": 0.7}
    client = FedRAP(dim=3, **settings, ramp="constant").client(5, 0)
    (optimizer,) = client.configure_optimizers()
    users = torch.arange(2)
    client.load(users, {name: torch.randn(value.shape) for name, value in client.start(users).items()})
    client.receive(None, 1)
    before = {name: value.double() for name, value in client.private().items()}
    output = client.training_step(BATCH, 0)
    output.loss.sum().backward()
    optimizer.step()
    for row in range(2):
        mine = {name: value[row].clone().requires_grad_() for name, value in before.items()}
        length = int(BATCH.sizes[row])
        loss = plain_loss(mine, BATCH.items[row, :length], BATCH.targets[row, :length].double(), 0.4, 0.7)
        plain = torch.optim.SGD([mine["personal"], mine["common"]], lr=2.0, weight_decay=0.05)
        plain.add_param_group({"params": [mine["head_weight"], mine["head_bias"]], "lr": 0.3})
        loss.backward()
        plain.step()
        assert output.loss[row].item() == pytest.approx(loss.item(), abs=1e-5)
        for name, value in client.private().items():
            torch.testing.assert_close(value[row].double(), mine[name].detach(), rtol=1e-5, atol=1e-6)


def plain_loss(client: dict[str, Tensor], items: Tensor, targets: Tensor, apart: float, sparse: float) -> Tensor:
    """As the paper writes it, for one client and in float64."""
    personal, common = client["personal"][items], client["common"][items]
    scores = torch.sigmoid((personal + common) @ client["head_weight"] + client["head_bias"])
    loss = torch.nn.functional.binary_cross_entropy(scores, targets)
    return loss - apart * torch.nn.functional.mse_loss(personal, common) + sparse * common.abs().mean()


def test_a_client_stops_when_an_epochs_mean_loss_changes_little() -> None:
    stop = EarlyStop(2, 0.1, torch.device("cpu"))
    ends = torch.tensor([True, True])

    def observe(*losses: float, ends: Tensor = ends) -> list[bool]:
        clients = len(losses)
        sizes = torch.tensor([4.0, 1.0])[:clients]
        stop.observe(torch.tensor(losses), BATCH._replace(sizes=sizes, ends=ends[:clients]))
        return stop.active.tolist()

    assert observe(1.0, 1.0) == [True, True]
    assert observe(2.0, 1.0, ends=torch.tensor([False, False])) == [True, True]
    assert observe(0.1, 0.5) == [False, True], "means of 1.05 and 0.75 are compared with 1"
    assert observe(3.0) == [False], "who has stopped does not go on, and clients may leave"


def test_the_common_table_is_the_mean() -> None:
    server = FedRAP(dim=2).server(3, 0)
    assert server.broadcast(torch.tensor([0]), 1) is None
    tables = torch.randn(4, 3, 2)
    for rows in (slice(0, 3), slice(3, 4)):
        server.aggregate(server.reduce(Upload(torch.arange(4)[rows], {"common": tables[rows]})))
    server.update(torch.arange(4), 7)
    broadcast = server.broadcast(torch.tensor([0]), 8)
    assert broadcast is not None
    arrived = Broadcast.unpack(broadcast.pack(), broadcast.fields).values
    torch.testing.assert_close(arrived["common"], tables.double().mean(0).float(), rtol=0, atol=0)
