"""What a user sees, through the command line."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from rich.console import Console

import cgfedrec as package
from cgfedrec import train
from cgfedrec.cli import main
from cgfedrec.client import Batch, CompiledSteps, StepOutput
from cgfedrec.errors import Notice
from cgfedrec.run.advice import advice
from cgfedrec.run.console import show_unfinished
from cgfedrec.run.reference import ReferenceFit
from cgfedrec.settings.sources import said
from tests.commands import Command, cgfedrec, fresh
from tests.conftest import ROOT, TINY, require_data

COLUMNS = {"round", "train/loss", "train/alignment", "bytes/up", "bytes/down", "bytes/total", "clusters/used"}
COLUMNS |= {"clusters/changed", "time/round", "val/hr@10", "val/ndcg@10", "val/mrr@10"}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A config that trains in a moment."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """A table whose ids are words, and in which user eve has too little."""
    path = tmp_path / "ratings.csv"
    rows = [f"user{u},item{(u * 7 + i * i) % 60},{i}" for u in range(30) for i in range(10)]
    path.write_text("user,item,timestamp\n" + "\n".join([*rows, "eve,item1,5"]) + "\n")
    return path


def run(*arguments: str | Path | int) -> int:
    return main([str(argument) for argument in arguments])


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_fit_leaves_everything_behind(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", tiny) == 0
    directory = Path("runs/tiny/0")
    assert "NDCG@10" in capsys.readouterr().out
    history = pl.read_csv(directory / "metrics.csv")
    assert history["round"].to_list() == [1, 2, 3]
    assert set(history.columns) >= COLUMNS
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["best_round"] == history.sort("val/ndcg@10", descending=True, maintain_order=True)["round"][0]
    assert summary["val/ndcg@10"] == history["val/ndcg@10"].max()
    assert summary["bytes/total"] == history["bytes/total"][-1]
    assert {"test/ndcg@10", "popularity/test/ndcg@10", "protocol", "candidates", "seed", "versions", "seconds"} <= set(
        summary
    )
    assert (directory / "checkpoints/last.ckpt").exists()
    assert (directory / "checkpoints/best.ckpt").exists()
    ranks = pl.read_parquet(directory / "ranks.parquet")
    assert ranks.columns == ["user", "item", "rank", "popularity"]
    assert ranks["user"].to_list() == list(range(1, 41))
    assert (ranks["rank"] <= 10).mean() == pytest.approx(summary["test/hr@10"])
    assert not list(directory.rglob("*.part")) + list(directory.rglob("writing*"))


def test_four_calls_lie_between_the_command_and_the_inner_step(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader finds the training in four steps; a worker's thread stands apart from the command's."""
    package_folder, command, seen = str(Path(package.__file__).parent), threading.get_ident(), list[list[str]]()

    def ours(frame: FrameType | None) -> list[str]:
        """The calls of cgfedrec that a frame came by, the outermost first."""
        names: list[str] = []
        while frame is not None:
            if frame.f_code.co_filename.startswith(package_folder):
                names.insert(0, frame.f_code.co_qualname)
            frame = frame.f_back
        return names

    found = train._compiled

    def watched(*arguments: Any) -> CompiledSteps:
        steps = found(*arguments)
        assert steps is not None

        def step(batch: Batch) -> StepOutput:
            calls = ours(sys._current_frames()[command]) + ours(sys._getframe(1))
            seen.append(calls[calls.index("_fit") + 1 :])
            return steps(batch)

        return step

    monkeypatch.setattr(train, "_compiled", watched)
    assert run("fit", "--config", tiny, "--loop.rounds", "1") == 0
    # The shortest, since the command's own thread may be busy with another cohort's upload meanwhile.
    between = [name for name in min(seen, key=len) if name != "Workers.map"]  # hands a cohort to a worker's thread
    assert len(between) <= 4, between


