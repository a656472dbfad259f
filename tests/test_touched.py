"""Tables that follow what comes down: clients train the rows that they touch, to the bits that all rows would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer

from cgfedrec.client import Batch, Client, StepOutput
from cgfedrec.data.synthetic import Synthetic
from cgfedrec.errors import RunError
from cgfedrec.failures import Failures
from cgfedrec.kit.rows import by_rows, leaves_alone
from cgfedrec.kit.table import TableClient
from cgfedrec.lent import Lent, Scratch
from cgfedrec.loop import FederatedLoop
from cgfedrec.memory import is_shared
from cgfedrec.method import Method
from cgfedrec.methods import FedMF, FedNCF, PFedRec
from cgfedrec.methods.fedmf import FedMFClient
from cgfedrec.methods.fedncf import FedNCFClient
from cgfedrec.methods.local import Local
from cgfedrec.methods.pfedrec import PFedRecClient
from cgfedrec.simulation.store import ClientStore, DiskStore, MemoryStore, WholeStore
from cgfedrec.simulation.store.layout import Layout
from cgfedrec.testing import trained
from cgfedrec.touched import Touched
from cgfedrec.wire.clipped import Clipped
from cgfedrec.wire.frames import Frames
from cgfedrec.wire.messages import Broadcast, NotFiniteError, Upload
from cgfedrec.wire.quantised import Quantised
from cgfedrec.wire.sums import rounded_sum
from cgfedrec.wire.toprows import TopRows
from cgfedrec.wire.wire import Step, Wire
from tests.conftest import MakeData

MOMENTUM = partial(SGD, lr=0.05, momentum=0.9)
METHODS: dict[str, tuple[type[Client], Callable[[], Method]]] = {
    "FedMF": (FedMFClient, lambda: FedMF(dim=16)),
    "FedMF, no whole vectors": (FedMFClient, lambda: FedMF(dim=5)),
    "FedMF, narrow": (FedMFClient, lambda: FedMF(dim=4)),  # fused, and yet some rows would be no whole vector
    "FedMF, momentum": (FedMFClient, lambda: FedMF(dim=16, optimizer=MOMENTUM)),
    "FedMF, single uploads": (FedMFClient, lambda: FedMF(dim=16, aggregation="trimmed_mean")),
    "PFedRec": (PFedRecClient, lambda: PFedRec(dim=16, local_epochs=2)),
    "FedNCF": (FedNCFClient, lambda: FedNCF(dim=8, hidden=(8,))),
}
STORES: dict[str, dict[str, Any]] = {
    "whole": {},
    "memory": {"failures": Failures(refused=0.5)},  # nobody is refused, and yet might be
    "disk": {"store": "disk"},
    "some fail": {"failures": Failures(after=0.3)},
    "some take part": {"participants": 9},
    "judged at the end": {"participants": 9, "evaluate_every": 6, "rounds": 6},
    "bfloat16": {"state_dtype": "bfloat16"},
}


@pytest.mark.parametrize("store", list(STORES))
@pytest.mark.parametrize("name", list(METHODS))
def test_results_are_those_of_whole_tables(
    name: str, store: str, make_data: MakeData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind, method = METHODS[name]
    data, counted = make_data(batch_size=16), Counted(monkeypatch)  # some clients have more batches than others
    found = {}
    for follows in (frozenset({"table"}), frozenset[str]()):
        monkeypatch.setattr(kind, "follows", follows)
        folder = tmp_path / str(len(follows))
        folder.mkdir()
        monkeypatch.chdir(folder)  # where a store has its file
        loop = trained(method(), data, 7, **{"rounds": 3} | STORES[store])
        found[bool(follows)] = results(loop)
        assert bool(counted.times) == bool(follows), "nobody trained by rows, or somebody who should not"
        counted.times = 0
    assert found[True].keys() == found[False].keys()
    for what, value in found[True].items():
        assert value.equal(found[False][what]), what


class Counted:
    """How often a cohort was trained by the rows that it touches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        leave = Touched.leave

        def counting(touched: Touched) -> None:
            self.times += 1
            leave(touched)

        monkeypatch.setattr(Touched, "leave", counting)


