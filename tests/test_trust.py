"""Hostile checkpoints and configs: none may act, whatever opens it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import cgfedrec
from cgfedrec.errors import InputError
from cgfedrec.run.checkpoint import Header, read_checkpoint, write_checkpoint
from cgfedrec.settings.trust import settings_of
from tests.commands import cgfedrec as command
from tests.conftest import TINY

MARKER = "marker"
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": f"touch {MARKER}", "shell": True}}
DDP = {"class_path": "lightning.fabric.strategies.DDPStrategy", "init_args": {"output_device": POPEN}}
EVIL = "class Evil:\n    def __init__(self, **arguments: object) -> None: ...\n"

Change = Callable[[dict[str, Any]], object]


def at(place: str, value: Any) -> Change:
    """Set one setting, ``a.b.c``."""

    def change(settings: dict[str, Any]) -> None:
        *above, last = place.split(".")
        for key in above:
            settings = settings[key]
        settings[last] = value

    return change


def deep(levels: int) -> list[Any]:
    """A list in a list in a list."""
    return [deep(levels - 1)] if levels else []


HOSTILE: dict[str, tuple[Change, str]] = {
    "a strategy that makes a process": (at("fabric.strategy", DDP), "fabric.strategy.init_args.output_device"),
    "a strategy of another module": (at("fabric.strategy", {"class_path": "evil.Evil"}), "evil.Evil"),
    "a strategy as text": (at("fabric.strategy", "evil.Evil"), "evil.Evil"),
    "a plugin": (at("fabric.plugins", ["evil.Evil"]), "evil.Evil"),
    "a method of another module": (at("method.class_path", "evil.Evil"), "--method evil.Evil"),
    "a method through a module of ours": (
        at("method.class_path", "cgfedrec.experiments.compare.runner.subprocess.Popen"),
        "cgfedrec.experiments.compare.runner.subprocess.Popen",
    ),
    "a method that is a file": (at("method", "evil.yaml"), "'method'"),
    "an optimiser of another module": (at("method.init_args.optimizer", {"class_path": "evil.Evil"}), "evil.Evil"),
    "an optimiser as text": (at("method.init_args.optimizer", "evil.Evil"), "evil.Evil"),
    "a function as optimiser": (at("method.init_args.optimizer", "os.system"), "os.system"),
    "an optimiser's argument": (at("method.init_args.optimizer.init_args.foreach", POPEN), "subprocess.Popen"),
    "a process as learning rate": (at("method.init_args.optimizer.init_args.lr", POPEN), "subprocess.Popen"),
    "a path of torch that is no optimiser": (
        at("method.init_args.optimizer.class_path", "torch.optim.lr_scheduler.LambdaLR"),
        "LambdaLR",
    ),
    "a data module": (at("data.class_path", "evil.Evil"), "evil.Evil"),
    "a layout": (at("data.init_args.format", {"class_path": "evil.Evil"}), "evil.Evil"),
    "a layout that is a file": (at("data.init_args.format", "evil.yaml"), "'data.init_args.format'"),
    "a protocol": (at("protocol", {"class_path": "evil.Evil"}), "evil.Evil"),
    "a loop's argument": (at("loop.monitor", POPEN), "subprocess.Popen"),
    "a step of the wire": (at("wire.steps", [{"class_path": "evil.Evil"}]), "evil.Evil"),
    "a step as text": (at("wire.steps", ["evil.Evil"]), "evil.Evil"),
    "a step that is a file": (at("wire.steps", ["evil.yaml"]), "wire.steps names a file"),
    "steps that are a file": (at("wire.steps", "evil.yaml"), "wire.steps names a file"),
    "a wire that is a file": (at("wire", "evil.yaml"), "'wire'"),
    "failures that are a file": (at("loop.failures", "evil.yaml"), "'loop.failures'"),
    "the parser's own notes": (at("loop.__path__", "evil.yaml"), "__path__ is no option"),
    "its defaults": (at("__default_config__", "evil.yaml"), "__default_config__ is no option"),
    "no plain value": (at("loop.rounds", {1, 2}), "loop.rounds is no plain value"),
    "a class that is a mapping": (at("method.class_path", {}), "method.class_path"),
    "a key that hides two": (
        lambda settings: settings["data"].update({"init_args.format": "evil.yaml"}),
        "'init_args.format', which is no option",
    ),
    "a protocol that is a file": (at("protocol", "evil.yaml"), "'protocol'"),
    "very deep": (
        at("loop.rounds", [[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]),
        "loop.rounds is no plain value",
    ),
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint of ours, as read."""
    folder = tmp_path_factory.mktemp("honest")
    cgfedrec.fit(TINY, {"run_dir": str(folder / "run"), "loop": {"rounds": 1}})
    state = read_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")
    return {**state, "loop": deepcopy(state["loop"])}


