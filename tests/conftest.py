"""Shared fixtures. Everything runs on one thread: with a busy second core, two are slower than one."""

from __future__ import annotations

import gc
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_SILENT": "true", "COLUMNS": "200"}
for name in ("WANDB_API_KEY", "WANDB_MODE"):
    os.environ.pop(name, None)

import torch  # noqa: E402, after the number of threads is set
from lightning import Fabric  # noqa: E402

pytest.register_assert_rewrite("cgfedrec.testing")

from cgfedrec.data import FederatedDataModule  # noqa: E402
from cgfedrec.testing import prepared  # noqa: E402, after pytest knows to rewrite its assertions
from tests.commands import launch  # noqa: E402

torch.set_num_threads(1)
gc.set_threshold(100_000)  # as the command line does; a twelfth of the time
settings.register_profile("any machine", deadline=None)  # no test fails by the clock
settings.load_profile("any machine")

MakeData = Callable[..., FederatedDataModule]
"""The type of the fixture `make_data`."""

DATA = Path(os.environ.get("CGFEDREC_DATA", ROOT.parent / "shared" / "data"))
TINY: dict[str, Any] = {
    "data": {"init_args": {"synthetic": {"users": 40, "items": 50, "groups": 5, "interactions": 10}}},
    "method": {"class_path": "cgfedrec.methods.CGFedRec", "init_args": {"dim": 8, "clusters": 5, "silent_rounds": 1}},
    "loop": {"rounds": 3, "cohort_size": 16},
    "logger": None,
}
"""Settings that train in a moment."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is written into the repository, and no login of the person who runs the tests is used.

    Modules that a test has written, and ways to them, end with it: the next one may have others of these names.

    What a test or a library sets in the environment ends with the test. Lightning's `WandbLogger` sets `WANDB_MODE`,
    and Weights & Biases where its service is; a run of it that a test leaves open would be taken for the next one's.
    """
    before, path = dict(os.environ), list(sys.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
    os.environ.clear()
    os.environ.update(before)
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """What a test draws depends on its name, and not on the tests before it."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of `compare` start in a forked process, and print nowhere, where it does not matter how they start."""
    monkeypatch.setattr("cgfedrec.experiments.compare.runner.launch", launch)


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def make_data() -> MakeData:
    """A small data module; keywords are its arguments, beside `protocol` and `seed`."""
    return prepared


def require_data(name: str) -> Path:
    """A file of real ratings; skips the test where it is missing."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is missing: CGFEDREC_DATA names the folder")
    return path
