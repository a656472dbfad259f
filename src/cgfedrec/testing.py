"""Tests that every method must pass, those of cgfedrec and those that others write.

This module needs pytest, which cgfedrec itself does not: ``pip install cgfedrec[testing]``. To let pytest say which
values made an assertion fail, put ``pytest.register_assert_rewrite("cgfedrec.testing")`` into your ``conftest.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.centralized.popularity import Popularity
from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.data.own import Own
from cgfedrec.errors import InputError
from cgfedrec.evaluation.ranking import evaluate
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import Local
from cgfedrec.protocol import Protocol
from cgfedrec.simulation.capacity import Place
from cgfedrec.train import train
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.messages import Upload, dense
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("cgfedrec.testing needs pytest: pip install cgfedrec[testing]", name="pytest") from error

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD with momentum and decay": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": partial(torch.optim.Adam, lr=0.01),
}
"""Optimisers that a method with the setting ``optimizer`` is tried with."""
TOLERANCE = 1e-4
"""How far apart two tensors may lie that should be equal but for rounding, as a share of their norm. Optimisers such as
Adam make more of it: their first steps are as long for the smallest gradient as for the largest."""
HINTS = {
    "optimizers": "`optimizers = {}` where it has no setting `optimizer`",
    "wrong": 'one setting with a value that it refuses, such as `wrong = {"local_epochs": 0}`',
    "odd": "a size that is no multiple of 8, or `odd = {}` where it has no setting of size",
    "good": "settings with which it learns, or `good = {}`",
}
"""What to set an attribute of `Conformance` to, for a method that has other settings than its default names."""
Stretch = tuple[Place, int, int]
"""Of a run: the store that it uses, its number of threads, and how many rounds before the last it ends."""
VARIANTS: list[list[Stretch]] = [
    [("disk", 1, 0)],
    [("memory", 3, 0)],
    [("memory", 1, 1), ("memory", 1, 0)],
    [("disk", 3, 0)],
    [("memory", 3, 1), ("disk", 1, 0)],
    [("disk", 1, 2), ("memory", 3, 0)],
]
"""Each is compared with a run in memory, on one thread, in one go: one thing is changed first, then any two."""


def prepared(protocol: Protocol | None = None, seed: int = 0, **arguments: Any) -> FederatedDataModule:
    """A small data set, split and ready to train on; ``arguments`` are those of `FederatedDataModule`."""
    arguments.setdefault("synthetic", Synthetic(users=30, items=60, groups=6, interactions=12))
    data = FederatedDataModule(**arguments)
    data.attach(protocol or Protocol(), seed, run="a test")  # whose noise is the same each time
    data.setup()
    return data


def trained(
    method: Method, data: FederatedDataModule, cohort_size: int, rounds: int = 3, **options: Any
) -> FederatedLoop:
    """A federation after some rounds on the CPU; ``options`` are those of `FederatedLoop`."""
    loop = FederatedLoop(rounds=rounds, cohort_size=cohort_size, **options)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method, Path("clients"))
    loop.fit()
    return loop


class Watched(Wire):
    """A wire that keeps the names of what clients have sent, and of what hung on a graph of gradients still."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attached: set[str] = set()

    def up(self, upload: Upload, expected: Mapping[str, Field], round: int, seed: int) -> tuple[Upload, int]:
        self.names |= set(upload.values)
        self.attached |= {name for name, value in upload.values.items() if value.requires_grad}
        return super().up(upload, expected, round, seed)


class StopAfter:
    """A callback that ends a run after a round, as an interruption would: the rounds that it was told to do stay.

    A run that was told to do fewer would evaluate the last of these, also where others of its kind are not evaluated.
    """

    def __init__(self, round: int) -> None:
        self.round = round

    def on_round_end(self, loop: FederatedLoop) -> None:
        """Stop, if it is that round."""
        loop.should_stop = loop.round >= self.round


