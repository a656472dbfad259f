from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from lightning import Fabric
from torch import Tensor

from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import GPFedRec
from cgfedrec.methods.gpfedrec import GraphServer
from cgfedrec.processes import Processes
from cgfedrec.testing import Conformance, trained
from cgfedrec.train import train
from cgfedrec.wire.messages import Broadcast, NotFiniteError, Upload
from cgfedrec.wire.wire import Wire


class TestGPFedRec(Conformance):
    uploads: ClassVar = {"table"}
    odd: ClassVar = {"dim": 5, "hidden": (13, 3)}
    wrong: ClassVar = {"threshold": 0.0}
    good: ClassVar = {
        "dim": 16,
        "hidden": (16,),
        "optimizer": partial(torch.optim.SGD, lr=0.5),
        "user_lr": 2.0,
        "table_lr": 500.0,
        "local_epochs": 3,
    }

    def method(self, **settings: Any) -> Method:
        small: dict[str, Any] = {"dim": 8, "hidden": (8, 4), "user_lr": 0.1, "table_lr": 1.0}
        return GPFedRec(**small | settings)

    def test_one_step_moves_three_groups_at_once(self, data: FederatedDataModule, fabric: Fabric) -> None:
        """Each down the gradient of one loss, written out in float64 with the embeddings joined, at its own rate."""
        method = self.method(reg=30.0, user_lr=0.7, table_lr=2.0)
        loop = trained(method, data, 5, rounds=2)
        users = next(iter(data.cohorts(torch.arange(data.num_users), 3)))
        (batch, *_) = data.draw(users, 3, 1)
        with loop.clients.workers.one() as worker:
            client = worker.client
            loop.clients.store.load(client, users)
            client.load(users, {name: value.clone() for name, value in client.private().items()})
            client.receive(loop.server.broadcast(users, 3), 3)
            before = {name: value.double().requires_grad_() for name, value in client.private().items()}
            means = train(fabric, worker, [batch])
            after = client.private()

        rows = torch.stack([table[items] for table, items in zip(before["table"], batch.items, strict=True)])
        hidden = torch.cat((before["user"][:, None].expand_as(rows), rows), dim=2)
        at = 0
        for inside, out in [(16, 8), (8, 4), (4, 1)]:
            hidden = hidden.relu() if at else hidden
            weight = before["network"][:, at : at + inside * out].view(-1, inside, out)
            bias = before["network"][:, at + inside * out : at + (inside + 1) * out]
            hidden = hidden @ weight + bias[:, None]
            at += (inside + 1) * out
        assert at == 177
        assert before["network"].shape[1] == 192
        assert (after["network"][:, at:] == 0).all()
        scores = hidden.squeeze(2).sigmoid()
        likelihood = torch.where(batch.targets == 1, scores, 1 - scores)
        distance = (before["table"] - self._targets(loop, users).double()).square().flatten(1).mean(1)
        loss = -(likelihood.log() * batch.weights).sum(1) + 30 * distance
        loss.sum().backward()

        assert (distance > 0).all()
        torch.testing.assert_close(means, torch.stack((loss, distance), dim=1).detach().float(), rtol=1e-5, atol=0)
        for name, rate in {"network": 0.1, "user": 0.7, "table": 2.0}.items():
            gradient = before[name].grad
            assert gradient is not None
            assert gradient.norm() > 0
            step = after[name].double() - before[name].detach()
            torch.testing.assert_close(step, -rate * gradient, rtol=1e-4, atol=1e-6)

    @staticmethod
    def _targets(loop: FederatedLoop, users: Tensor) -> Tensor:
        broadcast = loop.server.broadcast(users, 3)
        assert broadcast is not None
        assert broadcast.own is not None
        assert broadcast.own.clients.equal(users)
        return broadcast.own.values["target"]

    def test_rates_are_the_published_ones(self) -> None:
        client = GPFedRec().client(1682, 0)
        (optimizer,) = client.configure_optimizers()
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 7.9, 13_455.9])
        weights = 64 * 32 + 32 + 32 * 16 + 16 + 16 * 8 + 8 + 8 + 1
        assert client.start(torch.arange(2))["network"].shape == (2, weights + 15)

    def test_rates_that_would_not_be_positive_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"method\.lr_eta: 1.0 .* method\.user_lr"):
            GPFedRec(lr_eta=1.0)
        with pytest.raises(InputError, match=r"method\.table_lr"):
            GPFedRec(lr_eta=0.01, user_lr=1.0).client(100, 0)

    def test_every_client_starts_from_the_global_table(self, data: FederatedDataModule) -> None:
        """Its target is its own row, wherever that stands, or where there is none, that table."""
        client = self.method().client(data.num_items, 0)
        users = torch.tensor([7, 2, 5])
        client.load(users, {name: value.clone() for name, value in client.start(users).items()})
        client.receive(None, 1)
        assert client.target.equal(client.private()["table"])  # type: ignore[operator]
        table, targets = torch.randn(data.num_items, 8), torch.randn(2, data.num_items, 8)
        own = Upload(torch.tensor([5, 7]), {"target": targets})
        client.receive(Broadcast({"table": table}, own), 2)
        assert client.private()["table"].equal(table.expand(3, -1, -1))
        assert client.target.equal(torch.stack((targets[1], table, targets[0])))  # type: ignore[operator]

    def test_noise_is_laplace_s_and_stays_out_of_the_client(self, data: FederatedDataModule) -> None:
        client = self.method(noise=0.5, dim=50).client(data.num_items, 0)
        drawn = []
        for users in ([3, 1], [1]):
            start = client.start(torch.tensor(users))
            client.load(torch.tensor(users), {name: value.clone() for name, value in start.items()})
            for round in (1, 2):
                table = client.private()["table"][0].clone()
                client.receive(Broadcast({"table": table}), round)
                drawn.append(client.upload().values["table"][-1] - table)
                assert client.private()["table"].equal(table.expand(len(users), -1, -1))
        assert drawn[0].equal(drawn[2])
        assert drawn[1].equal(drawn[3])
        values = torch.stack(drawn[:2])
        assert torch.corrcoef(values.flatten(1))[0, 1].abs() < 0.1
        assert values.mean().abs() < 0.05
        assert values.abs().mean().item() == pytest.approx(0.5, rel=0.1)
        assert values.abs().quantile(0.5).item() == pytest.approx(0.5 * 0.6931, rel=0.1)


