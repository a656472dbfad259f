from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Fabric

from cgfedrec.data.synthetic import Synthetic
from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo
from cgfedrec.methods.fedmf import FedMF
from cgfedrec.simulation import capacity
from cgfedrec.simulation.capacity import cohort_size, plan
from cgfedrec.simulation.demand import Demand
from cgfedrec.simulation.example import Example
from cgfedrec.simulation.machine import available_memory
from tests.commands import cgfedrec

CPU = torch.device("cpu")
TABLE = {"table": torch.zeros(1, 1682, 32)}
ML_100K = Demand(943, 943, 100, True, 1682, 100_000, TABLE, TABLE, "float32", 0, 2, 11, 1, sees_single_uploads=False)
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
    monkeypatch.setattr(capacity, "resident", lambda: 2**29)
    monkeypatch.setattr(capacity, "free_disk", lambda folder: has.disk)
    return has


def test_clients_that_never_take_part_are_not_counted() -> None:
    assert LARGE.clients == pytest.approx(100_000 * (1 - 0.99**20))
    assert replace(LARGE, resample=False).clients == 1000
    assert ML_100K.clients == 943


def test_a_small_federation_stays_in_memory_a_large_one_goes_to_disk() -> None:
    small, large = (plan(demand, "auto", "auto", CPU, Path()) for demand in (ML_100K, LARGE))
    assert (small.store, small.state) == ("whole", 943 * 1682 * 32 * 4)
    assert large.store == "disk"
    assert large.state == pytest.approx(23.3e9, rel=0.01)
    assert large.disk > large.state
    assert large.memory < 2 * 2**30
    half = plan(replace(LARGE, dtype="bfloat16"), "auto", "auto", CPU, Path())
    assert half.state == pytest.approx(large.state / 2, rel=1e-6)
    assert "21.7 GiB in files" in str(large)


def test_clients_train_in_place_where_that_is_small_and_nobody_is_put_back(machine: Any) -> None:
    many = replace(ML_100K, users=10_000, participants=10_000)
    for demand in (replace(ML_100K, fails=True), replace(ML_100K, dtype="bfloat16"), many):
        assert plan(demand, "memory", "auto", CPU, Path()).store == "memory"
    whole = plan(ML_100K, "memory", "auto", CPU, Path())
    assert whole.store == "whole"
    machine.memory = 2 * whole.memory - 2**20  # it would take more than half
    assert plan(ML_100K, "memory", "auto", CPU, Path()).store == "memory"


def test_what_cannot_fit_is_refused_with_what_would(machine: Any) -> None:
    with pytest.raises(InputError, match=r"memory needs about 2\d\.\d GiB of memory, and 16.0 GiB are .*: disk, "):
        plan(LARGE, "memory", "auto", CPU, Path())
    machine.disk = 10 * 2**30
    folder = Path("run/checkpoints/clients")
    with pytest.raises(InputError, match=rf"disk may lay .* in {folder}, and 10.0 GiB are free: .*bfloat16"):
        plan(LARGE, "disk", "auto", CPU, folder)
    # Clients who keep no table cannot have a smaller one; where state is in memory, checkpoints alone are written.
    machine.disk = 100_000
    counting = replace(ML_100K, example={"label": torch.zeros(1, dtype=torch.int64)}, saved=2**21)
    with pytest.raises(InputError) as refused:
        plan(counting, "memory", "auto", CPU, folder)
    assert refused.value.problems == [
        "loop.store: memory may lay 6 MiB on disk in run/checkpoints, and less than 1 MiB are free: fewer items "
        "(data.min_users) would need less, or choose another run_dir"
    ]