def results(loop: FederatedLoop) -> dict[str, Tensor]:
    """All that a run ends with: metrics, the server's state, and every record of its clients."""
    seen = {
        f"{place} {name}": torch.tensor(value)
        for place, row in enumerate(loop.history)
        for name, value in row.items()
        if name.startswith(("train/", "val/", "bytes/"))
    }
    state = loop.clients.store.state_dict()
    kept = {name: state[name] for name in ("users", "numbers", "sums")} | {"on base": state["bases"] >= 0}
    rows = loop.clients.store.read(state["users"])
    return seen | kept | rows | dict(loop.server.state_dict())


@pytest.mark.parametrize(
    ("optimizer", "alone"),
    [
        (partial(Adam, lr=0.1), True),
        (partial(Adam, lr=0.1, amsgrad=True), True),
        (partial(NAdam, lr=0.1), True),
        (partial(Adagrad, lr=0.1), True),
        (partial(SGD, lr=0.1), True),
        (MOMENTUM, True),
        (partial(AdamW, lr=0.1), False),
        (partial(SGD, lr=0.1, weight_decay=1e-3), False),
        (partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-8), False),
        (partial(Adam, lr=0.1, weight_decay=1e-3), False),
    ],
)
def test_rows_without_a_gradient_stay_unless_they_decay(
    optimizer: Callable[..., Optimizer], alone: bool, make_data: MakeData
) -> None:
    assert leaves_alone(by_rows(optimizer([nn.Parameter(torch.zeros(0, 4, 2))]))) == alone
    loop = trained(FedMF(dim=4, optimizer=optimizer), make_data(), 7, rounds=1)
    with loop.clients.workers.one() as worker:
        assert worker.client.follows == ({"table"} if alone else frozenset())


class Careless(FedMFClient):
    """A step of its own, which looks at all rows."""

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        output = super().training_step(batch, step)
        return StepOutput(output.loss + 0.01 * self.table.square().sum((1, 2)))


class Wrong(Careless):
    follows = frozenset({"table"})