def updated(server: GraphServer, round: int, users: list[int], tables: Tensor) -> float:
    """A round in which these users upload these tables, in cohorts of three: how many neighbours they have."""
    for some, rows in zip(torch.tensor(users).split(3), tables.split(3), strict=True):
        server.aggregate(server.reduce(Upload(some, {"table": rows})))
    server.gather(Processes())
    return server.update(torch.tensor(users).sort().values, round)["graph/neighbours"]


@pytest.mark.parametrize("at_once", [1, 2**22])
@pytest.mark.parametrize("threshold", [0.5, 1.0, 3.0])
def test_averages_are_over_those_more_similar_than_the_mean(
    threshold: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cgfedrec.kit.gather.AT_ONCE", at_once)
    tables = torch.randn(8, 5, 4) + 2 * torch.randn(2, 5, 4).repeat(4, 1, 1)
    server = GraphServer(GPFedRec(dim=4, threshold=threshold), 5, seed=0)
    degree = updated(server, 1, list(range(8)), tables)

    flat = tables.double().flatten(1)
    similarity = [[float(F.cosine_similarity(one, other, dim=0)) for other in flat] for one in flat]
    mean = sum(map(sum, similarity)) / 64
    graph = [[v for v in range(8) if v == u or similarity[u][v] > threshold * mean] for u in range(8)]
    targets = torch.stack([flat[near].mean(0) for near in graph]).view(8, 5, 4)
    assert degree == sum(map(len, graph)) / 8
    torch.testing.assert_close(server.averages.rows.double(), targets, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(server.mean("table").double(), targets.mean(0), rtol=1e-5, atol=1e-6)


def test_the_graph_joins_the_similar_and_not_the_distant() -> None:
    tables = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 2.0]])[:, None]
    server = GraphServer(GPFedRec(dim=2, threshold=1.0), 1, seed=0)
    assert updated(server, 1, [0, 1, 2, 3], tables) == 2
    near = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.05, 1.5], [0.05, 1.5]])
    torch.testing.assert_close(server.averages.rows[:, 0], near)


def test_who_is_absent_keeps_its_last_average() -> None:
    server = GraphServer(GPFedRec(dim=4, threshold=1.0), 5, seed=0)
    assert server.broadcast(torch.arange(9), 1) is None
    updated(server, 1, [4, 1, 8, 6], torch.randn(4, 5, 4))
    first = dict(zip(server.averages.clients.tolist(), server.averages.rows.clone(), strict=True))
    updated(server, 2, [6, 2], torch.randn(2, 5, 4))
    broadcast = server.broadcast(torch.tensor([6, 8, 0, 4]), 3)
    assert broadcast is not None
    assert broadcast.own is not None
    assert set(broadcast.values) == {"table"}
    assert broadcast.own.clients.tolist() == [6, 8, 4]
    now, *kept = broadcast.own.values["target"]
    assert kept[0].equal(first[8])
    assert kept[1].equal(first[4])
    assert not now.equal(first[6])
    assert Wire().down(broadcast, 4)[1] == 4 * len(broadcast.pack()) + sum(map(len, broadcast.own.pack()))
    newcomer = server.broadcast(torch.tensor([0]), 3)
    assert newcomer is not None
    assert newcomer.own is None


def test_an_upload_that_is_not_finite_names_its_client() -> None:
    tables = torch.randn(4, 5, 4)
    tables[2, 3, 1] = torch.inf
    with pytest.raises(NotFiniteError) as error:
        updated(GraphServer(GPFedRec(dim=4, threshold=1.0), 5, seed=0), 1, [4, 1, 8, 6], tables)
    assert error.value.clients == [8]
