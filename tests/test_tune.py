"""cgfedrec tune, through the command line."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import cgfedrec.centralized
import cgfedrec.methods
from cgfedrec.cli import main
from cgfedrec.data import FederatedDataModule
from cgfedrec.data.module import Stage
from cgfedrec.evaluation.ranking import Ranked, ranked
from cgfedrec.experiments.space import holds, read_space, with_values
from cgfedrec.settings.parser import parse
from cgfedrec.settings.sources import said
from tests.commands import Command
from tests.conftest import ROOT, TINY

CONFIG: dict[str, Any] = {
    "data": TINY["data"],
    "method": {"class_path": "cgfedrec.methods.PFedRec", "init_args": {"dim": 8, "lr_eta": 0.1, "init_scale": 0.01}},
    "loop": {"rounds": 3, "cohort_size": 16},
}
SPACE: dict[str, Any] = {
    "method.init_args.dim": [4, 8],
    "method.init_args.lr_eta": {"low": 0.01, "high": 10.0, "log": True},
    "method.init_args.local_epochs": {"low": 1, "high": 3},
}


@pytest.fixture(autouse=True)
def _files() -> None:
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    Path("space.yaml").write_text(yaml.safe_dump(SPACE))


def tune(trials: int, output: str = "out", *options: str) -> int:
    fixed = ["--config", "config.yaml", "--space", "space.yaml"]
    return main(["tune", *fixed, "--trials", str(trials), "--output", output, *options])


def begin(trials: int) -> Command:
    fixed = ["--config", "config.yaml", "--space", "space.yaml"]
    return Command("tune", *fixed, "--trials", trials, "--output", "out")


def trials(output: str = "out") -> pl.DataFrame:
    return pl.read_csv(f"{output}/trials.csv").drop("seconds")


def test_options_may_be_named_as_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The first trial has the config's own settings however the space names them; and names each of them once."""
    space = {option.replace("init_args.", ""): entry for option, entry in SPACE.items()}
    Path("space.yaml").write_text(yaml.safe_dump(space))
    assert tune(1) == 0
    first = trials().row(0, named=True)
    assert (first["method.dim"], first["method.lr_eta"], first["method.local_epochs"]) == (8, 0.1, 1)
    assert yaml.safe_load(Path("out/best.yaml").read_text())["method"]["init_args"]["lr_eta"] == 0.1
    Path("space.yaml").write_text(yaml.safe_dump(space | {"method.init_args.dim": [4]}))
    assert tune(1, "twice") == 2
    assert "--space: method.init_args.dim: is method.dim in other words; name it once" in capsys.readouterr().err


def test_the_best_is_a_config_of_fit_and_no_test_item_is_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []

    def note(data: FederatedDataModule, stage: Stage, *rest: Any) -> Ranked:
        stages.append(stage)
        return ranked(data, stage, *rest)

    with monkeypatch.context() as patched:
        patched.setattr("cgfedrec.simulation.clients.ranked", note)
        assert tune(7) == 0
    assert set(stages) == {"val"}
    table = trials()
    assert table["trial"].to_list() == list(range(7))
    assert set(table["state"]) == {"complete"}
    first = table.row(0, named=True)
    assert (first["method.init_args.dim"], first["method.init_args.lr_eta"]) == (8, 0.1)  # the config's own
    assert set(table["method.init_args.local_epochs"]) <= {1, 2, 3}
    assert table["method.init_args.lr_eta"].is_between(0.01, 10).all()
    assert main(["fit", "--config", "out/best.yaml", "--logger", "null", "--run_dir", "run"]) == 0
    assert json.loads(Path("run/summary.json").read_text())["val/ndcg@10"] == table["value"].max()
    assert "7 of at most 3 rounds, seed 0" in Path("out/best.yaml").read_text()
    assert "WandbLogger" in Path("out/best.yaml").read_text()
    assert not Path("out/trial").exists()


