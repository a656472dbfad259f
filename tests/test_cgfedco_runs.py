"""Runs of CGFedCo: what is held out stays out of every sum, the command line, and real ratings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import cgfedrec as package
from cgfedrec.data import FederatedDataModule, Format
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo
from cgfedrec.protocol import Protocol
from cgfedrec.run.checkpoint import read_checkpoint, write_checkpoint
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.structure import SumsClient
from cgfedrec.testing import prepared, trained
from tests.commands import cgfedrec
from tests.conftest import require_data

Row = tuple[int, int, int, int]
USERS, ITEMS = 30, 25
PHASES = ["bounds", "sketch", "labels", "verify", "choose"]


def drawn() -> list[Row]:
    """User, item, rating and time of 30 users with 12 of 25 items each; few different times, and so many ties."""
    rng = np.random.default_rng(3)
    return [
        (user, int(item), int(rng.integers(1, 6)), int(rng.integers(1, 8)))
        for user in range(USERS)
        for item in rng.permutation(ITEMS)[:12]
    ]


def data_of(
    rows: list[Row], ties: str = "file_first", threshold: float | None = 2, **options: Any
) -> FederatedDataModule:
    table = pl.DataFrame(rows, ["user", "item", "rating", "timestamp"], orient="row")
    table.write_csv("ratings.csv")
    layout = Format(rating_column="rating", threshold=threshold)
    protocol = Protocol(ties=ties)  # type: ignore[arg-type]
    return prepared(protocol, path="ratings.csv", format=layout, **options)


def held_out(data: FederatedDataModule, user: int, stage: Any) -> set[int]:
    relevant = data.ranking(torch.tensor([user]), stage).relevant
    return set(relevant[relevant >= 0].tolist())


@pytest.mark.parametrize("ties", ["file_first", "random"])
@pytest.mark.parametrize("split", ["leave_one_out", "random", "temporal"])
def test_a_history_holds_nothing_that_is_held_out_or_disliked(split: str, ties: str) -> None:
    """However many of a user's interactions have the same time."""
    rows = drawn()
    data = data_of(rows, ties, split=split)
    users, items = data.user_ids.to_list(), data.item_ids.to_list()
    history = data.histories(torch.arange(data.num_users))
    for user in range(data.num_users):
        own = {row[1]: row for row in rows if row[0] == users[user]}
        had = [items[item] for item in history.items[user].tolist() if item >= 0]
        out = {items[item] for stage in ("val", "test") for item in held_out(data, user, stage)}
        liked = {item for item, row in own.items() if row[2] >= 2}
        assert len(had) == len(set(had))
        assert set(had) == liked - out
        times = [own[item][3] for item in had]
        assert times == sorted(times, reverse=True)
        if split != "random" and out:
            assert min(own[item][3] for item in out) >= times[0]


def ended(data: FederatedDataModule) -> FederatedLoop:
    loop = trained(CGFedCo(columns=8), data, 100, rounds=9)
    assert loop.server.finished
    return loop


def state_of(loop: FederatedLoop) -> dict[str, Tensor]:
    return {name: value for name, value in loop.server.state_dict().items() if name not in ("judged", "chosen")}


def readings(loop: FederatedLoop) -> list[Tensor]:
    """Everybody's scores by each reading, `[users, items]` each."""
    loop.score(torch.arange(loop.data.num_users))
    with loop.clients.workers.one() as worker:
        client = worker.client
        assert isinstance(client, SumsClient)
        return [client.read(reading) for reading in range(len(client.structure.readings))]


def swapped(rows: list[Row], data: FederatedDataModule, old: int, user: int) -> list[Row]:
    """The same interactions but for one, in the same place, with an item that this user has not."""
    theirs = {row[1] for row in rows if row[0] == user}
    new = next(item for item in range(ITEMS) if item not in theirs)
    assert sum(row[:2] == (user, old) for row in rows) == 1
    return [(user, new, *row[2:]) if row[:2] == (user, old) else row for row in rows]