@pytest.mark.parametrize("name", ["EASE", "cgfedrec.centralized.EASE"])
def test_a_reference_is_a_run_without_rounds(tiny: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", tiny, "--method", name, "--method.lambda_", "20") == 0
    directory = Path("runs/tiny/0")
    assert sorted(path.name for path in directory.glob("[!.]*")) == sorted(
        ["checkpoints", "config.yaml", "metrics.csv", "ranks.parquet", "report.html", "summary.json"]
    )
    out = capsys.readouterr().out
    assert "NDCG@10" in out
    assert "bytes" not in out
    history = pl.read_csv(directory / "metrics.csv")
    assert history["round"].to_list() == [1]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["method"] == "cgfedrec.centralized.ease.EASE"
    assert summary["val/ndcg@10"] == history["val/ndcg@10"][0]
    assert summary["test/ndcg@10"] > summary["popularity/test/ndcg@10"]
    assert not [key for key in summary if key.startswith("bytes")]
    ranks = pl.read_parquet(directory / "ranks.parquet")
    assert (ranks["rank"] <= 10).mean() == pytest.approx(summary["test/hr@10"])
    assert run("fit", "--config", directory / "config.yaml", "--run_dir", "again") == 0
    assert pl.read_parquet("again/ranks.parquet").equals(ranks)
    assert run("fit", "--config", tiny, "--run_dir", "again") == 2
    assert "already holds a run" in errors(capsys)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CGFEDREC_TOP_K", "CGFEDREC_RECOMMEND_TOP_K"),
        ("CGFEDREC_CKPT_PATH", "CGFEDREC_TEST_CKPT_PATH, CGFEDREC_VALIDATE_CKPT_PATH, CGFEDREC_RECOMMEND_CKPT_PATH, "),
        ("CGFEDREC_RECOMEND_TOP_K", "CGFEDREC_RECOMMEND_TOP_K"),
    ],
)
def test_a_variable_that_nobody_reads_is_told_with_an_options(
    variable: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "5")
    with pytest.warns(Notice, match=f"{variable} is not read") as told:
        assert run("completion", "bash") == 0
    assert f"; did you mean {meant}" in str(told[0].message)


def test_a_link_that_leads_nowhere_is_no_folder(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("link").symlink_to("nowhere")
    for folder in ("link", "link/run"):
        assert run("fit", "--config", tiny, "--run_dir", folder) == 2
        assert f"{Path.cwd()}/link is a link that leads nowhere" in errors(capsys)
    assert run("deploy", "--config", tiny, "--nodes", "2", "--output", "link") == 2
    assert "--output: link: " in errors(capsys)


def test_an_empty_path_is_no_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "describe", "--data.path", "") == 2
    assert "data.path: is empty; give the path of a file, or null" in errors(capsys)
    assert run("data", "diff", "", "new.csv") == 2
    assert "data diff: the path of a file is empty" in errors(capsys)
    monkeypatch.setenv("CGFEDREC_FIT_DATA__PATH", "")
    assert run("data", "describe") == 2
    assert "data.path: is empty" in errors(capsys)


