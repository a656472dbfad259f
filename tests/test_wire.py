"""What travels is what is counted, what arrives is checked, and what is private stays on its side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Fabric
from torch import Tensor

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.client import Client
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.kit.means import MeanServer
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import CGFedRec, CoFedRec, CoLR, FedCIA, FedMF, FedRAP, GPFedRec, Local
from cgfedrec.methods.fedca import FedCA
from cgfedrec.methods.fedncf import FedNCF
from cgfedrec.random import private_seed, shared_seed
from cgfedrec.testing import trained
from cgfedrec.wire.frames import Frame, Frames
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Step, Wire, WireError

MakeData = Callable[..., FederatedDataModule]


@dataclass(frozen=True)
class Scaled(Step):
    """Sends numbers multiplied, in half the bytes."""

    factor: float
    seen: list[str]

    def fields(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
        return {name: Field(field.shape, torch.float16) for name, field in fields.items()}

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        self.seen.append(f"forward {self.factor}")
        return Upload(upload.clients, {name: (value * self.factor).half() for name, value in upload.values.items()})

    def reverse(self, upload: Upload, round: int) -> Upload:
        self.seen.append(f"reverse {self.factor}")
        return Upload(upload.clients, {name: value.float() / self.factor for name, value in upload.values.items()})


class Masked(Scaled):
    """A step whose result is of use in sums alone."""

    sums_only = True


TABLE = {"table": Field((5, 3))}


def upload(clients: int = 2) -> Upload:
    return Upload(torch.arange(clients), {"table": torch.randn(clients, 5, 3)})


def test_values_that_no_step_changes_are_not_copied() -> None:
    sent = upload()
    arrived, nbytes = Wire().up(sent, TABLE, 1, 7)
    assert arrived.values["table"].data_ptr() == sent.values["table"].data_ptr()
    assert nbytes == sum(map(len, sent.pack()))


@pytest.mark.parametrize(
    ("expected", "problem"),
    [
        ({"rows": Field((5, 3))}, "the message holds table, where rows is expected"),
        ({"table": Field((5, 4))}, r"field 'table' is not float32 \[5, 4\]"),
        ({"table": Field((3, 5))}, r"field 'table' is not float32 \[3, 5\]"),
        ({"table": Field((5, 3), torch.float64)}, r"field 'table' is not float64 \[5, 3\]"),
        ({"table": Field((5, 3), sparse=True)}, r"field 'table' is not sparse float32 \[5, 3\]"),
        ({}, "the message holds table, where nothing is expected"),
        (TABLE | {"bias": Field(())}, "the message holds table, where table, bias is expected"),
    ],
)
def test_an_upload_that_the_server_did_not_declare_is_refused(expected: dict[str, Field], problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        Wire().up(upload(), expected, 1, 7)


def test_steps_go_forward_in_order_and_are_reversed_in_the_opposite_one() -> None:
    seen: list[str] = []
    sent = upload()
    arrived, nbytes = Wire([Scaled(2.0, seen), Scaled(8.0, seen)]).up(sent, TABLE, 1, 7)
    assert seen == ["forward 2.0", "forward 8.0", "reverse 8.0", "reverse 2.0"]
    torch.testing.assert_close(arrived.values["table"], sent.values["table"], rtol=1e-3, atol=1e-3)
    halves = Upload(sent.clients, {"table": sent.values["table"].half()})
    assert nbytes == sum(map(len, halves.pack())), "counted is what travelled"


def test_a_step_that_is_not_reversed_is_refused() -> None:
    class Lossy(Scaled):
        def reverse(self, upload: Upload, round: int) -> Upload:
            return upload

    with pytest.raises(WireError, match=r"wire\.steps: turn an upload .*float16"):
        Wire([Lossy(1.0, [])]).up(upload(), TABLE, 1, 7)


@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 5), st.floats(0, 1), st.integers(0, 2**32))
def test_frames_hold_the_bytes_of_the_messages(clients: int, items: int, dim: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    touched = torch.rand(clients, items, 1, generator=generator) < share
    values = {
        "rows": torch.where(touched, torch.rand(clients, items, dim, generator=generator) + 0.5, 0),
        "count": torch.randint(9, (clients,), generator=generator),
        "table": torch.randn(clients, items, dim, generator=generator).to(torch.bfloat16),
        "slice": torch.randn(clients, items + 3, generator=generator)[:, -1],  # with gaps between its numbers
        "nothing": torch.zeros(clients, 0),
    }
    sent = Upload(torch.arange(clients), values, frozenset({"rows"}))
    frames = Frames.of(sent)
    assert frames.nbytes == sum(map(len, sent.pack()))
    for received in (frames.read(sent.fields), Upload.unpack(sent.clients, sent.pack(), sent.fields)):
        assert received.sparse == sent.sparse
        assert all(received.values[name].equal(value) for name, value in values.items())


def test_rows_of_items_that_are_not_there_are_refused() -> None:
    rows = torch.eye(4)[None].repeat(2, 1, 1)
    sent = Upload(torch.arange(2), {"rows": rows}, frozenset({"rows"}))
    frames = Frames.of(sent)
    (frame,) = frames.fields
    assert isinstance(frame, Frame)
    items, _ = frame.buffers
    items.view(torch.int32)[5] = 4
    with pytest.raises(ValueError, match="in ascending order"):
        frames.read(sent.fields)


def test_a_federation_trains_through_its_steps(make_data: MakeData, fabric: Fabric) -> None:
    seen: list[str] = []
    counted = []
    for wire in (Wire(), Wire([Scaled(4.0, seen)])):
        loop = FederatedLoop(rounds=2)
        loop.setup(fabric, make_data(), FedMF(dim=8), wire=wire)
        loop.fit()
        counted.append(loop.bytes_up)
    assert {"forward 4.0", "reverse 4.0"} == set(seen)
    assert 0.45 < counted[1] / counted[0] < 0.55


def test_a_step_for_sums_refuses_a_server_that_looks_at_single_uploads(make_data: MakeData, fabric: Fabric) -> None:
    wire = Wire([Masked(2.0, [])])
    FederatedLoop().setup(fabric, make_data(), CGFedRec(dim=8, clusters=6), wire=wire)
    with pytest.raises(InputError, match=r"wire\.steps: Masked works on sums alone, and the server of CoFedRec"):
        FederatedLoop().setup(fabric, make_data(), CoFedRec(dim=8, clusters=6), wire=wire)


@pytest.mark.parametrize("method", [CGFedRec(dim=8, clusters=6), FedMF(dim=8), CoLR(dim=8), FedRAP(dim=8)])
def test_the_start_that_clients_share_comes_with_the_welcome(method: Method, make_data: MakeData) -> None:
    """Clients are made without it; two federations whose servers greet differently start from different tables."""
    data = make_data()
    loop = trained(method, data, 100, rounds=1)
    starts = []
    for seed in (shared_seed(data.seed), 5):
        client = method.client(data.num_items, private_seed(data.seed))
        client.welcome(Broadcast({"seed": torch.tensor(seed)}))
        starts.append(next(value for value in client.start(torch.arange(3)).values() if value.ndim == 3))
    with loop.clients.workers.one() as worker:
        mine = next(value for value in worker.client.start(torch.arange(3)).values() if value.ndim == 3)
    assert mine.equal(starts[0])
    assert not mine.equal(starts[1])


def test_without_a_server_nobody_is_greeted(make_data: MakeData) -> None:
    data = make_data()
    loop = trained(Local(dim=8), data, 100, rounds=1)
    with loop.clients.workers.one() as worker:
        assert worker.client.shared_seed == shared_seed(data.seed), "the start of the method that it is the control of"
    assert (loop.bytes_up, loop.bytes_down, loop.bytes_scoring) == (0, 0, 0)


def test_whoever_scores_with_a_fresh_download_pays_for_it(make_data: MakeData) -> None:
    data = make_data()
    loop = trained(FedRAP(dim=8), data, 7, rounds=3)
    sent = loop.server.broadcast(torch.arange(3), 4)
    assert sent is not None
    assert loop.bytes_scoring == 3 * data.num_users * len(sent.pack()), "three evaluations"
    assert [row["bytes/scoring"] for row in loop.history] == [
        round * data.num_users * len(sent.pack()) for round in (1, 2, 3)
    ]
    before = loop.bytes_scoring
    loop.score(torch.arange(3))
    assert loop.bytes_scoring - before == 3 * len(sent.pack())
    assert loop.history[-1]["bytes/total"] == loop.bytes_up + loop.bytes_down
    assert trained(FedMF(dim=8), data, 7).bytes_scoring == 0, "who scores with what is there receives nothing"


def test_who_never_took_part_is_greeted_before_scoring(make_data: MakeData) -> None:
    data = make_data()
    loop = trained(FedMF(dim=8), data, 7, rounds=1, participants=4)
    welcome = loop.server.welcome()
    assert welcome is not None
    assert loop.bytes_scoring == (data.num_users - 4) * len(welcome.pack())


def started(method: Method, private: int, shared: int) -> Client:
    """Three clients of a federation with these seeds, at their start."""
    client = method.client(30, private)
    client.welcome(Broadcast({"seed": torch.tensor(shared)}))
    users = torch.arange(3)
    client.load(users, {name: value.clone() for name, value in client.start(users).items()})
    client.receive(None, 1)
    return client


NOISY = [GPFedRec(dim=4, hidden=(4,), noise=0.5, table_lr=1.0, user_lr=0.1), FedCIA(dim=4, noise=0.5)]


def noise_of(method: Method, private: int, shared: int) -> Tensor:
    """What an upload holds beside what it is made of."""
    client = started(method, private, shared)
    table = client.private()["table"]
    sent = client.upload().values
    if isinstance(method, FedCIA):
        return sent["similarity"] - table @ table.mT
    return sent["table"] - table


@pytest.mark.parametrize("method", NOISY, ids=lambda method: type(method).__name__)
def test_noise_follows_from_the_private_seed_alone(method: Method) -> None:
    noise = noise_of(method, 1, 2)
    assert noise.abs().mean() > 0.2
    torch.testing.assert_close(noise_of(method, 1, 3), noise, rtol=0, atol=1e-5)
    assert (noise_of(method, 4, 2) - noise).abs().mean() > 0.2


@pytest.mark.parametrize(
    ("method", "own"),
    [
        (CGFedRec(dim=4, clusters=6, head="private"), {"head_weight", "head_bias"}),
        (CGFedRec(dim=4, clusters=6), set()),
        *((kind(dim=4), {"user"}) for kind in (FedMF, FedNCF, GPFedRec, CoLR, FedCA, FedCIA)),
        (FedRAP(dim=4), set()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_a_client_s_own_starts_from_the_private_seed_and_the_rest_from_the_shared_one(
    method: Method, own: set[str]
) -> None:
    before, other_private, other_shared = (started(method, *seeds).private() for seeds in ((1, 2), (4, 2), (1, 3)))
    for name, value in before.items():
        constant = not value.any()  # zeros, to begin with
        assert other_private[name].equal(value) == (name not in own or constant), name
        assert other_shared[name].equal(value) == (name in own or constant), name


@pytest.mark.parametrize("method", NOISY, ids=lambda method: type(method).__name__)
def test_no_server_holds_the_clients_seed(method: Method, make_data: MakeData) -> None:
    """Neither in what it is made of, nor in its messages: nor the seed of the run, from which both are derived."""
    data = make_data(seed=123456789)
    loop = trained(method, data, 100, rounds=2)
    numbers = held(loop)
    assert shared_seed(data.seed) in numbers, "what is looked for would be found"
    assert not numbers & {private_seed(data.seed), data.seed}


def held(loop: FederatedLoop) -> set[int]:
    """Every whole number that a server holds, in whatever it is made of, and in its messages."""
    found: set[int] = set()
    seen: set[int] = set()

    def look(value: object) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, int):
            found.add(value)
        elif isinstance(value, Tensor):
            if not value.is_floating_point():
                found.update(value.flatten().tolist())
        elif isinstance(value, Mapping):
            for one in (*value.keys(), *value.values()):
                look(one)
        elif isinstance(value, list | tuple | set):
            for one in value:
                look(one)
        elif hasattr(value, "__dict__") and not callable(value):
            look(vars(value))
        if isinstance(value, torch.nn.Module):
            look(vars(value))

    users = torch.arange(loop.data.num_users)
    look(loop.server)
    look([loop.server.welcome(), loop.server.broadcast(users, 3)])
    return found


def test_the_private_seed_does_not_follow_from_the_shared_one() -> None:
    """Both are hashes of the run's seed: they repeat themselves, and no two of the three are alike."""
    for seed in (0, 1, 2**63 - 1):
        assert shared_seed(seed) == shared_seed(seed)
        assert len({seed, shared_seed(seed), private_seed(seed)}) == 3
        assert 0 <= shared_seed(seed) < 2**63


