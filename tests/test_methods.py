"""The methods that share `TableClient` and `FactorClient`."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from lightning import Fabric

from cgfedrec.client import empty_parameter
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop, train
from cgfedrec.messages import Broadcast, Labels
from cgfedrec.method import Method
from cgfedrec.methods import CGFedRec, FedMF, Local, PFedRec
from cgfedrec.rows import by_rows
from tests.conformance import OPTIMIZERS, Conformance, trained

MORE = OPTIMIZERS | {
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.05),
}


class TestLocal(Conformance):
    uploads: ClassVar[set[str]] = set()

    def method(self, **settings: Any) -> Method:
        return Local(**{"dim": 8, "lr_eta": 1.0} | settings)

    def test_sends_and_receives_nothing(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 5)
        assert loop.bytes_up == loop.bytes_down == 0
        assert not list(loop.server.buffers())


class TestCGFedRec(Conformance):
    uploads: ClassVar = {"table"}
    optimizers: ClassVar = MORE
    wrong: ClassVar = {"clusters": 1}

    def method(self, **settings: Any) -> Method:
        return CGFedRec(**{"dim": 8, "clusters": 6, "reg": 0.05, "lr_eta": 1.0} | settings)

    def test_alignment_pulls_items_with_one_label_together(self, data: FederatedDataModule, fabric: Fabric) -> None:
        loop = FederatedLoop(rounds=1)
        loop.setup(fabric, data, self.method(reg=5.0))
        labels = torch.arange(data.num_items) % 6
        (users, *_) = data.cohorts(torch.arange(data.num_users), 100)
        batches = [batch for batch in data.draw(users, 1, 2) if len(batch.items) == len(users)]
        similarity = []
        for broadcast in (None, Broadcast({"labels": Labels(labels, 6)})):
            with loop.workers.one() as worker:
                loop.store.load(worker.client, users)
                worker.client.receive(broadcast)
                train(fabric, worker, batches * 5)
                unit = torch.nn.functional.normalize(worker.client.private()["table"], dim=2)
            same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
            similarity.append((unit @ unit.transpose(1, 2))[:, same].mean().item())
        assert abs(similarity[0]) < 0.1
        assert similarity[1] > 0.5

    def test_without_weight_it_is_local(self, data: FederatedDataModule) -> None:
        aligned = trained(self.method(reg=0.0), data, 5)
        local = trained(Local(dim=8, lr_eta=1.0), data, 5)
        everyone = torch.arange(data.num_users)
        tables = [loop.store.read(everyone)["table"] for loop in (aligned, local, trained(self.method(), data, 5))]
        assert tables[0].equal(tables[1])
        assert not tables[2].equal(tables[1])

    def test_clients_share_one_start_and_one_or_no_head(self, data: FederatedDataModule, fabric: Fabric) -> None:
        heads = {}
        for head in ("shared", "private"):
            loop = FederatedLoop()
            loop.setup(fabric, data, self.method(head=head, init_scale=0.5))
            with loop.workers.one() as worker:
                start = worker.client.start(torch.arange(10))
            assert (start["table"] == start["table"][0]).all()
            assert start["table"].std().item() == pytest.approx(0.5, rel=0.1)
            assert start["head_weight"].abs().max() <= 8**-0.5
            heads[head] = start["head_weight"]
        assert (heads["shared"] == heads["shared"][0]).all()
        assert len({tuple(row) for row in heads["private"].tolist()}) == 10

    def test_the_table_learns_at_lr_times_items_times_eta(self, data: FederatedDataModule) -> None:
        method = self.method(optimizer=OPTIMIZERS["SGD"], lr_eta=80.0)
        rates = [o.param_groups[0]["lr"] for o in method.client(1682, 0).configure_optimizers()]
        assert rates == [0.1, pytest.approx(13_456)]
        rates = [o.param_groups[0]["lr"] for o in self.method(table_lr=3.0).client(10, 0).configure_optimizers()]
        assert rates[1] == 3.0


class TestFedMF(Conformance):
    uploads: ClassVar = {"table"}
    good: ClassVar = {"dim": 16, "local_epochs": 2, "optimizer": partial(torch.optim.Adam, lr=0.1)}

    def method(self, **settings: Any) -> Method:
        return FedMF(**{"dim": 8} | settings)


class TestPFedRec(Conformance):
    uploads: ClassVar = {"table"}
    good: ClassVar = {"dim": 16, "lr_eta": 200.0}

    def method(self, **settings: Any) -> Method:
        return PFedRec(**{"dim": 8, "lr_eta": 1.0} | settings)


def test_all_that_is_wrong_with_a_method_is_said_at_once() -> None:
    with pytest.raises(InputError) as error:
        CGFedRec(clusters=1, temperature=0.0, silent_rounds=0, dim=0)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        f"method.{name}" for name in ("silent_rounds", "clusters", "temperature", "dim")
    ]


def test_adam_goes_over_whole_vectors_at_once_and_does_as_told() -> None:
    table, user = empty_parameter(5, 16), empty_parameter(7)
    cases: list[tuple[dict[str, Any], set[bool | None]]]
    cases = [({}, {True, None}), ({"foreach": False}, {None}), ({"fused": False}, {False})]
    for told, expected in cases:
        groups = by_rows(torch.optim.Adam([table, user], lr=0.3, **told)).param_groups
        assert {group["fused"] for group in groups} == expected
        assert [group["lr"] for group in groups] == [0.3] * len(expected)
        assert {one for group in groups for one in group["params"]} == {table, user}
        assert all(table in group["params"] for group in groups if group["fused"])