@pytest.mark.parametrize("what", ["test", "val", "disliked", "train"])
def test_another_held_out_item_changes_no_sum_and_no_score(what: str) -> None:
    """Only the choice may look at what is held out for validation. Another training item does count."""
    # Somebody who has them all comes first, so that ids keep their numbers.
    rows = [(99, item, 5, item) for item in range(ITEMS)] + drawn()
    data = data_of(rows)
    user, items = 4, data.item_ids.to_list()
    number = data.user_ids.to_list().index(user)
    if what == "disliked":
        old = next(row[1] for row in rows if row[0] == user and row[2] < 2)
    elif what == "train":
        old = items[int(data.histories(torch.tensor([number])).items[0, 3])]
    else:
        (place,) = held_out(data, number, what)
        old = items[place]
    ours = ended(data)
    other = data_of(swapped(rows, data, old, user))
    assert other.item_ids.to_list() == items
    if what in ("val", "test"):
        assert held_out(other, number, what) != held_out(data, number, what)
    theirs = ended(other)
    one, two = state_of(ours), state_of(theirs)
    same = all(one[name].equal(two[name]) for name in one)
    same_scores = all(mine.equal(yours) for mine, yours in zip(readings(ours), readings(theirs), strict=True))
    assert same == same_scores == (what != "train")
    if what == "test":  # a disliked item is no candidate, which the choice may tell
        assert ours.server.get_buffer("judged").equal(theirs.server.get_buffer("judged"))
        assert ours.score(torch.arange(data.num_users)).equal(theirs.score(torch.arange(data.num_users)))


# The command line


def fit(*options: object) -> Any:
    done = cgfedrec("fit", "--method", "CGFedCo", "--method.columns", 8, "--logger", "null", *options)
    assert done.returncode == 0, done.stderr
    return done


def summary(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "summary.json").read_text())
    return found


@pytest.fixture
def path() -> str:
    data_of(drawn())
    return "ratings.csv"


def test_fit_test_and_recommend(path: str) -> None:
    done = fit("--data.path", path, "--run_dir", "run")
    for phase in PHASES:
        assert f"{phase}: 30 clients" in done.stdout
    assert "warning: 100 rounds" not in done.stdout
    history = pl.read_csv("run/metrics.csv")
    for phase in PHASES:
        assert history[f"clients/{phase}"].drop_nulls().to_list() == [USERS]
        assert summary("run")[f"clients/{phase}"] == USERS
    assert summary("run")["rounds"] == len(history) == 5
    tested = cgfedrec("test", "--ckpt_path", "run/checkpoints/best.ckpt")
    assert tested.returncode == 0, tested.stderr
    assert f"{summary('run')['test/ndcg@10']:.4f}" in tested.stdout
    shown = cgfedrec(
        "recommend", "--ckpt_path", "run/checkpoints/best.ckpt", "--user", 7, "--top_k", 3, "--output", "r.csv"
    )
    assert shown.returncode == 0, shown.stderr
    table = pl.read_csv("r.csv")
    theirs = {row[1] for row in drawn() if row[0] == 7}
    assert table["user"].to_list() == [7] * 3
    assert not theirs & set(table["item"].to_list())


def test_without_times_a_history_has_no_order(path: str) -> None:
    pl.read_csv(path).drop("timestamp").write_csv("untimed.csv")
    untimed = ("--data.path", "untimed.csv", "--data.format.timestamp_column", "null")
    fit(*untimed, "--data.split", "random", "--run_dir", "run")
    # Nobody's items have an age, and so all rho read alike.
    last = pl.read_csv("run/metrics.csv").row(-1, named=True)
    told = {name: value for name, value in last.items() if name.startswith("readings/rho")}
    assert len(told) == 20
    for beta in ("0", "0.1", "0.3", "1", "3"):
        assert len({value for name, value in told.items() if name.endswith(f"beta {beta}")}) == 1
    assert len(set(told.values())) > 1
    refused = cgfedrec("fit", "--method", "CGFedCo", *untimed)
    assert refused.returncode == 2
    assert "split leave_one_out needs times" in refused.stderr