def ran(
    method: Method, data: FederatedDataModule, stretches: list[Stretch], options: dict[str, Any], rounds: int = 3
) -> FederatedLoop:
    """A run in several stretches: it stops after each, and the next one goes on from what a checkpoint would hold."""
    state = None
    folder = Path(mkdtemp(dir="."))
    threads_before = torch.get_num_threads()
    for store, threads, before in stretches:
        loop = FederatedLoop(rounds=rounds, cohort_size=5, store=store, **options)
        fabric = Fabric(accelerator="cpu", devices=1, callbacks=[StopAfter(rounds - before)])
        torch.set_num_threads(threads)
        try:
            loop.setup(fabric, data, method, folder)
            assert loop.clients.workers.number == threads
            if state is not None:
                loop.load_state_dict(state)
            loop.fit()
        finally:
            torch.set_num_threads(threads_before)
        state = loop.state_dict()
    return loop


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference as a share of the norm of ``theirs``; both ``[...]``, of one shape."""
    ours, theirs = ours.double(), theirs.double()
    return float(((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item())


def same(ours: FederatedLoop, theirs: FederatedLoop, exactly: bool = True) -> None:
    """Assert that two runs ended with the same private states, server and metrics: exactly, or within `TOLERANCE`."""

    def assert_close(one: Tensor, other: Tensor, name: str) -> None:
        apart = distance(one, other)
        assert one.equal(other) or (apart < TOLERANCE and not exactly), f"{name} differs by {apart:.1e} of its norm"

    assert ours.clients.store.known.equal(theirs.clients.store.known), "other clients have taken part"
    users = theirs.clients.store.known.nonzero().squeeze(1)
    for name, rows in theirs.clients.store.read(users).items():
        assert_close(ours.clients.store.read(users)[name], rows, f"the clients' {name}")
    for name, buffer in theirs.server.state_dict().items():
        assert_close(ours.server.state_dict()[name], buffer, f"the server's {name}")
    for one, other in zip(ours.history, theirs.history, strict=True):
        for name in one.keys() - {"time/round"}:  # how long a round took is never the same twice
            near = pytest.approx(other.get(name), rel=1e-9 if exactly else 1e-4)
            if name.startswith("val/") and not exactly:  # where scores nearly tie, their last bits decide a rank
                near = pytest.approx(other.get(name), abs=1e-2)
            assert one[name] == near, f"{name} of round {one['round']} differs"


def masks(value: Tensor, bounds: Bounds | None) -> Tensor:
    """Random numbers that hide single uploads and cancel in their sum: exactly, where they are whole numbers.

    Args:
        value: `[clients, ...]`, what the clients send.
        bounds: Of one client's numbers, if these are whole.

    Returns:
        `[clients, ...]`
    """
    if bounds is None:
        noise = torch.randn_like(value)
        return noise - noise.mean(0)
    # Whatever a number's bits can be, equally often; the last client takes away what the others have added.
    noise = torch.randint(1 << 62, value.shape) % (1 << bounds.widths)
    noise[-1] = -noise[:-1].sum(0)
    return noise


class Conformance:
    """The tests of one method. Inherit, say how the method is made and what its clients send, and run pytest.

        from cgfedrec.testing import Conformance

        class TestMine(Conformance):
            uploads = {"table"}

            def method(self, **settings):
                return Mine(**{"dim": 8} | settings)

    Whatever else differs is said by the attributes below. Each test runs in an empty folder, on one thread.
    """

    uploads: ClassVar[set[str]]
    """The names of what a client sends in any of the rounds: the keys of ``Client.upload().values``."""
    rounds: ClassVar[int] = 3
    """How many rounds are tried, from 3. A method whose rounds differ in what they are for says how many all take."""
    optimizers: ClassVar[dict[str, Any]] = OPTIMIZERS
    """What the setting ``optimizer`` is tried with; ``{}`` for a method without that setting."""
    exactly: ClassVar[bool] = True
    """Whether clients trained together end bit for bit where each ends alone. A method whose operations do not allow
    that says no, and must then keep within `TOLERANCE`. Store, threads and interruptions must never change a bit."""
    wrong: ClassVar[dict[str, Any]] = {"dim": 0}
    """One setting with a value that must be refused. Every method has ``local_epochs``, which cannot be 0."""
    odd: ClassVar[dict[str, Any]] = {"dim": 7}
    """Settings with which a client's numbers do not fill whole vectors of a CPU, where rounding may differ; ``{}``
    for a method without settings of size."""
    good: ClassVar[dict[str, Any]] = {}
    """Settings with which the method learns in `test_it_learns`; empty for a method that does not promise to."""
    good_rounds: ClassVar[int] = 20

    def method(self, **settings: Any) -> Method:
        """Make the method, small enough to train in a moment, with ``settings`` in place of its own."""
        raise NotImplementedError

    def _made(self, attribute: str, settings: Mapping[str, Any]) -> Method:
        """The method with ``settings`` that an attribute asks for. If it lacks one, the failure says what to set."""
        try:
            return self.method(**settings)
        except TypeError as error:
            if not any(f"unexpected keyword argument '{name}'" in str(error) for name in settings):
                raise
            told = f"{error}. `{attribute}` of {type(self).__name__} asks for it. Say there what your method has"
        pytest.fail(f"{told}: {HINTS[attribute]}", pytrace=False)

    @pytest.fixture(autouse=True)
    def _alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums by several threads depend on how many they are
        monkeypatch.chdir(tmp_path)
        yield
        torch.set_num_threads(threads)

    @pytest.fixture
    def data(self) -> FederatedDataModule:
        """Clients with one to several batches of 32, of which the last ones differ in length."""
        return prepared(synthetic=Synthetic(users=14, items=60, groups=6, interactions=12), batch_size=32)

    @pytest.fixture
    def long_data(self) -> FederatedDataModule:
        """More clients with longer batches. One client has the longest, and is a cohort of its own."""
        return prepared(synthetic=Synthetic(users=20, items=150, groups=6, interactions=40), batch_size=256)

    def test_training_together_is_training_alone(self, data: FederatedDataModule) -> None:
        """A client ends at the same place whether it trains alone, among five or with all, with every optimiser.

        Otherwise something has passed between clients, and no federation is simulated. Usual causes: a mean over the
        clients axis, an optimiser that moves clients whose batches are used up.
        """
        for optimizer in self.optimizers.values() or [None]:
            method = self._made("optimizers", {} if optimizer is None else {"optimizer": optimizer})
            alone, *others = (trained(method, data, size, self.rounds) for size in (1, 5, 100))
            for together in others:
                same(together, alone, self.exactly)

    def test_training_together_is_training_alone_for_many_samples_too(self, long_data: FederatedDataModule) -> None:
        """The same with long batches and with odd sizes. With these some CPUs round the end of a row in another way, so
        that nearly the same is enough.
        """
        for settings, exactly in (({}, self.exactly), (self.odd, False)):
            method, rounds = self._made("odd", settings), self.rounds - 1
            alone, *others = (trained(method, long_data, size, rounds) for size in (1, 7, 100))
            for together in others:
                same(together, alone, exactly)

    @pytest.mark.parametrize("sizes", ["even", "odd"])
    def test_bits_do_not_depend_on_where_it_ran(self, sizes: str, long_data: FederatedDataModule) -> None:
        """Store, threads and an interruption change no bit, neither alone nor two of them together.

        What is in no buffer of the server and in no parameter of the client is lost when a run is killed and resumed.
        """
        method = self._made("odd", self.odd if sizes == "odd" else {})
        for variants, options in ((VARIANTS, {}), (VARIANTS[-3:], {"participants": 9})):
            whole = ran(method, long_data, [("memory", 1, 0)], options, self.rounds)
            for variant in variants:
                # pytest shows it of a failure
                print("where it ran: store, threads and how many rounds before the last it ended:", variant)
                same(ran(method, long_data, variant, options, self.rounds), whole)

    def test_an_upload_depends_on_its_own_client_only(self, data: FederatedDataModule) -> None:
        """What a client sends is the same with other neighbours in its cohort, and with none.

        The others' private state is changed here. If the upload changes too, it tells of them.
        """
        for before in range(2, self.rounds):
            loop = trained(self.method(), data, 100, rounds=before)
            user = int(loop.data.order()[3])
            (cohort,) = [users for users in data.cohorts(torch.arange(data.num_users), 100) if user in users]
            alone, among = (self._upload_of(user, users, loop) for users in (torch.tensor([user]), cohort))
            for name, value in alone.items():
                assert among[name].equal(value) if self.exactly else distance(among[name], value) < TOLERANCE

    def _upload_of(self, user: int, users: Tensor, loop: FederatedLoop) -> dict[str, Tensor]:
        """What one client sends in the next round as one of ``users`` `[clients]`, the others being changed."""
        row, round = users.tolist().index(user), loop.round + 1
        with loop.clients.workers.one() as worker:
            private = {name: rows.clone() for name, rows in loop.clients.store.read(users).items()}
            for value in private.values():
                value[torch.arange(len(users)) != row] *= 3
            client = worker.client
            client.load(users, private)
            client.own = Own(loop.data, users, round, 1)
            client.receive(loop.server.broadcast(users, round), round)
            train(loop.fabric, worker, client.batches())
            with torch.no_grad():
                sent = client.upload().whole()
                return {name: dense(value[row]).clone() for name, value in sent.values.items()}

    def test_what_leaves_a_client_is_what_may(self, data: FederatedDataModule) -> None:
        """Clients send what `uploads` names and nothing else: everything else is private and stays where it is."""
        wire = Watched()
        loop = FederatedLoop(rounds=self.rounds, cohort_size=5)
        loop.setup(Fabric(accelerator="cpu", devices=1), data, self.method(), Path("clients"), wire=wire)
        loop.fit()
        assert wire.names == self.uploads
        assert not wire.attached, "what is sent needs a .detach()"

    def test_messages_survive_the_wire_and_are_as_long_as_they_say(self, data: FederatedDataModule) -> None:
        """What arrives is what was sent, both ways, and the bytes that are reported are those of the messages.

        Communication is what methods are compared by, so it is measured and never computed by a formula.
        """
        for before in range(1, self.rounds):
            self._messages_survive(trained(self.method(), data, 5, before))

    def _messages_survive(self, loop: FederatedLoop) -> None:
        """The same of the messages that a cohort would send and receive next."""
        with loop.clients.workers.one() as worker:
            client = worker.client
        upload = client.upload().whole()
        arrived_up, nbytes_up = Wire().up(upload, loop.server.expects, 4, client.seed)
        assert nbytes_up == sum(map(len, upload.pack())) or not upload.values
        for received in (arrived_up, Upload.unpack(upload.clients, upload.pack(), loop.server.expects)):
            assert received.fields == upload.fields
            assert all(dense(value).equal(dense(upload.values[name])) for name, value in received.values.items())
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
            if isinstance(sent, Tensor):
                assert isinstance(value, Tensor)
                assert value.equal(sent)
            else:
                assert value == sent

    def test_a_server_leaves_what_arrives_as_it_is(self, data: FederatedDataModule) -> None:
        """Values arrive in the memory of their clients, who go on to train in it."""
        loop = trained(self.method(), data, 5)
        with loop.clients.workers.one() as worker:
            arrived, _ = Wire().up(worker.client.upload().whole(), loop.server.expects, 4, worker.client.seed)
        before = {name: dense(value).clone() for name, value in arrived.values.items()}
        loop.server.aggregate(loop.server.reduce(arrived))
        loop.server.update(arrived.clients, loop.round + 1)
        assert all(dense(value).equal(before[name]) for name, value in arrived.values.items())

    def test_a_server_of_sums_needs_no_single_upload(self, data: FederatedDataModule) -> None:
        """Masks that cancel in the sum change nothing: the server would work under secure aggregation too.

        A server that looks at single uploads says so by ``sees_single_uploads``, and what masks them refuses it. Sums
        of whole numbers stay exactly the same.
        """
        for before in range(1, self.rounds):
            loop = trained(self.method(), data, 100, before)
            with loop.clients.workers.one() as worker:
                upload = worker.client.upload().whole()
            if loop.server.sees_single_uploads or not upload.values:
                pytest.skip("looks at single uploads, or at none")
            whole = {name: dense(value) for name, value in upload.values.items()}
            masked = {name: value + masks(value, upload.bounds.get(name)) for name, value in whole.items()}
            plain, hidden = (loop.server.reduce(replace(upload, values=values)) for values in (upload.values, masked))
            for name, value in plain.values.items():
                value = dense(value)  # a cohort's sum may be sparse
                if name in upload.bounds:
                    assert hidden.values[name].equal(value), f"the sum of {name} is another where masks cancel"
                    continue
                gap = (hidden.values[name] - value).norm() / masked[name].double().norm()
                assert gap < 1e-5, f"the sum of {name} is another where masks that cancel are added"

    def test_scores_rank_every_item(self, data: FederatedDataModule) -> None:
        """Every item has a finite score, seen or not; a client's scores are the same alone and among others.

        Of several processes one may have no client to score.
        """
        loop = trained(self.method(), data, 5, self.rounds)
        scores = loop.score(torch.tensor([3, 1]))
        assert scores.shape == (2, data.num_items)
        assert scores.isfinite().all()
        assert distance(loop.score(torch.tensor([1])), scores[1:]) < 1e-5
        assert loop.score(torch.empty(0, dtype=torch.int64)).shape == (0, data.num_items)

    def test_it_trains_in_mixed_precision(self, data: FederatedDataModule) -> None:
        """Under ``fabric.precision: bf16-mixed`` some results have 16 bits; a gradient by hand may meet both kinds."""
        loop = FederatedLoop(rounds=self.rounds, cohort_size=5)
        fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
        loop.setup(fabric, data, self.method(), Path("clients"))
        loop.fit()
        assert loop.score(torch.tensor([3, 1])).isfinite().all()

    def test_a_wrong_setting_is_refused(self, data: FederatedDataModule) -> None:
        """A value that cannot work is refused before any work, by an `InputError` that names ``method.<setting>``."""
        with pytest.raises(InputError, match=rf"method\.{next(iter(self.wrong))}"):
            trained(self._made("wrong", self.wrong), data, 5)

    def test_it_learns(self) -> None:
        """NDCG@10 is half as high again as that of popularity, and of clients that learn alone, on planted groups."""
        if not self.good:
            pytest.skip("makes no such promise")
        synthetic = Synthetic(users=300, items=100, groups=8, tastes=1, focus=0.95, skew=0.2, interactions=15)
        data = prepared(Protocol(), synthetic=synthetic)
        scores = {}
        for name, method in {"ours": self._made("good", self.good), "Local": Local(dim=16, lr_eta=1.0)}.items():
            loop = trained(method, data, 64, rounds=self.good_rounds, evaluate_every=self.good_rounds)
            scores[name] = loop.evaluate("test")["test/ndcg@10"]
        popular = evaluate(data, "test", Popularity().fit(data).score, 64)["test/ndcg@10"]
        assert scores["ours"] > 1.5 * popular, (scores, popular)
        assert scores["ours"] > 1.5 * scores["Local"], (scores, popular)
