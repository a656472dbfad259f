"""Several processes that share the clients of a federation: the same bits as one, and one end for all."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cgfedrec.run.checkpoint import read_checkpoint
from tests.commands import Command, cgfedrec, fresh
from tests.conftest import TINY
from tests.test_resume import same_end, wait_for_round

METHODS: dict[str, dict[str, Any]] = {
    "a table of which half is sent on, in half the bits": {
        "method": {"class_path": "cgfedrec.methods.FedMF", "init_args": {"dim": 4}},
        "loop": {"rounds": 4, "participation": 0.5, "state_dtype": "bfloat16"},
    },
    "a server that looks at single uploads": {
        "method": {"class_path": "cgfedrec.methods.GPFedRec", "init_args": {"dim": 4}},
        "loop": {"rounds": 3, "participation": 0.4},
    },
    "some processes without participants": {
        "method": {"class_path": "cgfedrec.methods.CoLR", "init_args": {"dim": 8}},
        "loop": {"rounds": 6, "participants": 2, "evaluate_every": 3},
    },
    "whole numbers": {
        "method": {"class_path": "cgfedrec.methods.CGFedCo", "init_args": {"columns": 8}},
        "loop": {"rounds": 60, "participation": 0.3},
    },
    "labels": {"method": TINY["method"], "loop": {"rounds": 3, "evaluate_every": 2}},
}


@pytest.fixture(params=list(METHODS.values()), ids=list(METHODS))
def config(request: pytest.FixtureRequest) -> Path:
    return written(request.param)


@pytest.fixture
def endless() -> Path:
    loop = {"rounds": 5000, "patience": None, "participation": 0.5}
    return written(METHODS["labels"] | {"loop": loop})


def written(settings: dict[str, Any]) -> Path:
    path = Path("config.yaml")
    path.write_text(yaml.safe_dump(TINY | settings))
    return path


def by_hand(number: int, rank: int) -> dict[str, str]:
    """Of Lightning's own."""
    return {"WORLD_SIZE": str(number), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}