@pytest.mark.parametrize("rounds", [1, 3, 9])
def test_too_few_rounds_end_with_what_there_is_and_say_so_and_go_on(rounds: int, path: str) -> None:
    """15 of 30 clients in a round: a phase takes two. Until the structure is there, popularity ranks."""
    options = ("--data.path", path, "--loop.participation", 0.5)
    done = fit(*options, "--loop.rounds", rounds, "--run_dir", "run")
    phase = PHASES[rounds // 2]
    assert f"warning: {rounds} rounds were too few: the phase {phase!r} has not ended" in done.stdout
    assert "next: give it the rounds that it needs" in done.stdout
    assert "--method EASE" not in done.stdout
    found = summary("run")
    popular = found["popularity/test/ndcg@10"]
    if 2 <= rounds < 8:
        assert found["test/ndcg@10"] == pytest.approx(popular)
    if rounds >= 8:
        assert found["test/ndcg@10"] != pytest.approx(popular)

    again = fit("--ckpt_path", "run/checkpoints/last.ckpt", "--loop.rounds", 2 * rounds + 10, "--run_dir", "more")
    assert "were too few" not in again.stdout
    shutil.rmtree("run")
    fit(*options, "--run_dir", "whole")
    one, other = summary("more"), summary("whole")
    assert one["rounds"] == other["rounds"] == 10
    assert one["test/ndcg@10"] == other["test/ndcg@10"]
    for name in other:
        if name.startswith(("readings/", "clients/", "bytes/up")):
            assert one[name] == other[name]


# Real ratings


def test_movielens() -> None:
    layout = Format(header=False, user_column=0, item_column=1, timestamp_column=3)
    data = prepared(path=str(require_data("ml-100k/ratings.csv")), format=layout)
    loop = trained(CGFedCo(), data, 943, rounds=9)
    assert isinstance(loop.server, SumsServer)
    assert loop.server.finished
    assert loop.evaluate("test")["test/ndcg@10"] >= 0.085
    assert (loop.bytes_up + loop.bytes_down) / data.num_users <= 350_000


@pytest.mark.parametrize("split", ["leave_one_out", "none"])
def test_while_nothing_is_judged_checkpoints_come_as_often_as_asked(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum of a large federation takes seconds to write, and rounds that count are many and short."""
    written: list[int] = []

    def noted(path: Path, header: Any, loop: dict[str, Any], *others: Any) -> None:
        written.append(loop["round"])
        write_checkpoint(path, header, loop, *others)

    monkeypatch.setattr("cgfedrec.run.resume.write_checkpoint", noted)
    settings = {"method": "CGFedCo", "data.split": split, "loop.participation": 0.25, "loop.rounds": 40}
    run = package.fit(settings | {"loop.checkpoint_every": 7, "run_dir": "run", "logger": None})
    end = run.training.round
    assert 14 < end < 40
    assert written == [*range(7, end, 7), end]
    for name in ("last", "best"):
        assert read_checkpoint(Path(f"run/checkpoints/{name}.ckpt"))["loop"]["round"] == end


def test_a_run_that_a_callback_stops_between_evaluations_tells_of_the_round_that_it_keeps() -> None:
    """Nothing is held out, so nothing has judged a round, and the last one is what the run leaves."""

    class Stop:
        def on_round_end(self, loop: FederatedLoop) -> None:
            loop.should_stop = loop.round >= 4

    settings = {"method": "FedMF", "data.split": "none", "loop.evaluate_every": 3, "loop.checkpoint_every": 100}
    run = package.fit(settings | {"loop.rounds": 9, "run_dir": "run", "logger": None}, callbacks=[Stop()])
    assert run.summary["best_round"] == run.summary["rounds"] == run.training.round == 4
    for name in ("last", "best"):
        assert read_checkpoint(Path(f"run/checkpoints/{name}.ckpt"))["loop"]["round"] == 4
    assert pl.read_csv("run/metrics.csv")["round"].to_list() == [3, 4]
    assert run.summary["bytes/total"] == run.loop.bytes_up + run.loop.bytes_down