@pytest.fixture
def evil(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module on the path that leaves a marker when it is imported."""
    Path("evil.py").write_text(f"import pathlib\npathlib.Path({MARKER!r}).touch()\n{EVIL}")
    Path("evil.yaml").write_text("class_path: evil.Evil\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    yield
    sys.modules.pop("evil", None)


def write(state: dict[str, Any], change: Change | None = None, text: str | None = None) -> Path:
    """The checkpoint with other settings, valid in every other way."""
    settings = yaml.safe_load(state["config"])
    if change:
        change(settings)
    path = Path("theirs/checkpoints/last.ckpt")
    header = Header(state["run"], text or yaml.dump(settings), state["method"], state["fingerprint"])
    write_checkpoint(path, header, state["loop"])
    return path


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("evil")
def test_a_hostile_checkpoint_does_nothing(name: str, honest: dict[str, Any]) -> None:
    change, said = HOSTILE[name]
    path = write(honest, change)
    openings: list[Callable[[], object]] = [
        lambda: cgfedrec.load(path),
        lambda: cgfedrec.fit({"ckpt_path": str(path), "logger": None}),
    ]
    for opening in openings:
        with pytest.raises(InputError) as refused:
            opening()
        assert said in str(refused.value)
        assert "ckpt_path: its setting" in str(refused.value)
        assert not Path(MARKER).exists()
        assert "evil" not in sys.modules
    assert [one.name for one in Path("theirs").rglob("*") if one.is_file()] == ["last.ckpt"]


@pytest.mark.parametrize("place", ["fabric.plugins", "fabric.strategy", "method.init_args.optimizer", "loop.monitor"])
@pytest.mark.usefixtures("evil")
def test_no_setting_makes_the_parser_open_a_file(place: str, honest: dict[str, Any]) -> None:
    """By a path that does not look like the name of a class."""
    Path("evil").write_text(Path("evil.yaml").read_text())
    for path in ("./evil.yaml", str(Path("evil.yaml").absolute()), "evil"):
        with pytest.raises(InputError, match=rf"its setting {re.escape(place)}|loop\.monitor"):
            cgfedrec.load(write(honest, at(place, path)))
        assert not Path(MARKER).exists()
        assert "evil" not in sys.modules


@pytest.mark.usefixtures("evil")
def test_no_verb_lets_it_act(honest: dict[str, Any]) -> None:
    path = write(honest, HOSTILE["a strategy that makes a process"][0])
    verbs = (
        ("test", "--ckpt_path", path),
        ("recommend", "--ckpt_path", path, "--output", "out.csv"),
        ("fit", "--ckpt_path", path, "--run_dir", "mine"),
    )
    for verb in verbs:
        done = command(*verb)
        assert done.returncode == 2, done
        assert "subprocess.Popen" in done.stderr
        assert not Path(MARKER).exists()
        assert not Path("mine").exists()
        assert not Path("out.csv").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1, 1]\nb: [*a, *a]\n",
        "!!python/object/apply:os.system ['touch marker']",
        "[" * 5000,
        "- 1\n",
        "x" * 2**21,
    ],
    ids=["aliases", "an object", "deep", "a list", "long"],
)
def test_settings_that_are_no_plain_yaml_are_refused(text: str, honest: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="ckpt_path: its settings"):
        cgfedrec.load(write(honest, text=text))
    assert not Path(MARKER).exists()


def test_what_a_run_writes_is_taken(honest: dict[str, Any]) -> None:
    assert cgfedrec.load(write(honest)).loop.round == 1


@pytest.mark.usefixtures("evil")
def test_callbacks_and_loggers_of_a_checkpoint_are_not_heeded(honest: dict[str, Any]) -> None:
    for option in ("callbacks", "loggers"):
        assert cgfedrec.load(write(honest, at(option, ["evil.Evil"]))).loop.round == 1
    assert "evil" not in sys.modules
    assert not Path(MARKER).exists()


def test_a_class_of_ours_may_be_named_by_its_own_module(honest: dict[str, Any]) -> None:
    path = write(honest, at("method.class_path", "cgfedrec.methods.cgfedrec.CGFedRec"))
    assert cgfedrec.load(path).loop.round == 1


def test_a_method_of_ones_own_is_named_again_or_trusted() -> None:
    source = "from cgfedrec.methods import PFedRec\n\n\nclass Mine(PFedRec):\n    pass\n"
    Path("mymethod.py").write_text(source)
    data = ["--data.synthetic.users", "40", "--data.synthetic.items", "50", "--data.synthetic.groups", "5"]
    own = ["--method", "mymethod.Mine", "--method.dim", "8"]
    quick = ["--loop.rounds", "1", "--data.synthetic.interactions", "10", "--logger", "null", "--run_dir", "run"]
    done = command("fit", *own, *data, *quick)
    assert done.returncode == 0, done.stderr
    test = ("test", "--ckpt_path", "run/checkpoints/last.ckpt")
    refused = command(*test)
    assert refused.returncode == 2
    assert "names mymethod.Mine" in refused.stderr
    assert "--method mymethod.Mine" in refused.stderr
    figures = []
    for way in (["--method", "mymethod.Mine"], ["--trust", "mymethod"], ["--trust=os,mymethod.Mine"]):
        done = command(*test, *way)
        assert done.returncode == 0, done.stderr
        figures.append(done.stdout)
    assert figures[0] == figures[1] == figures[2]
    Path("trust.yaml").write_text("trust: mymethod\n")
    assert command(*test, "--config", "trust.yaml").returncode == 0
    assert command(*test, "--trust", "mymeth").returncode == 2, "a prefix of a name is no name"
    assert command("fit", "--ckpt_path", test[2], "--trust", "mymethod", "--logger", "null").returncode == 0


def test_a_continuation_logs_and_goes_where_its_own_call_says(honest: dict[str, Any]) -> None:
    def told(settings: dict[str, Any]) -> None:
        settings["logger"] = {
            "class_path": "lightning.fabric.loggers.CSVLogger",
            "init_args": {"root_dir": "theirs-log"},
        }
        settings["run_dir"] = "theirs-too"
        settings["ckpt_path"] = "nowhere.ckpt"
        settings["trust"] = "evil"

    run = cgfedrec.fit(
        {"ckpt_path": str(write(honest, told)), "run_dir": "mine", "loop": {"rounds": 2}, "logger": None}
    )
    assert run.directory == Path("mine")
    assert run.logger is None
    assert not Path("theirs-log").exists()
    assert not Path("theirs-too").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"fabric": {"strategy": DDP}},
        {"logger": {"class_path": "cgfedrec.run.loggers.WandbLogger", "init_args": {"project": POPEN}}},
        {"logger": {"class_path": "lightning.pytorch.loggers.CometLogger", "init_args": {"tags": POPEN}}},
        {
            "logger": {
                "class_path": "lightning.pytorch.loggers.WandbLogger",
                "init_args": {"config": POPEN, "offline": True},
            }
        },
    ],
    ids=["strategy", "project", "another logger", "config of a logger"],
)
def test_a_config_makes_no_object_where_none_is_wanted(config: dict[str, Any]) -> None:
    with suppress(Exception):  # refused by anybody, or used as the plain value that it is: what counts is what has run
        cgfedrec.fit(TINY, config, {"run_dir": "run"})
    assert not Path(MARKER).exists()


@pytest.mark.parametrize("key", ["__path__", "__default_config__"])
def test_the_parsers_notes_are_no_options(key: str) -> None:
    Path("config.yaml").write_text(yaml.safe_dump({"loop": {key: "x"}}))
    for config in ("config.yaml", {"loop": {key: "x"}}, {key: "x"}):
        with pytest.raises(InputError, match=rf"{key} is no option"):
            cgfedrec.fit(TINY, config, {"run_dir": "run"})
    assert not Path("run").exists()


def test_the_parsers_notes_are_no_options_of_the_command_line_either(monkeypatch: pytest.MonkeyPatch) -> None:
    done = command("fit", "--protocol", '{"name": "strict", "__path__": "x"}', "--run_dir", "run")
    assert (done.returncode, Path("run").exists()) == (2, False)
    assert "__path__ is no option" in done.stderr


def test_tensors_are_no_larger_than_they_say(honest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes can stand for a huge tensor, or unfold to a huge file."""
    loop = honest["loop"] | {"server": {"means.table": torch.zeros(1).expand(2**40)}}
    with monkeypatch.context() as patch:  # no honest writer would
        patch.setattr("cgfedrec.run.checkpoint._is_plain", lambda value: True)
        path = write(honest | {"loop": loop})
    with pytest.raises(InputError, match="is no checkpoint of this version"):
        cgfedrec.load(path)


def test_the_settings_of_a_run_have_no_aliases() -> None:
    """`settings_of` refuses them, so `dump` must not write them, even where two settings are one object."""
    shared = [0.8, 0.9]
    run = cgfedrec.fit(TINY, {"data": {"init_args": {"temporal_fractions": shared}}, "loop": {"rounds": 1}})
    data = settings_of(run.config, (), ())["data"]
    assert isinstance(data, dict)
    assert data["init_args"]["temporal_fractions"] == shared


def test_a_step_may_be_named_by_the_call_that_opens_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a config, or as the text of a list on the command line; a checkpoint alone may not name it."""
    Path("mystep.py").write_text(
        "from cgfedrec.wire.wire import Step\n\n"
        "class Same(Step):\n"
        "    def forward(self, upload, round, seed):\n        return upload\n\n"
        "    def reverse(self, upload, round):\n        return upload\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    steps = [{"class_path": "mystep.Same"}]
    cgfedrec.fit(TINY, {"run_dir": "run", "loop": {"rounds": 1}, "wire": {"steps": steps}})
    checkpoint = "run/checkpoints/last.ckpt"
    with pytest.raises(InputError, match=r"wire\.steps.* names mystep\.Same"):
        cgfedrec.load(checkpoint)
    assert cgfedrec.load(checkpoint, {"wire": {"steps": steps}}).test()
    assert cgfedrec.load(checkpoint, options=["--wire.steps", "[{class_path: mystep.Same}]"]).test()
    assert cgfedrec.load(checkpoint, options=["--trust", "mystep"]).test()


@pytest.mark.usefixtures("evil")
def test_a_class_that_is_not_imported_says_what_to_pass_in_python(honest: dict[str, Any]) -> None:
    path = write(honest, at("method.class_path", "evil.Evil"))
    with pytest.raises(InputError, match=r'--method evil\.Evil \(in Python: options=\["--method", "evil\.Evil"\]\)'):
        cgfedrec.load(path)
    path = write(honest, at("method.class_path", "cgfedrec_own.Mine"))
    Path("cgfedrec_own.py").write_text("from cgfedrec.methods import CGFedRec\nclass Mine(CGFedRec): pass\n")
    with pytest.raises(InputError, match=r"this run uses cgfedrec_own\.Mine"):  # it was imported, and trained nothing
        cgfedrec.load(path, options=["--method", "cgfedrec_own.Mine"])
