"""Settings from files, options, the environment and Python: one rule for all, and nothing silent."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

import cgfedrec
import cgfedrec.centralized
import cgfedrec.methods
from cgfedrec.cli import main
from cgfedrec.client import empty_parameter
from cgfedrec.data.synthetic import Synthetic
from cgfedrec.errors import InputError, Notice
from cgfedrec.run.api import start
from cgfedrec.settings.layers import DEFAULTS, merged
from cgfedrec.settings.mistakes import MOVED
from cgfedrec.settings.options import options_of
from cgfedrec.settings.parser import described, dump, instantiate, parse, parser
from cgfedrec.settings.sources import Config, layer_of, said
from cgfedrec.settings.trust import settings_of
from tests.conftest import ROOT, TINY

BILLION = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{before}'] * 10)}]\n" for before, key in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A small text that stands for a thousand million values."""
QUICKSTART = str(ROOT / "configs" / "cgfedrec.yaml")


@pytest.fixture(autouse=True)
def _on_cgfedrec(monkeypatch: pytest.MonkeyPatch) -> None:
    """In these tests CGFedRec is what runs without a config: it has settings of every kind, where CGFedCo has few."""
    parser()  # which is kept, with the defaults that it is made with
    ours = layer_of(yaml.safe_load(Path(QUICKSTART).read_text()), "quickstart")
    monkeypatch.setattr("cgfedrec.settings.variables.DEFAULTS", merged(DEFAULTS, ours))


