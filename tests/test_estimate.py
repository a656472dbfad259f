"""What a run would need is told without training it, and is what the run then needs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from torch import Tensor

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.callbacks import expected
from cgfedrec.run.console import quiet_console
from cgfedrec.run.estimate import estimate
from cgfedrec.run.estimates import Alike, InTurn

TINY: Mapping[str, Any] = {
    "data.synthetic.users": 30,
    "data.synthetic.items": 40,
    "data.synthetic.groups": 4,
    "data.synthetic.interactions": 8,
    "data.batch_size": 5,  # as wide for everybody, so that cohorts are full
    "loop.cohort_size": 8,
    "loop.patience": None,
    "logger": None,
}


def words(**settings: Any) -> list[str]:
    given = {**TINY, **settings}
    return [f"--{name}={'null' if value is None else value}" for name, value in given.items()]


def estimated(**settings: Any) -> Alike:
    found = estimate(words(**settings), quiet_console())
    assert isinstance(found, Alike)
    return found


def rehearsed(**settings: Any) -> InTurn:
    found = estimate(words(**settings), quiet_console())
    assert isinstance(found, InTurn)
    return found


@pytest.mark.parametrize(("method", "varies"), [("CoFedRec", True), ("FedRAP", False), ("CoLR", True)])
def test_bytes_are_those_of_a_run(method: str, varies: bool) -> None:
    settings = {"method": method, "loop.rounds": 3, "loop.evaluate_every": 2}
    found = estimated(**settings)
    summary = cgfedrec.fit({**TINY, **settings, "run_dir": "run"}).summary
    assert found.varies is varies
    assert (found.participants, found.cohorts, found.rounds, found.evaluations) == (30, 4, 3, 2)
    down = found.all_down + 30 * found.once
    if varies:  # by which items clients have, and of which group they are
        assert 0.5 < found.all_up / summary["bytes/up"] < 2
        assert 0.5 < down / summary["bytes/down"] < 2
    else:
        assert found.all_up == summary["bytes/up"]
        assert down == summary["bytes/down"]
    asked = found.evaluations + 1  # and the test
    assert found.scoring * 30 * asked == summary["bytes/scoring"]
    assert (found.scoring > 0) == (method == "FedRAP") or varies


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "CGFedCo"},
        {"method": "CGFedCo", "method.sketch": "heads", "method.verify": "false"},
        {"method": "CGFedCo", "method.structure": "ClusterLabels", "method.structure.rounds": 2},
        {"method": "FedGF"},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_sums_of_all_phases_are_bounded(settings: dict[str, Any]) -> None:
    given = {**settings, "loop.rounds": 40, "loop.participants": 20, "loop.checkpoint_every": 40}
    found = rehearsed(**given)
    run = cgfedrec.fit({**TINY, **given, "run_dir": "run"})
    phases = [one.phase for one in found.phases]
    assert [phase.rounds for phase in phases] == [1 if phase.name == "train" else 2 for phase in phases]
    sent = [row["bytes/up"] for row in run.history.iter_rows(named=True)]
    took = [later - before for before, later in itertools.pairwise([0, *sent])]
    assert len(took) == sum(phase.rounds for phase in phases)  # a row for every round
    in_phases = [sum(took.pop(0) for _ in range(phase.rounds)) for phase in phases]
    bounds = [phase.up * (20 if phase.name == "train" else 30) for phase in phases]
    assert in_phases[0] == bounds[0]
    assert [real <= bound for real, bound in zip(in_phases, bounds, strict=True)] == [True] * len(bounds)
    assert [2 * real >= bound for real, bound in zip(in_phases, bounds, strict=True)] == [True] * len(bounds), in_phases


@pytest.mark.parametrize("sample", [32, 16, 8])
def test_what_comes_down_in_phases_is_that_of_a_run(sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgfedrec.run.rehearsal.SAMPLE", sample)
    settings = {"method": "CGFedCo", "loop.rounds": 10}
    found = rehearsed(**settings)
    run = cgfedrec.fit({**TINY, **settings, "run_dir": "run"})
    came = [row["bytes/down"] - 30 * found.once for row in run.history.iter_rows(named=True)]
    down = [30 * one.down for one in found.phases]
    real = [later - before for before, later in itertools.pairwise([0, *came])]
    if sample == 32:  # all four cohorts: nothing is scaled
        assert down == real
    assert down[:3] == real[:3]  # counts are everybody's, and so there are as many rows, each of which gets a label
    assert 0.5 < sum(down) / sum(real) < 2
    assert found.scoring * 30 == run.summary["bytes/scoring"]


SECURE = [{"class_path": "cgfedrec.wire.secure.step.SecureSums", "init_args": {"neighbours": 6}}]


def test_what_steps_send_besides_counts() -> None:
    settings = {"method": "FedMF", "loop.rounds": 2, "wire.steps": SECURE}
    found = estimated(**settings)
    summary = cgfedrec.fit({**TINY, **settings, "run_dir": "run"}).summary
    assert found.all_up == summary["bytes/up"]
    assert found.all_down + 30 * found.once == summary["bytes/down"]


@pytest.mark.parametrize("method", ["CGFedCo", "FedGF"])
def test_what_steps_send_besides_counts_in_every_phase(method: str) -> None:
    settings = {"method": method, "loop.rounds": 20, "loop.participants": 15, "wire.steps": SECURE}
    found = rehearsed(**settings)
    run = cgfedrec.fit({**TINY, **settings, "run_dir": "run"})
    sent = [row["bytes/up"] for row in run.history.iter_rows(named=True)]
    assert sent[1] == 30 * found.phases[0].phase.up  # both rounds of the first sum, whose width is known ahead
    assert sent[-1] <= 30 * sum(one.phase.up for one in found.phases) < 1.5 * sent[-1]
    down = 30 * (found.once + sum(one.down for one in found.phases))
    assert 0.8 < down / run.summary["bytes/down"] < 1.2


@pytest.mark.parametrize("method", ["CGFedCo", "FedGF"])
def test_sums_that_come_closed_are_opened_before_they_are_scaled(method: str) -> None:
    plain, secure = (
        rehearsed(**{"method": method, "loop.rounds": 10, "wire.steps": steps})
        for steps in ("[]", "[{class_path: cgfedrec.wire.secure.step.SecureSums}]")
    )
    assert [one.phase.name for one in secure.phases] == [one.phase.name for one in plain.phases]
    for one, other in zip(secure.phases[:2], plain.phases[:2], strict=True):
        assert one.down >= other.down > 0


def test_nothing_is_written_wherever_state_would_go() -> None:
    for store in ("memory", "disk"):
        found = estimated(**{"method": "FedMF", "loop.store": store, "run_dir": "somewhere/run"})
        assert found.up[0] > 0
    assert not list(Path().iterdir())


def test_seconds_follow_from_those_of_a_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=3)
    monkeypatch.setattr("cgfedrec.run.rehearsal.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    settings = {"method": "FedMF", "loop.rounds": 5, "loop.evaluate_every": 2}
    found = estimated(**settings)
    assert found.workers == 1
    assert found.training == 3 * 30 / 8
    assert found.evaluation == 3 * 30 / 8
    assert found.seconds == (5 + 3) * 3 * 30 / 8
    assert estimated(**settings, **{"data.split": "none"}).evaluation == 0


def test_it_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *words(**{"method": "FedMF", "loop.rounds": 7})]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "30 users, " in shown
    assert "│ a round │ 30 clients in 4 cohorts of 8 or fewer, 1 at a time" in shown
    for text in ("nothing was trained", "in memory", "included", "a later round", "if all 7 rounds are needed"):
        assert text in shown
    assert "warning" not in shown
    assert main(["estimate", *words(**{"method": "CGFedCo", "loop.rounds": 7, "loop.participants": 10})]) == 0
    shown = capsys.readouterr().out
    assert "│ labels │ 3      │ " in shown
    assert "warning: it needs 15 rounds, and loop.rounds is 7" in shown
    assert "│ time in all                │ about" in shown
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "EASE"}, "method: a reference has no clients"),
        ({"data.split": "rolling"}, "choose one to estimate with data.rolling.cut"),
        ({"ckpt_path": "a.ckpt"}, "ckpt_path: estimate cannot heed it"),
        ({"update_from": "a.ckpt"}, "update_from: estimate cannot heed it"),
        ({"loop.participants": 31}, "31 is more than the 30 users"),
        ({"fabric.devices": 2}, "fabric.devices, fabric.num_nodes: estimate trains in one process"),
        ({"method.dimm": 2}, "method.dimm: there is no such option"),
    ],
)
def test_what_cannot_be_estimated_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        estimated(**{"method": "FedMF", **settings})


def test_several_problems_are_told_at_once() -> None:
    with pytest.raises(InputError) as failed:
        estimated(**{"method": "EASE", "data.split": "rolling", "fabric.devices": 2})
    assert len(failed.value.problems) == 3


def told(**settings: Any) -> list[str]:
    console = Console(record=True, width=300)
    cgfedrec.fit({**TINY, **settings, "run_dir": "run"}, console=console)
    return [line for line in console.export_text().splitlines() if " took " in line]


def test_a_run_says_after_its_first_round_how_far_off_it_was() -> None:
    (line,) = told(**{"method": "FedMF", "loop.rounds": 3})
    assert line.startswith("round 1 took ")
    assert " of training were expected; 2 more: about " in line
    assert " or less, since the first one sets things up; " in line
    assert line.endswith(" were expected")


def test_what_is_expected_of_a_round_follows_from_its_first_cohorts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=5)
    monkeypatch.setattr("cgfedrec.run.callbacks.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    (line,) = told(**{"method": "FedMF", "loop.rounds": 1})
    assert "; by its first cohorts, 20 s of training were expected" in line  # four cohorts, one after another
    assert "more" not in line


@pytest.mark.parametrize(
    ("ends", "workers", "seconds"),
    [([4], 1, 4), ([4], 3, 4), ([4, 5, 90], 1, 6), ([4, 4, 9, 9, 90], 2, 14), ([4, 4.5, 7], 2, 9), ([4, 5], 2, 5)],
)
def test_the_first_two_of_each_worker_count(ends: list[float], workers: int, seconds: float) -> None:
    assert expected(ends, workers) == seconds


class Slow:
    """A clock of which a round without labels takes 4 s, and each other one 400."""

    now = 0

    def perf_counter(self) -> float:
        return self.now

    def on_cohort_end(self, loop: FederatedLoop, users: Tensor) -> None:
        self.now += 1 if loop.round <= 2 else 100


def test_rounds_before_labels_come_down_tell_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, console = Slow(), Console(record=True, width=300)
    for module in ("loop", "run.callbacks"):
        monkeypatch.setattr(f"cgfedrec.{module}.time", slow)
    settings = {**TINY, "method": "CGFedRec", "method.clusters": 4, "method.silent_rounds": 2, "loop.rounds": 5}
    cgfedrec.fit({**settings, "run_dir": "run"}, console=console, callbacks=[slow])
    lines = console.export_text().splitlines()
    (pace,) = [line for line in lines if " took " in line]
    assert "; rounds from 3 on do more, and their time is not known yet; " in pace
    assert " more: " not in pace
    left = [line.partition(" s  ")[2] for line in lines if line.startswith("round ") and " took " not in line]
    assert left == ["", "", "at most 13 min left", "at most 7 min left", ""]


def test_what_is_estimated_of_later_rounds_is_of_those_with_labels() -> None:
    settings = {"method": "CGFedRec", "method.clusters": 4, "loop.rounds": 9}
    known, silent = (estimated(**settings, **{"method.silent_rounds": rounds}) for rounds in (1, 5))
    assert silent.down == known.down
    assert known.down[1] > known.down[0]


def test_rounds_of_a_phase_tell_nothing_of_others() -> None:
    (line,) = told(**{"method": "CGFedCo", "loop.rounds": 40})
    assert line.startswith("round 1 (bounds) took ")
    assert "more" not in line
