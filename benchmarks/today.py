"""What a continuation with one percent more interactions costs, against a run from scratch on the same data.

python -m benchmarks.today [--users 20000] [--items 5000]

The new interactions come from all users, or from two in a hundred of them, as those of one day do. Seconds are those of
the rounds. To rank what everybody holds out for validation takes as long either way, and stands beside them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import cgfedrec
from cgfedrec.data.synthetic import Synthetic
from cgfedrec.loop import FederatedLoop

SHARES = (1.0, 0.02)
"""Of the users who have something new."""
NEW = 0.01
"""Of all interactions."""


class _Clock:
    """Seconds that evaluation takes; a callback sees none of it, so the method is wrapped."""

    def __init__(self) -> None:
        self.seconds = 0.0
        whole = FederatedLoop.evaluate

        def timed(loop: FederatedLoop, stage: Any) -> Any:
            started = time.perf_counter()
            found = whole(loop, stage)
            self.seconds += time.perf_counter() - started
            return found

        FederatedLoop.evaluate = timed  # type: ignore[method-assign, assignment]


def main() -> None:
    """Print a row for each share of users."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=5_000)
    sizes = parser.parse_args()
    drawn = Synthetic(users=sizes.users, items=sizes.items, groups=40, interactions=30).draw(0)
    order = np.arange(len(drawn.users)) + 800_000_000
    table = pl.DataFrame({"user": drawn.users, "item": drawn.items, "timestamp": order})
    clock = _Clock()
    print("users with new data | clients that add | rounds, scratch | rounds, update | share | ranking, both")
    with tempfile.TemporaryDirectory() as folder:
        for share in SHARES:
            _compare(table, share, Path(folder), clock)


def _compare(table: pl.DataFrame, share: float, folder: Path, clock: _Clock) -> None:
    """Print a row."""
    random = np.random.default_rng(0)
    users = table["user"].unique().to_numpy()
    active = random.permutation(users)[: int(share * len(users))]
    theirs = np.flatnonzero(np.isin(table["user"].to_numpy(), active))
    new = np.zeros(len(table), bool)
    new[random.permutation(theirs)[: int(NEW * len(table))]] = True
    table.filter(~pl.Series(new)).write_csv(folder / "old.csv")
    table.write_csv(folder / "new.csv")

    def run(name: str, data: str, **more: Any) -> tuple[cgfedrec.run.run.Run, float, float]:
        shutil.rmtree(folder / name, ignore_errors=True)
        before = clock.seconds
        made = cgfedrec.fit(
            {
                "data.path": str(folder / data),
                "run_dir": str(folder / name),
                "logger": None,
                "loop.patience": None,
                **more,
            }
        )
        return made, made.training.seconds - (clock.seconds - before), clock.seconds - before

    first, *_ = run("first", "old.csv")
    _, scratch, ranking = run("scratch", "new.csv")
    updated, update, again = run("update", "new.csv", update_from=str(first.checkpoints / "last.ckpt"))
    adding = int(updated.summary["clients/verify"])
    print(
        f"{share:.0%} | {adding:,} of {updated.data.num_users:,} | {scratch:.2f} s | {update:.2f} s | "
        f"{update / scratch:.2f} | {ranking:.2f} s, {again:.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
