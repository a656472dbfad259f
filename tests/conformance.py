"""What every method must keep; the test class of a method inherits `Conformance`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

import pytest
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.centralized.popularity import Popularity
from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.errors import InputError
from cgfedrec.evaluation.ranking import evaluate
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import Local
from cgfedrec.protocol import Protocol
from cgfedrec.simulation.capacity import Place
from cgfedrec.train import train
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.wire import Wire

MakeData = Callable[..., FederatedDataModule]
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD with momentum and decay": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": partial(torch.optim.Adam, lr=0.01),
}
TOLERANCE = 1e-6
Stretch = tuple[Place, int, int]
"""Of a run: its store, its threads, and the round with which it ends."""
VARIANTS: list[list[Stretch]] = [
    [("disk", 1, 3)],
    [("memory", 3, 3)],
    [("memory", 1, 2), ("memory", 1, 3)],
    [("disk", 3, 3)],
    [("memory", 3, 2), ("disk", 1, 3)],
    [("disk", 1, 1), ("memory", 3, 3)],
]
"""To be compared with a run in memory, on one thread, in one go: one thing changed, then any two."""


def trained(
    method: Method, data: FederatedDataModule, cohort_size: int, rounds: int = 3, **options: Any
) -> FederatedLoop:
    loop = FederatedLoop(rounds=rounds, cohort_size=cohort_size, **options)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method, Path("clients"))
    loop.fit()
    return loop


def ran(method: Method, data: FederatedDataModule, stretches: list[Stretch], options: dict[str, Any]) -> FederatedLoop:
    """A run that was cut after each of some stretches, and went on from what a checkpoint holds."""
    state = None
    folder = Path(mkdtemp(dir="."))
    for store, threads, until in stretches:
        loop = FederatedLoop(rounds=until, cohort_size=5, store=store, **options)
        torch.set_num_threads(threads)
        try:
            loop.setup(Fabric(accelerator="cpu", devices=1), data, method, folder)
            assert loop.workers.number == threads
            if state is not None:
                loop.load_state_dict(state)
            loop.fit()
        finally:
            torch.set_num_threads(1)
        state = loop.state_dict()
    return loop


def distance(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double(), theirs.double()
    return float(((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item())


def without_time(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "time/round"}


def same(ours: FederatedLoop, theirs: FederatedLoop, exactly: bool = True) -> None:
    """Both ended with the same private states, server and metrics."""
    assert ours.store.known.equal(theirs.store.known)
    users = theirs.store.known.nonzero().squeeze(1)
    for name, rows in theirs.store.read(users).items():
        mine = ours.store.read(users)[name]
        assert mine.equal(rows) if exactly else distance(mine, rows) < TOLERANCE, name
    for name, buffer in theirs.server.state_dict().items():
        mine = ours.server.state_dict()[name]
        assert mine.equal(buffer) if exactly else distance(mine, buffer) < TOLERANCE, name
    for one, other in zip(ours.history, theirs.history, strict=True):
        assert without_time(one) == pytest.approx(without_time(other), rel=1e-9 if exactly else 1e-4)


class Conformance:
    """Inherit, say how the method is made and what may leave a client."""

    uploads: ClassVar[set[str]]
    """Names of what a client sends."""
    optimizers: ClassVar[dict[str, Any]] = OPTIMIZERS
    """Choices of ``optimizer`` to try; none for a method without that setting."""
    exactly: ClassVar[bool] = True
    """Whether training together is training alone bit for bit, and not within 1e-6 of the tensor's norm; store, threads
    and interruptions must never show."""
    wrong: ClassVar[dict[str, Any]] = {"dim": 0}
    """A setting that is refused."""
    good: ClassVar[dict[str, Any]] = {}
    """Settings with which it learns on the synthetic data of `test_it_learns`."""
    good_rounds: ClassVar[int] = 20

    odd: ClassVar[dict[str, Any]] = {"dim": 7}
    """Settings with which the numbers of a client, or of a row, fill no whole vectors of a CPU."""

    def method(self, **settings: Any) -> Method:
        raise NotImplementedError

    @pytest.fixture
    def data(self, make_data: MakeData) -> FederatedDataModule:
        """Clients with one to several batches of 32, the last of which differ in length."""
        return make_data(synthetic=Synthetic(users=14, items=60, groups=6, interactions=12), batch_size=32)

    @pytest.fixture
    def long_data(self, make_data: MakeData) -> FederatedDataModule:
        """More clients, with longer batches, the longest of which its client takes alone."""
        synthetic = Synthetic(users=20, items=150, groups=6, interactions=40)
        return make_data(synthetic=synthetic, batch_size=256)

    def test_training_together_is_training_alone(self, data: FederatedDataModule) -> None:
        for optimizer in self.optimizers.values() or [None]:
            settings = {} if optimizer is None else {"optimizer": optimizer}
            alone, *others = (trained(self.method(**settings), data, size) for size in (1, 5, 100))
            for together in others:
                same(together, alone, self.exactly)

    def test_training_together_is_training_alone_for_many_samples_too(self, long_data: FederatedDataModule) -> None:
        """Bit for bit where numbers of a row fill whole vectors of a CPU; elsewhere, as some CPUs round, nearly so."""
        for settings, exactly in (({}, self.exactly), (self.odd, False)):
            alone, *others = (trained(self.method(**settings), long_data, size, rounds=2) for size in (1, 7, 100))
            for together in others:
                same(together, alone, exactly)

    @pytest.mark.parametrize("sizes", ["even", "odd"])
    def test_bits_do_not_depend_on_where_it_ran(self, sizes: str, long_data: FederatedDataModule) -> None:
        """Store, threads and an interruption: each changed alone, and any two of them together; bit for bit."""
        method = self.method(**(self.odd if sizes == "odd" else {}))
        for variants, options in ((VARIANTS, {}), (VARIANTS[-3:], {"participants": 9})):
            whole = ran(method, long_data, [("memory", 1, 3)], options)
            for variant in variants:
                print("where it ran: store, threads and until which round:", variant)  # pytest shows it of a failure
                same(ran(method, long_data, variant, options), whole)

    def test_an_upload_depends_on_its_own_client_only(self, data: FederatedDataModule, fabric: Fabric) -> None:
        """Others' private state and others' interactions make no difference, nor does who else is there."""
        loop = trained(self.method(), data, 100, rounds=2)
        user = int(loop.data.order()[3])
        (cohort,) = [users for users in data.cohorts(torch.arange(data.num_users), 100) if user in users]
        uploads = []
        for users in (torch.tensor([user]), cohort):
            row = users.tolist().index(user)
            with loop.workers.one() as worker:
                private = {name: rows.clone() for name, rows in loop.store.read(users).items()}
                for value in private.values():
                    value[torch.arange(len(users)) != row] *= 3
                worker.client.load(users, private)
                worker.client.receive(loop.server.broadcast(users, 3), 3)
                train(fabric, worker, data.draw(users, 3, 1))
                uploads.append({name: value[row].clone() for name, value in worker.client.upload().values.items()})
        for name, value in uploads[0].items():
            assert uploads[1][name].equal(value) if self.exactly else distance(uploads[1][name], value) < TOLERANCE

    def test_what_leaves_a_client_is_what_may(self, data: FederatedDataModule) -> None:
        """By name, and by size: nothing as long as the number of its own interactions or samples."""
        loop = trained(self.method(), data, 5)
        with loop.workers.one() as worker:
            upload = worker.client.upload()
        assert set(upload.values) == self.uploads

    def test_messages_survive_the_wire_and_are_as_long_as_they_say(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 5)
        with loop.workers.one() as worker:
            client = worker.client
        upload = client.upload()
        messages = upload.pack()
        arrived_up, nbytes_up = Wire().up(upload, loop.server.expects)
        assert nbytes_up == sum(map(len, messages)) or not upload.values
        for received in (arrived_up, Upload.unpack(upload.clients, messages, loop.server.expects)):
            assert all(value.equal(upload.values[name]) for name, value in received.values.items())
        broadcast = loop.server.broadcast(client.users, loop.round + 1)
        arrived, nbytes = Wire().down(broadcast, len(client.users))
        if broadcast is None or arrived is None:
            return
        client.receive(arrived, loop.round + 1)
        own = [] if broadcast.own is None else broadcast.own.pack()
        for_all = len(client.users) * len(broadcast.pack()) if broadcast.values else 0
        assert nbytes == for_all + sum(map(len, own))
        for name, value in arrived.values.items():
            sent = broadcast.values[name]
            assert isinstance(value, Tensor) == isinstance(sent, Tensor)
            ours, theirs = (one if isinstance(one, Tensor) else one.values for one in (value, sent))
            assert ours.equal(theirs)

    def test_a_server_leaves_what_arrives_as_it_is(self, data: FederatedDataModule) -> None:
        """Values arrive in the memory of their clients, who go on to train in it."""
        loop = trained(self.method(), data, 5)
        with loop.workers.one() as worker:
            arrived, _ = Wire().up(worker.client.upload(), loop.server.expects)
        before = {name: value.clone() for name, value in arrived.values.items()}
        loop.server.aggregate(loop.server.reduce(arrived))
        loop.server.update(arrived.clients, loop.round + 1)
        assert all(value.equal(before[name]) for name, value in arrived.values.items())

    def test_scores_rank_every_item(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 5)
        scores = loop.score(torch.tensor([3, 1]))
        assert scores.shape == (2, data.num_items)
        assert scores.isfinite().all()
        assert distance(loop.score(torch.tensor([1])), scores[1:]) < 1e-5

    def test_a_wrong_setting_is_refused(self, data: FederatedDataModule) -> None:
        with pytest.raises(InputError, match=rf"method\.{next(iter(self.wrong))}"):
            trained(self.method(**self.wrong), data, 5)

    def test_it_learns(self, make_data: MakeData) -> None:
        """Well above popularity and above Local in strict, full ranking, where items lie in planted groups."""
        if not self.good:
            pytest.skip("makes no such promise")
        synthetic = Synthetic(users=300, items=100, groups=8, tastes=1, focus=0.95, skew=0.2, interactions=15)
        data = make_data(Protocol(), synthetic=synthetic)
        scores = {}
        for name, method in {"ours": self.method(**self.good), "Local": Local(dim=16, lr_eta=1.0)}.items():
            loop = trained(method, data, 64, rounds=self.good_rounds, evaluate_every=self.good_rounds)
            scores[name] = loop.evaluate("test")["test/ndcg@10"]
        popular = evaluate(data, "test", Popularity().fit(data).score, 64)["test/ndcg@10"]
        assert scores["ours"] > 1.5 * popular, (scores, popular)
        assert scores["ours"] > 1.5 * scores["Local"], (scores, popular)