def test_commands_to_be_copied_are_quoted(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder may have spaces in its name, and an apostrophe."""
    run_ = package.fit(tiny, {"run_dir": "my runs/it's"})
    last = str(Path("my runs/it's/checkpoints/last.ckpt"))
    wide = Console(width=1000)
    show_unfinished(wide, "labels", 5, run_.going_on)
    run_.summary["best_round"] = run_.summary["rounds"]
    told = [run_.go_on, run_._stands(5), *advice(run_), capsys.readouterr().out]
    commands = [shlex.split(text[text.index("cgfedrec fit") :])[:4] for text in told if "cgfedrec fit" in text]
    assert commands == [["cgfedrec", "fit", "--ckpt_path", last]] * 4
    Path(last).unlink()
    assert run("test", "--ckpt_path", last) == 2
    assert "cgfedrec fit --config 'my runs/it'\"'\"'s/config.yaml'" in errors(capsys)
    assert run("export", "--ckpt_path", exported("my ends"), "--output", "my export") == 0
    assert "cgfedrec serve 'my export'" in capsys.readouterr().out
    Path("my table.csv").touch()
    assert run("fit", "my table.csv") == 2
    assert "did you mean --data.path 'my table.csv'?" in errors(capsys)


def exported(folder: str) -> str:
    """A checkpoint that can be exported."""
    planted = {"users": 40, "items": 60, "groups": 6, "interactions": 12}
    settings = {"data": {"synthetic": planted}, "method": "CGFedCo", "loop.rounds": 30, "logger": None}
    return str(package.fit(settings, {"run_dir": folder, "method.columns": 8}).checkpoints / "last.ckpt")


OF_FIT: dict[str, dict[str, Any]] = {
    "Popularity": {},
    "EASE": {"decay": "chosen", "recent": "chosen", "recent_weight": "chosen"},
    "ItemKNN": {"neighbours": 7},
    "MF": {"epochs": 2, "dim": 8},
    "SASRec": {"epochs": 2, "dim": 8, "length": 5},
}


@pytest.mark.parametrize(("name", "init_args"), OF_FIT.items())
def test_what_a_reference_has_learned_is_kept_and_used(tiny: str, name: str, init_args: dict[str, Any]) -> None:
    """Its test and its recommendations are the same again, and to go on with it changes nothing."""
    method = {"class_path": f"cgfedrec.centralized.{name}", "init_args": init_args}
    done = package.fit(tiny, {"method": method, "run_dir": "run"})
    opened = package.load("run/checkpoints/best.ckpt")
    assert all(value == (done.summary | {"bytes/scoring": 0})[metric] for metric, value in opened.test().items())
    assert opened.recommend().equals(done.recommend())
    assert (done.recommend()["source"] == "model").all()
    again = package.fit({"ckpt_path": "run/checkpoints/last.ckpt", "run_dir": "again"})
    ours, theirs = (Path(folder, "metrics.csv").read_text() for folder in ("run", "again"))
    assert ours == theirs
    assert again.summary["test/ndcg@10"] == done.summary["test/ndcg@10"]
    fitted = opened.training
    assert isinstance(fitted, ReferenceFit)
    state = fitted.state_dict()
    for tensor, value in state["learned"].items():
        others = (
            [value[1:], value.double().fill_(torch.nan)] if value.is_floating_point() else [value[1:], value + 9999]
        )
        for other in others:
            with pytest.raises(ValueError, match=r"not of shape|index|must"):
                fitted.load_state_dict(state | {"learned": state["learned"] | {tensor: other}})


def test_a_reference_is_no_federation(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = package.fit(tiny, {"method": "Popularity", "run_dir": "popularity"})
    assert done.summary["test/ndcg@10"] == done.summary["popularity/test/ndcg@10"]
    with pytest.raises(package.errors.InputError, match="Popularity is a reference and no federation"):
        done.recommend_for({"ann": [1]})
    run("fit", "--config", tiny, "--loop.rounds", "1", "--run_dir", "run")
    for verb in ("fit", "test", "recommend"):
        assert run(verb, "--ckpt_path", "run/checkpoints/last.ckpt", "--method", "Popularity") == 2
        assert "was trained with cgfedrec.methods.cgfedrec.CGFedRec, this run uses cgfedrec.cent" in errors(capsys)


def test_the_saved_config_trains_the_same_again(tiny: str) -> None:
    assert run("fit", "--config", tiny, "--loop.patience", "null") == 0
    assert run("fit", "--config", "runs/tiny/0/config.yaml", "--run_dir", "again") == 0
    first, second = (pl.read_csv(path).drop("time/round") for path in ("runs/tiny/0/metrics.csv", "again/metrics.csv"))
    assert first.equals(second)
    assert Path("again/config.yaml").read_text() == Path("runs/tiny/0/config.yaml").read_text()


def test_runs_are_numbered_and_never_overwritten(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run("fit", "--config", tiny, "--loop.rounds", "1") == 0
    assert sorted(path.name for path in Path("runs/tiny").iterdir()) == ["0", "1"]
    assert run("fit", "--config", tiny, "--run_dir", "runs/tiny/0") == 2
    assert "already holds a run" in errors(capsys)


def test_test_repeats_what_fit_found(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--config", tiny)
    summary = json.loads(Path("runs/tiny/0/summary.json").read_text())
    capsys.readouterr()
    assert run("test", "--ckpt_path", "runs/tiny/0/checkpoints/best.ckpt") == 0
    assert f"{summary['test/ndcg@10']:.4f}" in capsys.readouterr().out
    other = package.load(
        "runs/tiny/0/checkpoints/best.ckpt", {"protocol": {"candidates": "sampled", "num_candidates": 9}}
    )
    assert other.test()["test/hr@10"] == 1


def test_recommendations_are_in_original_ids_without_what_the_user_has(
    tiny: str, ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", tiny, "--data.path", ratings, "--run_dir", "run") == 0
    ckpt = "run/checkpoints/best.ckpt"
    titles = tmp_path / "items.csv"
    titles.write_text("item,title\n" + "\n".join(f'item{i},"The {i}, a film"' for i in range(55)) + "\n")
    assert run("recommend", "--ckpt_path", ckpt, "--output", "all.parquet", "--top_k", 7, "--items", titles) == 0
    table = pl.read_parquet("all.parquet")
    assert table.columns == ["user", "rank", "item", "score", "source", "title"]
    owned = pl.read_csv(ratings)
    assert table.join(owned, ["user", "item"]).is_empty()
    assert set(table["user"]) == set(owned["user"])
    assert table.group_by("user").len()["len"].unique().to_list() == [7]
    assert set(table.filter(pl.col("user") == "eve")["source"]) == {"popularity"}
    assert set(table.filter(pl.col("user") != "eve")["source"]) == {"model"}
    by_user = table.group_by("user", maintain_order=True).agg("score", "rank")
    assert all(scores == sorted(scores, reverse=True) for scores in by_user["score"].to_list())
    assert all(ranks == list(range(1, 8)) for ranks in by_user["rank"].to_list())
    titled = dict(table.select("item", "title").unique().iter_rows())
    numbers = {int(item[4:]): title for item, title in titled.items()}
    assert numbers == {one: f"The {one}, a film" if one < 55 else None for one in numbers}
    assert None in numbers.values()
    capsys.readouterr()
    assert run("recommend", "--ckpt_path", ckpt, "--user", "user3", "eve", "--top_k", 2) == 0
    printed = capsys.readouterr().out
    assert "user3" in printed
    assert "popularity" in printed
    assert "user4" not in printed


def test_no_times_on_the_command_line(tiny: str, ratings: Path) -> None:
    arguments = ["--data.split", "random", "--data.format.timestamp_column", "null", "--run_dir", "run"]
    assert run("fit", "--config", tiny, "--data.path", ratings, *arguments) == 0


def test_nothing_held_out_trains_on_everything(tiny: str, ratings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", tiny, "--data.path", ratings, "--data.split", "none", "--run_dir", "run") == 0
    assert not [name for name in json.loads(Path("run/summary.json").read_text()) if name.startswith(("val/", "test/"))]
    assert run("recommend", "--ckpt_path", "run/checkpoints/last.ckpt", "--user", "user1") == 0
    assert run("test", "--ckpt_path", "run/checkpoints/last.ckpt") == 2
    assert "holds nothing out" in errors(capsys)


def test_describe(ratings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "describe", "--data.path", ratings) == 0
    out = capsys.readouterr().out
    assert "30 users" in out
    assert "users with too few interactions" in out
    assert "interactions of a user" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loop.roundz", "3"], "loop.roundz: there is no such option; did you mean loop.rounds?"),
        (["--loop.rounds", "three"], "loop.rounds"),
        (["--loop.rounds", "0"], "loop.rounds: 0 is not positive"),
        (["--loop.rounds", "0", "--method.clusters", "1", "--data.negatives", "0"], "method.clusters: 1 is below 2"),
        (
            ["--loop.rounds", "0", "--method.clusters", "1", "--data.negatives", "0"],
            "data.negatives: 0 is not positive",
        ),
        (["--method.clusters", "51"], "more than the 50 items"),
        (["--method", "NoSuchMethod"], "NoSuchMethod"),
        (["--method.colour", "red"], "colour"),
        (["--protocol", "lenient"], "lenient"),
        (["--data.path", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--ckpt_path", "nowhere.ckpt"], "no file nowhere.ckpt"),
        (["--fabric.devices", "2", "--fabric.strategy", "ddp_spawn"], "choose ddp"),
        (["--fabric.precision", "16-true"], "choose 32-true or bf16-mixed"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "{loop: {turns: 3}}"], "turns"),
        (["--config", "{a: [}"], "config"),
        (["--method.optimizer", "LBFGS"], "method.optimizer"),
        (["--method.optimizer", "Adafactor"], "computes over all clients of a cohort at once"),
        (["--method.optimizer.lr=-1"], "method.optimizer: Invalid learning rate"),
        (["--method.reg", ".nan"], "method.reg: nan is no number"),
        (["--seed_everything", "-1"], "seed_everything: -1 is not from 0"),
        (["--data.format.separator", ""], "separator: is empty"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(
    arguments: list[str], message: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", tiny, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not Path("runs").exists()


def test_a_config_file_with_an_unknown_key_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yaml").write_text("loop:\n  turns: 3\n")
    assert run("fit", "--config", "wrong.yaml") == 2
    message = errors(capsys)
    assert "turns" in message
    assert "wrong.yaml" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--data.path=a.csv", "--data.path=b.csv"], "data.path: is given twice on the command line, as 'a"),
        (["data", "describe", "--data.path=a", "--data.init_args.path=b"], "data.path: is given twice"),
        (["fit", "--method", "FedMF", "--method.class_path", "Local"], "method: is given twice on the command line"),
        (["fit", "--callbacks", "a.B", "--callbacks", "a.C"], "give one; a list is given whole"),
        (["recommend", "--ckpt_path=a", "--top_k=10", "--top_k=5"], "--top_k: is given twice, as 10 and as 5"),
    ],
)
def test_two_values_of_an_option_are_refused(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = run(*words)
    except SystemExit as end:  # argparse
        code = end.code
    assert code == 2
    assert message in errors(capfd)


def test_one_value_may_be_given_twice() -> None:
    layer = said(options=["--loop.rounds", "1", "--loop", "{rounds: 1}", "--loop.rounds=1"], environment={}).options
    assert layer == {"loop": {"rounds": "1"}}


def test_a_key_that_stands_twice_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("twice.yaml").write_text("loop:\n  rounds: 3\n  rounds: 4\n")
    assert run("fit", "--config", "twice.yaml") == 2
    assert "twice.yaml, line 3: rounds stands twice" in errors(capsys)


def test_a_malformed_row_is_named_by_its_line(ratings: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    ratings.write_text(ratings.read_text() + "user1,item2,yesterday\n")
    assert run("fit", "--config", tiny, "--data.path", ratings) == 2
    assert "ratings.csv, line 303: the time is 'yesterday'" in errors(capsys)


def test_unknown_users_are_named(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--config", tiny, "--loop.rounds", "1")
    line = ["recommend", "--ckpt_path", "runs/tiny/0/checkpoints/last.ckpt", "--user"]
    assert run(*line, "nobody", "none") == 2
    message = errors(capsys)
    assert "user: 'nobody', 'none' are not in the data of this checkpoint" in message
    with pytest.warns(Notice, match="'nobody' is not in the data of this checkpoint"):
        assert run(*line, "nobody", "1") == 0
    shown = capsys.readouterr()
    assert "nothing to recommend" not in shown.err
    assert shown.out.count("model") == 10
    assert run("recommend", "--ckpt_path", "runs/tiny/0/checkpoints/last.ckpt", "--output", "x.doc") == 2


def test_a_checkpoint_of_other_data_or_another_method_is_refused(
    tiny: str, ratings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", "--config", tiny, "--loop.rounds", "1")
    ckpt = "runs/tiny/0/checkpoints/last.ckpt"
    for arguments, message in (
        (["recommend", "--ckpt_path", ckpt, "--data.path", ratings], "other data"),
        (["fit", "--ckpt_path", ckpt, "--data.path", ratings], "other data"),
        (["fit", "--ckpt_path", ckpt, "--method", "Local"], "was trained with cgfedrec.methods.cgfedrec.CGFedRec"),
        (
            ["fit", "--ckpt_path", ckpt, "--method.reg", "7"],
            "method.reg: the checkpoint has 0.005, which cannot be changed to 7",
        ),
        (["fit", "--ckpt_path", tiny], "is no checkpoint"),
    ):
        capsys.readouterr()
        assert run(*arguments) == 2
        assert message in errors(capsys)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_checkpoint(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", tiny, "--method.table_lr", "1e38", "--loop.rounds", "9") == 1
    message = errors(capsys)
    assert "round" in message
    assert "client" in message
    assert "not finite" in message
    assert not Path("runs/tiny/0/summary.json").exists()


@pytest.mark.parametrize("content", [b"hello world", b"", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.ckpt").write_bytes(content)
    for verb in ("fit", "test", "recommend"):
        assert run(verb, "--ckpt_path", "odd.ckpt") == 2
        assert "odd.ckpt is no checkpoint" in errors(capsys)


def test_a_model_trained_under_the_leaking_protocol_is_never_called_strict(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = ["--protocol.num_candidates", "5"]
    assert run("fit", "--config", tiny, "--protocol.name", "reference", *sampled, "--run_dir", "run") == 0
    assert "The reference protocol leaks" in capsys.readouterr().out
    assert run("test", "--ckpt_path", "run/checkpoints/best.ckpt", "--protocol", "strict") == 2
    assert "protocol.name: the checkpoint has reference" in errors(capsys)


def test_brackets_in_ids_titles_and_paths_are_shown_as_they_are(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d[x]" / "r[y].csv"
    path.parent.mkdir()
    rows = [f"u{u},[/it{(u * 7 + i * i) % 60}],{i}" for u in range(30) for i in range(10)]
    path.write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    assert run("fit", "--config", tiny, "--data.path", path, "--run_dir", "run[/x]") == 0
    assert "r[y].csv" in capsys.readouterr().out.replace("\n", "")
    assert run("recommend", "--ckpt_path", "run[/x]/checkpoints/last.ckpt", "--user", "u1") == 0
    assert "[/it" in capsys.readouterr().out


def test_runs_that_start_together_do_not_share_a_directory(tiny: str) -> None:
    both = [Command("fit", "--config", tiny, "--loop.rounds", "1") for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert sorted(path.name for path in Path("runs/tiny").iterdir()) == ["0", "1"]
    assert all((Path("runs/tiny") / n / "summary.json").exists() for n in "01")


def test_a_last_step_that_diverges_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    """One step in one round: its loss is finite, and what it leaves is not."""
    wild = ["--method", "FedNCF", "--method.optimizer.lr", "1e22", "--method.local_epochs", "1", "--loop.rounds", "1"]
    once = ["--data.batch_size", "100000", "--data.synthetic.users", "60", "--logger", "null", "--run_dir", "run"]
    for split in ("leave_one_out", "none"):
        assert run("fit", *wild, *once, "--data.split", split) == 1
        assert "the score is not finite" in errors(capsys)
        assert not Path("run/summary.json").exists()
        assert not Path("run/checkpoints").exists()


def test_other_loggers_need_not_keep_hyperparameters(tiny: str) -> None:
    logger = "lightning.fabric.loggers.CSVLogger"
    assert run("fit", "--config", tiny, "--logger", logger, "--logger.root_dir", "logs", "--run_dir", "run") == 0
    assert list(Path("logs").rglob("metrics.csv"))


def test_the_last_good_checkpoint_stays_when_a_loss_is_not_finite(tiny: str) -> None:
    class Poison:
        def on_cohort_end(self, loop: Any, users: torch.Tensor) -> None:
            if loop.round == 2:
                last = loop.clients.in_order(torch.arange(loop.data.num_users))[-1:]  # to be trained
                rows = loop.clients.store.read(last)
                loop.clients.store.write(last, {**rows, "table": rows["table"].fill_(torch.nan)})

    with pytest.raises(package.errors.RunError, match=r"round 2, client \d+.*: the training loss is not finite"):
        package.fit(tiny, {"run_dir": "run", "loop": {"cohort_size": 4}}, callbacks=[Poison()])
    kept = package.load("run/checkpoints/last.ckpt").loop
    assert kept.round == 1
    assert kept.clients.store.read(torch.arange(kept.data.num_users))["table"].isfinite().all()
    assert package.fit(tiny, {"ckpt_path": "run/checkpoints/last.ckpt"}).summary["rounds"] == 3


def test_the_environment_overrides_the_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGFEDREC_FIT_LOOP__ROUNDS", "1")
    monkeypatch.setenv("CGFEDREC_FIT_LOGGER", "null")
    assert run("fit") == 0
    config = yaml.safe_load(Path("runs/quickstart/0/config.yaml").read_text())
    assert config["loop"]["rounds"] == 1
    assert config["method"]["class_path"] == "cgfedrec.methods.CGFedCo"


def test_environment_variables_are_options(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGFEDREC_FIT_LOOP__ROUNDS", "2")
    assert run("fit", "--config", tiny.replace("tiny", "tiny")) == 0
    config = yaml.safe_load(Path("runs/tiny/0/config.yaml").read_text())
    assert config["loop"]["rounds"] == 3, "a config outranks the environment"
    monkeypatch.setenv("CGFEDREC_FIT_CONFIG", tiny)
    monkeypatch.delenv("CGFEDREC_FIT_LOOP__ROUNDS")
    assert run("fit", "--loop.rounds", "1") == 0
    assert yaml.safe_load(Path("runs/tiny/1/config.yaml").read_text())["data"]["init_args"]["synthetic"]["users"] == 40


def test_print_config_prints_what_would_run(tiny: str) -> None:
    printed = cgfedrec("fit", "--config", tiny, "--loop.rounds", "17", "--print_config")
    assert printed.returncode == 0
    config = yaml.safe_load(printed.stdout)
    assert config["loop"]["rounds"] == 17
    assert {"seed_everything", "fabric", "data", "protocol", "method", "loop", "logger", "run_dir"} <= set(config)


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys, cgfedrec.cli\n"
        "cgfedrec.cli.main(['fit', '--help'])\n"
        "cgfedrec.cli.main(['completion', 'bash'])\n"
        "try: cgfedrec.cli.main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules, 'lightning' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "False False"
    assert "recommend" in printed
    assert package.__version__ in fresh("--version").stdout


def test_help_explains_every_option() -> None:
    for arguments in (
        ["fit", "--help"],
        ["fit", "--method.help", "CGFedRec"],
        ["fit", "--data.help"],
        ["recommend", "--help"],
    ):
        printed = cgfedrec(*arguments)
        assert printed.returncode == 0, printed.stderr
    text = cgfedrec("fit", "--method.help", "CGFedRec").stdout
    for option in ("clusters", "reg", "temperature", "init_scale", "head", "optimizer", "silent_rounds"):
        assert f"--method.{option}" in text
    assert "random projection" in text


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_accepted(config: Path) -> None:
    printed = cgfedrec("fit", "--config", config, "--print_config")
    assert printed.returncode == 0, printed.stderr


@pytest.mark.parametrize(
    ("config", "file"), [("ml-100k", "ml-100k/ratings.csv"), ("filmtrust", "filmtrust/ratings.tsv")]
)
def test_the_papers_settings_on_real_ratings(config: str, file: str) -> None:
    path = require_data(file)
    done = cgfedrec(
        "fit", "--config", ROOT / f"configs/paper/{config}.yaml", "--data.init_args.path", path, "--run_dir", "run",
        "--loop.rounds", "3", "--loop.participants", "60", "--logger", "null",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path("run/summary.json").read_text())
    history = pl.read_csv("run/metrics.csv")
    assert (summary["users"], summary["items"]) == ((943, 1682) if config == "ml-100k" else (1227, 2059))
    assert history["train/loss"][0] > history["train/loss"][2] - 0.005 * history["train/alignment"][2]
    assert history["train/alignment"].to_list()[0] == 0 < history["train/alignment"][1]
    assert history["bytes/up"][-1] >= 3 * 60 * summary["items"] * 32 * 4
    popularity = {"ml-100k": 0.0391, "filmtrust": 0.475}[config]
    assert summary["popularity/test/ndcg@10"] == pytest.approx(popularity, abs=0.001)
    done = cgfedrec("recommend", "--ckpt_path", "run/checkpoints/best.ckpt", "--user", "7", "--top_k", "3")
    assert done.returncode == 0, done.stderr


def test_tensorboard_by_class_path(tiny: str) -> None:
    logger = "lightning.fabric.loggers.TensorBoardLogger"
    assert run("fit", "--config", tiny, "--logger", logger, "--logger.root_dir", "board", "--run_dir", "run") == 0
    assert list(Path("board").rglob("events.out.tfevents.*"))


def test_python_does_what_the_command_line_does(tiny: str) -> None:
    rounds: list[int] = []

    class Watch:
        def on_round_end(self, loop: Any) -> None:
            rounds.append(loop.round)

    run("fit", "--config", tiny)
    result = package.fit(tiny, {"loop": {"patience": None}, "run_dir": "python"}, callbacks=[Watch()])
    assert rounds == [1, 2, 3]
    assert result.history.drop("time/round").equals(pl.read_csv("runs/tiny/0/metrics.csv").drop("time/round"))
    assert result.summary["test/ndcg@10"] == json.loads(Path("runs/tiny/0/summary.json").read_text())["test/ndcg@10"]
    assert result.recommend([1], top_k=3)["user"].to_list() == [1, 1, 1]
    assert result.clients.known.all()
    assert result.server.broadcast(torch.tensor([0]), 9) is not None


def test_python_without_a_config_or_a_directory_is_the_quickstart() -> None:
    for _ in range(2):
        package.fit(TINY)
    assert sorted(path.name for path in Path("runs/quickstart").iterdir()) == ["0", "1"]
    assert [path.name for path in Path("runs").iterdir()] == ["quickstart"]


def test_python_raises_where_the_command_line_exits(tiny: str) -> None:
    with pytest.raises(package.errors.InputError, match="not positive"):
        package.fit(tiny, {"loop": {"rounds": 0}})


def test_the_wheel_works_outside_the_repository(tmp_path: Path) -> None:
    """Installed without the repository, `fit` without a config does what `configs/quickstart.yaml` says."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", "wheels", str(ROOT)], check=True)
    (wheel,) = Path("wheels").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", "site", str(wheel)], check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    where = [sys.executable, "-c", "import cgfedrec; print(cgfedrec.__file__)"]
    assert str(tmp_path) in subprocess.run(where, env=environment, capture_output=True, text=True, check=True).stdout
    done = fresh("fit", "--loop.rounds", "1", env=environment)
    assert done.returncode == 0, done.stderr
    ours = yaml.safe_load(Path("runs/quickstart/0/config.yaml").read_text())
    theirs = yaml.safe_load(cgfedrec("fit", "--config", ROOT / "configs/quickstart.yaml", "--print_config").stdout)
    assert all(ours[name] == theirs[name] for name in ("seed_everything", "data", "protocol", "method"))
    assert ours["loop"] == theirs["loop"] | {"rounds": 1}