def test_fit_test_and_recommend_tell_what_scoring_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One table a user for each of two evaluations and the test, and again for whoever asks."""
    small = {"data": {"synthetic": {"users": 20, "items": 40, "groups": 4, "interactions": 8}}, "logger": None}
    run = cgfedrec.fit(
        small,
        {"method": {"class_path": "FedRAP", "init_args": {"dim": 4}}, "loop.rounds": 2},
        {"run_dir": str(tmp_path)},
    )
    table = 40 * 4 * 4
    users = run.data.num_users
    assert 3 * users * table < run.summary["bytes/scoring"] < 3 * users * (table + 40)
    checkpoint = str(tmp_path / "checkpoints" / "best.ckpt")
    assert users * table < cgfedrec.load(checkpoint).test()["bytes/scoring"] < users * (table + 40)
    assert main(["recommend", "--ckpt_path", checkpoint, "--user", str(run.data.user_ids[0])]) == 0
    assert "to score with, clients would download 659 B more" in capsys.readouterr().err


class Elsewhere(Scaled):
    """A step that loses a client."""

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        return Upload(upload.clients[1:], {name: value[1:] for name, value in upload.values.items()})


def test_a_step_that_loses_a_client_is_refused() -> None:
    with pytest.raises(WireError, match="Elsewhere sends for other clients"):
        Wire([Elsewhere(1.0, [])]).up(upload(), TABLE, 1, 7)


@pytest.mark.parametrize(
    ("value", "sparse", "problem"),
    [
        (torch.zeros(2, 3, dtype=torch.bool), False, "field 'value' is of torch.bool, which does not travel"),
        (torch.zeros(2, 3), True, r"field 'value' is sparse, and so must be \[clients, items, dim\]"),
        (torch.zeros(5, 3), False, "field 'value' has 5 rows for 2 clients"),
    ],
)
def test_what_no_message_can_hold_is_named(value: Tensor, sparse: bool, problem: str) -> None:
    sent = Upload(torch.arange(2), {"value": value}, frozenset({"value"} if sparse else ()))
    with pytest.raises(WireError, match=problem):
        Wire().up(sent, sent.fields, 1, 7)


def test_what_one_client_is_sent_alone_is_no_memory_of_the_server() -> None:
    rows = torch.ones(1, 4)
    arrived, _ = Wire().down(Broadcast(own=Upload(torch.tensor([3]), {"rows": rows.expand(1, -1)})), 1)
    assert arrived is not None
    assert arrived.own is not None
    arrived.own.values["rows"].add_(1)
    assert rows.eq(1).all()


def test_what_a_round_that_failed_had_added_is_gone_once_a_state_is_loaded() -> None:
    server = MeanServer(TABLE, seed=0)
    state = server.state_dict()
    server.aggregate(server.reduce(upload(3)))
    server.load_state_dict(state)
    sent = upload(2)
    server.aggregate(server.reduce(sent))
    server.update(sent.clients, 1)
    torch.testing.assert_close(server.mean("table"), sent.values["table"].mean(0))


def test_bfloat16_is_added_up_like_any_other() -> None:
    values = torch.randn(3, 5, 3).to(torch.bfloat16)
    assert Upload(torch.arange(3), {"table": values}).sum().values["table"].equal(values.double().sum(0))


def test_a_client_is_greeted_once(make_data: MakeData) -> None:
    """Whether it is scored first or trains first, however often, and by whichever part of a run that was resumed."""
    data = make_data()
    loop = trained(FedMF(dim=8), data, 7, rounds=3, participants=4)
    welcome = loop.server.welcome()
    assert welcome is not None
    greeting = len(welcome.pack())
    assert isinstance(loop.server, MeanServer)
    tables = 2 * 4 * len(Broadcast({"table": loop.server.mean("table")}).pack())
    assert loop.bytes_scoring + loop.bytes_down == data.num_users * greeting + tables
    again = trained(FedMF(dim=8), data, 7, rounds=3, participants=4)
    again.load_state_dict(loop.state_dict())
    again.evaluate("test")
    assert again.bytes_scoring == loop.bytes_scoring


def test_looking_for_divergence_is_no_communication(make_data: MakeData) -> None:
    assert trained(FedRAP(dim=8), make_data(split="none"), 7).bytes_scoring == 0
