"""Results on data that have changed since are never taken for results on the data of now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from cgfedrec.data import FederatedDataModule, Interactions, of_frame
from cgfedrec.errors import InputError
from cgfedrec.experiments.compare import setups
from cgfedrec.run.api import fit, load
from cgfedrec.run.opened import data_of
from tests.commands import launch
from tests.test_compare import RATES, changed_at, compare

ROWS = [f"{user},{(user * 7 + place * place) % 60},{user + 9 * place}" for user in range(20) for place in range(8)]
LOCAL = {"Local": {"method": {"class_path": "cgfedrec.methods.Local", "init_args": RATES}}}
CUTS = {"split": "rolling", "rolling": {"cuts": 3, "least": 2}}


class Elsewhere(FederatedDataModule):
    """Interactions of which no ``data.path`` tells."""

    def read(self) -> Interactions:
        return of_frame(pl.read_csv("ratings.csv"), self.format)


@pytest.fixture(autouse=True)
def _rows(quick_start: None) -> None:
    write(ROWS)


def write(rows: list[str]) -> None:
    Path("ratings.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")


def planned(methods: dict[str, Any], seeds: list[int], **of_data: Any) -> Path:
    """A small comparison on the file."""
    data = {"one": {"data": {"init_args": {"path": "ratings.csv", "negatives": 1, **of_data}}}}
    said = {"base": {"loop": {"rounds": 1, "cohort_size": 16}}, "data": data, "methods": methods, "seeds": seeds}
    path = Path("small.yaml")
    path.write_text(yaml.safe_dump(said))
    return path


@pytest.mark.parametrize(
    ("of_data", "seeds", "read_again"),
    [({}, [0, 1], []), ({"split": "random"}, [0, 1], [1]), (CUTS, [0], [0])],
    ids=["one reading", "one for each seed", "one beside that of the last cut"],
)
def test_a_comparison_pairs_no_runs_on_other_data(
    of_data: dict[str, Any],
    seeds: list[int],
    read_again: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With any seed; and data are read once more only where a seed or a cut decides what is held out."""
    config = planned(LOCAL, seeds, **of_data)
    assert compare(config) == 0
    before = changed_at()
    read: list[int] = []

    def noted(settings: Any) -> Any:
        read.append(settings.seed_everything)
        return data_of(settings)

    with monkeypatch.context() as patched:
        patched.setattr(setups, "data_of", noted)
        assert compare(config) == 0
    assert read == read_again
    assert changed_at() == before
    write(ROWS[1:])
    planned(LOCAL | {"Popularity": {"method": "Popularity"}}, seeds, **of_data)
    capsys.readouterr()
    assert compare(config) == 2
    said = capsys.readouterr().err
    for seed in seeds:
        place = f"out/one/Local/{seed}: holds a run on other data"
        assert f"{place}: what ratings.csv holds has changed; choose another --output, or run it anew with" in said
    assert changed_at() == before
    if of_data:  # what comes then is the same for all
        return
    assert compare(config, "--replace") == 0
    of_first = [json.loads(path.read_text())["data"] for path in Path("out").glob("*/*/0/summary.json")]
    assert len(of_first) == 2
    assert len(set(of_first)) == 1


def test_a_stopped_run_of_a_comparison_does_not_go_on_with_other_data(capsys: pytest.CaptureFixture[str]) -> None:
    config = planned(LOCAL, [0])
    assert compare(config, "--keep_checkpoints") == 0
    Path("out/one/Local/0/summary.json").unlink()
    write(ROWS[1:])
    assert compare(config) == 2
    assert "out/one/Local/0: holds a run on other data: what ratings.csv" in capsys.readouterr().err
    assert compare(config, "--replace") == 0


def test_data_that_change_while_runs_are_at_work_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_a_change(*given: Any) -> Any:
        write(ROWS[1:])
        return launch(*given)

    monkeypatch.setattr("cgfedrec.experiments.compare.runner.launch", after_a_change)
    assert compare(planned(LOCAL, [0])) == 1
    assert "one/Local/0: FAILED: on other data: what ratings.csv holds has changed" in capsys.readouterr().out