def test_tables_that_follow_what_comes_down_count_as_the_rows_of_batches() -> None:
    """Of 20,000 rows of 64 bytes a client has trained 500, each with its number, and its last block is not full."""
    whole, few = LARGE, replace(LARGE, follows=frozenset({"table"}), touched=500.0)
    assert few.kept < whole.kept / 30
    assert few.kept >= 500 * (64 + 4)
    assert few.bases == 20 * whole.kept  # a table of each round, as not all take part
    assert replace(few, participants=100_000, rounds=50).bases == 4 * whole.kept
    assert replace(few, touched=20_000.0).kept == whole.kept
    small, large = (plan(demand, "disk", "auto", CPU, Path()) for demand in (few, whole))
    assert small.state < large.state / 20
    assert small.disk < large.disk / 20
    assert str(small).startswith("clients' state: at most ")


def test_clients_that_train_some_rows_are_more_in_a_cohort_and_score_a_few_at_a_time() -> None:
    """Of 20,000 rows of 64 bytes a client trains and sends 500 at most; it scores with all of them."""
    few = replace(LARGE, follows=frozenset({"table"}), touched=100.0, most_touched=500, sends_rows=True)
    assert (few.client, few.sent) == (500 * 64, 500 * 64)
    assert replace(few, sends_rows=False).sent == LARGE.sent
    small, large = (plan(demand, "disk", "auto", CPU, Path()) for demand in (few, LARGE))
    assert small.cohort_size > 4 * large.cohort_size
    assert small.scored == capacity.LAID_OUT // (20_000 * 64)
    assert large.scored == large.cohort_size
    given = plan(few, "disk", 3, CPU, Path())
    assert (given.cohort_size, given.scored) == (3, 3)


@pytest.mark.parametrize(("decay", "follows"), [(0.0, True), (0.1, False)])
def test_a_table_that_decays_follows_nothing(decay: float, follows: bool, make_data: Any) -> None:
    method = FedMF(dim=8, optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=decay))
    loop = FederatedLoop(rounds=2)
    data = make_data(synthetic=Synthetic(users=40, items=2000))
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method)
    loop.fit()
    whole = loop.data.num_users * loop.clients.store.layout.whole
    assert (loop.clients.capacity.state < whole) == follows
    held = loop.clients.store.state_dict()
    assert sum(piece.nbytes for piece in held["pieces"]) <= 1.3 * loop.clients.capacity.state


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_cohorts_size_themselves(workers: int) -> None:
    sizes = [cohort_size(replace(demand, workers=workers), CPU) for demand in (ML_100K, LARGE)]
    assert all(1 <= size <= 256 for size in sizes)
    assert sizes[0] * 1682 * 32 * 4 <= capacity.CACHE
    assert cohort_size(replace(ML_100K, participants=3, workers=workers), CPU) <= 16
    assert plan(ML_100K, "auto", 7, CPU, Path()).cohort_size == 7


def test_the_command_line_refuses_before_anything_is_written() -> None:
    huge: list[str | int] = ["--data.init_args.synthetic.users", 3000, "--data.init_args.synthetic.items", 4000]
    done = cgfedrec("fit", *huge, "--method", "CGFedRec", "--method.init_args.dim", 65_536, "--loop.store", "memory")
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


def test_sparse_uploads_count_as_the_rows_that_clients_have() -> None:
    """Of 41,000 items a client of 30 interactions sends 30 rows of 64 numbers, and two numbers of its own."""
    rows = torch.zeros(0, 41_000, 64, dtype=torch.int64).to_sparse(2)
    demand = replace(LARGE, users=1000, interactions=30_000, upload={"rows": rows, "bias": torch.zeros(1, 2)})
    assert demand.sent == 30 * 64 * 8 + 8


def test_a_few_numbers_that_are_not_trained_are_kept_as_records() -> None:
    marks = {"added": torch.zeros(1, 5, dtype=torch.uint8)}
    assert plan(replace(ML_100K, example=marks, upload={}), "auto", "auto", CPU, Path()).store == "memory"


def test_interactions_count_where_samples_are_drawn_of_them() -> None:
    draws, adds = (replace(LARGE, interactions=20_000_000, draws=draws) for draws in (True, False))
    more = plan(draws, "disk", "auto", CPU, Path()).memory - plan(adds, "disk", "auto", CPU, Path()).memory
    assert more == capacity.INTERACTION * 20_000_000


