"""What is wrong with settings, as people are told: at its place, with what would be right, and all of it at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cgfedrec.cli import main
from cgfedrec.errors import InputError, Notice
from cgfedrec.settings.parser import instantiate, parse
from cgfedrec.settings.sources import said
from tests.commands import fresh

ROUNDS = "CGFEDREC_FIT_LOOP__ROUNDS"


def listed(problem: str) -> set[str]:
    """The classes that a problem says can stand there. Those that other tests in this process have made can, too."""
    return set(problem.partition("those here: ")[2].partition(";")[0].split(", "))


def problems(*options: str, config: Mapping[str, Any] | None = None) -> list[str]:
    """All that is wrong with settings, up to the components that they name."""
    with pytest.raises(InputError) as refused:
        instantiate(parse(said([config or {}], options, {})))
    return refused.value.problems


def notices(config: Mapping[str, Any], options: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parse(said([config], options, environment))
    return [str(one.message) for one in caught if issubclass(one.category, Notice)]


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (
            [{"class_path": "Quantised", "init_args": {"bits": 4, "down": True}}],
            ["wire.steps[0].down: must be a whole number or null, not true"],
        ),
        (
            [{"class_path": "Clipped", "init_args": {"norm": 1}}, {"class_path": "Quantised", "init_args": {"bit": 4}}],
            ["wire.steps[1].bit: there is no such option; did you mean wire.steps[1].bits?"],
        ),
        (
            [{"class_path": "Noised", "init_args": {"epsilon": "x", "norm": "y"}}, {"norm": 5}],
            [
                "wire.steps[0].epsilon: must be a number or null, not x",
                "wire.steps[0].norm: must be a number or null, not y",
                "wire.steps[1]: {'norm': 5} names no class; write a mapping with a class_path and, if it needs any, "
                "init_args",
            ],
        ),
        (
            [{"class_path": "Quantised", "bits": 4}],
            ["wire.steps[0].bits: stands beside class_path; write it under init_args"],
        ),
        ([{"class_path": "Quantised", "init_args": 4}], ["wire.steps[0]: its init_args must be a mapping, not 4"]),
    ],
    ids=str,
)
def test_an_item_of_a_list_of_classes_is_told_at_its_place(steps: list[Any], told: list[str]) -> None:
    assert problems("--wire.steps", str(steps).replace("True", "true")) == told
    assert problems(config={"wire": {"steps": steps}}) == [f"{one} (config)" for one in told]


@pytest.mark.parametrize("item", ["Quantized", {"class_path": "Quantized"}, {"class_path": "cgfedrec.wire.Quantized"}])
def test_an_item_of_an_unknown_class_is_told_with_those_that_can_stand_there(item: object) -> None:
    (problem,) = problems("--wire.steps", str(["SecureSums", item]))
    assert problem.startswith("wire.steps[1]: ")
    assert "Quantized is no class that can stand here" in problem
    assert "; did you mean Quantised?; those here: " in problem
    assert problem.endswith("; any other is named by where it is imported from, module.Class")
    assert listed(problem) >= {"Clipped", "Noised", "Quantised", "SecureSums", "TopRows"}


@pytest.mark.parametrize("item", ["CSVLogger", "lightning.fabric.loggers.CSVLoger"])
@pytest.mark.parametrize("place", ["logger", "loggers[0]"])
def test_a_logger_that_there_is_not_is_told_with_those_that_there_are(place: str, item: str) -> None:
    (problem,) = problems(f"--{place.removesuffix('[0]')}", item)
    assert problem.startswith(f"{place}: {item} ")
    meant = "; did you mean lightning.fabric.loggers.CSVLogger?"
    assert f"{meant}; those here: " in problem
    assert listed(problem) >= {"cgfedrec.run.loggers.WandbLogger", "lightning.fabric.loggers.TensorBoardLogger"}
    assert "module.Class" in problem or "cannot be imported" in problem


def test_the_logger_of_ours_is_told_though_nobody_has_imported_it() -> None:
    told = fresh("fit", "--logger", "CSVLogger").stderr
    assert "; those here: cgfedrec.run.loggers.WandbLogger, CometLogger, " in told


@pytest.mark.parametrize("name", ["WandbLogger", "CometLogger", "lightning.fabric.loggers.CSVLogger"])
def test_what_is_told_to_stand_at_an_option_can(name: str) -> None:
    (problem,) = problems("--logger", "Nothing.Near")
    whole = {"WandbLogger": "cgfedrec.run.loggers.WandbLogger"}.get(name, name)
    assert whole in listed(problem)
    options = ["--logger", whole, *(["--logger.root_dir", "logs"] if "CSV" in whole else [])]
    assert parse(said([], options, {})).logger.class_path.endswith(name.rpartition(".")[2])


def test_parts_of_methods_are_not_told_as_optimisers() -> None:
    (problem,) = problems("--method", "CGFedRec", "--method.optimizer", "Adm")
    assert "; did you mean Adam?; those here: " in problem
    assert "Adadelta" in listed(problem)
    assert not {"KeptAdam", "RowSGD", "Optimizer"} & listed(problem)


def test_a_setting_that_is_missing_is_told() -> None:
    missing = "method.privacy: epsilon is missing, and has no default"
    assert problems("--method.privacy.delta", "1e-5") == [missing]
    assert problems(config={"method.privacy": {"delta": 1e-5}}) == [f"{missing} (config)"]
    assert problems("--method.privacy.epsilon", "x") == ["method.privacy.epsilon: must be a number, not x"]
    (unknown,) = problems("--method.privacy.epsilon", "1", "--method.privacy.delt", "1e-5")
    assert unknown == "method.privacy.delt: there is no such option; did you mean method.privacy.delta?"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--loop.rounds", "-2", "--method.penalty", "x"],
            ["method.penalty: must be a number, not x", "loop.rounds: -2 is not positive"],
        ),
        (
            ["--loop.rounds", "-2", "--method.penalty", "-1", "--data.path", "no.csv"],
            ["method.penalty: -1.0 is not positive", "loop.rounds: -2 is not positive", "no.csv: no such file"],
        ),
        (
            ["--seed_everything", "-1", "--loop.rounds", "-2", "--data.path", "."],
            [
                "seed_everything: -1 is not from 0 to 2^63 - 1",
                "loop.rounds: -2 is not positive",
                ".: is a folder without Parquet parts (*.parquet); name the file of interactions",
            ],
        ),
        (
            ["--loop", "3", "--method.penaltie", "1", "--seed_everything", "-1", "--data.path", "no.csv"],
            [
                "loop: must be a mapping of its options, not 3",
                "method.penaltie: there is no such option; did you mean method.penalty?",
                "seed_everything: -1 is not from 0 to 2^63 - 1",
                "no.csv: no such file",
            ],
        ),
        (
            ["--data.negatives", "x", "--data.path", "no.csv", "--callbacks", "no.Where"],
            [
                "data.negatives: must be a whole number, not x",
                "callbacks[0]: no.Where cannot be imported (No module named 'no'; is it in the current folder, or its "
                "folder on PYTHONPATH?)",
                "no.csv: no such file",
            ],
        ),
        # With another split one interaction is enough. So this part is not judged until its types are right.
        (
            ["--data.split", "nonee", "--data.min_interactions", "1"],
            ["data.split: must be leave_one_out, random, temporal, rolling or none, not nonee"],
        ),
    ],
    ids=str,
)
def test_types_bounds_and_a_missing_file_are_told_at_once(options: list[str], told: list[str]) -> None:
    assert problems(*options) == told


def test_data_are_missing_where_reading_them_would_say_so() -> None:
    Path("parts").mkdir()
    pl.DataFrame({"user": [1], "item": [2], "timestamp": [3]}).write_parquet("parts/one.parquet")
    assert problems("--loop.rounds", "-2", "--data.path", "parts") == ["loop.rounds: -2 is not positive"]
    (_, told) = problems("--loop.rounds", "-2", "--data.path", "data/ml-100k/u.data")
    assert told == "data/ml-100k/u.data: no such file; see cgfedrec data download ml-100k"


def test_a_group_is_not_told_as_what_was_meant_inside_it() -> None:
    (problem,) = problems("--wire.steps", "[{class_path: Noised, init_args: {clip: 1}}]")
    assert problem.startswith("wire.steps[0].clip: there is no such option")
    assert "wire.steps[0]?" not in problem


def test_a_logger_that_is_left_out_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "wrong")
    assert len(problems("--logger", "CSVLogger")) == 1
    assert len(problems("--loop.rounds", "x")) == 2


def test_a_data_module_of_ones_own_may_have_any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("reader.py").write_text(
        "from cgfedrec.data import FederatedDataModule\nclass Reader(FederatedDataModule):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    options = ["--data", "reader.Reader", "--data.path", "table://x", "--loop.rounds", "-2"]
    assert problems(*options) == ["loop.rounds: -2 is not positive"]


@pytest.mark.parametrize(
    ("config", "options"),
    [({"loop": {"rounds": 3}}, ()), ({}, ("--loop.rounds", "3"))],
    ids=["config", "command line"],
)
def test_a_variable_that_anything_outranks_is_told_unless_it_says_the_same(
    config: Mapping[str, Any], options: Sequence[str]
) -> None:
    (told,) = notices(config, options, {ROUNDS: "2"})
    assert told.startswith(f"{ROUNDS} has no effect here: the command line, a config or a checkpoint says otherwise")
    assert not notices(config, options, {ROUNDS: "3"})


@pytest.mark.parametrize(
    ("variable", "text", "option", "same", "other"),
    [
        ("LOGGER", "null", "logger", None, "cgfedrec.run.loggers.WandbLogger"),
        ("LOOP__COMPRESS", "true", "loop.compress", True, False),
        ("METHOD", "FedMF", "method", "cgfedrec.methods.FedMF", "PFedRec"),
        ("PROTOCOL__CUTOFFS", "[5, 10]", "protocol.cutoffs", [5, 10], [5]),
    ],
)
def test_the_same_is_the_same_in_whatever_form(
    variable: str, text: str, option: str, same: object, other: object
) -> None:
    environment = {f"CGFEDREC_FIT_{variable}": text}
    assert not notices({option: same}, (), environment)
    assert len(notices({option: other}, (), environment)) == 1


@pytest.mark.parametrize(
    ("variable", "text", "same", "other"),
    [
        ("RECOMMEND_TOP_K", "2", ["--top_k=2"], ["--top_k", "3"]),
        ("RECOMMEND_USER", "1 2", ["--user", "1", "2"], ["--user", "1"]),
        ("RECOMMEND_EXPLAIN", "true", ["--explain"], None),
        ("RECOMMEND_EXPLAIN", "false", None, ["--explain"]),
    ],
)
def test_a_variable_of_a_commands_own_option_that_the_command_line_outranks_is_told(
    variable: str, text: str, same: list[str] | None, other: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(name.startswith("CGFEDREC_RECOMMEND") for name in os.environ)
    monkeypatch.setenv(f"CGFEDREC_{variable}", text)
    for given, expected in ((same, 0), (other, 1)):
        if given is None:
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert main(["recommend", "--ckpt_path", "nowhere.ckpt", *given]) == 2
        told = [str(one.message) for one in caught if "has no effect here" in str(one.message)]
        assert told == [f"CGFEDREC_{variable} has no effect here: the command line says otherwise"] * expected