@pytest.mark.parametrize("name", ["cgfedrec", "ml-100k-private-heads"])
def test_a_method_named_by_an_option_has_its_own_defaults_but_for_the_control(name: str) -> None:
    def printed(*options: str) -> dict[str, Any]:
        config = ROOT / "configs" / f"{name}.yaml"
        whole = yaml.safe_load(cgfedrec("fit", "--config", config, *options, "--print_config").stdout)
        return dict(whole["method"]["init_args"])

    ours, local = printed(), printed("--method", "Local")
    assert local == {name: ours[name] for name in local}
    assert printed("--method=CGFedRec") == ours
    gpfedrec = printed("--method", "cgfedrec.methods.GPFedRec", "--method.reg", "3")
    assert (gpfedrec["lr_eta"], gpfedrec["dim"], gpfedrec["init_scale"], gpfedrec["reg"]) == (80, 32, 1, 3)


def test_a_method_named_by_a_config_has_its_own_defaults(tmp_path: Path) -> None:
    path = tmp_path / "fedmf.yaml"
    path.write_text("method: {class_path: FedMF}\n")
    theirs = yaml.safe_load(cgfedrec("fit", "--config", path, "--print_config").stdout)["method"]["init_args"]
    assert theirs["init_scale"] == 0.1
    assert theirs["local_epochs"] == 1
    for ours in ("loop: {rounds: 3}\n", "method: {init_args: {clusters: 60}}\n"):
        path.write_text(ours)
        printed = yaml.safe_load(cgfedrec("fit", "--config", path, "--print_config").stdout)
        assert printed["method"]["class_path"] == "cgfedrec.methods.CGFedCo"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("recommend --ckpt_path a --topk 3", "--topk: there is no such option; did you mean --top_k?"),
        ("serve a --prt=3", "--prt: there is no such option; did you mean --port?"),
        ("recommend --ckpt_path a --trust b", "no file a"),
    ],
)
def test_a_misspelt_option_of_a_command_itself_is_named(
    words: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert meant in capsys.readouterr().err


def test_an_installed_srun_that_nobody_uses_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bin").mkdir()
    Path("bin/srun").write_text("#!/bin/sh\n")
    Path("bin/srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(Path("bin").absolute()), prepend=os.pathsep)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        package.fit(TINY, {"run_dir": "run", "loop": {"rounds": 1}})
    assert not [one for one in told if "srun" in str(one.message)]
