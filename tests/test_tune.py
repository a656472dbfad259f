"""cgfedrec tune, through the command line."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from inspect import signature
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
from cgfedrec.experiments.checks import NOT_OF_LOOP, check_space
from cgfedrec.experiments.space import holds, parsed, read_space, with_values
from cgfedrec.loop import FederatedLoop
from cgfedrec.settings.parser import dump, parse
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
        ({"method.init_args.dim": {"choices": [2, 4]}}, "--space: method.init_args.dim: write the list itself: [2, 4]"),
        ({"method.init_args.lr_eta": [float("nan")]}, "one or more choices"),
        ({"method.init_args.lr_eta": {"low": 0.1, "high": float("inf")}}, "high inf must be a finite number"),
        ({"method.init_args.lr_eta": {"low": float("-inf"), "high": 1}}, "low -inf must be a finite number"),
        ({"method.init_args.lr_eta": {"low": float("nan"), "high": 1}}, "low nan must be a finite number"),
        ({"method.init_args.lr_eta": {"low": -1e308, "high": 1e308}}, "low -1e+308 must be a finite number"),
        ({"method.init_args.lr_eta": {"low": 1, "high": 10**400}}, "must be a finite number"),
        ({"method.init_args.lr_eta": {"low": 0.1, "high": 1.0, "step": float("inf")}}, "step inf is too large"),
        ({"method.init_args.lr_eta": {"low": 0.1, "high": 1.0, "step": 1e-30}}, "step 1e-30 is too large or too small"),
        ({"seed_everything": [1, 2]}, "only options of method, loop and data"),
        ({"method": ["FedMF"]}, "only options of method, loop and data"),
        ({"method.init_args.dim.x": [1]}, "--space: method.init_args.dim.x: there is no such option"),
    ],
)
def test_a_space_that_cannot_be_searched(space: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.yaml").write_text(yaml.safe_dump(space))
    assert tune(1) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


MEASURED: dict[str, list[Any]] = {
    "loop.monitor": ["val/ndcg@10", "val/hr@20"],
    "loop.rounds": [1, 2],
    "loop.evaluate_every": [1, 2],
    "loop.patience": [1, None],
    "loop.failures.before": [0.0, 0.1],
    "data.min_users": [1, 8],
    "data.init_args.split": ["leave_one_out", "none"],
    "data.path": ["a.csv"],
    "data.synthetic.users": [10, 20],
    "data": ["a.csv"],
    "protocol.ties": ["seed"],
}


def test_what_decides_how_trials_are_measured_is_not_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    """All at once, and with whatever else is wrong; all of it may be set for all trials alike."""
    Path("space.yaml").write_text(yaml.safe_dump(MEASURED | {"method.dim": [0]}, sort_keys=False))
    assert tune(2) == 2
    told = [line.split(": ")[1:4] for line in capsys.readouterr().err.splitlines()]
    assert [option for _, option, _ in told] == [*MEASURED, "method.dim"]
    reasons = {option: reason for _, option, reason in told}
    assert reasons["loop.monitor"] == "cannot be tuned"
    assert reasons["data.min_users"].startswith("changes what is measured")
    assert reasons["method.dim"] == "0 is not positive"
    assert not Path("out").exists()
    Path("space.yaml").write_text(yaml.safe_dump({"method.dim": [4]}))
    assert tune(1, "out", "--loop.monitor", "val/hr@10", "--loop.rounds", "1", "--data.min_users", "2") == 0


def test_every_other_option_of_the_loop_and_those_of_training_can_be_tuned() -> None:
    """A new option of the loop has to be judged too: whether trials that differ in it can be compared."""
    tuned = {
        "participation": [0.5, 1.0],
        "participants": [None],
        "resample": [True, False],
        "cohort_size": [16, 32],
        "store": ["memory"],
        "state_dtype": ["float32"],
        "checkpoint_every": [1, 2],
        "compress": [True],
    }
    assert {*tuned, *NOT_OF_LOOP} == set(signature(FederatedLoop).parameters)
    space = {f"loop.{option}": entry for option, entry in tuned.items()}
    space |= {"data.batch_size": [16, 32], "data.init_args.negatives": {"low": 1, "high": 2}}
    Path("space.yaml").write_text(yaml.safe_dump(space))
    assert tune(2) == 0


def test_negatives_that_leave_other_users_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Who has too few items left to draw from is dropped: fewer users are no better setting."""
    rows = [f"{user},{(user * 3 + place) % 60},{place}" for user in range(20) for place in range(10 if user else 56)]
    Path("ratings.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    data = {"init_args": {"path": "ratings.csv", "negatives": 1}}
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG | {"data": data}))
    for most, told in ((10, "with 10, other users have too few items left"), (70, "70 different ones are asked for")):
        Path("space.yaml").write_text(yaml.safe_dump({"data.negatives": [1, most, 2]}))
        assert tune(1) == 2
        assert f"--space: data.negatives: {told}" in capsys.readouterr().err
        assert not Path("out").exists()
    Path("space.yaml").write_text(yaml.safe_dump({"data.negatives": [1, 2]}))
    assert tune(1) == 0


def test_a_config_that_holds_nothing_out_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(1, "out", "--data.split", "none") == 2
    assert "data.split: holds nothing out for validation" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("method", "space", "told"),
    [
        ("PFedRec", {"method.local_epochs": {"low": 1, "high": 40_000}}, "method.local_epochs: 40000 is more than"),
        ("PFedRec", {"method.dim": [4, "x"]}, "method.dim: must be a whole number, not x\n"),
        ("PFedRec", {"method.lr_eta": {"low": -1.0, "high": 1.0}}, "method.lr_eta: -1.0 is not positive"),
        ("PFedRec", {"method.lr_eta": {"low": 0.0, "high": 1.0, "step": 0.5}}, "method.lr_eta: 0.0 is not positive"),
        ("PFedRec", {"method.lr_eta": {"low": 0.0, "high": 1.0}}, None),  # the end itself is never drawn
        ("CoLR", {"method.rank": [4, 64], "method.dim": [4, 32]}, "method.rank: 64 is more than method.dim, 16"),
        ("CoLR", {"method.rank": [4, 32], "method.dim": [4, 32]}, None),  # there are trials that can be
    ],
)
def test_values_beyond_a_methods_limits_are_refused_before_the_first_trial(
    method: str, space: dict[str, Any], told: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {"dim": 16} if method == "CoLR" else {}
    config = CONFIG | {"method": {"class_path": f"cgfedrec.methods.{method}", "init_args": args}}
    Path("space.yaml").write_text(yaml.safe_dump(space))
    own = yaml.safe_load(dump(parsed(config)))
    if told is None:
        check_space(space, own)
        return
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert tune(1) == 2
    assert f"error: --space: {told}" in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_space_of_the_page_can_be_searched() -> None:
    page = (ROOT / "docs" / "tune.md").read_text()
    space = yaml.safe_load(page.split('yaml title="space.yaml"\n')[1].split("```")[0])
    check_space(space, yaml.safe_load(dump(parsed(CONFIG))))
    assert {type(entry) for entry in space.values()} == {list, dict}


def test_without_optuna_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("cgfedrec.experiments")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert tune(1) == 2
    assert "tuning needs Optuna: pip install 'cgfedrec[tune]'" in capsys.readouterr().err


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
    config = parsed({"method": {"class_path": f"cgfedrec.{package}.{name}"}})
    check_space(read_space(path), yaml.safe_load(dump(config)))


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