def by_torchrun(number: int, rank: int) -> dict[str, str]:
    """Of ``torchrun --nproc_per_node NUMBER``, as far as they are read."""
    own = {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    group = {"GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(number), "TORCHELASTIC_RUN_ID": "none"}
    return {"WORLD_SIZE": str(number), **own, **group}


def by_srun(number: int, rank: int) -> dict[str, str]:
    """Of ``srun`` in a job with ``--ntasks-per-node NUMBER``, as far as they are read."""
    own = {name: str(rank) for name in ("SLURM_PROCID", "SLURM_LOCALID")}
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fed", "SLURM_STEP_ID": "0", "SLURM_NODELIST": "localhost"}
    return {"SLURM_NTASKS": str(number), "SLURM_NTASKS_PER_NODE": str(number), "SLURM_NODEID": "0", **own, **job}


def started(number: int, *arguments: object, by: Callable[[int, int], dict[str, str]] = by_hand) -> list[Command]:
    """Processes that find each other.

    Args:
        number: Of processes.
        arguments: Of ``cgfedrec fit``.
        by: The variables that whoever starts them sets, of their number and a process's own.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    options = ("--fabric.devices", number, "--fabric.strategy", "ddp", "--logger", "null")
    return [
        Command("fit", *arguments, *options, environment=os.environ | shared | by(number, rank))
        for rank in range(number)
    ]


def ended(processes: Sequence[Command]) -> list[int]:
    return [process.wait(timeout=200) for process in processes]


def test_any_number_of_processes_ends_with_the_same_bits(config: Path) -> None:
    alone = cgfedrec("fit", "--config", config, "--run_dir", "alone")
    assert alone.returncode == 0, alone.stderr
    for number in (2, 4):
        folder = Path(f"by-{number}")
        processes = started(number, "--config", config, "--run_dir", folder)
        assert ended(processes) == [0] * number, [process.stderr for process in processes]
        same_end(Path("alone"), folder)
        assert (folder / "ranks.parquet").read_bytes() == Path("alone/ranks.parquet").read_bytes()
        # One of them speaks, and for all.
        assert f"by {number} processes" in processes[0].stdout
        assert not [process.stdout + process.stderr for process in processes[1:] if process.stdout or process.stderr]


def test_a_checkpoint_goes_on_under_any_number() -> None:
    config = written({"loop": {"rounds": 6, "participation": 0.5, "evaluate_every": 2}, "method": TINY["method"]})
    assert cgfedrec("fit", "--config", config, "--run_dir", "alone").returncode == 0
    assert ended(started(2, "--config", config, "--run_dir", "shared", "--loop.rounds", 2)) == [0, 0]
    ckpt = ("--ckpt_path", "shared/checkpoints/last.ckpt")
    processes = started(4, *ckpt, "--loop.rounds", 4)
    assert ended(processes) == [0] * 4, [process.stderr for process in processes]
    last = cgfedrec("fit", *ckpt, "--loop.rounds", 6, "--fabric.devices", 1, "--logger", "null")
    assert last.returncode == 0, last.stderr
    same_end(Path("alone"), Path("shared"))
    # What several have trained is used by one.
    assert ended(started(2, *ckpt, "--run_dir", "again")) == [0, 0]
    assert cgfedrec("recommend", "--ckpt_path", "again/checkpoints/best.ckpt", "--user", "1").returncode == 0


@pytest.mark.parametrize("killed", [0, 1])
def test_one_is_killed_and_all_end(killed: int, endless: Path) -> None:
    processes = started(2, "--config", endless, "--run_dir", "run")
    wait_for_round(processes[0], Path("run"), 3)
    processes[killed].kill()
    codes = ended(processes)
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1
    assert "another process of this run has gone away" in processes[1 - killed].stderr
    round = read_checkpoint(Path("run/checkpoints/last.ckpt"))["loop"]["round"]
    assert round >= 2
    done = cgfedrec(
        "fit",
        "--ckpt_path",
        "run/checkpoints/last.ckpt",
        "--loop.rounds",
        round + 2,
        "--fabric.devices",
        1,
        "--logger",
        "null",
    )
    assert done.returncode == 0, done.stderr


DIVERGING = """
from cgfedrec.methods.fedmf import FedMF, FedMFClient


class Diverging(FedMFClient):
    def receive(self, broadcast, round):
        super().receive(broadcast, round)
        if round == 3 and 17 in self.users.tolist():
            self.table.data[self.users.tolist().index(17)] = float("nan")


class Bad(FedMF):
    client_class = Diverging
"""


def test_an_error_of_one_is_everybodys() -> None:
    Path("bad.py").write_text(DIVERGING)
    config = written({"method": {"class_path": "bad.Bad"}, "loop": {"rounds": 10}})
    os.environ["PYTHONPATH"] = str(Path.cwd())
    processes = started(2, "--config", config, "--run_dir", "run")
    assert ended(processes) == [1, 1], [process.stderr for process in processes]
    said = [process.stderr for process in processes]
    own = [text for text in said if "error: round 3, client" in text]
    others = [text for text in said if "has failed: the training loss of 1 clients is not finite" in text]
    assert len(own) == len(others) == 1
    assert read_checkpoint(Path("run/checkpoints/last.ckpt"))["loop"]["round"] == 2


def test_a_signal_to_any_of_them_stops_all_after_the_same_round(endless: Path) -> None:
    processes = started(2, "--config", endless, "--run_dir", "run", "--loop.checkpoint_every", "1000")
    wait_for_round(processes[0], Path("run"), 3)
    processes[1].send_signal(signal.SIGTERM)
    assert ended(processes) == [128 + signal.SIGTERM] * 2
    assert "go on with: cgfedrec fit --ckpt_path run/checkpoints/last.ckpt" in processes[0].stdout.replace("\n", "")
    assert read_checkpoint(Path("run/checkpoints/last.ckpt"))["loop"]["round"] >= 3


@pytest.mark.parametrize("by", [by_torchrun, by_srun])
def test_a_cluster_may_start_them(by: Callable[[int, int], dict[str, str]]) -> None:
    config = written(METHODS["labels"])
    assert cgfedrec("fit", "--config", config, "--run_dir", "alone").returncode == 0
    processes = started(2, "--config", config, "--run_dir", "shared", by=by)
    assert ended(processes) == [0, 0], [process.stderr for process in processes]
    same_end(Path("alone"), Path("shared"))
    assert "by 2 processes" in processes[0].stdout
    assert not processes[1].stdout + processes[1].stderr


@pytest.mark.parametrize("by", [by_torchrun, by_srun])
def test_other_processes_than_were_asked_for_are_refused(by: Callable[[int, int], dict[str, str]]) -> None:
    (process,) = started(1, "--run_dir", "run", "--fabric.num_nodes", "2", by=by)
    assert ended([process]) == [2]
    assert "fabric.devices: 1 on 2 nodes are asked for, and 1 processes were started" in process.stderr
    assert not Path("run").exists()


def test_a_script_of_slurm_without_srun_is_refused() -> None:
    """It has the variables of the job, as the first of its tasks; the others would be waited for without an end."""

    def by_sbatch(number: int, rank: int) -> dict[str, str]:
        variables = by_srun(2, 0)
        del variables["SLURM_STEP_ID"]
        return variables

    (process,) = started(1, "--run_dir", "run", "--fabric.num_nodes", "2", by=by_sbatch)
    assert ended([process]) == [2]
    assert "SLURM has 2 tasks here, and only srun starts them" in process.stderr
    assert not Path("run").exists()


def test_fabric_starts_the_others_itself() -> None:
    config = written(METHODS["labels"])
    assert cgfedrec("fit", "--config", config, "--run_dir", "alone").returncode == 0
    done = fresh("fit", "--config", config, "--run_dir", "shared", "--fabric.devices", 2, "--fabric.strategy", "ddp")
    assert done.returncode == 0, done.stderr
    same_end(Path("alone"), Path("shared"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--loop.store", "disk"], "loop.store: clients' state in files is for one process"),
        (["--method", "EASE"], "fabric.devices: a reference is trained in one process"),
        (["--data.split", "rolling"], "a rolling evaluation trains in one process"),
    ],
)
def test_what_is_for_one_process_is_refused_by_name(options: list[str], told: str) -> None:
    refused = cgfedrec("fit", *options, "--fabric.devices", "2", "--fabric.strategy", "ddp", "--run_dir", "run")
    assert refused.returncode == 2
    assert told in refused.stderr
    assert not Path("run").exists()