def settings(*configs: Config, options: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Namespace:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return parse(said(configs, options, env or {}))


def problems(*arguments: Any, **named: Any) -> str:
    with pytest.raises(InputError) as refused:
        settings(*arguments, **named)
    return str(refused.value)


REFERENCE = ["--protocol", "reference"]
CUTOFFS = ["--protocol.cutoffs", "[10]"]


@pytest.mark.parametrize(
    "sources",
    [
        {"options": REFERENCE + CUTOFFS},
        {"options": CUTOFFS + REFERENCE},
        {"options": ["--protocol", "{cutoffs: [10]}", *REFERENCE]},
        {"env": {"CGFEDREC_FIT_PROTOCOL": "reference"}, "options": CUTOFFS},
        {"env": {"CGFEDREC_FIT_PROTOCOL__CUTOFFS": "[10]"}, "options": REFERENCE},
        {"env": {"CGFEDREC_FIT_PROTOCOL": "reference", "CGFEDREC_FIT_PROTOCOL__CUTOFFS": "[10]"}},
        {"config": {"protocol": "reference"}, "options": CUTOFFS},
        {"config": {"protocol": {"cutoffs": [10]}}, "options": REFERENCE},
        {"config": {"protocol": "reference", "protocol.cutoffs": [10]}},
        {"config": {"protocol": "reference"}, "env": {"CGFEDREC_FIT_PROTOCOL__CUTOFFS": "[10]"}},
    ],
    ids=str,
)
def test_a_protocol_and_its_options_both_hold(sources: dict[str, Any]) -> None:
    configs = [sources.pop("config")] if "config" in sources else []
    found = settings(*configs, **sources).protocol
    assert (found.name, found.cutoffs) == ("reference", [10])


@pytest.mark.parametrize("group", ["data.synthetic", "loop", "method"])
def test_a_group_and_its_options_both_hold(group: str) -> None:
    one, other = {"data.synthetic": ("users", "items"), "loop": ("rounds", "patience"), "method": ("dim", "clusters")}[
        group
    ]
    whole, single = [f"--{group}", f"{{{one}: 17}}"], [f"--{group}.{other}", "19"]
    for options in (whole + single, single + whole):
        found = settings(options=options)
        for part in group.split("."):
            found = found[part]
            found = found.init_args if "init_args" in found else found
        assert (found[one], found[other]) == (17, 19)


def test_a_named_class_starts_from_its_own_defaults_wherever_it_is_named(tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("method: PFedRec\n")
    own = settings({"method": "PFedRec"}).method
    assert (own.init_args.dim, own.init_args.lr_eta, own.init_args.init_scale) == (32, 80, 1)
    for found in (
        settings({"method": {"class_path": "cgfedrec.methods.PFedRec"}}),
        settings(env={"CGFEDREC_FIT_METHOD": "PFedRec"}),
        settings(env={"CGFEDREC_FIT_METHOD": "PFedRec"}, options=["--seed_everything", "0"]),
        settings(QUICKSTART, second),
        settings(QUICKSTART, {"method": "PFedRec"}),
        settings(QUICKSTART, options=["--method", "PFedRec"]),
        settings(QUICKSTART, options=["--method=cgfedrec.methods.pfedrec.PFedRec"]),
    ):
        assert found.method.init_args == own.init_args
        assert found.method.class_path.endswith(".PFedRec")
    said_of_it = settings(QUICKSTART, {"method": "PFedRec"}, options=["--method.dim", "5"]).method
    assert (said_of_it.init_args.dim, said_of_it.init_args.lr_eta) == (5, 80)
    gpfedrec = settings({"method": "GPFedRec"}).method.init_args
    assert (gpfedrec.lr_eta, gpfedrec.dim) == (80, 32)


def test_the_same_class_by_another_name_keeps_its_settings() -> None:
    ours = settings().method
    for name in ("CGFedRec", "cgfedrec.methods.CGFedRec", "cgfedrec.methods.cgfedrec.CGFedRec"):
        found = settings(options=["--method", name]).method.init_args
        assert found == ours.init_args
    assert settings(env={"CGFEDREC_FIT_METHOD__DIM": "9"}, options=["--method", "CGFedRec"]).method.init_args.dim == 9


def test_the_control_takes_over_what_it_shares_with_the_method_that_it_controls() -> None:
    ours = settings().method.init_args
    for found in (
        settings(options=["--method", "Local"]),
        settings({"method": "Local"}),
        settings(env={"CGFEDREC_FIT_METHOD": "Local"}),
    ):
        local = found.method.init_args.as_dict()
        assert local == {name: ours.as_dict()[name] for name in local}
        assert local["dim"] == 64
    assert settings(QUICKSTART, {"method": "PFedRec"}, {"method": "Local"}).method.init_args.dim == 32


def test_an_optimiser_starts_from_its_own_defaults() -> None:
    adam = settings(options=["--method.optimizer", "Adam"]).method.init_args.optimizer
    assert (adam.class_path, adam.init_args.lr) == ("torch.optim.Adam", 0.001)
    faster = ["--method.optimizer.lr", "0.2", "--method.optimizer", "Adam"]
    assert settings(options=faster).method.init_args.optimizer.init_args.lr == 0.2
    kept = settings({"method": {"class_path": "FedNCF"}}, options=["--method.optimizer.weight_decay", "0.5"])
    assert kept.method.init_args.optimizer.init_args.lr == 0.001
    assert kept.method.init_args.optimizer.init_args.weight_decay == 0.5
    sgd = settings(options=["--method.optimizer", "SGD"]).method.init_args.optimizer
    assert sgd.init_args.lr == 0.1, "the same class as the default"


def test_a_logger_starts_from_its_own_defaults() -> None:
    ours = {"logger": {"class_path": "cgfedrec.run.loggers.WandbLogger", "init_args": {"name": "ours"}}}
    csv = ["--logger", "lightning.fabric.loggers.CSVLogger", "--logger.root_dir", "logs"]
    found = settings(ours, options=csv).logger
    assert (found.init_args.name, found.init_args.root_dir) == ("lightning_logs", "logs")
    assert settings({"logger": None}, options=["--logger.project", "p"]).logger.init_args.project == "p"


def test_options_outrank_configs_and_these_the_environment() -> None:
    env = {"CGFEDREC_FIT_LOOP__ROUNDS": "5"}
    assert settings(env=env).loop.rounds == 5
    for config, options, rounds in (({"loop": {"rounds": 6}}, (), 6), ({}, ("--loop.rounds", "7"), 7)):
        with pytest.warns(Notice, match="CGFEDREC_FIT_LOOP__ROUNDS has no effect here"):
            found = parse(said([config], options, env))
        assert found.loop.rounds == rounds
    assert settings(options=["--loop.rounds", "7", "--config", "{loop: {rounds: 6}}"]).loop.rounds == 7


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data.format.threshold", None),
        ("data.format.separator", None),
        ("data.path", None),
        ("data.synthetic.seed", None),
        ("loop.patience", None),
        ("method.table_lr", None),
        ("protocol.candidates", None),
        ("logger.name", None),
    ],
)
def test_null_is_taken_where_the_type_allows_it(option: str, value: None) -> None:
    group, _, rest = option.partition(".")
    below = {"data.format.threshold": 3, "data.synthetic.seed": 3, "loop.patience": 3, "method.table_lr": 0.5}
    other = {option: below.get(option, "sampled" if group == "protocol" else "text")}
    variable = f"CGFEDREC_FIT_{option.replace('.', '__').upper()}"
    for found in (
        settings({"method": "CGFedRec"}, other, options=[f"--{option}", "null"]),
        settings({"method": "CGFedRec"}, other, {option: None}),
        settings(env={variable: "null"}),
    ):
        place = f"{group}.init_args.{rest}" if group in ("data", "method", "logger") else option
        assert found[place] is value


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("method.contrast", "exact or prototypes"),
        ("method.labels", "clustered, permuted or frozen"),
        ("method.kmeans", "minibatch or full"),
        ("method.head", "shared or private"),
        ("data.split", "leave_one_out, random, temporal, rolling or none"),
        ("data.batch_size", "a whole number"),
        ("data.negatives", "a whole number"),
        ("method.lr_eta", "a number"),
        ("loop.rounds", "a whole number"),
        ("loop.resample", "true or false"),
        ("data.format.user_column", "a whole number or text"),
        ("method", "a mapping"),
        ("data", "a mapping"),
        ("data.format", "a mapping"),
        ("loop", "a mapping"),
        ("fabric", "a mapping"),
        ("protocol", "a mapping"),
        ("seed_everything", "a whole number"),
    ],
)
def test_null_is_refused_by_name_where_it_is_no_value(option: str, allowed: str) -> None:
    for told in (
        problems(options=[f"--{option}", "null"]),
        problems({"method": "CGFedRec"}, {option: None}),
        problems(env={f"CGFEDREC_FIT_{option.replace('.', '__').upper()}": "null"}),
    ):
        assert told.startswith(f"{option}: must be {allowed}")
        assert "not null" in told


