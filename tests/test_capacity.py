from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cgfedrec import capacity
from cgfedrec.capacity import Demand, cohort_size, plan
from cgfedrec.errors import InputError
from tests.conftest import cgfedrec

CPU = torch.device("cpu")
TABLE = {"table": torch.zeros(1, 1682, 32)}
ML_100K = Demand(943, 943, 100, True, 1682, 100_000, TABLE, TABLE, "float32", 2, 11, 1, sees_single_uploads=False)
LARGE = replace(
    ML_100K,
    users=100_000,
    participants=1000,
    rounds=20,
    items=20_000,
    example={"table": torch.zeros(1, 20_000, 16)},
    upload={"table": torch.zeros(1, 20_000, 16)},
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """16 GiB of memory, 100 GiB of disk."""
    has = SimpleNamespace(memory=16 * 2**30, disk=100 * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=has.memory))
    monkeypatch.setattr(capacity, "free_disk", lambda folder: has.disk)
    return has


def test_clients_that_never_take_part_are_not_counted() -> None:
    assert LARGE.clients == pytest.approx(100_000 * (1 - 0.99**20))
    assert replace(LARGE, resample=False).clients == 1000
    assert ML_100K.clients == 943


def test_a_small_federation_stays_in_memory_a_large_one_goes_to_disk() -> None:
    small, large = (plan(demand, "auto", "auto", CPU, Path()) for demand in (ML_100K, LARGE))
    assert (small.store, small.state) == ("memory", 943 * 1682 * 32 * 4)
    assert large.store == "disk"
    assert large.state == pytest.approx(23.3e9, rel=0.01)
    assert large.disk > large.state
    assert large.memory < 2 * 2**30
    half = plan(replace(LARGE, dtype="bfloat16"), "auto", "auto", CPU, Path())
    assert half.state == pytest.approx(large.state / 2, rel=1e-6)
    assert "21.7 GiB in memory-mapped files" in str(large)


def test_what_cannot_fit_is_refused_with_what_would(machine: Any) -> None:
    with pytest.raises(InputError, match=r"memory needs about 4\d\.\d GiB of memory, and 16.0 GiB are .*: disk, "):
        plan(LARGE, "memory", "auto", CPU, Path())
    machine.disk = 10 * 2**30
    with pytest.raises(InputError, match=r"disk may lay .* and 10.0 GiB are free: .*bfloat16"):
        plan(LARGE, "disk", "auto", CPU, Path())


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_cohorts_size_themselves(workers: int) -> None:
    sizes = [cohort_size(replace(demand, workers=workers), CPU) for demand in (ML_100K, LARGE)]
    assert all(1 <= size <= 256 for size in sizes)
    assert sizes[0] * 1682 * 32 * 4 <= capacity.CACHE
    assert cohort_size(replace(ML_100K, participants=3, workers=workers), CPU) <= 16
    assert plan(ML_100K, "auto", 7, CPU, Path()).cohort_size == 7


def test_the_command_line_refuses_before_anything_is_written() -> None:
    huge: list[str | int] = ["--data.init_args.synthetic.users", 3000, "--data.init_args.synthetic.items", 4000]
    done = cgfedrec("fit", *huge, "--method.init_args.dim", 10**6, "--loop.store", "memory")
    assert done.returncode == 2
    assert "loop.store: memory needs about" in done.stderr
    assert "are available" in done.stderr
    assert not Path("runs").exists()


def test_uploads_larger_than_a_client_count(machine: Any) -> None:
    machine.memory = 200 * 2**30
    products = {"similarity": torch.empty(0, 20_000, 20_000)}
    small, large = (plan(demand, "disk", 16, CPU, Path()) for demand in (LARGE, replace(LARGE, upload=products)))
    assert large.memory - small.memory >= 2 * 16 * 4 * 20_000**2
    assert cohort_size(replace(LARGE, upload=products), CPU) == capacity.SMALLEST
