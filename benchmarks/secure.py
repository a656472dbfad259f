"""What secure sums cost: processor time of training with them and without, in turns, in one process.

OMP_NUM_THREADS=1 python -m benchmarks.secure --path ../shared/data/ml-100k/ratings.csv

With ``--masks``: what keys, masks and shares take besides, for each client and round, and what the estimate says by
which a run is refused.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cgfedrec
from cgfedrec.simulation.masked import seconds as estimate
from cgfedrec.wire.secure import SecureSums

STEPS = "[{class_path: SecureSums}]"


def seconds(method: str, path: str, rounds: int, steps: str = "[]", **others: Any) -> float:
    """Of the processor, from the first round to the last evaluation: all threads together."""
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "data.path": path, "data.format.header": False, "data.format.user_column": 0,
            "data.format.item_column": 1, "data.format.timestamp_column": 3, "method": method, "wire.steps": steps,
            "loop.rounds": rounds, "loop.evaluate_every": rounds, "logger": None, "run_dir": str(Path(folder) / "run"),
        }  # fmt: skip
        begun = time.process_time()
        cgfedrec.fit(options | others)
        return time.process_time() - begun


def simulated(path: str, rounds: int, repeat: int) -> None:
    """Print a line for each method."""
    seconds("FedMF", path, 1, STEPS)  # what is only done once
    for method in ("FedMF", "PFedRec", "CGFedCo"):
        pairs = [[seconds(method, path, rounds, steps) for steps in ("[]", STEPS)] for _ in range(repeat)]
        ratios = [with_sums / plain for plain, with_sums in pairs]
        print(f"{method}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def masks(path: str, rounds: int, repeat: int, clients: int = 80) -> None:
    """Print a line for each number of neighbours."""
    participants = {"loop.participants": clients}
    for neighbours in (8, 16, 32, 64):
        given = f"[{{class_path: SecureSums, init_args: {{neighbours: {neighbours}, masked: MASKED}}}}]"
        both = [
            [seconds("FedMF", path, rounds, given.replace("MASKED", one), **participants) for one in ("false", "true")]
            for _ in range(repeat)
        ]
        each = median(1000 * (masked - without) / clients / rounds for without, masked in both)
        numbers = 1682 * 32 + 1
        expected = 1000 * estimate(SecureSums(neighbours=neighbours), clients, numbers) / clients
        print(f"{neighbours} neighbours: {each:.0f} ms a client and round; estimated {expected:.0f}", flush=True)


def main() -> None:
    """Measure one or the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True, help="ratings of MovieLens, columns user, item, rating, timestamp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--masks", action="store_true", help="keys, masks and shares, of clients with 32 x 1682 numbers"
    )
    given = parser.parse_args()
    measure = masks if given.masks else simulated
    measure(given.path, given.rounds, given.repeat)


if __name__ == "__main__":
    main()