def test_mf_without_a_loss_is_refused() -> None:
    told = problems({"method": "MF"}, options=["--method.loss", "null"])
    assert told == "method.loss: must be logistic or bpr, not null"


def test_all_problems_are_told_at_once_with_their_sources() -> None:
    Path("wrong.yaml").write_text("loop: {turns: 3, rounds: three}\n")
    told = problems(
        {"method": "CGFedRec"},
        "wrong.yaml",
        options=["--method.dim", "x"],
        env={"CGFEDREC_FIT_DATA__NEGATIVES": "many"},
    )
    assert set(told.splitlines()) == {
        "loop.turns: there is no such option; did you mean loop.rounds? (wrong.yaml)",
        "loop.rounds: must be a whole number, not three (wrong.yaml)",
        "method.dim: must be a whole number, not x",
        "data.negatives: must be a whole number, not many (CGFEDREC_FIT_DATA__NEGATIVES)",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ckpt_path: 1", "ckpt_path: must be the path of a file, not 1"),
        ("method: 1", "method: must be a mapping of its options, not 1"),
        ("data: null", "data: must be a mapping of its options, not null"),
        ("a: &a {b: *a}", "holds itself"),
        ("[" * 5000, "too deep"),
        ("loop: {rounds: !!int abc}", "no YAML of plain values"),
        ("loop: {rounds: !!python/object/apply:os.system [ls]}", "no YAML of plain values"),
        ("3: 4", "3 is no option"),
        ("init_args: {dim: 4}", "init_args: says nothing by itself"),
        ("loop: {3: 4}", "3 is no option"),
        ("- 1", "no YAML of options"),
        ("", "no YAML of options"),
        ("loop: {rounds: 3, rounds: 4}", "rounds stands twice"),
        (BILLION, "stands for more than"),
        ("run_dir: ''", "run_dir: is empty"),
        ("logger: null\nlogger.project: x", "logger: null and logger.project cannot both hold"),
    ],
    ids=lambda text: str(text)[:30],
)  # fmt: skip
def test_what_is_no_config_is_refused_in_words(text: str, message: str) -> None:
    Path("config.yaml").write_text(text)
    for config in ("config.yaml", text):
        with pytest.raises(InputError) as refused, start(said([config])):
            pass
        assert message.replace("no YAML of options", "") in str(refused.value)
        assert len(str(refused.value)) < 500
    assert sorted(path.name for path in Path().iterdir()) == ["config.yaml"]


