from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.client import Batch, StepOutput
from cgfedrec.errors import InputError, RunError
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedRec, CoFedRec, GPFedRec, Local
from cgfedrec.structure.alignment import AlignedClient
from cgfedrec.testing import trained
from cgfedrec.wire.messages import Broadcast, NotFiniteError, Upload
from tests.conftest import MakeData


def method(**settings: Any) -> CGFedRec:
    return CGFedRec(**{"dim": 8, "clusters": 6, "reg": 0.05, "lr_eta": 1.0} | settings)


def test_bytes_are_those_of_the_packed_messages(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    seen: dict[str, list[int]] = {"up": [], "down": []}

    class Wire(AlignedClient):
        def upload(self) -> Upload:
            upload = super().upload()
            seen["up"] += [len(message) for message in upload.pack()]
            return upload

    monkeypatch.setattr(CGFedRec, "client_class", Wire)
    loop = trained(method(), data, 7)
    labels = loop.server.broadcast(torch.tensor([0]), 4)
    welcome = loop.server.welcome()
    assert labels is not None
    assert welcome is not None
    assert loop.history[-1]["bytes/up"] == sum(seen["up"]) == 3 * data.num_users * seen["up"][0]
    assert loop.history[0]["bytes/down"] == data.num_users * len(welcome.pack())
    assert loop.history[-1]["bytes/down"] == data.num_users * (len(welcome.pack()) + 2 * len(labels.pack()))
    assert all(row["bytes/total"] == row["bytes/up"] + row["bytes/down"] for row in loop.history)


@pytest.mark.parametrize(("options", "number"), [({"participation": 0.3}, 9), ({"participants": 4}, 4), ({}, 30)])
@pytest.mark.parametrize("resample", [True, False])
def test_participants(options: dict[str, Any], number: int, resample: bool, make_data: MakeData) -> None:
    loop = trained(method(), make_data(), 7, rounds=1, resample=resample, **options)
    chosen = []
    for round in range(1, 6):
        loop.round = round
        chosen.append(tuple(loop.sample().tolist()))
    assert all(len(set(users)) == number for users in chosen)
    assert (len(set(chosen)) == 1) == (not resample or number == 30)


def test_those_who_never_took_part_stand_at_the_start(make_data: MakeData) -> None:
    loop = trained(method(), make_data(), 3, rounds=2, participants=5, resample=False)
    assert loop.clients.store.known.sum() == 5
    strangers = (~loop.clients.store.known).nonzero().squeeze(1)
    with loop.clients.workers.one() as worker:
        start = worker.client.start(strangers)
        loop.clients.store.load(worker.client, strangers)
        assert all(value.equal(start[name]) for name, value in worker.client.private().items())


def test_what_a_client_reports_is_a_column_and_nobody_else_has_it(make_data: MakeData) -> None:
    columns = {}
    for kind, settings in ((CGFedRec, {"clusters": 6}), (CoFedRec, {"clusters": 6}), (GPFedRec, {}), (Local, {})):
        history = trained(kind(dim=8, lr_eta=2.0, **settings), make_data(), 7, rounds=3).history  # type: ignore[arg-type]
        names = {name for row in history for name in row if name.startswith("train/")}
        columns[kind.__name__] = {name: [row[name] for row in history] for name in names - {"train/loss"}}
    assert columns["Local"] == {}
    assert set(columns["GPFedRec"]) == {"train/distance"}
    assert max(columns["GPFedRec"]["train/distance"]) > 0
    for name in ("CGFedRec", "CoFedRec"):
        assert set(columns[name]) == {"train/alignment"}
        first, *others = columns[name]["train/alignment"]
        assert first == 0 < min(others), "before labels have come, nothing is reported"


def test_the_mean_forgets_earlier_participants(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[Upload] = []

    class Keep(AlignedClient):
        def upload(self) -> Upload:
            upload = super().upload()
            uploads.append(Upload(self.users, {"table": upload.values["table"].clone()}))
            return upload

    monkeypatch.setattr(CGFedRec, "client_class", Keep)
    loop = trained(method(), make_data(), 2, participants=4)
    tables = torch.cat([upload.values["table"] for upload in uploads])[-4:]
    torch.testing.assert_close(loop.server.mean("table"), tables.double().mean(0).float(), rtol=1e-6, atol=0)  # type: ignore[operator]


def test_a_run_is_its_seed(make_data: MakeData) -> None:
    histories = [
        [
            {k: v for k, v in row.items() if k != "time/round"}
            for row in trained(method(), make_data(seed=seed), 7).history
        ]
        for seed in (0, 0, 1)
    ]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]


def test_state_continues_exactly(make_data: MakeData) -> None:
    data = make_data()
    whole = trained(method(), data, 7, rounds=4, participants=11)
    first = trained(method(), data, 7, rounds=2, participants=11)
    second = FederatedLoop(rounds=4, cohort_size=7, participants=11)
    second.setup(Fabric(accelerator="cpu", devices=1), data, method())
    second.load_state_dict(first.state_dict())
    second.fit()
    users = whole.clients.store.known.nonzero().squeeze(1)
    assert second.clients.store.known.equal(whole.clients.store.known)
    for name, rows in whole.clients.store.read(users).items():
        assert second.clients.store.read(users)[name].equal(rows)
    for ours, theirs in zip(second.history, whole.history, strict=True):
        assert {k: v for k, v in ours.items() if k != "time/round"} == {
            k: v for k, v in theirs.items() if k != "time/round"
        }


def test_the_best_round_is_the_first_with_the_best_validation(make_data: MakeData) -> None:
    loop = trained(method(), make_data(), 7, rounds=1)
    loop.history = [{"round": n, "val/ndcg@10": v} for n, v in enumerate((0.1, 0.3, 0.2, 0.3), 1)]
    assert loop.best is not None
    assert loop.best["round"] == 2


def test_evaluates_as_often_as_told_and_at_the_end(make_data: MakeData) -> None:
    loop = trained(method(), make_data(), 7, rounds=5, evaluate_every=3)
    assert [row["round"] for row in loop.history] == [3, 5]


def test_what_is_not_finite_ends_the_run(make_data: MakeData) -> None:
    with pytest.raises(NotFiniteError) as error:
        trained(method(table_lr=1e38), make_data(), 7, rounds=5)
    assert error.value.clients


@pytest.mark.parametrize(
    ("options", "problems"),
    [({"rounds": 0, "patience": 0, "participation": 2.0}, 3), ({"participants": 4, "participation": 0.5}, 1)],
)
def test_settings_that_cannot_work_are_refused_together(options: dict[str, Any], problems: int) -> None:
    with pytest.raises(InputError) as error:
        FederatedLoop(**options)
    assert len(error.value.problems) == problems


def test_settings_are_checked_against_the_data(make_data: MakeData) -> None:
    data = make_data()
    with pytest.raises(InputError, match="more than the 30 users"):
        trained(method(), data, 7, participants=31)
    with pytest.raises(InputError, match="no 'val/hr@7'; choose one of val/hr@5"):
        trained(method(), data, 7, monitor="val/hr@7")
    with pytest.raises(InputError, match="61 is more than the 60 items"):
        trained(method(clusters=61), data, 7)


def test_labels_reach_the_clients_as_packed(make_data: MakeData) -> None:
    loop = trained(method(), make_data(), 7)
    broadcast = loop.server.broadcast(torch.tensor([0]), 4)
    assert broadcast is not None
    with loop.clients.workers.one() as worker:
        worker.client.receive(Broadcast.unpack(broadcast.pack(), broadcast.fields), 4)
        assert worker.client.labels.equal(loop.server.labels)  # type: ignore[operator, arg-type]


class Careless(AlignedClient):
    """A client with one of a newcomer's mistakes."""

    output: ClassVar[Callable[[Tensor], StepOutput]]

    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        return type(self).output(super().training_step(batch, step).loss)


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (
            lambda loss: StepOutput(loss.mean()),
            r"Careless.training_step returned a loss of shape \[\]; it must be \[clients\]",
        ),
        (lambda loss: StepOutput(loss[:, None]), r"a loss of shape \[\d+, 1\]"),
        (lambda loss: StepOutput(loss, {"proximal": loss}), "reports 'proximal', which Careless.reports does not name"),
    ],
)
def test_a_newcomers_mistakes_are_named(
    output: Callable[[Tensor], StepOutput], problem: str, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CGFedRec, "client_class", Careless)
    monkeypatch.setattr(Careless, "output", staticmethod(output), raising=False)
    with pytest.raises(RunError, match=problem):
        trained(method(), make_data(), 7)


