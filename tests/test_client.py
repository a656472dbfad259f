"""What every method's client must keep; a new method's test class inherits `ClientConformance`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.loop import FederatedLoop, train
from cgfedrec.messages import Broadcast, Labels, Upload
from cgfedrec.method import Method
from cgfedrec.methods import CGFedRec, Local

MakeData = Callable[..., FederatedDataModule]
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD with momentum and decay": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.05),
}
TOLERANCE = 1e-6


def trained(
    method: Method, data: FederatedDataModule, cohort_size: int, rounds: int = 3, **options: Any
) -> FederatedLoop:
    loop = FederatedLoop(rounds=rounds, cohort_size=cohort_size, **options)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method)
    loop.fit()
    return loop


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item())


def without_time(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "time/round"}


class ClientConformance:
    """Inherit, and say how the method is made."""

    def method(self, **settings: Any) -> Method:
        raise NotImplementedError

    @pytest.fixture
    def data(self, make_data: MakeData) -> FederatedDataModule:
        """Clients with one to several batches of 32, the last of which differ in length."""
        return make_data(synthetic=Synthetic(users=14, items=60, groups=6, interactions=12), batch_size=32)

    @pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_training_together_is_training_alone(
        self, optimizer: Callable[..., torch.optim.Optimizer], data: FederatedDataModule
    ) -> None:
        alone, *others = (trained(self.method(optimizer=optimizer), data, size) for size in (1, 5, 100))
        for together in others:
            for name, rows in alone.store.read(torch.arange(data.num_users)).items():
                assert together.store.read(torch.arange(data.num_users))[name].equal(rows), name
            for ours, theirs in zip(together.history, alone.history, strict=True):
                for name in theirs:
                    if name != "time/round":
                        assert ours[name] == pytest.approx(theirs[name], rel=1e-12), name

    def test_threads_and_where_state_lies_change_nothing(self, data: FederatedDataModule, tmp_path: Path) -> None:
        alone = trained(self.method(), data, 5)
        torch.set_num_threads(3)
        try:
            others = [trained(self.method(), data, 4, store=store) for store in ("memory", "disk")]
        finally:
            torch.set_num_threads(1)
        users = torch.arange(data.num_users)
        for other in others:
            assert other.workers.number == 3
            for name, rows in alone.store.read(users).items():
                assert other.store.read(users)[name].equal(rows), name
            assert [without_time(row) for row in other.history] == [without_time(row) for row in alone.history]

    def test_an_upload_depends_on_its_own_client_only(self, data: FederatedDataModule, fabric: Fabric) -> None:
        uploads = []
        for disturbed in (False, True):
            loop = FederatedLoop(rounds=1, cohort_size=100)
            loop.setup(fabric, data, self.method())
            (users,) = [cohort for cohort in data.cohorts(torch.arange(data.num_users), 100) if 0 in cohort]
            row = users.tolist().index(0)
            with loop.workers.one() as worker:
                private = {name: value.clone() for name, value in worker.client.start(users).items()}
                if disturbed:
                    for value in private.values():
                        value[torch.arange(len(users)) != row] *= -3
                worker.client.load(users, private)
                worker.client.receive(Broadcast({"labels": Labels(torch.arange(data.num_items) % 5, 5)}))
                train(fabric, worker, data.draw(users, 1, 1))
                upload = worker.client.upload()
            uploads.append({name: value[row].clone() for name, value in upload.values.items()})
        for name, value in uploads[0].items():
            assert value.equal(uploads[1][name])

    def test_uploads_and_broadcasts_survive_the_wire(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 5)
        with loop.workers.one() as worker:
            client = worker.client
        upload = client.upload()
        messages = upload.pack()
        assert sum(map(len, messages)) == upload.nbytes or not upload.values
        for name, value in Upload.unpack(upload.clients, messages).values.items():
            assert value.equal(upload.values[name])
        broadcast = loop.server.broadcast(client.users)
        if broadcast is not None:
            client.receive(Broadcast.unpack(broadcast.pack()))

    def test_the_head_and_the_batches_stay_at_home(self, data: FederatedDataModule) -> None:
        with trained(self.method(), data, 5).workers.one() as worker:
            assert set(worker.client.upload().values) <= {"table"}

    def test_scores_rank_every_item(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 5)
        scores = loop.score(torch.tensor([3, 1]))
        assert scores.shape == (2, data.num_items)
        assert scores.isfinite().all()
        assert distance(loop.score(torch.tensor([1])), scores[1:]) < TOLERANCE


class TestLocal(ClientConformance):
    def method(self, **settings: Any) -> Method:
        return Local(**{"dim": 8, "lr_eta": 1.0} | settings)

    def test_sends_and_receives_nothing(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 5)
        assert loop.bytes_up == loop.bytes_down == 0
        assert not list(loop.server.buffers())


class TestCGFedRec(ClientConformance):
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