def test_a_class_that_has_moved_is_told_by_its_name_of_now() -> None:
    now = "cgfedrec.run.loggers.WandbLogger"
    told = f"logger: cgfedrec.logging.WandbLogger was its name until version 0.2; it is {now} now"
    Path("config.yaml").write_text("logger: {class_path: cgfedrec.logging.WandbLogger, init_args: {project: p}}\n")
    assert problems("config.yaml") == f"{told} (config.yaml)"
    assert problems({"logger": "cgfedrec.logging.WandbLogger"}) == f"{told} (config)"
    assert problems(options=["--logger", "cgfedrec.logging.WandbLogger"]) == told


@pytest.mark.parametrize("before", MOVED)
def test_a_class_that_has_moved_is_where_it_is_said_to_be(before: str) -> None:
    _, now = MOVED[before]
    assert isinstance(resolve_name(now), type)
    with pytest.raises((ImportError, AttributeError)):
        resolve_name(before)


def test_a_config_that_is_no_file_is_refused() -> None:
    os.mkfifo("pipe.yaml")
    Path("folder.yaml").mkdir()
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("pipe.yaml", "is no file"),
        ("folder.yaml", "is no file"),
        ("nowhere.yaml", "no such file"),
        ("bytes.yaml", "cannot be read as text"),
    ):
        assert f"{name}: {message}" in problems(name)


def test_what_was_not_asked_for_is_refused() -> None:
    assert "unrecognized argument 'wrong'" in problems(options=["--loop.rounds", "3", "wrong"])
    assert "--loop.rounds: has no value" in problems(options=["--loop.rounds"])
    assert settings(options=["--method", "{}"]).method == settings().method, "an empty mapping says nothing"


def test_dates_and_numbers_in_configs_are_read_as_their_options_want_them() -> None:
    Path("config.yaml").write_text("run_dir: 2024-01-01\nmethod: {class_path: MF, lr: 5e-1, weight_decay: 1e-3}\n")
    found = settings("config.yaml")
    assert found.run_dir == "2024-01-01"
    assert (found.method.init_args.lr, found.method.init_args.weight_decay) == (0.5, 0.001)
    assert settings(options=["--data.path", "123"]).data.init_args.path == "123"
    assert settings(options=["--data.format.user_column", "0"]).data.init_args.format.user_column == 0


