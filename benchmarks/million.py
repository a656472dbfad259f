"""A large federation from end to end: seconds of each phase, bytes and memory of one run of CGFedCo.

    python -m benchmarks.million [--users 1000000] [--items 100000] [--estimate]      (20 minutes, 4.7 GiB)

The table is written first: every user has a group, takes nine tenths of the items from it, and the popular ones more
often. Options that it does not know go to `cgfedrec`.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.server import CLIENTS

GROUPS = 200
OWN = 0.9
"""Of a user's items, the share that comes from the group."""
SKEW = 0.7
"""The item of rank r is drawn with a weight of (r + `HEAD`)^-`SKEW`."""
HEAD = 20


def write(path: Path, users: int, items: int, interactions: int) -> None:
    """Users with so many interactions each, or fewer where one was drawn twice; later rows are later."""
    rng = np.random.default_rng(0)
    # Items of one group are every so many-th: all groups have popular and rare ones.
    of_group = ranks(rng, items // GROUPS, (users, interactions)) * GROUPS + rng.integers(GROUPS, size=(users, 1))
    anywhere = ranks(rng, items, (users, interactions))
    drawn = np.where(rng.random((users, interactions)) < OWN, of_group, anywhere)
    owners = np.repeat(np.arange(users), interactions)
    times = np.tile(np.arange(interactions), users)
    table = pl.DataFrame({"user": owners, "item": drawn.ravel(), "timestamp": times})
    table.unique(["user", "item"], keep="first", maintain_order=True).write_parquet(path)


def ranks(rng: np.random.Generator, number: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Ranks below ``number``, popular ones more often."""
    weights = np.cumsum((np.arange(number) + HEAD) ** -SKEW)
    found: NDArray[np.int64] = np.searchsorted(weights, rng.random(shape) * weights[-1])
    return found


def phases(run: Path) -> pl.DataFrame:
    """Rounds and seconds of each phase, by what the run has written of every round."""
    rounds = pl.read_csv(run / "metrics.csv")
    counted = [name for name in rounds.columns if name.startswith(CLIENTS)]
    found = [rounds.filter(pl.col(name).is_not_null())["time/round"] for name in counted]
    return pl.DataFrame(
        {
            "phase": [name.removeprefix(CLIENTS) for name in counted],
            "rounds": [len(times) for times in found],
            "seconds": [times.sum() for times in found],
            "a round in the median": [times.median() for times in found],
            "the longest": [times.max() for times in found],
        }
    )


def main() -> None:
    """Write the table, run, and tell what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--interactions", type=int, default=20)
    parser.add_argument("--participation", type=float, default=0.01)
    parser.add_argument("--estimate", action="store_true", help="print what the estimate says in place of running")
    given, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "interactions.parquet", Path(folder) / "run"
        write(path, given.users, given.items, given.interactions)
        options = ["--data.path", str(path), "--loop.participation", str(given.participation)]
        # Every client adds to each of five sums once, in as many rounds as that takes.
        options += ["--loop.rounds", str(5 * math.ceil(1 / given.participation))]
        # A checkpoint holds the sums, 51 MB and more, compressed: a second or two.
        options += ["--loop.checkpoint_every", "25"]
        if given.estimate:
            command = ["estimate", *options]
        else:
            command = ["fit", *options, "--run_dir", str(run), "--logger", "null"]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cgfedrec", *command, *more], check=True)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        if not given.estimate:
            print(phases(run))
        print(f"{seconds / 60:.1f} min in all, at most {peak:.2f} GiB")


if __name__ == "__main__":
    main()
