"""The method that docs/tutorials/own-method.md walks through does what the text says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

from cgfedrec.cli import main
from cgfedrec.client import Batch, StepOutput
from cgfedrec.method import Method
from cgfedrec.testing import Conformance
from tests.documents import PAGES, blocks

PAGE = "docs/tutorials/own-method.md"
BLOCKS = {block.title: block.text for block in blocks(PAGE)}


@pytest.fixture(scope="module")
def fedavgm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The walk-through's file, as a reader would write it."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "fedavgm.py").write_text(BLOCKS["fedavgm.py"])
    sys.path.insert(0, str(folder))
    yield import_module("fedavgm")
    sys.path.remove(str(folder))
    del sys.modules["fedavgm"]


class TestFedAvgM(Conformance):
    uploads: ClassVar = {"table"}
    good: ClassVar = {"dim": 16, "optimizer": partial(torch.optim.Adam, lr=0.03), "local_epochs": 4, "momentum": 0.2}

    @pytest.fixture(autouse=True)
    def _module(self, fedavgm: ModuleType) -> None:
        self.fedavgm = fedavgm

    def method(self, **settings: Any) -> Method:
        made: Method = self.fedavgm.FedAvgM(**{"dim": 8} | settings)
        return made


def test_the_commands_of_the_walk_through(
    fedavgm: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--data.synthetic.users", "30", "--data.synthetic.items", "40", "--data.synthetic.interactions", "8"]
    options = ["--method", "fedavgm.FedAvgM", "--method.momentum", "0.9", "--loop.rounds", "2", "--logger", "null"]
    assert main(["fit", *options, *small, "--run_dir", str(tmp_path / "run")]) == 0
    assert "server/velocity" in (tmp_path / "run" / "metrics.csv").read_text()
    assert main(["fit", *options, *small, "--method.momentum", "2", "--run_dir", str(tmp_path / "other")]) == 2
    assert "method.momentum" in capsys.readouterr().err


def test_the_suite_of_the_walk_through_is_complete() -> None:
    assert "class TestFedAvgM(Conformance)" in BLOCKS["test_fedavgm.py"]


@pytest.mark.parametrize("name", [*Conformance.__annotations__, *Batch._fields])
def test_the_walk_through_names_what_a_class_sets_and_a_step_is_given(name: str) -> None:
    assert f"`{name}`" in PAGES[PAGE]


@pytest.mark.parametrize("taken", [Batch, StepOutput])
def test_help_says_what_the_fields_are(taken: type[Batch | StepOutput]) -> None:
    said = taken.__doc__ or ""
    assert not [name for name in taken._fields if f"    {name}: " not in said]
