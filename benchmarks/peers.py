"""The same work here, on pfl-research and on Flower's simulation, in one run: seconds a round, memory, ratios.

    python -m benchmarks.peers [--data ../shared/data/ml-100k/ratings.csv] [--rounds 10]

FedMF with Adam and PFedRec with SGD, all clients, one local epoch in batches of 256. Each of the others gets an
environment of its own, which is made once (minutes, by pip) and kept. The same for all are the values with which
clients start, threads, and the arithmetic: the mean tables after each round must agree. Nothing is evaluated.
Negatives are drawn, shuffled and cut into batches before, for all. On Flower as many clients train at a time as there
are threads; its server and Ray's own processes come on top, so that it may use more of the machine. Seconds that a
process was busy (``cpu_s``) suffer less from other work on the cores than those of the clock, which are what counts on
quiet ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import psutil
import torch

from benchmarks.__main__ import machine, markdown
from benchmarks.threads import Others
from benchmarks.work import METHODS, Work, write

HERE = Path(__file__).parent
OURS = "cgfedrec"
PINS = {"pfl-research": "pfl==0.6.0", "Flower": "flwr[simulation]==1.42.0"}
SCRIPTS = {"pfl-research": "on_pfl.py", "Flower": "on_flower.py"}
AIMS = {"pfl-research": 4, "Flower": 200}
"""Times as fast as they are, at least."""
TOLERANCE = 2e-5
"""Of a mean table's norm: others add up in float32, and Flower adds up whole tables."""
EVERY = 1.0
"""Seconds between two looks at memory."""


def environment(name: str, folder: Path) -> Path:
    """The Python of the environment of one of the others, which is made if it is not there."""
    python, made = folder / name / "bin" / "python", folder / name / "made"
    # First torch, by its exact version, and the one that is used here: a range would take the newest build.
    wanted = [f"torch=={torch.__version__.split('+')[0]}", PINS[name]]
    if not made.exists() or made.read_text().split() != wanted:
        print(f"making an environment for {name} in {folder / name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / name)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for number in range(len(wanted)):
            subprocess.run([*pip, *wanted[: number + 1]], check=True)
        made.write_text("\n".join(wanted))
    return python


def memory(process: psutil.Process) -> int:
    """Bytes of a process and all that it has started; memory that several of them share counts once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):  # it has ended meanwhile
            total += one.memory_full_info().pss
    return total


def run(command: list[str], threads: int, path: str, log: Path) -> int:
    """Run a command to its end, on so many threads; the most memory that it and all that it started had at a time."""
    # Torch takes memory in the same pages for all, as `cgfedrec` has it (`benchmarks`).
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "PFL_PYTORCH_DEVICE": "cpu"}
    variables = os.environ | quiet | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    most = 0
    with log.open("w") as output:
        process = psutil.Popen(command, cwd=HERE.parent, stdout=output, stderr=subprocess.STDOUT, env=variables)
        while process.poll() is None:
            with suppress(psutil.Error):
                most = max(most, memory(process))
            time.sleep(EVERY)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n" + "\n".join(log.read_text().splitlines()[-20:]))
    return most


def apart(folder: Path, name: str) -> float:
    """How far the mean tables after each round are from ours, relative to ours, at most.

    Raises:
        AssertionError: where that is more than rounding.
    """
    ours, theirs = (np.load(folder / f"{one}.npy") for one in (OURS, name))
    distance = float(np.max([np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(ours, theirs, strict=False)]))
    if not distance < TOLERANCE:
        raise AssertionError(f"{name}: the mean table differs by {distance:.1e} of its norm")
    return distance


def measure(done: Work, name: str, python: Path, rounds: int) -> dict[str, Any]:
    """Some rounds of a piece of work by one framework: a row of the table."""
    folder, others = Path(done.folder), Others()
    if name == OURS:
        command, path = [sys.executable, "-m", "benchmarks.work"], os.environ.get("PYTHONPATH", "")
    else:
        command, path = [str(python), str(HERE / "beside" / SCRIPTS[name])], str(HERE / "beside")
    watched = run([*command, done.folder, str(rounds)], done.threads, path, folder / f"{name}.log")
    found = json.loads((folder / f"{name}.json").read_text())
    first, *later = found["seconds"]
    return {
        "method": done.method,
        "on": name,
        "first_s": first,
        "round_s": median(later),
        "fastest_s": min(later),
        # Of the one process that there is; Flower has several, and their work looks like that of others.
        "cpu_s": None if name == "Flower" else median(found["cpu"][1:]),
        "rounds": rounds,
        "peak_MiB": max(watched, found["peak"]) / 2**20,
        "apart": apart(folder, name),
        "others": None if name == "Flower" else others.share(),
    }


def compare(arguments: argparse.Namespace) -> pl.DataFrame:
    """A row for each method and framework."""
    pythons = {name: environment(name, arguments.environments) for name in PINS}
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            data = some(arguments.data, arguments.clients, folder)
            done = write(Work(method, str(data), arguments.rounds, arguments.threads, directory))
            rows.append(measure(done, OURS, Path(sys.executable), arguments.rounds))
            rows.append(measure(done, "pfl-research", pythons["pfl-research"], arguments.rounds))
            if method in arguments.flower:
                rows.append(measure(done, "Flower", pythons["Flower"], arguments.flower_rounds))
    table = pl.DataFrame(rows, infer_schema_length=None)
    ours = table.filter(pl.col("on") == OURS).select("method", mine=pl.col("round_s"), busy=pl.col("cpu_s"))
    return (
        table.join(ours, "method", maintain_order="left")
        .with_columns(
            pl.when(pl.col("on") != OURS).then(pl.col("round_s") / pl.col("mine")).alias("ratio"),
            pl.when(pl.col("on") != OURS).then(pl.col("cpu_s") / pl.col("busy")).alias("cpu_ratio"),
            pl.col("on").replace_strict(AIMS, default=None, return_dtype=pl.Float64).alias("asked"),
        )
        .drop("mine", "busy")
    )


def some(data: Path, clients: int | None, folder: Path) -> Path:
    """The ratings, of so many clients alone."""
    if clients is None:
        return data.absolute()
    rows = data.read_text().splitlines(keepends=True)
    file = folder / "ratings.csv"
    file.write_text("".join(row for row in rows if int(row.split(",")[0]) <= clients))
    return file


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ml-100k/ratings.csv"), help="ML-100K")
    parser.add_argument("--clients", type=int, help="only the first ones, to try it out")
    parser.add_argument("--rounds", type=int, default=10, help="here and on pfl-research; the first is told apart")
    parser.add_argument("--flower", nargs="*", choices=list(METHODS), default=["FedMF"], help="what Flower is to do")
    parser.add_argument("--flower-rounds", type=int, default=2, help="a round takes half a minute")
    parser.add_argument("--threads", type=int, default=1, help="of each of them")
    cache = Path.home() / ".cache" / "cgfedrec" / "peers"
    parser.add_argument("--environments", type=Path, default=cache, help="where the others are installed")
    arguments = parser.parse_args()
    if not 2 <= arguments.flower_rounds <= arguments.rounds:
        parser.error("--flower-rounds is at least 2, and --rounds no less")
    load = os.getloadavg()[0]
    table = compare(arguments)
    print(f"{machine()}; {arguments.threads} threads for each; load before: {load:.1f}\n\n{markdown(table)}")


if __name__ == "__main__":
    main()