@pytest.mark.parametrize("verb", [("fit",), ("data", "describe")])
def test_every_setting_has_its_variable(
    verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CGFEDREC_FIT_DATA__PATH", "nowhere.csv")
    assert main([*verb]) == 2
    assert "nowhere.csv: no such file" in capsys.readouterr().err


def test_a_variable_that_nobody_reads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGFEDREC_FIT_LOOP__ROUNDZ", "3")
    monkeypatch.setenv("CGFEDREC_FIT_DATA__PATH", "nowhere.csv")
    monkeypatch.setenv("CGFEDREC_RECOMEND_TOP_K", "3")
    monkeypatch.setenv("CGFEDREC_DATA", "elsewhere")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit"]) == 2
    told = "\n".join(str(one.message) for one in caught)
    assert "CGFEDREC_FIT_LOOP__ROUNDZ is not read: there is no option loop.roundz; did you mean loop.rounds?" in told
    meant = "no option has this variable; did you mean CGFEDREC_RECOMMEND_TOP_K?"
    assert f"CGFEDREC_RECOMEND_TOP_K is not read: {meant}" in told
    assert "CGFEDREC_DATA " not in told


def test_the_options_of_every_command_have_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cgfedrec.fit(TINY, {"run_dir": "run", "loop": {"rounds": 1}})
    monkeypatch.setenv("CGFEDREC_RECOMMEND_CKPT_PATH", str(run.checkpoints / "last.ckpt"))
    monkeypatch.setenv("CGFEDREC_RECOMMEND_TOP_K", "2")
    monkeypatch.setenv("CGFEDREC_RECOMMEND_USER", "1 2")
    for arguments, rows in (([], 4), (["--top_k", "3"], 6), (["--top_k=3", "--user", "5"], 3)):
        assert main(["recommend", *arguments, "--output", "out.csv"]) == 0
        assert len(Path("out.csv").read_text().splitlines()) == 1 + rows
    monkeypatch.setenv("CGFEDREC_RECOMMEND_EXPLAIN", "perhaps")
    assert main(["recommend"]) == 2
    assert "CGFEDREC_RECOMMEND_EXPLAIN: must be true or false, not 'perhaps'" in capsys.readouterr().err
    monkeypatch.setenv("CGFEDREC_COMPARE_PROCESSES", "0")
    assert main(["compare", "--config", str(ROOT / "configs/compare/quick.yaml")]) == 2
    assert "--processes: 0 is not positive" in capsys.readouterr().err


def test_a_variable_that_a_command_does_not_heed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = cgfedrec.fit(TINY, {"run_dir": "run", "loop": {"rounds": 1}})
    last = str(run.checkpoints / "last.ckpt")
    monkeypatch.setenv("CGFEDREC_FIT_METHOD__REG", "7")
    monkeypatch.setenv("CGFEDREC_COMPARE_PROCESSES", "0")
    with pytest.warns(UserWarning, match="CGFEDREC_FIT_METHOD__REG has no effect here"):
        assert main(["test", "--ckpt_path", last]) == 0
    with pytest.warns(UserWarning, match="CGFEDREC_FIT_METHOD__REG has no effect on compare"):
        assert main(["compare", "--config", str(ROOT / "configs/compare/quick.yaml")]) == 2


def test_what_only_fit_heeds_is_refused_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    run = cgfedrec.fit(TINY, {"run_dir": "run", "loop": {"rounds": 1}})
    last = str(run.checkpoints / "last.ckpt")
    for verb in (["test", "--ckpt_path", last, "--run_dir", "other"], ["data", "describe", "--run_dir", "other"]):
        assert main(verb) == 2
        assert "run_dir: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "MF", "--method.monitor", "val/x"], "method.monitor: no 'val/x'"),
        (["--method", "LightGCN", "--method.monitor", "val/x"], "method.monitor: no 'val/x'"),
        (["--method", "MF", "--method.dim", "9223372036854775808"], "method.dim: 9223372036854775808 is more than"),
        (["--method", "FedCA", "--method.beta", "1e19"], "method.beta: 1e+19 is more than"),
        (["--method", "EASE", "--method.lambda_", "1e-30"], "method.lambda_: 1e-30 is below"),
        (["--method.local_epochs", "1000000000"], "method.local_epochs: 1000000000 is more than"),
        (["--logger", "WandbLogger", "--logger.project", "a/b"], "logger"),
        (["--logger", "cgfedrec.run.loggers.WandbLogger", "--logger.project", "a/b"], "logger.project: 'a/b'"),
        (["--wire.steps", "[{class_path: no.Where}]"], "(No module named 'no'; is it in the current folder, or"),
        (["--wire.steps", "[{class_path: torch.optim.SGD}]"], "does not correspond to a subclass of Step)"),
        (
            ["--method", "CGFedRec", "--method.optimizer.lrr", "0.1"],
            "method.optimizer.lrr: there is no such option; did you mean",
        ),
        (["--method", "mine.Mine"], "mine.Mine is no class that can stand here (No module named 'mine'; is it"),
        (["--fabric.strategy", "lightning.fabric.strategies.DDPStrategy"], "fabric.strategy"),
        (["--fabric.strategy", "{class_path: lightning.fabric.strategies.FSDPStrategy}"], "fabric.strategy"),
        (["--fabric.plugins", "{class_path: lightning.fabric.plugins.DoublePrecision}"], "fabric.plugins: "),
        (["--run_dir", "file/below"], "run_dir: file/below lies below"),
        (["--run_dir", "file"], "run_dir: file is a file"),
        (["--run_dir", "x" * 5000], "is no name that a folder can have"),
        (["--run_dir", ""], "run_dir: is empty"),
    ],
    ids=lambda text: str(text)[:60],
)  # fmt: skip
def test_what_can_be_checked_is_checked_before_anything_is_written(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    small = yaml.safe_dump({name: TINY[name] for name in ("data", "loop", "logger")})
    assert main(["fit", "--config", small, *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_wrong_mode_of_weights_and_biases_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "wrong")
    assert main(["fit"]) == 2
    assert "WANDB_MODE: no 'wrong'; choose one of online, offline" in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("existed", [False, True])
def test_a_logger_that_cannot_start_leaves_no_run_behind(existed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no such service")

    if existed:
        Path("run").mkdir()
        Path("run/config.yaml").write_text("loop: {rounds: 1}\n")
    monkeypatch.setattr("cgfedrec.run.loggers.WandbLogger.start", refuse)
    with pytest.raises(OSError, match="no such service"):
        cgfedrec.fit({name: value for name, value in TINY.items() if name != "logger"}, {"run_dir": "run"})
    left = sorted(path.name for path in Path().rglob("*") if path.name != ".lock")
    assert left == (["config.yaml", "run"] if existed else [])


def test_no_memory_in_a_round_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("cgfedrec.data.FederatedDataModule.draw", refuse)
    with pytest.raises(cgfedrec.errors.RunError, match="round 1: no memory is left"):
        cgfedrec.fit(TINY, {"run_dir": "run"})


def test_bounds_hold_in_python_too() -> None:
    with pytest.raises(InputError) as refused:
        cgfedrec.methods.PFedRec(dim=2**63, lr_eta=float("nan"), init_scale=None)  # type: ignore[arg-type]
    assert str(refused.value).splitlines() == [
        "method.dim: 9223372036854775808 is more than 65,536",
        "method.lr_eta: nan is no number",
        "method.init_scale: null is no number",
    ]


RECOMMENDERS = [f"cgfedrec.methods.{name}" for name in cgfedrec.methods.__all__] + [
    f"cgfedrec.centralized.{name}" for name in cgfedrec.centralized.__all__
]


@pytest.mark.parametrize("path", RECOMMENDERS, ids=lambda path: path.rpartition(".")[2])
def test_what_a_method_has_by_default_is_written_and_read_back(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a config and from a checkpoint alike; nothing is a function that has no name."""
    monkeypatch.undo()  # the true defaults
    written = dump(settings({"method": {"class_path": path}}))
    assert settings_of(written, (), ())["method"] == yaml.safe_load(written)["method"]
    again = settings(yaml.safe_load(written))
    assert dump(again) == written
    built, ours = instantiate(again).method, resolve_name(path)()
    for name, value in vars(ours).items():
        read = getattr(built, name)
        if name == "optimizer":
            made, wanted = (make([empty_parameter(2)]) for make in (read, value))
            assert (type(made), made.defaults) == (type(wanted), wanted.defaults)
        else:
            assert read == value, name


@pytest.mark.parametrize("path", RECOMMENDERS, ids=lambda path: path.rpartition(".")[2])
def test_every_option_of_a_method_is_explained(path: str) -> None:
    with described(False) as whole:
        options = options_of(whole, {"method": {"class_path": path}})
    for name, option in options.items():
        if name.count(".") == 1 and name.startswith("method."):
            (action,) = (action for action in option.parser._actions if action.dest == option.dest)
            assert action.help, name


def test_a_file_says_what_options_and_mappings_say(tmp_path: Path) -> None:
    """What two lines leave unsaid keeps its defaults, wherever the two lines stand."""
    file = tmp_path / "two.yaml"
    file.write_text("data.synthetic.users: 50\nmethod.dim: 9\n")
    options = ["--data.synthetic.users", "50", "--method.dim", "9"]
    for found in (settings(file), settings({"data.synthetic.users": 50, "method.dim": 9}), settings(options=options)):
        found.config = []
        assert dump(found) == dump(settings(options=options))
        assert found.data.init_args.synthetic.as_dict() == vars(Synthetic(users=50))


def test_print_config_says_where_each_value_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("loop: {rounds: 7, patience: 10}\nprotocol.cutoffs: [5]\ndata.path: 'a # b'\n")
    words = ["--config", str(file), "--method.dim", "9", "--loop.evaluate_every", "1", "--print_config"]
    with pytest.raises(SystemExit):
        settings(options=words, env={"CGFEDREC_FIT_FABRIC__DEVICES": "2"})
    printed = capsys.readouterr().out
    said_of = [line.strip() for line in printed.splitlines() if line.count("  #")]
    assert said_of == [
        "devices: '2'  # CGFEDREC_FIT_FABRIC__DEVICES",
        f"path: 'a # b'  # {file}",
        f"cutoffs:  # {file}",
        "dim: 9  # the command line",
        f"rounds: 7  # {file}",
    ], "the others are defaults, or equal to them"
    with pytest.raises(SystemExit):
        settings(options=["--config", str(file), "--print_config=skip_default"])
    assert capsys.readouterr().out.count("  # ") == 3
    assert yaml.safe_load(printed)["data"]["init_args"]["path"] == "a # b"
