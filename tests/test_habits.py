"""What Lightning's users are used to: callbacks and loggers by class path, validate and predict, their own folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.run.api import open_data
from cgfedrec.run.loggers import _tags_of
from cgfedrec.run.run import Run
from cgfedrec.settings.here import look_here
from cgfedrec.settings.hooks import HOOKS, unheeded, unheeded_data
from cgfedrec.settings.parser import instantiate, parse
from cgfedrec.settings.sources import said
from tests.conftest import TINY
from tests.documents import blocks

MINE = """
from lightning.fabric.loggers import CSVLogger
from cgfedrec.data import FederatedDataModule
from cgfedrec.methods import FedMF

class Prepared(FederatedDataModule):
    def __init__(self, parquet: str = "none.parquet", **others) -> None:
        super().__init__(**others)
        self.parquet = parquet

    def prepare_data(self) -> None:
        self.path = self.parquet

    def setup(self, stage=None) -> None:
        super().setup(stage)

    def val_dataloader(self) -> None:
        pass

class Mine(FedMF):
    pass

class Tell:
    def __init__(self, word: str, times: int = 1) -> None:
        self.word, self.times = word, times

    def on_round_end(self, loop) -> None:
        print(self.word * self.times, loop.round)

class Log(CSVLogger):
    def __init__(self, root_dir: str = "one") -> None:
        super().__init__(root_dir)

class Strict:
    def __init__(self, word: str) -> None:
        raise ValueError(f"{word} is no word")
"""
EVENTS = """
from dataclasses import replace
from cgfedrec.data import FederatedDataModule, Interactions, Synthetic

class Events(FederatedDataModule):
    def read(self) -> Interactions:
        drawn = Synthetic(users=30, items=40, interactions=8).draw(0)
        return replace(drawn, times=drawn.times + 900_000_000)
"""
QUICK = [
    *("--data.synthetic.users", "30", "--data.synthetic.items", "40", "--data.synthetic.interactions", "8"),
    *("--loop.rounds", "2", "--logger", "null", "--run_dir", "run"),
]
TELL = "{class_path: habits.Tell, init_args: {word: so, times: 2}}"


@pytest.fixture(autouse=True)
def _habits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the current folder, which Python does not look into by itself, as when ``cgfedrec`` starts."""
    here = [str(Path.cwd()), ""]
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in here])
    Path("habits.py").write_text(MINE)
    yield
    for name in ("habits", "broken", "events"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return cgfedrec.fit(TINY, {"run_dir": str(tmp_path_factory.mktemp("habits") / "run")})


def problems(**settings: Any) -> list[str]:
    with pytest.raises(InputError) as refused:
        instantiate(parse(said([{**TINY, **settings}], (), {})))
    return refused.value.problems


def test_a_method_callbacks_and_loggers_of_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = "[habits.Log, {class_path: habits.Log, init_args: {root_dir: two}}]"
    own = ["--method", "habits.Mine", "--callbacks", f"[{TELL}, {TELL.replace('so', 'la')}]", "--loggers", loggers]
    assert main(["fit", *own, *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line[:2] in ("so", "la")] == ["soso 1", "lala 1", "soso 2", "lala 2"]
    assert all(any(Path(folder).rglob("metrics.csv")) for folder in ("one", "two"))
    written = yaml.safe_load(Path("run/config.yaml").read_text())
    assert [one["init_args"]["word"] for one in written["callbacks"]] == ["so", "la"]
    again = instantiate(parse(said(["run/config.yaml"], (), {})))
    assert [one.word for one in again.callbacks] == ["so", "la"]
    assert [one.root_dir for one in again.loggers] == ["one", "two"]


def test_one_callback_needs_no_list_and_later_ones_replace_it() -> None:
    for one in ("habits.Tell", {"class_path": "habits.Tell", "init_args": {"word": "so"}}):
        settings = parse(said([{**TINY, "callbacks": one}], (), {}))
        assert len(settings.callbacks) == 1
    settings = parse(said([{**TINY, "callbacks": "habits.Tell"}], ["--callbacks", f"[{TELL}, {TELL}]"], {}))
    assert [one.word for one in instantiate(settings).callbacks] == ["so", "so"]
    assert instantiate(parse(said([TINY], (), {}))).callbacks == []


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (5, "must be a list of classes or null, not 5"),
        ([5], "5 names no class"),
        ("Tell", "Tell names no class"),
        ({"init_args": {}}, "names no class"),
        ("habits.Tel", "habits.Tel cannot be imported (module 'habits' has no attribute 'Tel')"),
        ("no.Where", "no.Where cannot be imported (No module named 'no'; is it in the current folder"),
        ("habits.MINE", "cannot be imported"),
        ("sys.path", "sys.path is no class"),
        ("habits.Tell", "habits.Tell: the following arguments are required: init_args.word"),
        (
            {"class_path": "habits.Tell", "init_args": {"words": "so"}},
            "there is no init_args.words; did you mean word?",
        ),
        ({"class_path": "no.Where", "init_args": "so"}, "its init_args must be a mapping, not so"),
        ({"class_path": "habits.Tell", "word": "so"}, "habits.Tell: there is no word here"),
        ({"class_path": "habits.Tell", "init_args": [1]}, "its init_args must be a mapping, not [1]"),
        ({"class_path": "habits.Tell", "init_args": {"word": "so", "times": "wrong"}}, "init_args.times"),
        ("habits.Log", "habits.Log has none of the hooks that are called: on_federation_start"),
    ],
    ids=str,
)
def test_a_callback_that_cannot_be_made_is_told_in_one_line(value: object, told: str) -> None:
    (problem,) = problems(callbacks=value)
    assert problem.startswith("callbacks: " if value == 5 else "callbacks[0]: ")
    assert told in problem
    assert "\n" not in problem