def test_a_step_of_ones_own_says_anew_what_follows(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FedMFClient.follows == {"table"}
    assert Careless.follows == frozenset()
    monkeypatch.setattr(FedMF, "client_class", Careless)
    trained(FedMF(dim=4), make_data(), 7, rounds=2)
    monkeypatch.setattr(FedMF, "client_class", Wrong)
    with pytest.raises(RunError, match=r"Wrong.training_step uses all rows of 'table'.*rows_of, or let Wrong.follows"):
        trained(FedMF(dim=4), make_data(), 7, rounds=2)


class Half:
    """Moves half of the way to what comes down: the client's own table counts."""

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        if broadcast is not None:
            self.table.data.lerp_(  # type: ignore[attr-defined]
                broadcast.values["table"], 0.5
            )


class Mixed(Half, FedMFClient):
    """What it receives is another's."""


class OwnStart(FedMFClient):
    """Each begins with a table of its own."""

    def start(self, users: Tensor) -> dict[str, Tensor]:
        start = super().start(users)
        return start | {"table": start["table"] + users[:, None, None] * 0.01}


def test_what_a_mixin_does_is_heeded() -> None:
    assert Mixed.follows == frozenset()
    assert OwnStart.follows == {"table"}


def test_a_start_of_ones_own_is_ones_own(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FedMF, "client_class", OwnStart)
    data, ends = make_data(), []
    for follows in (frozenset({"table"}), frozenset[str]()):
        monkeypatch.setattr(OwnStart, "follows", follows)
        ends.append(results(trained(FedMF(dim=16), data, 7, rounds=2)))
    assert all(value.equal(ends[1][what]) for what, value in ends[0].items())


def test_a_shared_table_stays_shared_on_another_device() -> None:
    client = FedMF(dim=4).client(10, 0)
    start = client.start(torch.arange(3))
    client.to("meta").load(torch.arange(3), start)
    assert is_shared(client.table.data)
    assert client.table.shape == (3, 10, 4)
    assert not is_shared(client.user.data)


def test_rows_are_dropped_once_half_of_their_clients_have_trained_again(make_data: MakeData) -> None:
    """Whoever takes part keeps the rows of others no longer than that; and what came down is there once a round."""
    data = make_data(synthetic=Synthetic(users=30, items=200, interactions=12))
    loop = trained(FedMF(dim=16), data, 4, rounds=30, participants=9, evaluate_every=30)
    store = loop.clients.store
    assert isinstance(store, WholeStore)
    waiting = [store._waiting[one.users] == number for number, one in store._trained.items()]
    assert sum(int(mine.sum()) for mine in waiting) == int(store.known.sum())
    assert all(2 * int(mine.sum()) > len(mine) for mine in waiting)
    rounds = store._number[store.known].unique()
    assert len({one.bases["table"].data_ptr() for one in store._trained.values()}) <= len(rounds)


def test_a_base_is_not_trained(make_data: MakeData) -> None:
    """What came down is in one memory for all, one client alone too."""
    client = FedMF(dim=4).client(10, 0)
    table = torch.ones(10, 4)
    for users in (torch.tensor([3]), torch.tensor([3, 5])):
        client.load(users, client.start(users))
        client.replace("table", table)
        assert is_shared(client.table.data)
        assert client.table.shape == (len(users), 10, 4)
    data = make_data()
    loop = trained(FedMF(dim=4), data, 1, rounds=2)
    with loop.clients.workers.one() as worker:
        assert worker.client.start(torch.tensor([0, 1]))["table"][0].equal(
            worker.client.start(torch.tensor([2]))["table"][0]
        )


def moved(clients: int = 5, items: int = 300, dim: int = 4, seed: int = 0) -> tuple[Upload, Tensor]:
    """An upload beside a base, with some rows of each client, of the last none; and its tables in full."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(items, dim, generator=generator)
    touched = torch.rand(clients, items, generator=generator) < torch.linspace(0.9, 0, clients)[:, None]
    tables = base.repeat(clients, 1, 1)
    tables[touched] += torch.randn(int(touched.sum()), dim, generator=generator)
    tables[:, 7] = base[7]  # the bits of the base, whether trained or not
    touched[:-1, 7] = True
    indices = touched.nonzero().T
    sparse = torch.sparse_coo_tensor(indices, tables[touched], tables.shape, is_coalesced=True, check_invariants=True)
    return Upload(torch.arange(clients) + 10, {"table": sparse}, bases={"table": base}), tables


def test_an_upload_beside_a_base_is_the_upload_of_its_tables() -> None:
    upload, tables = moved()
    plain = Upload(upload.clients, {"table": tables})
    assert upload.whole().values["table"].equal(tables)
    assert upload.fields == plain.fields
    assert upload.pack() == plain.pack()
    assert Frames.of(upload).nbytes == sum(map(len, plain.pack()))
    arrived, nbytes = Wire().up(upload, plain.fields, 1, 0)
    assert nbytes == sum(map(len, plain.pack()))
    assert arrived.whole().values["table"].equal(tables)
    assert arrived.sum().values["table"].equal(rounded_sum(tables))
    nearly, nobody = upload.only(torch.tensor([14])), torch.full((300, 4), -1e-14)  # of which no row differs
    zeros = replace(nearly, bases={"table": nobody}).sum().values["table"]
    assert not zeros.signbit().any()
    for users in ([11, 14], [14], [10, 11, 12, 13, 14], []):
        chosen = arrived.only(torch.tensor(users, dtype=torch.int64))
        wanted = plain.only(torch.tensor(users, dtype=torch.int64)).values["table"]
        assert chosen.whole().values["table"].equal(wanted)
        assert chosen.sum().values["table"].equal(rounded_sum(wanted))
    with pytest.raises(ValueError, match="field 'table' is a sparse tensor"):
        replace(upload, bases={}).pack()


@pytest.mark.parametrize("step", [Quantised(bits=4), Clipped(norm=1.0), TopRows(share=0.5)])
def test_a_step_of_the_wire_is_given_tables_in_full(step: Step) -> None:
    upload, tables = moved()
    plain = Upload(upload.clients, {"table": tables})
    ours, theirs = (
        Wire([step]).up(one.beside(lambda: {"table": upload.bases["table"]}), plain.fields, 1, 0)
        for one in (upload, plain)
    )
    assert ours[1] == theirs[1]
    assert ours[0].sum().values["table"].equal(theirs[0].sum().values["table"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_is_found_beside_a_base(value: float) -> None:
    upload, _ = moved()
    upload.values["table"].values()[-1, 2] = value
    with pytest.raises(NotFiniteError) as caught:
        upload.sum()
    assert caught.value.clients == [13]


@pytest.mark.parametrize("items", [300, 3000])
def test_records_are_those_of_tables_in_full(items: int) -> None:
    """A row that was trained to the same bits is not kept, and a table that differs nearly everywhere is whole."""
    upload, tables = moved(items=items)
    sparse, base = upload.values["table"], upload.bases["table"]
    layout = Layout({"table": tuple(base.shape)}, {"table": torch.float32})
    packed, plain = (layout.pack(len(tables), {"table": one}, {"table": base}) for one in (sparse, tables))
    assert packed.on_base.equal(plain.on_base)
    assert packed.on_base.squeeze(1).tolist() == [False, True, True, True, True]
    assert packed.numbers.equal(plain.numbers)
    assert (packed.content == plain.content).all()


@pytest.mark.parametrize("kind", [MemoryStore, WholeStore, DiskStore])
def test_what_waits_is_there_for_whoever_reads_it(kind: Callable[..., ClientStore], tmp_path: Path) -> None:
    upload, tables = moved(items=400)
    client = TableClient(Local(dim=4, head="private"), 400, 0)
    store = kind(torch.arange(20).flip(0), client.private(), folder=tmp_path)
    client.follows = frozenset({"table"})
    client.load(upload.clients, client.start(upload.clients))
    client.moved, client.bases = {"table": upload.values["table"]}, dict(upload.bases)
    store.save(client)
    before = store.state_dict()
    for some in ([13], [10, 12], [10, 11, 12, 13, 14], [14, 11]):
        assert store.read(torch.tensor(some))["table"].equal(tables[torch.tensor(some) - 10])
        after = store.state_dict()  # whatever has been read meanwhile
        assert after["sums"].equal(before["sums"])
        assert after["numbers"].equal(before["numbers"])
    later = kind(torch.arange(20).flip(0), client.private(), folder=tmp_path)
    later.load_state_dict(after)
    assert later.state_dict()["sums"].equal(before["sums"])
    assert later.read(upload.clients)["table"].equal(tables)


def test_memory_is_lent_as_it_fits() -> None:
    lent = Lent()
    first = lent.tensor([1000], torch.float32)
    where = first.data_ptr()
    del first
    assert lent.tensor([100], torch.float32).data_ptr() != where  # far too large for that
    assert lent.tensor([1100], torch.float32).data_ptr() == where  # a little more than before
    scratch, cpu = Scratch(), torch.device("cpu")
    again = scratch.tensor([8, 2], torch.float32, cpu).data_ptr()
    assert scratch.tensor([3, 5], torch.float32, cpu).data_ptr() == again
    assert scratch.tensor([3, 5], torch.float64, cpu).dtype == torch.float64