@pytest.mark.parametrize(
    "noise", [[], ["--wire.steps", "[{class_path: Noised, init_args: {norm: 2.0, epsilon: 8.0}}]"]]
)
def test_under_a_budget_it_says_that_trials_add_up(noise: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(1, "out", *noise) == 0
    assert ("each trial spends a budget of its own, these add up" in capsys.readouterr().out) == bool(noise)


def test_a_study_goes_on_to_the_same_trials_after_it_was_killed() -> None:
    assert tune(7, "whole") == 0
    process = begin(7)
    while "trial 3" not in process.stdout:
        assert process.poll() is None
        time.sleep(0.001)
    while not Path("out/trial").exists():  # in the midst of the next one
        assert process.poll() is None
    process.kill()
    process.wait()
    assert tune(7) == 0
    assert trials().drop("trial").equals(trials("whole").drop("trial"))
    assert tune(8) == 0
    assert len(trials()) == 8


def test_a_stopped_study_saves_and_goes_on() -> None:
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG | {"loop": {"rounds": 300, "patience": None}}))
    process = begin(2)
    while not Path("out/trial/metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert tune(2) == 2  # a study of something else


def test_a_trial_that_fails_counts_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    space = {"method.init_args.lr_eta": [0.1, 1.0e38], "method.init_args.init_scale": [0.01, 1.0e18]}
    Path("space.yaml").write_text(yaml.safe_dump(space))
    assert tune(6) == 0
    assert len(trials()) == 6
    failed = trials().filter(pl.col("state") == "fail")
    assert 0 < len(failed) < 6
    assert "not finite" in failed["error"][0]
    capsys.readouterr()
    space = {"method.init_args.lr_eta": [1.0e38], "method.init_args.init_scale": [1.0e18]}
    Path("space.yaml").write_text(yaml.safe_dump(space))
    assert tune(2, "none") == 1
    assert "none of 2 trials came to an end" in capsys.readouterr().err


def test_pruning_ends_trials_early() -> None:
    space = {"method.init_args.lr_eta": {"low": 1.0e-6, "high": 10.0, "log": True}}
    Path("space.yaml").write_text(yaml.safe_dump(space))
    assert tune(12, "out", "--prune", "--loop.rounds", "6") == 0
    assert "pruned" in set(trials()["state"])
    best = yaml.safe_load(Path("out/best.yaml").read_text())
    assert best["loop"]["rounds"] == 6


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "holds no options"),
        ({"method.init_args.nothing": [1, 2]}, "method.init_args.nothing"),
        ({"method.init_args.dim": []}, "one or more choices"),
        ({"method.init_args.dim": [[1, 2]]}, "one or more choices"),
        ({"method.init_args.dim": {"low": 3, "high": 2}}, "low 3 is not below high 2"),
        ({"method.init_args.lr_eta": {"low": "1e-3", "high": 1.0}}, "YAML reads 1e-3 as text"),
        ({"method.init_args.lr_eta": {"low": 0, "high": 1.0, "log": True}}, "positive low"),
        ({"method.init_args.dim": {"low": 1, "high": 4, "step": 0.5}}, "step 0.5 must be a positive number"),
        ({"method.init_args.lr_eta": {"low": 0.1, "high": 1.0, "step": "a"}}, "step 'a' must be a positive number"),
        ({"method.init_args.dim": {"from": 3, "to": 2}}, "give a list of choices"),
        ({"seed_everything": [1, 2]}, "only options of method, loop and data"),
    ],
)
def test_a_space_that_cannot_be_searched(space: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.yaml").write_text(yaml.safe_dump(space))
    assert tune(2) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("entry", "own", "held"),
    [
        ({"low": 64, "high": 512, "step": 64}, 128, True),
        ({"low": 64, "high": 512, "step": 64}, 100, False),
        ({"low": 0.1, "high": 0.9, "step": 0.2}, 0.3, True),  # not to the last bit
        ({"low": 0.1, "high": 0.9, "step": 0.2}, 0.2, False),
        ({"low": 0.0, "high": 1.0, "step": 0.3}, 1.0, False),
        ({"low": 0, "high": 2}, 0.5, False),
        ({"low": 0, "high": 2}, 2, True),
        ({"low": 0, "high": 2}, True, False),
        ({"low": 0, "high": 2}, None, False),
        ({"low": 0.0, "high": 2}, 0.5, True),
        ([1, 2], 1.0, True),
        ([1, 2], True, False),
        ([True, None], None, True),
    ],
)
def test_a_space_holds_only_what_is_drawn_of_it(entry: Any, own: object, held: bool) -> None:
    assert holds(entry, own) == held