def test_all_that_is_wrong_with_lists_is_told_at_once() -> None:
    found = problems(callbacks=["no.Where", "habits.Log"], loggers=[{"class_path": "habits.Strict"}, "habits.Mine"])
    assert [problem.split(":")[0] for problem in found] == ["callbacks[0]", "callbacks[1]", "loggers[0]", "loggers[1]"]
    assert "habits.Mine is none of Lightning's loggers" in found[-1]
    strict = {"class_path": "habits.Strict", "init_args": {"word": "so"}}
    assert problems(loggers=strict) == ["loggers[0]: habits.Strict: so is no word"]


@pytest.mark.parametrize("ending", ["def (", "raise RuntimeError('no')", "raise SystemExit(3)"])
@pytest.mark.parametrize("option", ["callbacks", "method"])
def test_a_module_that_cannot_be_imported_is_told_with_its_reason(
    option: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.py").write_text(ending)
    assert main(["fit", f"--{option}", "broken.It", *QUICK]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    reason = {"d": "SyntaxError: invalid syntax", "n": "RuntimeError: no", "S": "SystemExit: 3"}
    first = "d" if ending.startswith("def") else "n" if "Runtime" in ending else "S"
    place = "callbacks[0]" if option == "callbacks" else option
    assert line.startswith(f"error: {place}: broken.It ")
    assert reason[first] in line
    assert not Path("run").exists()


class Theirs(pl.Callback):
    def on_train_start(self, *_: object) -> None:
        pass

    def on_validation_end(self, *_: object) -> None:
        pass

    def on_before_zero_grad(self, *_: object) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}


class Mistyped:
    def on_round_ends(self, loop: object) -> None:
        pass


class Ours(pl.Callback):
    def on_round_end(self, loop: object) -> None:
        pass

    def helper(self) -> None:
        pass


class Stopping(EarlyStopping):
    pass


def test_hooks_that_are_never_called_are_named_with_ours() -> None:
    told = {problem.split(" is ")[0].rpartition(".")[2]: problem for problem in unheeded(Theirs())}
    assert set(told) == {"on_train_start", "on_validation_end", "on_before_zero_grad", "state_dict"}
    assert "write on_federation_start" in told["on_train_start"]
    assert "write on_round_end" in told["on_validation_end"]
    assert all(hook in told["on_before_zero_grad"] for hook in HOOKS)
    assert "checkpoint" in told["state_dict"]
    (mistyped,) = unheeded(Mistyped)
    assert "did you mean on_round_end?" in mistyped
    assert list(unheeded(Ours)) == list(unheeded(Ours())) == []
    (nothing,) = unheeded(pl.Callback())
    assert "none of the hooks" in nothing


def test_hooks_of_a_data_module_that_are_never_called_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data", "habits.Prepared", "--data.parquet", "nofile.parquet", *QUICK]) == 2
    prepare, load = capsys.readouterr().err.splitlines()
    assert prepare == (
        "error: data: habits.Prepared.prepare_data is never called here; write read, which returns all interactions"
    )
    assert load.startswith("error: data: habits.Prepared.val_dataloader is never called here; clients draw")
    assert not Path("run").exists()


def test_the_data_module_of_the_page_reads_what_it_says() -> None:
    (page,) = [block.text for block in blocks("docs/data.md") if block.title == "events.py"]
    Path("events.py").write_text(page)
    rows = [f"{user},{user}{item}" for user, many in (("ann", 9), ("bob", 8), ("robot", 30)) for item in range(many)]
    Path("log.csv").write_text("\n".join(["user,item", *rows]))
    own = ["--data", "events.Events", "--data.most", "20", "--data.path", "log.csv"]
    data = open_data([*own, "--data.format.timestamp_column", "null", "--data.split", "none", "--data.negatives", "1"])
    assert data.user_ids.to_list() == ["ann", "bob"]
    assert data.num_items == 17


def test_what_a_data_module_reads_is_not_called_the_embedded_data(capsys: pytest.CaptureFixture[str]) -> None:
    Path("events.py").write_text(EVENTS)
    assert main(["fit", "--data", "events.Events", *QUICK]) == 0
    given = ["--ckpt_path", "run/checkpoints/best.ckpt", "--trust", "events"]
    assert main(["test", *given]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("data module Events: 30 users")
    assert "flatters recency" in shown.out
    assert shown.err.startswith("data: data module Events\n")
    assert "<title>CGFedCo on data module Events</title>" in Path("run/report.html").read_text()
    assert _tags_of(yaml.safe_load(Path("run/config.yaml").read_text()))[1] == "data module Events"
    assert main(["test", *given, "--data.split", "random"]) == 2
    refused = capsys.readouterr().err
    assert "other data than data module Events, or on another split" in refused
    assert "embedded" not in shown.out + shown.err + refused


def test_every_hook_of_a_data_module_but_setup_is_refused() -> None:
    hooks = {name for kind in pl.LightningDataModule.__mro__[:2] for name in vars(kind) if name[0] not in "_C"}
    hooks -= {"setup", "name", "from_datasets", "load_from_checkpoint"}
    every = type("Every", (FederatedDataModule,), {name: lambda *_: None for name in hooks})
    assert {problem.split(" is ")[0].rpartition(".")[2] for problem in unheeded_data(every())} == hooks
    assert list(unheeded_data(FederatedDataModule())) == []


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (EarlyStopping, "loop.patience"),
        (Stopping, "loop.patience"),
        (ModelCheckpoint, "loop.checkpoint_every"),
        (RichProgressBar, "shows its rounds"),
    ],
)
def test_callbacks_of_lightning_are_refused_with_what_is_here_instead(kind: type, told: str) -> None:
    (problem,) = unheeded(kind)
    assert told in problem
    assert kind.__name__ in problem