def test_what_a_client_reports_keeps_no_graph(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients leave a cohort while it trains: a graph of before would expect the shapes of before."""
    monkeypatch.setattr(CGFedRec, "client_class", Careless)
    monkeypatch.setattr(
        Careless, "output", staticmethod(lambda loss: StepOutput(loss, {"alignment": loss})), raising=False
    )
    loop = trained(method(), make_data(batch_size=16), 100)
    assert loop.history[-1]["train/alignment"] == pytest.approx(loop.history[-1]["train/loss"])


def test_the_loop_computes_on_one_thread_and_gives_the_others_back(make_data: MakeData) -> None:
    """A federation that a callback sets up has as many workers as one outside."""
    seen: list[tuple[int, int]] = []

    class Inner:
        def on_round_end(self, loop: FederatedLoop) -> None:
            inner = FederatedLoop(rounds=1)
            inner.setup(Fabric(accelerator="cpu", devices=1), make_data(), Local(dim=4))
            inner.fit()
            seen.append((torch.get_num_threads(), inner.clients.workers.number))
            if loop.round == 2:
                raise RuntimeError("a callback fails")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loop = FederatedLoop(rounds=3)
        loop.setup(Fabric(accelerator="cpu", devices=1, callbacks=[Inner()]), make_data(), Local(dim=4))
        with pytest.raises(RuntimeError, match="a callback fails"):
            loop.fit()
        assert torch.get_num_threads() == 2
        loop.evaluate("test")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, 2), (1, 2)]