def test_a_study_goes_on_where_the_configs_own_value_is_between_two_steps() -> None:
    Path("space.yaml").write_text(yaml.safe_dump({"method.init_args.dim": {"low": 2, "high": 14, "step": 4}}))
    assert tune(1) == 0
    assert tune(2) == 0
    assert set(trials()["method.init_args.dim"]) <= {2, 6, 10, 14}  # and not 8, the config's own


def test_values_are_set_in_a_copy() -> None:
    config = {"a": {"b": 1, "c": {"d": 2}}}
    assert with_values(config, {"a.c.d": 3, "a.e": 4}) == {"a": {"b": 1, "c": {"d": 3}, "e": 4}}
    assert config == {"a": {"b": 1, "c": {"d": 2}}}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_fits_its_method(path: Path) -> None:
    name = next(
        name for name in (*cgfedrec.methods.__all__, *cgfedrec.centralized.__all__) if name.lower() == path.stem
    )
    package = "methods" if name in cgfedrec.methods.__all__ else "centralized"
    config = {"method": {"class_path": f"cgfedrec.{package}.{name}"}}
    for option, entry in read_space(path).items():
        for value in entry if isinstance(entry, list) else (entry["low"], entry["high"]):
            parse(said([with_values(config, {option: value})]))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_runs_fit_by_validation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(path.read_text())
    program, verb, *options, arguments = sweep["command"]
    assert (program, verb, arguments) == ("cgfedrec", "fit", "${args}")
    for place in (0, -1):
        ends = {
            name: entry.get("values", [entry.get("min"), entry.get("max")])
            for name, entry in sweep["parameters"].items()
        }
        settings = parse(said(options=[*options, *(f"--{name}={values[place]}" for name, values in ends.items())]))
        assert sweep["metric"] == {"name": settings.loop.monitor, "goal": "maximize"}
        assert settings.logger.class_path.endswith("WandbLogger")
        for name, values in ends.items():
            assert settings[name] == values[place]


def test_a_damaged_study_is_refused_and_one_of_before_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(2) == 0
    study = Path("out/study.json")
    text = study.read_text()
    study.write_text(text.replace('"value": 0.', '"value": 0.9', 1))
    assert tune(3) == 2
    assert "out/study.json: is damaged" in capsys.readouterr().err
    study.write_text(text)
    assert tune(3) == 0
    Path("old").mkdir()
    Path("old/study.db").touch()
    assert tune(3, "old") == 2
    assert "before 0.2" in capsys.readouterr().err


def test_a_study_of_other_data_is_not_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{user},{(user * 7 + place * place) % 60},{place}" for user in range(20) for place in range(8)]
    data = {"init_args": {"path": "ratings.csv", "negatives": 1}}
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG | {"data": data}))
    for text in (rows, rows[:-1]):
        Path("ratings.csv").write_text("user,item,timestamp\n" + "\n".join(text) + "\n")
        code = tune(1)
        assert code == (0 if text is rows else 2)
    assert "out holds a study of another config, space, data or code" in capsys.readouterr().err


@pytest.mark.parametrize("prune", [False, True])
def test_a_study_that_is_stopped_between_any_two_writes_comes_to_the_same(
    prune: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was just written, and whatever was just about to be."""
    options = ["--prune"] if prune else []
    assert tune(4, "whole", *options) == 0
    replace, stopped = Path.replace, 0
    every = 1 if os.environ.get("CGFEDREC_ALL_STOPS") else 7
    for moment in range(1, 60, every):
        left = [moment]

        def dies(source: Path, target: Path, left: list[int] = left) -> Path:
            left[0] -= 1
            if left[0] == 0:
                raise SystemExit(9)
            return replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", dies)
            try:
                done = tune(4, f"out{moment}", *options)
            except SystemExit:
                stopped += 1
                assert tune(4, f"out{moment}", *options) == 0
            else:
                assert done == 0
                break
        assert trials(f"out{moment}").equals(trials("whole"))
        best = [Path(folder, "best.yaml").read_text() for folder in (f"out{moment}", "whole")]
        assert best[0] == best[1]
        assert not list(Path(f"out{moment}").glob(".*.part"))
    assert stopped > 6 / every