@pytest.mark.parametrize(("method", "draws"), [(CGFedCo(), False), (FedMF(dim=4), True)])
def test_a_client_that_only_adds_draws_nothing(method: Any, draws: bool, make_data: Any) -> None:
    loop = FederatedLoop(rounds=1)
    loop.setup(Fabric(accelerator="cpu", devices=1), make_data(), method)
    with loop.clients.workers.one() as worker:
        assert Example.of(worker).trains == draws


def test_few_participants_of_many_users_fit_in_memory(machine: Any) -> None:
    table = {"table": torch.empty(0, 20_000, 64)}
    few = replace(LARGE, users=6000, participants=10, rounds=2, example=table, upload=table)
    chosen = plan(few, "auto", "auto", CPU, Path())
    assert chosen.store == "memory"
    assert chosen.state == pytest.approx(20 * 20_000 * 64 * 4, rel=0.01)
    assert chosen.memory < 3 * 2**30
    assert plan(replace(few, participants=6000), "auto", "auto", CPU, Path()).store == "disk"


def test_what_is_only_read_needs_no_room(machine: Any) -> None:
    machine.disk = 0
    with pytest.raises(InputError, match="less than 1 MiB are free"):
        plan(LARGE, "disk", "auto", CPU, Path())
    for store in ("memory", "disk", "auto"):
        chosen = plan(LARGE, store, "auto", CPU, Path(), to_train=False)
        assert (chosen.store, chosen.disk) == ("checkpoint", 0)


GROUPS = {
    "version 2": ("0::/jobs/one\n", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "version 1": (
        "9:name=systemd:/\n4:cpu,memory:/jobs/one\n0::/\n",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


@pytest.mark.parametrize("version", GROUPS)
@pytest.mark.parametrize("group", ["jobs/one", "jobs", "."])
def test_a_containers_limit_is_heeded(version: str, group: str, tmp_path: Path) -> None:
    own, folder, limit, used, cache = GROUPS[version]
    unlimited = "max" if version == "version 2" else str(2**63 - 4096)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own)
    for one in ("jobs/one", "jobs"):
        _limit(tmp_path / folder / one, limit, unlimited, used, cache)
    assert available_memory(tmp_path) == 16 * 2**30
    _limit(tmp_path / folder / group, limit, str(3 * 2**30), used, cache)
    assert available_memory(tmp_path) == 3 * 2**30 - (2**30 - 2**20)


def _limit(group: Path, limit: str, value: str, used: str, cache: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / limit).write_text(value + "\n")
    (group / used).write_text(f"{2**30}\n")
    (group / "memory.stat").write_text(f"anon 5\n{cache} {2**20}\n")


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert available_memory(tmp_path) == 16 * 2**30


MEASURED = """
import sys
from pathlib import Path
import cgfedrec
run = cgfedrec.fit({
    "data.init_args.synthetic.users": 600, "data.init_args.synthetic.items": 2000, "method": "FedMF",
    "method.init_args.dim": 64, "loop.rounds": 2, "loop.store": sys.argv[1], "run_dir": "run", "logger": None,
    "method.init_args.optimizer": sys.argv[2],
})
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(run.loop.clients.capacity.memory, int(peak.split()[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process took")
@pytest.mark.parametrize(("store", "optimizer"), [("memory", "Adam"), ("disk", "Adam"), ("memory", "SGD")])
def test_a_run_takes_the_memory_that_it_states(store: str, optimizer: str) -> None:
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", MEASURED, store, f"torch.optim.{optimizer}"]
    done = subprocess.run(line, capture_output=True, text=True, env=one_thread, check=True)
    stated, peak = (int(number) for number in done.stdout.split()[-2:])
    # What is stated is needed at most. Cohorts that happen not to train at the same moment need less.
    assert 0.8 * stated < peak < 1.1 * stated
