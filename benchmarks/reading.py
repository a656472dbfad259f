"""Reading and splitting many rows against reading them alone, in one run.

python -m benchmarks.reading --rows 20000000      (half a gigabyte in the temporary folder, removed at the end)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.once import status
from cgfedrec.run.api import open_data


def write(path: Path, rows: int) -> None:
    """Ratings like MovieLens's: a user's stand together, items by popularity, times in seconds."""
    rng = np.random.default_rng(0)
    pl.DataFrame(
        {
            "user": np.sort(rng.integers(1, 138_001, rows)),
            "item": (27_000 * rng.random(rows) ** 2.5).astype(np.int64) + 1,
            "rating": rng.integers(1, 11, rows) / 2,
            "timestamp": rng.integers(10**9, 14 * 10**8, rows),
        }
    ).write_csv(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ratings.csv"
        write(path, rows)
        before = status("VmHWM")  # of making the file
        started = time.perf_counter()
        data = open_data(["--data.path", str(path)])
        ours = time.perf_counter() - started
        peak = status("VmHWM")
        started = time.perf_counter()
        pl.read_csv(path, columns=["user", "item", "timestamp"])
        alone = time.perf_counter() - started
    print(
        f"{rows:,} rows, {data.num_users:,} users: {ours:.1f} s, polars alone {alone:.1f} s, {ours / alone:.1f} times; "
        f"peak {max(peak, before) / 2**30:.2f} GiB, of which making the file took {before / 2**30:.2f}"
    )


if __name__ == "__main__":
    main()