def test_methods_on_other_data_of_the_same_size_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    earlier = {"EASE": {"method": "EASE", "data": {"init_args": {"temporal_fractions": [0.5, 0.7]}}}}
    assert compare(planned(LOCAL | earlier, [0], split="temporal")) == 2
    assert "data: other data than the others have; give them under base or data" in capsys.readouterr().err


def test_a_rolling_evaluation_that_was_stopped_does_not_go_on_with_other_data() -> None:
    """What was found at a cut where nothing has changed stays: here the first ones, since one row is new in the end."""
    settings = {"method": "EASE", "logger": None, "run_dir": "run"}
    of_data = {"path": "ratings.csv", "negatives": 1, "split": "rolling", "rolling": {"cuts": 3, "least": 2}}
    given = settings | {"data": {"init_args": of_data}}
    whole = fit(given).summary
    Path("run/summary.json").unlink()
    assert fit(given).summary["test/ndcg@10"] == whole["test/ndcg@10"]
    Path("run/summary.json").unlink()
    write([*ROWS, "0,59,500"])
    with pytest.raises(InputError, match=r"run_dir: run/cuts/03 has results on other data: what ratings.csv"):
        fit(given)


def test_what_a_data_module_of_ones_own_reads_is_looked_at_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a path it is not taken for the embedded data, which never change."""
    kind, data = f"{__name__}.Elsewhere", {"negatives": 1, **CUTS}
    config = planned(LOCAL, [0])
    said = yaml.safe_load(config.read_text())
    said["data"]["one"] = {"data": {"class_path": kind, "init_args": {"negatives": 1}}}
    config.write_text(yaml.safe_dump(said))
    given = {"method": "EASE", "logger": None, "run_dir": "run", "data": {"class_path": kind, "init_args": data}}
    assert compare(config) == 0
    assert "<dt>data</dt><dd>data module Elsewhere: 20 users" in Path("out/report.html").read_text()
    fit(given)
    Path("run/summary.json").unlink()
    write([*ROWS, "0,59,500"])
    capsys.readouterr()
    assert compare(config) == 2
    assert "other data: what data module Elsewhere holds has changed; choose" in capsys.readouterr().err
    with pytest.raises(InputError, match="run/cuts/03 has results on other data: what data module Elsewhere holds has"):
        fit(given)


@pytest.mark.parametrize(
    ("method", "what"),
    [("CGFedCo", "bring the run up to date with cgfedrec fit --update_from"), ("EASE", "train anew")],
)
def test_a_checkpoint_says_that_its_file_has_changed_and_what_to_do(method: str, what: str) -> None:
    """The file has its name still: it is not called another one, nor split otherwise."""
    given = {"method": method, "data.path": "ratings.csv", "data.split": "none", "logger": None}
    fit(given, {"run_dir": "run"})
    last, copy = Path("run/checkpoints/last.ckpt"), Path("copy.csv")
    copy.write_bytes(Path("ratings.csv").read_bytes())
    write([*ROWS, "0,59,999"])
    now = (
        "ckpt_path: was trained on other data than ratings.csv holds now: it has changed since, or is another file of "
        f"that name. Give a copy of then as --data.path, or {what}"
    )
    with pytest.raises(InputError) as told:
        load(last)
    assert told.value.problems == [now]
    with pytest.raises(InputError) as told:
        fit({"ckpt_path": str(last), "logger": None})
    assert told.value.problems == [now]
    assert len(load(last, {"data.path": "copy.csv"}).recommend([0])) == 10

    Path("ratings.csv").rename("other.csv")
    copy.rename("ratings.csv")
    other = "ckpt_path: was trained on other data than other.csv, or on another split; its own is ratings.csv"
    split = "ckpt_path: was trained on other data than ratings.csv, or on another split"
    for asked, problem in ({"data.path": "other.csv"}, other), ({"data.split": "random"}, split):
        with pytest.raises(InputError) as told:
            load(last, asked)
        assert told.value.problems == [problem]


def test_a_checkpoint_says_that_what_its_data_module_reads_has_changed() -> None:
    given = {"method": "EASE", "data": f"{__name__}.Elsewhere", "data.split": "none"}
    fit(given, {"run_dir": "run", "logger": None})
    write([*ROWS, "0,59,999"])
    with pytest.raises(InputError, match=r"than data module Elsewhere reads now; train anew$"):
        load("run/checkpoints/last.ckpt", given)
