"""Killed between any two writes: the same command, or the run's continuation, comes to the same end.

By default some moments spread over the whole are tried; CGFEDREC_ALL_STOPS=1 tries all (`make stops`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

import cgfedrec
from cgfedrec import files
from cgfedrec.serving import Recommender
from cgfedrec.serving.recommender import FILE
from tests.commands import Command
from tests.conftest import TINY
from tests.stopper import KILLED

SAMPLE = 3
OF_ONE_RUN: dict[str, Any] = {"run": "", "seconds": 0, "time/round": 0, "files": {}}
SETTINGS: dict[str, Any] = TINY | {
    "loop": {"rounds": 4, "patience": None, "participants": 10, "cohort_size": 16},
    "seed_everything": 3,
}


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGFEDREC_FIT_LOGGER", "null")
    Path("config.yaml").write_text(yaml.safe_dump(SETTINGS))


def run(*arguments: object, stop_at: int = 0) -> tuple[int, int]:
    """The exit code of a command line, and how many operations on files there were unless it was stopped."""
    command = Command(*arguments, stop_at=stop_at)
    return command.wait(), command.operations


def moments(number: int, sample: int = SAMPLE) -> list[int]:
    """Before which operations to stop."""
    if os.environ.get("CGFEDREC_ALL_STOPS") or number <= sample:
        return list(range(1, number + 1))
    return sorted({round(1 + place * (number - 1) / (sample - 1)) for place in range(sample)})


def same_run(one: Path, other: Path) -> None:
    """The same parameters, server and figures, and nothing half-written."""
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (cgfedrec.load(run / "checkpoints" / name).loop for run in (one, other))
        assert ours.round == theirs.round
        users = theirs.clients.store.known.nonzero().squeeze(1)
        assert ours.clients.store.known.equal(theirs.clients.store.known)
        for tensor, rows in theirs.clients.store.read(users).items():
            assert ours.clients.store.read(users)[tensor].equal(rows)
        torch.testing.assert_close(ours.server.state_dict(), theirs.server.state_dict(), rtol=0, atol=0)
    mine, whole = (pl.read_csv(run / "metrics.csv").drop("time/round") for run in (one, other))
    assert mine.equals(whole)
    found, expected = (files.read_json(run / "summary.json") for run in (one, other))
    assert found | OF_ONE_RUN == expected | OF_ONE_RUN
    assert pl.read_parquet(one / "ranks.parquet").equals(pl.read_parquet(other / "ranks.parquet"))
    assert not [*one.rglob(".*.part")]


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_fit(store: str) -> None:
    def line(folder: str) -> list[object]:
        last = Path(folder) / "checkpoints" / "last.ckpt"
        if last.exists():
            return ["fit", "--ckpt_path", last]
        return ["fit", "--config", "config.yaml", "--loop.store", store, "--run_dir", folder]

    code, number = run(*line("whole"))
    assert (code, number > 20) == (0, True)
    for moment in moments(number):
        folder = f"stopped{moment}"
        assert run(*line(folder), stop_at=moment)[0] == KILLED
        assert run(*line(folder))[0] == 0, f"does not go on when stopped before operation {moment}"
        same_run(Path(folder), Path("whole"))


def test_a_continuation_in_another_folder() -> None:
    assert run("fit", "--config", "config.yaml", "--loop.store", "disk", "--run_dir", "first")[0] == 0

    def line(folder: str) -> list[object]:
        last = Path(folder) / "checkpoints" / "last.ckpt"
        if last.exists():
            return ["fit", "--ckpt_path", last, "--loop.rounds", 6]
        return ["fit", "--ckpt_path", "first/checkpoints/last.ckpt", "--loop.rounds", 6, "--run_dir", folder]

    code, number = run(*line("whole"))
    assert code == 0
    for moment in moments(number):
        folder = f"stopped{moment}"
        assert run(*line(folder), stop_at=moment)[0] == KILLED
        assert run(*line(folder))[0] == 0, moment
        same_run(Path(folder), Path("whole"))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_recommend(suffix: str) -> None:
    assert run("fit", "--config", "config.yaml", "--run_dir", "run")[0] == 0
    line = ["recommend", "--ckpt_path", "run/checkpoints/best.ckpt", "--output"]
    code, number = run(*line, f"whole.{suffix}")
    assert (code, number > 1) == (0, True)
    for moment in moments(number, 3):
        output = Path(f"out{moment}.{suffix}")
        assert run(*line, output, stop_at=moment)[0] == KILLED
        assert run(*line, output)[0] == 0
        assert output.read_bytes() == Path(f"whole.{suffix}").read_bytes()


def test_export() -> None:
    """Stopped before any write, what stands there is the export of before, whole; and the next one replaces it."""
    of = {"class_path": "CGFedCo", "columns": 8}
    for seed in (1, 2):
        cgfedrec.fit({"data": TINY["data"], "method": of, "seed_everything": seed, "run_dir": f"run{seed}"})

    def line(seed: int) -> list[object]:
        return ["export", "--ckpt_path", f"run{seed}/checkpoints/best.ckpt", "--output", "out"]

    code, number = run(*line(2))
    assert (code, number > 2) == (0, True)
    after = Recommender.load("out").version
    replaced = 0
    for moment in range(1, number + 1):
        assert run(*line(1))[0] == 0
        before, opened = Recommender.load("out").version, Recommender.load("out")
        assert run(*line(2), stop_at=moment)[0] == KILLED
        assert Recommender.load("out").version in (before, after)
        replaced += Recommender.load("out").version == after
        assert opened.recommend([1, 2]).items
    assert 0 < replaced < number  # the folder is synced after the rename
    assert run(*line(2))[0] == 0
    assert {one.name for one in Path("out").iterdir()} == {FILE, files.LOCK}


def test_compare() -> None:
    """Its runs are processes of their own, which `test_fit` stops; here it is the comparison that is stopped."""
    methods = {"Local": {"method": {"class_path": "cgfedrec.methods.Local", "init_args": {"dim": 8}}}}
    config = {"base": {"loop": {"rounds": 1}}, "data": {"tiny": {"data": TINY["data"]}}, "methods": methods}
    Path("compare.yaml").write_text(yaml.safe_dump(config | {"seeds": [0]}))
    line = ["compare", "--config", "compare.yaml", "--output"]
    code, number = run(*line, "whole")
    assert code == 0
    assert not [*Path("whole").rglob("*.ckpt")]
    whole = pl.read_csv("whole/results.csv").drop("seconds")
    for moment in moments(number, 3):
        folder = f"stopped{moment}"
        assert run(*line, folder, stop_at=moment)[0] == KILLED
        assert run(*line, folder)[0] == 0, moment
        assert pl.read_csv(f"{folder}/results.csv").drop("seconds").equals(whole)
        assert not [*Path(folder).rglob("*.ckpt"), *Path(folder).rglob(".*.part")]
        ranks, expected = (pl.read_parquet(f"{one}/ranks.parquet") for one in (folder, "whole"))
        assert ranks.equals(expected)
