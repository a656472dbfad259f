"""The methods that share `TableClient` and `FactorClient`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from lightning import Fabric

from cgfedrec.client import empty_parameter
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.kit.optimisers import LowRankSGD, TableSGD
from cgfedrec.kit.rows import baddbmm, bmm, by_rows, dense_copies
from cgfedrec.loop import FederatedLoop
from cgfedrec.memory import ALIGNMENT, aligned
from cgfedrec.method import Method
from cgfedrec.methods import CGFedRec, FedMF, Local, PFedRec
from cgfedrec.testing import OPTIMIZERS, Conformance, trained
from cgfedrec.train import train
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.values import Labels
from tests.conftest import ROOT, MakeData

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
            with loop.clients.workers.one() as worker:
                loop.clients.store.load(worker.client, users)
                worker.client.receive(broadcast, 2)
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
        tables = [
            loop.clients.store.read(everyone)["table"] for loop in (aligned, local, trained(self.method(), data, 5))
        ]
        assert tables[0].equal(tables[1])
        assert not tables[2].equal(tables[1])

    def test_clients_share_one_start_and_one_or_no_head(self, data: FederatedDataModule, fabric: Fabric) -> None:
        heads = {}
        for head in ("shared", "private"):
            loop = FederatedLoop()
            loop.setup(fabric, data, self.method(head=head, init_scale=0.5))
            with loop.clients.workers.one() as worker:
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


def test_settings_stay_as_they_were_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        Local().dim = 0  # type: ignore[misc]


def test_sgd_with_our_rates_steps_on_rows_alone_and_what_others_derive_from_it_does_not() -> None:
    class Theirs(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            """Anything."""

    table = empty_parameter(5, 16)
    plain = [torch.optim.SGD([table], lr=0.1), TableSGD([table]), LowRankSGD([table], weight_decay=0)]
    assert not any(dense_copies(by_rows(optimizer)) for optimizer in plain)
    dense = [LowRankSGD([table]), TableSGD([table], momentum=0.9), Theirs([table])]
    assert all(dense_copies(by_rows(optimizer)) for optimizer in dense)


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


@pytest.mark.parametrize("clients", [1, 2, 3])
def test_one_client_alone_is_rounded_as_among_others(clients: int) -> None:
    """Products with vectors, as the last layer of a network and its gradient have them."""
    torch.manual_seed(0)
    for rows, inside, columns in ((256, 64, 1), (1, 64, 128), (64, 400, 1), (13, 7, 5)):
        left, right = torch.randn(4, rows, inside), torch.randn(4, inside, columns)
        leaves = left.requires_grad_(), right.requires_grad_(), torch.randn(4, 1, 1).requires_grad_()
        upstream = torch.randn(4, rows, columns)
        all_of_them = baddbmm(leaves[2], left, right)
        expected = [all_of_them, bmm(left, right), *torch.autograd.grad(all_of_them, leaves, upstream)]
        some = [leaf[:clients] for leaf in leaves]
        product = baddbmm(some[2], some[0], some[1])
        ours = [product, bmm(some[0], some[1]), *torch.autograd.grad(product, some, upstream[:clients])]
        for one, other in zip(ours, expected, strict=True):
            assert one.equal(other[:clients])


def test_a_cohort_begins_where_a_new_tensor_would_wherever_it_lay(make_data: MakeData) -> None:
    """However long its rows are, and kept by the store."""
    data = make_data()
    for dim in (16, 7):
        loop = trained(FedMF(dim=dim), data, 5, rounds=1)
        users = loop.data.order()[3:6]
        with loop.clients.workers.one() as worker:
            loop.clients.store.load(worker.client, users)
            table = worker.client.private()["table"]
            stored = loop.clients.store.read(users)["table"]
            assert table.equal(stored)
            assert table.data_ptr() % ALIGNMENT == 0
            table += 1
            loop.clients.store.save(worker.client)
        assert loop.clients.store.read(users)["table"].equal(table)


def test_clients_at_one_start_share_it() -> None:
    shared = torch.zeros(100)[1:50].expand(3, -1)
    assert aligned(shared) is shared
    own = torch.zeros(150)[3:].view(3, 49)
    assert aligned(own).data_ptr() % ALIGNMENT == 0
    assert aligned(own).equal(own)


def test_bits_do_not_depend_on_where_it_ran_on_other_processors() -> None:
    """Intel's library, told to use old instructions, rounds by place and by threads where it does not with new ones."""
    chosen = [*(f"tests/test_{name}.py" for name in ("fedncf", "gpfedrec", "fedca")), "-k", "where_it_ran and not even"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *chosen,
        "-k",
        "where_it_ran and not even",
    ]
    environment = os.environ | {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.startswith("...."), ran.stdout
