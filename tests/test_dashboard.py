"""A workspace of Weights & Biases: what it plots is what runs log, and without a key it is written and not saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import cgfedrec
from cgfedrec.cli import main
from tests.test_wandb import QUICK


def sections() -> dict[str, list[dict[str, Any]]]:
    whole = json.loads(Path("dashboard.json").read_text())
    return {one["name"]: one["panels"] for one in whole["spec"]["section"]["panelBankConfig"]["sections"]}


def test_it_plots_what_runs_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--project", "mine", "--metric", "hr@5"]) == 0
    told = capsys.readouterr().out
    assert "the workspace is in dashboard.json" in told
    assert "not saved" in told
    assert json.loads(Path("dashboard.json").read_text())["project"] == "mine"
    found = sections()
    assert list(found) == ["Accuracy against rounds", "Accuracy against bytes", "Structure", "Privacy", "System"]
    cgfedrec.fit(QUICK, {"logger": None, "run_dir": "run"})
    logged = set(pl.read_csv("run/metrics.csv").columns)
    logged |= set(json.loads(Path("run/summary.json").read_text()))
    # Of methods that train, of those that add noise, of a second structure, of labels that are found anew.
    later = {"train/loss", "privacy/epsilon", "structure/same", "clusters/changed"}
    drawn = set()
    for panel in [one for name in found if name != "System" for one in found[name]]:
        config = panel["config"]
        named = {*config.get("metrics", []), config.get("xAxis"), config.get("yAxis")} - {None}
        drawn |= {name.removeprefix("summary:") for name in named}
    assert {"val/hr@5", "test/hr@5", "bytes/total", "round"} <= drawn <= logged | later


def test_it_is_the_same_each_time() -> None:
    assert main(["dashboard"]) == 0
    first = Path("dashboard.json").read_text()
    assert main(["dashboard"]) == 0
    assert Path("dashboard.json").read_text() == first


def test_what_cannot_be_used_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert main(["dashboard", "--metric", "recall", "--output", "file/x.json"]) == 2
    told = capsys.readouterr().err
    assert "--metric: 'recall' is none of" in told
    assert "--output: file is a file" in told


def test_a_service_that_does_not_answer_ends_it_with_the_file_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cgfedrec.run.dashboard.has_key", lambda: True)

    def refuse(self: object) -> None:
        raise ConnectionError("no way")

    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", refuse)
    assert main(["dashboard", "--entity", "us"]) == 1
    assert "does not take the workspace (ConnectionError: no way)" in capsys.readouterr().err
    assert sections()
