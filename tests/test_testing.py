"""The conformance suite as somebody else meets it: outside this repository, with no fixture of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

THEIRS = """
from cgfedrec.methods import FedMF
from cgfedrec.testing import OPTIMIZERS, Conformance


class Mixing(FedMF):
    def client(self, num_items, seed):
        client = super().client(num_items, seed)
        honest = client.training_step

        def with_the_loss_of_others(batch, step):
            output = honest(batch, step)
            return output._replace(loss=output.loss + output.loss.detach().mean() * next(client.parameters()).sum())

        client.training_step = with_the_loss_of_others
        return client


class TestHonest(Conformance):
    uploads = {"table"}

    def method(self, **settings):
        return FedMF(**{"dim": 8} | settings)


class TestMixing(Conformance):
    uploads = {"nothing"}

    def method(self, **settings):
        # Adam's first step depends on a gradient's sign alone, and would hide what is mixed in
        return Mixing(**{"dim": 8, "optimizer": OPTIMIZERS["SGD"]} | settings)
"""
OTHERS = """
from cgfedrec.methods import FedGF
from cgfedrec.testing import Conformance


class TestOther(Conformance):
    uploads = {"count"}

    def method(self, **settings):
        return FedGF(**settings)
"""
CHOSEN = "alone and not many or own_client or leaves or wire or every_item or refused"
"""The quick ones; the others run for every method of ours."""


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_method_of_somebody_else_is_tested_and_one_that_mixes_clients_is_caught(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(THEIRS)
    ended = python("-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-k", CHOSEN, folder=tmp_path)
    failed = {line.split("::", 1)[1].split(" - ")[0] for line in ended.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == {
        "TestMixing::test_training_together_is_training_alone",
        "TestMixing::test_an_upload_depends_on_its_own_client_only",
        "TestMixing::test_what_leaves_a_client_is_what_may",
    }, ended.stdout
    assert "error" not in ended.stdout


def test_a_method_with_other_settings_is_told_which_attributes_to_set(tmp_path: Path) -> None:
    (tmp_path / "test_others.py").write_text(OTHERS)
    chosen = "training_alone and not many or odd or refused"
    ended = python("-m", "pytest", "-q", "-rN", "--tb=short", "-p", "no:cacheprovider", "-k", chosen, folder=tmp_path)
    told = [line for line in ended.stdout.splitlines() if "unexpected keyword argument" in line]
    assert all(line.startswith("FedGF.__init__()") for line in told)  # and no traceback goes before it
    for line, attribute in zip(told, ["optimizers", "odd", "wrong"], strict=True):
        assert f"`{attribute}` of TestOther" in line
        assert f"`{attribute} = {{" in line


def test_without_pytest_cgfedrec_works_and_the_suite_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError('No module named pytest', name='pytest')")
    lines = "import cgfedrec, cgfedrec.cli, cgfedrec.methods\nprint('works')\nimport cgfedrec.testing"
    ended = python("-c", lines, folder=tmp_path)
    assert ended.stdout == "works\n"
    assert ended.stderr.endswith("ModuleNotFoundError: cgfedrec.testing needs pytest: pip install cgfedrec[testing]\n")
