"""What simulated secure sums cost: processor time of training with them and without, in turns, in one process.

OMP_NUM_THREADS=1 python -m benchmarks.secure --path ../shared/data/ml-100k/ratings.csv
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cgfedrec

STEPS = "[{class_path: SecureSums}]"


def seconds(method: str, path: str, rounds: int, secure: bool) -> float:
    """Of the processor, from the first round to the last evaluation: all threads together."""
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "data.path": path, "data.format.header": False, "data.format.user_column": 0,
            "data.format.item_column": 1, "data.format.timestamp_column": 3, "method": method,
            "loop.rounds": rounds, "loop.evaluate_every": rounds, "logger": None, "run_dir": str(Path(folder) / "run"),
        }  # fmt: skip
        if secure:
            options["wire.steps"] = STEPS
        begun = time.process_time()
        cgfedrec.fit(options)
        return time.process_time() - begun


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True, help="ratings of MovieLens, columns user, item, rating, timestamp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    seconds("FedMF", given.path, 1, secure=True)  # what is only done once
    for method in ("FedMF", "PFedRec", "CGFedCo"):
        pairs = [
            [seconds(method, given.path, given.rounds, secure) for secure in (False, True)] for _ in range(given.repeat)
        ]
        ratios = [with_sums / plain for plain, with_sums in pairs]
        print(f"{method}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


if __name__ == "__main__":
    main()
