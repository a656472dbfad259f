"""Killed between any two writes: the same command, or the run's continuation, comes to the same end.

A child process does the work and ends, as by SIGKILL, just before its k-th operation on a file. By default some moments
spread over the whole are tried; CGFEDREC_ALL_STOPS=1 tries all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

import cgfedrec
from cgfedrec import files
from cgfedrec.cli import main
from tests.conftest import TINY

KILLED = 9
SAMPLE = 4
OF_ONE_RUN: dict[str, Any] = {"run": "", "seconds": 0, "time/round": 0}
OPERATIONS = [
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (os, "link"),
    (os, "fsync"),
    (os, "truncate"),
    (os, "posix_fallocate"),
    (os, "pwrite"),
    (os, "pwritev"),
]
"""What changes files, in Python's words. A write to an open file is between two of them."""
SETTINGS: dict[str, Any] = {"loop": {"rounds": 4, "patience": None, "participants": 10}, "seed_everything": 3}


def child(work: Callable[[], object], stop_before: int | None = None) -> tuple[int, int]:
    """Do something in a process of its own, and kill it before an operation; its exit code and how many there were."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            count = [0]

            def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
                def run(*arguments: Any, **named: Any) -> Any:
                    count[0] += 1
                    if count[0] == stop_before:
                        os._exit(KILLED)
                    return operation(*arguments, **named)

                return run

            for owner, name in OPERATIONS:
                setattr(owner, name, counted(getattr(owner, name)))
            sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115, it ends with the process
            code = int(bool(work()))
            os.write(writing, str(count[0]).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as told:
        number = told.read()
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), int(number or 0)


def moments(number: int) -> list[int]:
    """Before which operations to stop."""
    if os.environ.get("CGFEDREC_ALL_STOPS") or number <= SAMPLE:
        return list(range(1, number + 1))
    return sorted({round(1 + place * (number - 1) / (SAMPLE - 1)) for place in range(SAMPLE)})


def same_run(one: Path, other: Path) -> None:
    """The same parameters, server and figures, and nothing half-written."""
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (cgfedrec.load(run / "checkpoints" / name).loop for run in (one, other))
        assert ours.round == theirs.round
        users = theirs.store.known.nonzero().squeeze(1)
        assert ours.store.known.equal(theirs.store.known)
        for tensor, rows in theirs.store.read(users).items():
            assert ours.store.read(users)[tensor].equal(rows)
        torch.testing.assert_close(ours.server.state_dict(), theirs.server.state_dict(), rtol=0, atol=0)
    mine, whole = (pl.read_csv(run / "metrics.csv").drop("time/round") for run in (one, other))
    assert mine.equals(whole)
    found, expected = (files.read_json(run / "summary.json") for run in (one, other))
    assert found | OF_ONE_RUN == expected | OF_ONE_RUN
    assert pl.read_parquet(one / "ranks.parquet").equals(pl.read_parquet(other / "ranks.parquet"))
    assert not [*one.rglob(".*.part")]


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_fit(store: str) -> None:
    own = {"loop": {"store": store}}
    settings = [TINY, SETTINGS, own]

    def fit(folder: str) -> None:
        last = Path(folder) / "checkpoints" / "last.ckpt"
        if last.exists():
            cgfedrec.fit({"ckpt_path": str(last), "logger": None})
        else:
            cgfedrec.fit(*settings, {"run_dir": folder})

    code, number = child(lambda: fit("whole"))
    assert (code, number > 20) == (0, True), number
    for moment in moments(number):
        folder = f"stopped{moment}"
        assert child(lambda: fit(folder), moment)[0] == KILLED  # noqa: B023, called at once
        assert child(lambda: fit(folder))[0] == 0, f"does not go on when stopped before operation {moment}"  # noqa: B023
        same_run(Path(folder), Path("whole"))


def test_a_continuation_in_another_folder() -> None:
    cgfedrec.fit(TINY, SETTINGS, {"run_dir": "first", "loop": {"store": "disk"}})
    more = {"ckpt_path": "first/checkpoints/last.ckpt", "loop": {"rounds": 6}, "logger": None}

    def go_on(folder: str) -> None:
        last = Path(folder) / "checkpoints" / "last.ckpt"
        own = {"ckpt_path": str(last)} if last.exists() else {"run_dir": folder}
        cgfedrec.fit(more | own)

    code, number = child(lambda: go_on("whole"))
    assert code == 0
    for moment in moments(number):
        folder = f"stopped{moment}"
        assert child(lambda: go_on(folder), moment)[0] == KILLED  # noqa: B023, called at once
        assert child(lambda: go_on(folder))[0] == 0, moment  # noqa: B023
        same_run(Path(folder), Path("whole"))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_recommend(suffix: str) -> None:
    cgfedrec.fit(TINY, SETTINGS, {"run_dir": "run"})
    line = ["recommend", "--ckpt_path", "run/checkpoints/best.ckpt", "--output"]
    code, number = child(lambda: main([*line, f"whole.{suffix}"]))
    assert (code, number > 1) == (0, True)
    for moment in moments(number):
        output = Path(f"out{moment}.{suffix}")
        assert child(lambda: main([*line, str(output)]), moment)[0] == KILLED  # noqa: B023, called at once
        assert child(lambda: main([*line, str(output)]))[0] == 0  # noqa: B023
        assert output.read_bytes() == Path(f"whole.{suffix}").read_bytes()


def test_compare() -> None:
    """Its runs are processes of their own, which `test_fit` stops; here it is the comparison that is stopped."""
    methods = {"Local": {"method": {"class_path": "cgfedrec.methods.Local", "init_args": {"dim": 8}}}}
    config = {
        "base": {"loop": {"rounds": 1}},
        "data": {"tiny": {"data": TINY["data"]}},
        "methods": methods,
        "seeds": [0],
    }
    Path("compare.yaml").write_text(yaml.safe_dump(config))

    def compare(folder: str) -> int:
        return main(["compare", "--config", "compare.yaml", "--output", folder])

    code, number = child(lambda: compare("whole"))
    assert code == 0
    assert not [*Path("whole").rglob("*.ckpt")]
    whole = pl.read_csv("whole/results.csv").drop("seconds")
    for moment in moments(number)[1::2]:
        folder = f"stopped{moment}"
        assert child(lambda: compare(folder), moment)[0] == KILLED  # noqa: B023, called at once
        assert child(lambda: compare(folder))[0] == 0, moment  # noqa: B023
        assert pl.read_csv(f"{folder}/results.csv").drop("seconds").equals(whole)
        assert not [*Path(folder).rglob("*.ckpt"), *Path(folder).rglob(".*.part")]
        assert read_ranks(folder).equals(read_ranks("whole"))


def read_ranks(folder: str) -> pl.DataFrame:
    return pl.read_parquet(f"{folder}/ranks.parquet")


def test_a_harness_that_stops_nothing_would_pass() -> None:
    """So see that it stops: each moment leaves less than the whole."""
    assert child(lambda: files.write_atomically(Path("a"), "text"), 1)[0] == KILLED
    assert not Path("a").exists()
    code, number = child(lambda: files.write_atomically(Path("a"), "text"))
    assert (code, Path("a").read_text(), number) == (0, "text", 4)