def test_a_callback_in_python_is_looked_at_as_well() -> None:
    with pytest.raises(InputError, match=r"Theirs\.on_train_start is never called here"):
        cgfedrec.fit(TINY, {"run_dir": "run"}, callbacks=[Theirs()])
    assert not Path("run").exists()
    assert problems_of_reference() == ["callbacks: a reference has no rounds, and calls none"]


def problems_of_reference() -> list[str]:
    tell = {"class_path": "habits.Tell", "init_args": {"word": "so"}}
    with pytest.raises(InputError) as refused:
        cgfedrec.fit({**TINY, "method": "Popularity", "run_dir": "run", "callbacks": tell})
    return refused.value.problems


def test_only_what_a_user_names_as_code_makes_python_look_into_the_folder() -> None:
    here = str(Path.cwd())
    Path("ratings.py").write_text("raise SystemExit('was imported')")
    paths = ["--data.path", "ratings.csv", "--ckpt_path", "ratings.ckpt", "--run_dir", "ratings.run"]
    names = said([], paths, {}).imported()
    assert not any("ratings" in name for name in names)
    look_here({"json.JSONDecoder", "nowhere.It", *names})
    assert here not in sys.path
    for words in (["--trust", "os,habits"], ["--method.help", "habits.Mine"], ["--data", "habits.Data"]):
        assert any(name.startswith("habits") for name in said([], words, {}).imported()), words
    look_here(said([{"callbacks": ["habits.Tell"]}], (), {}).imported())
    assert sys.path[-1] == here, "after all else, so that it hides nothing"


def test_validate_measures_what_chose_the_best_round(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    best = trained.checkpoints / "best.ckpt"
    assert main(["validate", "--ckpt_path", str(best)]) == 0
    assert trained.training.best is not None
    value = trained.training.best["val/ndcg@10"]
    assert f"{value:.4f}" in capsys.readouterr().out
    found = cgfedrec.load(best).validate()
    assert found["val/ndcg@10"] == value
    assert not any(name.startswith("test/") for name in found)


def test_predict_is_recommend(
    trained: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CGFEDREC_RECOMMEND_TOP_K", "2")
    last, printed = str(trained.checkpoints / "last.ckpt"), []
    for verb in ("predict", "recommend"):
        assert main([verb, "--ckpt_path", last, "--user", "3"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].count("\n") > 3
