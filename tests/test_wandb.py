"""An offline run, read back from the record that W&B wrote."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import wandb
import yaml
from wandb.proto import wandb_internal_pb2

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.errors import InputError
from cgfedrec.run.loggers import WandbLogger
from tests.commands import Command
from tests.conftest import TINY

WANDB = "cgfedrec.run.loggers.WandbLogger"
QUICK = {
    "data": {"init_args": {"synthetic": {"users": 60, "items": 80, "groups": 4, "interactions": 12}}},
    "loop": {"rounds": 9},
}
BLOCK, HEADER, FILE_HEADER = 32_768, 7, 7


def records(path: Path) -> list[Any]:
    """What a run that has ended left in its file.

    The service, a process of its own, writes the end of the file after `finish` has returned, so that is waited for.
    """
    deadline = time.monotonic() + 60
    while True:
        found = _records(path)
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.01)


def _records(path: Path) -> list[Any]:
    """Read LevelDB-style blocks of records: CRC (4 bytes), length (2), kind (1), data."""
    data, at, found, parts = path.read_bytes(), FILE_HEADER, [], b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if kind == 0 or at + HEADER + length > len(data):  # still being written
            break
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def history_of(run: Path) -> list[dict[str, Any]]:
    (folder,) = run.glob("wandb/offline-run-*")
    return rows_of(folder)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("run-*.wandb")
    rows = [r.history.item for r in records(path) if r.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def test_a_run_is_recorded_offline_without_a_key() -> None:
    run = cgfedrec.fit(TINY, {"logger": {"class_path": "cgfedrec.run.loggers.WandbLogger"}, "run_dir": "run"})
    assert isinstance(run.logger, WandbLogger)
    assert run.logger.offline
    (path,) = Path("run").glob("wandb/offline-run-*/run-*.wandb")
    found = records(path)
    rows = history_of(Path("run"))
    metrics = [row for row in rows if "val/ndcg@10" in row]
    csv = pl.read_csv("run/metrics.csv")
    assert [row["round"] for row in metrics] == csv["round"].to_list()
    for name in csv.columns:
        for row, value in zip(metrics, csv[name].to_list(), strict=True):
            if value is not None:
                assert row[name] == pytest.approx(value), name
    sizes = [row["clusters/sizes/values"] for row in rows if "clusters/sizes/values" in row]
    assert [sum(size) for size in sizes] == [5, 5, 5]
    assert any("final/nrows" in row for row in rows)
    assert any("against bytes" in key for row in rows for key in row)
    config = {item.key: json.loads(item.value_json) for r in found for item in r.run.config.update}
    assert config["loop"]["rounds"] == 3
    summary = {item.key: json.loads(item.value_json) for r in found for item in r.summary.update}
    assert summary["test/ndcg@10"] == pytest.approx(run.summary["test/ndcg@10"])
    steps = {r.metric.step_metric for r in found if r.WhichOneof("record_type") == "metric"}
    assert "round" in steps
    assert not [r for r in found if "best.ckpt" in str(r)], "nothing private leaves unasked"


def test_a_run_that_the_caller_has_open_stays_the_callers() -> None:
    with wandb.init(mode="offline", dir=str(Path.cwd()), settings=wandb.Settings(silent=True)) as theirs:
        run = cgfedrec.fit(TINY, {"logger": {"class_path": "cgfedrec.run.loggers.WandbLogger"}, "run_dir": "run"})
        assert wandb.run is theirs
        assert "test/ndcg@10" not in dict(theirs.summary)
    assert run.summary["rounds"] == 3
    assert len([row for row in history_of(Path("run")) if "val/ndcg@10" in row]) == 3


def test_a_resumed_run_is_the_same_wandb_run() -> None:
    logger = {"logger": {"class_path": "cgfedrec.run.loggers.WandbLogger"}}
    cgfedrec.fit(TINY, logger, {"run_dir": "run", "loop": {"rounds": 1}})
    cgfedrec.fit(TINY, logger, {"ckpt_path": "run/checkpoints/last.ckpt", "loop": {"rounds": 2}})
    assert len({path.name for path in Path("run").glob("wandb/offline-run-*/run-*.wandb")}) == 1
    first, second = sorted(Path("run").glob("wandb/offline-run-*"))
    rows = [row for path in (first, second) for row in rows_of(path) if "val/ndcg@10" in row]
    assert [row["round"] for row in rows] == [1, 2]
    assert [row["_step"] for row in rows] == [1, 2]  # the second record goes on where the first one ended


def test_final_figures_of_a_best_round_that_is_not_the_last_take_no_later_rounds_step() -> None:
    settings = {"logger": {"class_path": WANDB}, "method": {"class_path": "PFedRec"}}
    first = cgfedrec.fit(TINY, settings, {"run_dir": "run", "loop": {"rounds": 3, "patience": None}})
    assert first.summary["best_round"] < 3
    last = {"ckpt_path": "run/checkpoints/last.ckpt", "loop": {"rounds": 5, "patience": None}}
    cgfedrec.fit(TINY, settings, last)
    parts = [rows_of(folder) for folder in sorted(Path("run").glob("wandb/offline-run-*"))]
    steps = [[(row["_step"], row["round"]) for row in part if "val/ndcg@10" in row] for part in parts]
    assert steps == [[(1, 1), (2, 2), (3, 3)], [(4, 4), (5, 5)]]
    assert max(row["_step"] for row in parts[0]) == 3  # W&B drops a step that it has already
    (path, _) = sorted(Path("run").glob("wandb/offline-run-*/run-*.wandb"))
    summary = {item.key: json.loads(item.value_json) for r in records(path) for item in r.summary.update}
    assert summary["test/ndcg@10"] == pytest.approx(first.summary["test/ndcg@10"])


def test_a_run_says_what_it_is_and_shows_what_was_discovered() -> None:
    init = {"group": "mine", "tags": ["first try"], "job_type": "paper"}
    cgfedrec.fit(QUICK, {"logger": {"class_path": WANDB, "init_args": init}, "run_dir": "run"})
    (path,) = Path("run").glob("wandb/offline-run-*/run-*.wandb")
    run = next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type) == ("mine", "paper")
    assert list(run.tags) == ["CGFedCo", "embedded data", "strict protocol", "first try"]
    defined = {record.metric.name for record in records(path) if record.WhichOneof("record_type") == "metric"}
    assert {"round", "bytes/total"} <= defined
    media = {str(one.relative_to(path.parent / "files/media")) for one in path.parent.rglob("files/media/*/**/*.*")}
    kept = {re.sub(r"_\d+_.*", "", name) for name in media}
    assert {"html/page", "html/structure/map", "table/structure/clusters", "table/structure/neighbours"} <= kept
    assert "table/examples" not in kept  # private, and nobody asked


def test_a_run_that_found_nothing_yet_logs_no_examples(recwarn: pytest.WarningsRecorder) -> None:
    logger = {"class_path": WANDB, "init_args": {"examples": 3}}
    assert "unfinished" in cgfedrec.fit(QUICK, {"loop.rounds": 2, "logger": logger, "run_dir": "run"}).summary
    assert not list(Path("run").rglob("examples_*"))
    assert not [one for one in recwarn if "recommend" in str(one.message)]  # that it could not be logged


def test_what_is_recommended_to_some_users_is_logged_where_asked_for() -> None:
    Path("titles.csv").write_text("id,title\n" + "".join(f"{item},Film {item}\n" for item in range(1, 81)))
    logger = {"class_path": WANDB, "init_args": {"examples": 3}}
    run = cgfedrec.fit(QUICK, {"data.items.path": "titles.csv", "logger": logger, "run_dir": "run"})
    (path,) = Path("run").glob("wandb/offline-run-*/files/media/table/examples_*")
    found = json.loads(path.read_text())
    table = pl.DataFrame(found["data"], schema=found["columns"], orient="row", infer_schema_length=None)
    users = table["user"].unique(maintain_order=True).to_list()
    assert users == [run.data.user_ids[place] for place in (0, 29, 59)]
    assert table["title"].to_list() == [f"Film {item}" for item in table["item"]]
    recommended = run.recommend(users).select("user", "item")
    assert table.select("user", "item").equals(recommended)
    for user, last in table.select("user", "had last").unique().iter_rows():
        had = [int(title.removeprefix("Film ")) for title in last.split("; ")]
        assert not set(had) & set(table.filter(user=user)["item"])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"examples": -1}, r"logger\.examples: -1 is below 0"),
        ({"tags": ["x" * 65]}, r"logger\.tags: 'xxx"),
        ({"group": ""}, r"logger\.group: is empty"),
    ],
)
def test_what_the_logger_cannot_use_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        WandbLogger(**given)


@pytest.mark.usefixtures("quick_start")
def test_a_comparison_is_one_group_with_a_run_for_each_seed() -> None:
    base = {"data": TINY["data"], "loop": {"rounds": 2}, "logger": {"class_path": WANDB}}
    methods = {"Local": {"method": {"class_path": "cgfedrec.methods.Local"}}}
    Path("some.yaml").write_text(yaml.safe_dump({"base": base, "methods": methods, "data": {"a": {}}, "seeds": [0, 1]}))
    assert main(["compare", "--config", "some.yaml", "--output", "out/mine"]) == 0
    paths = sorted(Path("out/mine/a").glob("Local/*/wandb/offline-run-*/run-*.wandb"))
    runs = [next(r.run for r in records(path) if r.WhichOneof("record_type") == "run") for path in paths]
    assert [(run.run_group, run.job_type) for run in runs] == [("mine", "compare")] * 2
    assert [run.display_name for run in runs] == ["out/mine/a/Local/0", "out/mine/a/Local/1"]


def test_a_search_has_a_run_for_each_trial_where_a_logger_is_asked_for() -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY | {"loop": {"rounds": 2, "patience": None}}))
    Path("space.yaml").write_text(yaml.safe_dump({"method.init_args.temperature": [0.1, 0.2]}))
    words = ["tune", "--config", "tiny.yaml", "--space", "space.yaml", "--trials", "2"]
    assert main([*words, "--output", "quiet"]) == 0
    assert not list(Path("quiet").rglob("*.wandb"))
    assert main([*words, "--output", "told", "--logger", WANDB]) == 0
    paths = sorted(Path("told/trials").glob("*/wandb/offline-run-*/run-*.wandb"))
    runs = [next(r.run for r in records(path) if r.WhichOneof("record_type") == "run") for path in paths]
    assert [(run.run_group, run.job_type) for run in runs] == [("told", "tune")] * 2
    assert all(any("val/ndcg@10" in row for row in rows_of(path.parent)) for path in paths)
    config = [{item.key: json.loads(item.value_json) for item in run.config.update} for run in runs]
    assert {one["method"]["init_args"]["temperature"] for one in config} == {0.1, 0.2}
    assert "told" not in Path("told/best.yaml").read_text().replace("told/", "")


@pytest.mark.parametrize(("key", "offline"), [(None, True), ("x" * 40, False)])
def test_online_only_where_a_key_is_configured(key: str | None, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert WandbLogger().offline == offline
    assert WandbLogger(offline=True).offline


def test_a_key_without_a_network_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("cgfedrec.run.loggers.INIT_TIMEOUT", 3.0)
    with pytest.warns(UserWarning, match="logged offline"):
        run = cgfedrec.fit(TINY, {"logger": {"class_path": "cgfedrec.run.loggers.WandbLogger"}, "run_dir": "run"})
    assert run.summary["rounds"] == 3
    assert len([row for row in history_of(Path("run")) if "val/ndcg@10" in row]) == 3


def test_the_best_checkpoint_is_an_artifact_when_asked_for() -> None:
    logger = {"class_path": "cgfedrec.run.loggers.WandbLogger", "init_args": {"log_checkpoint": True}}
    cgfedrec.fit(TINY, {"logger": logger, "run_dir": "run"})
    (path,) = Path("run").glob("wandb/offline-run-*/run-*.wandb")
    artifacts = [r for r in records(path) if r.WhichOneof("record_type") in ("artifact", "request")]
    assert any("best.ckpt" in str(record) for record in artifacts)


def test_a_service_that_dies_is_said_once_and_ends_nothing() -> None:
    """Through the command line, so that what happens when the process ends is seen too."""
    logger = {"class_path": "cgfedrec.run.loggers.WandbLogger"}
    settings = {**TINY, "loop": {"rounds": 100, "patience": None}, "logger": logger}
    Path("config.yaml").write_text(yaml.safe_dump(settings))
    line = [sys.executable, "-m", "cgfedrec.cli", "fit", "--config", "config.yaml", "--run_dir", "run"]
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not that of other tests
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own)
    services: list[psutil.Process] = []
    while not (services and Path("run/metrics.csv").exists()):
        assert process.poll() is None, process.communicate()
        children = psutil.Process(process.pid).children(recursive=True)
        services = [child for child in children if "wandb" in child.name()]
        time.sleep(0.01)
    for service in services:
        service.kill()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert err.count("WandbLogger has failed") == 1
    assert "Traceback" not in err
    assert len(pl.read_csv("run/metrics.csv")) == 100
    assert Path("run/summary.json").exists()


@pytest.mark.parametrize("home", ["/proc/nowhere", None])
def test_without_a_home_it_says_nothing_of_itself_and_logs_all(home: str | None) -> None:
    """Its service prints what it cannot write into the user's folders, and artifacts were lost."""
    config = Path("tiny.yaml")
    config.write_text(yaml.safe_dump(TINY | {"logger": {"class_path": WANDB}}))
    own = ("HOME", "WANDB_SILENT", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    environment = {name: text for name, text in os.environ.items() if name not in own}
    if home:
        environment["HOME"] = home
    done = Command("fit", "--config", config, "--run_dir", "run", environment=environment)
    out, err = done.communicate()
    assert done.returncode == 0
    assert not re.search(r"\d\d:\d\d:\d\d (INFO|ERROR)", out + err)
    assert "has failed" not in err
    assert len(list(Path("run/wandb").glob("offline-run-*"))) == 1


def test_another_logger_that_fails_ends_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(*arguments: Any, **named: Any) -> None:
        calls.append(arguments)
        raise OSError("no")

    monkeypatch.setattr("lightning.fabric.loggers.CSVLogger.log_metrics", fails)
    logger = {"class_path": "lightning.fabric.loggers.CSVLogger", "init_args": {"root_dir": "board"}}
    with pytest.warns(UserWarning, match="CSVLogger has failed"):
        run = cgfedrec.fit(TINY, {"logger": logger, "run_dir": "run"})
    assert (run.summary["rounds"], len(calls)) == (3, 1)
