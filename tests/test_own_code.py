"""Code of one's own that a run is made of: what other code has found is told, and commands to be copied name it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.errors import InputError, Notice
from cgfedrec.files import file_digest
from cgfedrec.run.checkpoint import read_checkpoint
from cgfedrec.settings.own import changed_files, code_of, going_on, gone_on
from tests.commands import cgfedrec as command
from tests.conftest import TINY
from tests.test_compare import changed_at, compare

MINE = """
from dataclasses import dataclass
from cgfedrec.data import FederatedDataModule
from cgfedrec.centralized import Popularity
from cgfedrec.methods import FedMF
from cgfedrec.kit.optimisers import FactorAdam
from lightning.fabric.loggers import CSVLogger
from helper import number


@dataclass(frozen=True)
class Mine(FedMF):
    pass


class Ranks(Popularity):
    pass


class Data(FederatedDataModule):
    pass


class Hook:
    def on_round_end(self, loop):
        assert number() == 1


class Log(CSVLogger):
    pass


class Faster(FactorAdam):
    pass
"""
LAST, BEST = "run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt"
OWN: dict[str, Any] = TINY | {"method": {"class_path": "mine.Mine", "init_args": {"dim": 4}}, "run_dir": "run"}


@pytest.fixture(autouse=True)
def _files() -> None:
    Path("mine.py").write_text(MINE)
    Path("helper.py").write_text("def number():\n    return 1\n")
    Path("config.yaml").write_text(yaml.safe_dump({name: OWN[name] for name in TINY}))


def mend(name: str = "mine.py") -> None:
    """Change a file, which does what it did before."""
    path = Path(name)
    path.write_text(path.read_text() + "\n# mended\n")


def code(*names: str) -> dict[str, str]:
    return {name: file_digest(Path(f"{name}.py")) for name in names}


def told() -> Any:
    return json.loads(Path("run/summary.json").read_text()).get("code")


def test_a_run_tells_the_code_that_is_somebodys_own() -> None:
    """Also what its files take from one another; nothing of cgfedrec, of what is installed, or of how it is logged."""
    cgfedrec.fit(OWN)
    assert told() == code("helper", "mine") == read_checkpoint(Path(LAST))["code"]
    logger = {"logger": {"class_path": "mine.Log", "init_args": {"root_dir": "logged"}}}
    cgfedrec.fit(TINY, logger, {"run_dir": "ours"})
    assert "code" not in json.loads(Path("ours/summary.json").read_text())
    assert read_checkpoint(Path("ours/checkpoints/last.ckpt"))["code"] == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"method": {"class_path": "mine.Ranks"}},
        {"data": {"class_path": "mine.Data"}},
        {"callbacks": ["mine.Hook"]},
        {"callbacks": [{"class_path": "mine.Hook"}]},
        {"method": {"init_args": {"optimizer": {"class_path": "mine.Faster"}}}},
    ],
    ids=["reference", "data", "callback", "callback with arguments", "optimiser"],
)
def test_classes_are_found_wherever_they_are_named(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert code_of(yaml.safe_dump(settings)) == {}  # nothing is imported for it
    __import__("mine")
    assert code_of(yaml.safe_dump(settings)) == code("helper", "mine")


def test_what_has_no_file_and_what_is_no_class_has_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Here:
        pass

    main_module = sys.modules["__main__"]
    monkeypatch.setattr(main_module, "Here", Here, raising=False)
    monkeypatch.setattr(Here, "__module__", "__main__")
    names = ["__main__.Here", "data.path", "lightning.Fabric", "json.JSONDecoder", "cgfedrec.methods.FedMF"]
    assert code_of(yaml.safe_dump({"callbacks": names})) == {}


def test_the_code_of_a_run_that_goes_on_tells_all_that_it_had() -> None:
    assert gone_on({"a": "1", "b": "1"}, {"a": "2", "b": "1", "c": "3"}) == {"a": "1, 2", "b": "1", "c": "3"}
    assert gone_on({"a": "1, 2"}, {"a": "2"}) == {"a": "1, 2"}
    assert changed_files({"a": "1"}, {"a": "1", "b": "2"}) == []


@pytest.mark.usefixtures("quick_start")
@pytest.mark.parametrize("name", ["mine.py", "helper.py"])
def test_a_comparison_pairs_no_runs_of_other_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"base": {"loop": {"rounds": 1}, "data": TINY["data"]}, "data": {"one": {}}, "seeds": [0]}
    plan["methods"] = {"Mine": {"method": OWN["method"]}, "Local": {"method": "Local"}}
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    assert compare(Path("plan.yaml"), "--keep_checkpoints") == 0
    before = changed_at()
    assert compare(Path("plan.yaml")) == 0
    mend(name)
    capsys.readouterr()
    refused = f"out/one/Mine/0: holds a run by other code: what {name} holds has changed; choose another --output, or"
    assert compare(Path("plan.yaml")) == 2
    said = capsys.readouterr().err
    assert refused in said
    assert "Local" not in said
    Path("out/one/Mine/0/summary.json").unlink()  # as if it had been stopped
    assert compare(Path("plan.yaml")) == 2
    assert refused in capsys.readouterr().err
    assert compare(Path("plan.yaml"), "--replace") == 0
    after = changed_at()
    assert {path for path in before if before[path] != after[path]} == {"out/one/Mine/0/summary.json"}
    assert compare(Path("plan.yaml")) == 0


def test_a_rolling_evaluation_does_not_go_on_with_other_code() -> None:
    of_data = TINY["data"]["init_args"] | {"split": "rolling", "rolling": {"cuts": 3, "least": 2}}
    given = OWN | {"data": {"init_args": of_data}}
    cgfedrec.fit(given)
    Path("run/summary.json").unlink()
    cgfedrec.fit(given)
    Path("run/summary.json").unlink()
    mend()
    refused = r"run_dir: run/\w+/[\d-]+ has results by other code: what mine.py holds has changed"
    with pytest.raises(InputError, match=refused):
        cgfedrec.fit(given)
    for path in Path("run").glob("*/*/summary.json"):
        path.unlink()  # as if each had been stopped
    with pytest.raises(InputError, match=refused):
        cgfedrec.fit(given)


def test_a_study_does_not_go_on_with_other_code(capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.yaml").write_text("method.dim: [2, 4]\n")
    words = ["tune", "--config", "config.yaml", "--space", "space.yaml", "--output", "out", "--trials"]
    assert main([*words, "1"]) == main([*words, "2"]) == 0
    mend()
    assert main([*words, "3"]) == 2
    assert "--output: out holds a study of another config, space, data or code" in capsys.readouterr().err


def test_a_run_that_goes_on_with_other_code_says_so_and_tells_both() -> None:
    before = cgfedrec.fit(OWN).summary["code"]
    again = {"ckpt_path": LAST, "method": "mine.Mine"}
    cgfedrec.fit(again)
    assert told() == before
    mend()
    with pytest.warns(Notice, match=r"ckpt_path: what mine.py holds has changed since its run began"):
        cgfedrec.fit(again, {"loop.rounds": 4})
    assert told() == before | {"mine": f"{before['mine']}, {code('mine')['mine']}"}
    assert told() == read_checkpoint(Path(LAST))["code"]


@pytest.mark.parametrize("what", ["test", "validate", "recommend"])
def test_what_uses_a_run_says_that_its_code_has_changed(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    cgfedrec.fit(OWN)
    words = [what, "--ckpt_path", BEST, "--method", "mine.Mine", *(["--user", "1"] if what == "recommend" else [])]
    changed = "warning: ckpt_path: what mine.py holds has changed since its run began"
    assert changed not in command(*words).stderr
    mend()
    done = command(*words)
    assert done.returncode == 0
    assert changed in done.stderr


def test_an_update_with_other_code_says_so() -> None:
    Path("mine.py").write_text(MINE.replace("FedMF", "CGFedCo"))
    given = OWN | {"method": "mine.Mine", "loop": {"rounds": 40}}
    cgfedrec.fit(given)
    mend()
    changed = pytest.warns(Notice, match=r"update_from: what mine.py holds has changed since its run began")
    with changed, pytest.raises(InputError, match="only 0 clients have changes"):
        cgfedrec.fit({"update_from": LAST, "run_dir": "newer", "method": "mine.Mine"})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "--method mine.Mine"),
        ({"method.optimizer": {"class_path": "mine.Faster"}}, "--method mine.Mine --trust mine.Faster"),
        ({"method": "Local", "data": {"class_path": "mine.Data"}}, "--trust mine.Data"),
        ({"method": "FedMF", "callbacks": ["mine.Hook"]}, ""),
    ],
    ids=["method", "optimiser", "data", "callback"],
)
def test_commands_to_be_copied_work_for_classes_of_ones_own(
    settings: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cgfedrec.fit(OWN, settings)
    told = [run.go_on, run._stands(3)]
    expected = " ".join(filter(None, ["cgfedrec fit --ckpt_path run/checkpoints/last.ckpt", named]))
    assert [line.partition("go on with: ")[2] for line in told] == [expected] * 2
    done = command(*shlex.split(expected)[1:], "--loop.rounds", 4)
    assert done.returncode == 0, done.stderr
    assert "round 4/4" in done.stdout


def test_several_classes_are_named_in_one_option() -> None:
    steps = [{"class_path": "a.B"}, {"class_path": "c.D"}, {"class_path": "cgfedrec.wire.quantised.Quantised"}]
    config = yaml.safe_load(Path("config.yaml").read_text())
    config |= {"fabric": {}, "protocol": {}, "wire": {"steps": steps}, "seed_everything": 0}
    assert going_on(Path("last.ckpt"), yaml.safe_dump(config)).endswith(" --method mine.Mine --trust a.B,c.D")


@pytest.mark.parametrize(
    ("given", "option"),
    [
        (lambda mine: {"method": mine.Mine(dim=3)}, "method"),
        (lambda mine: {"method": mine.Mine}, "method"),
        (lambda mine: {"method": {"class_path": mine.Mine}}, "method"),
        (lambda mine: {"data": mine.Mine}, "data"),
        (lambda mine: {"logger": mine.Mine}, "logger"),
    ],
    ids=["object", "class", "class_path", "data", "logger"],
)
def test_a_class_in_place_of_its_name_is_told_what_to_write(
    given: Callable[[Any], dict[str, Any]], option: str
) -> None:
    sys.path.append(str(Path.cwd()))
    mine = __import__("mine")
    with pytest.raises(InputError) as refused:
        cgfedrec.fit(TINY, given(mine))
    write = 'write "mine.Mine", or {"class_path": "mine.Mine", "init_args": {...}}'
    assert str(refused.value) == f"{option}: is named by settings, and not given as an object: {write} (config)"


@pytest.mark.filterwarnings("error")
def test_a_logger_that_is_an_object_is_no_part_of_the_config() -> None:
    sys.path.append(str(Path.cwd()))
    logger = __import__("mine").Log("logged")
    run = cgfedrec.fit(TINY, {"logger": logger, "run_dir": "run"})
    assert list(Path("logged").rglob("metrics.csv"))
    assert yaml.safe_load(run.config)["logger"] is None
    again = cgfedrec.fit("run/config.yaml", {"run_dir": "again"})
    assert again.summary["test/ndcg@10"] == run.summary["test/ndcg@10"]
