"""CoLR: the wire is as sparse as it says, and every client has the server's table."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch

from cgfedrec.client import Batch
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.method import Method
from cgfedrec.methods import CoLR
from cgfedrec.methods.colr import CoLRClient, CoLRServer, change, random_basis
from cgfedrec.testing import Conformance, trained
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.values import SparseRows


def server_of(rank: int = 2) -> CoLRServer:
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    return CoLRServer(CoLR(dim=4, rank=rank), start, seed=5)


def test_a_basis_is_orthogonal_and_new_in_each_round() -> None:
    basis = random_basis(0, 1, 4, 64)
    torch.testing.assert_close(basis @ basis.T, 16 * torch.eye(4), atol=1e-5, rtol=0)
    assert basis.equal(random_basis(0, 1, 4, 64))
    assert not torch.allclose(basis, random_basis(0, 2, 4, 64), atol=0.1)


def test_a_row_is_averaged_over_those_who_touched_it() -> None:
    server = server_of()
    factor = torch.zeros(3, 3, 2)
    factor[0, 0], factor[2, 0], factor[1, 1] = torch.tensor([1.0, 2]), torch.tensor([3.0, 0]), torch.tensor([0, -5.0])
    for rows in (slice(0, 2), slice(2, 3)):
        server.aggregate(server.reduce(Upload(torch.arange(3)[rows], {"factor": factor[rows]}, frozenset({"factor"}))))
    report = server.update(torch.arange(3), 1)
    assert report == {"items/touched": pytest.approx(2 / 3)}
    broadcast = server.broadcast(torch.tensor([1, 7, 2]), 2)
    assert broadcast is not None
    assert broadcast.own is not None
    mean = broadcast.values["factor"]
    assert isinstance(mean, SparseRows)
    assert mean.values.tolist() == [[2, 1], [0, -5], [0, 0]]
    assert broadcast.own.clients.tolist() == [7]


def test_the_loss_is_that_of_the_changed_table() -> None:
    client = CoLR(dim=4, rank=2).client(6, 3)
    assert isinstance(client, CoLRClient)
    users = torch.tensor([2, 5])
    client.load(users, {name: value.clone() for name, value in client.start(users).items()})
    client.factor.data.normal_(generator=torch.Generator().manual_seed(0))
    items, targets = torch.tensor([[0, 3, 3], [5, 1, 0]]), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    weights = torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0]])
    loss = client.training_step(Batch(items, targets, weights, torch.tensor([3.0, 2]), torch.ones(2).bool()), 0).loss
    loss.sum().backward()
    table, factor, basis, user = (
        getattr(client, name).detach().double().requires_grad_() for name in ("table", "factor", "basis", "user")
    )
    changed = table + factor @ basis
    logits = torch.einsum("cd,cbd->cb", user, changed[torch.arange(2)[:, None], items])
    expected = (torch.nn.functional.softplus(logits) - targets * logits).mul(weights).sum(1)
    expected.sum().backward()
    torch.testing.assert_close(loss.double(), expected)
    assert client.factor.grad is not None
    torch.testing.assert_close(client.factor.grad.to_dense().double(), factor.grad)
    assert client.user.grad is not None
    torch.testing.assert_close(client.user.grad.double(), user.grad)
    assert client.table.grad is None
    torch.testing.assert_close(client.score().double(), torch.einsum("cd,cnd->cn", user, changed).detach())


class TestCoLR(Conformance):
    uploads: ClassVar = {"factor"}
    wrong: ClassVar = {"rank": 9}
    good: ClassVar = {"dim": 16, "rank": 4, "optimizer": partial(torch.optim.SGD, lr=6.0)}

    def method(self, **settings: Any) -> Method:
        return CoLR(**{"dim": 8, "rank": 3} | settings)

    def test_who_comes_back_has_the_table_of_those_who_stayed(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 4, rounds=5, participants=6)
        assert isinstance(loop.server, CoLRServer)
        server = loop.server
        everyone = torch.arange(data.num_users)
        last = server.up_to_date
        assert len(last) == 6
        now = server.table + change(server.mean("factor"), random_basis(server.seed, 5, 3, 8))
        with loop.clients.workers.one() as worker:
            client = worker.client
            loop.clients.store.load(client, everyone)
            client.receive(server.broadcast(everyone, 6), 6)
        assert isinstance(client, CoLRClient)
        assert client.table.equal(now.expand_as(client.table))
        assert not client.factor.any()
        assert not now.allclose(client.start(everyone)["table"][0], atol=1e-3)

    def test_it_sends_less_than_a_table_both_ways(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 100, rounds=3)
        tables = 3 * data.num_users * data.num_items * 8 * 4
        assert loop.bytes_up < 0.5 * tables
        assert loop.bytes_down < 0.5 * tables

    def test_a_rank_above_the_dimension_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"method\.rank: 9 is more than method\.dim, 8"):
            CoLR(dim=8, rank=9)
