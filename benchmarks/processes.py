"""Rounds a second with several processes and with several threads.

python -m benchmarks.processes ../shared/data/ml-100k/ratings.csv

Every setting trains the same rounds by the command line, in turn and several times over, so that what else the machine
does meets all of them. The time is that of a round's training and aggregation, without evaluation and checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

SETTINGS = ((1, 1), (1, 2), (2, 1), (4, 1))
"""Processes, and threads of each."""


def seconds_a_round(path: Path, method: str, processes: int, threads: int, rounds: int) -> float:
    """The median over rounds, as ``summary.json`` has it."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options: dict[str, object] = {
            "data.path": path,
            "data.format.header": "false",
            "data.format.user_column": 0,
            "data.format.item_column": 1,
            "data.format.timestamp_column": 3,
            "method": method,
            "loop.rounds": rounds,
            "loop.patience": "null",
            "loop.store": "memory",
            "loop.checkpoint_every": rounds,
            "logger": "null",
            "run_dir": run,
            "fabric.devices": processes,
            "fabric.strategy": "ddp" if processes > 1 else "auto",
        }
        command = [sys.executable, "-m", "cgfedrec", "fit"]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return float(json.loads((run / "summary.json").read_text())["time/round"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="ratings of ML-100K")
    parser.add_argument("--methods", nargs="+", default=["FedMF", "PFedRec"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--times", type=int, default=3, help="how often everything is run")
    given = parser.parse_args()
    for method in given.methods:
        seconds: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
        for _ in range(given.times):
            for processes, threads in SETTINGS:
                one = seconds_a_round(given.path, method, processes, threads, given.rounds)
                seconds[processes, threads].append(one)
        first = median(seconds[SETTINGS[0]])
        for (processes, threads), found in seconds.items():
            taken = median(found)
            print(
                f"{method}: {processes} processes of {threads} threads: {taken:.3f} s a round, {1 / taken:.2f} rounds "
                f"a second, {first / taken:.2f} times one process of one thread"
            )


if __name__ == "__main__":
    main()
