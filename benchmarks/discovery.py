"""How CGFedCo's discovery grows with the catalogue: what the server computes between the sums.

    python -m benchmarks.discovery [--most 100000]      (some minutes; writes discovery.csv and discovery.png)

Sums of random histories with planted groups, 128 columns of signs and 128 clusters, 64 candidates an item. Each size
runs in a process of its own; the sums themselves are not timed. Memory is what the process took at most beyond what it
had with its sums.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_array

from cgfedrec.structure.clusters import clustered, merged
from cgfedrec.structure.discover import candidates, closed_form, verified
from cgfedrec.structure.nystroem import coordinates, factor

HERE = Path(__file__).parent
SIZES = (6_250, 12_500, 25_000, 50_000, 100_000)
COLUMNS, PAIRS, HISTORY, GROUPS = 128, 64, 20, 100
PENALTY = 50.0


def histories(items: int) -> csr_array:
    """As many clients as items, with 20 items each, nine tenths of them from one group, `[clients, items]`."""
    random = np.random.default_rng(0)
    group = random.integers(GROUPS, size=(items, 1))
    own = group + GROUPS * random.integers(items // GROUPS, size=(items, HISTORY))
    anywhere = random.integers(items, size=(items, HISTORY))
    chosen = np.where(random.random((items, HISTORY)) < 0.9, own, anywhere)
    found = csr_array((np.ones(chosen.size), chosen.ravel(), np.arange(0, chosen.size + 1, HISTORY)), (items, items))
    found.sum_duplicates()
    found.data[:] = 1
    return found


def measured(items: int) -> dict[str, float]:
    """Seconds of each part, and MiB."""
    matrix = histories(items)
    clients = torch.from_numpy(np.bincount(matrix.indices, minlength=items))
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (items, COLUMNS))
    sketch = matrix.T @ (matrix @ signs)
    before, found = _peak(), {"items": float(items)}
    lap = time.perf_counter()

    def done(part: str) -> None:
        nonlocal lap
        now = time.perf_counter()
        found[part], lap = now - lap, now

    first = factor(torch.from_numpy(signs), torch.from_numpy(sketch))
    done("factor")
    labels, centroids = clustered(coordinates(first).numpy(), COLUMNS, 0, weights=np.sqrt(clients.numpy() + 1))
    labels = merged(labels, centroids, 3)
    done("labels")
    one_hot = np.eye(COLUMNS)[labels]
    second = matrix.T @ (matrix @ one_hot)
    lap = time.perf_counter()
    whole = factor(torch.from_numpy(np.hstack((signs, one_hot))), torch.from_numpy(np.hstack((sketch, second))))
    found["factor"] += time.perf_counter() - lap
    lap = time.perf_counter()
    half, _ = closed_form(whole, clients, PENALTY)
    pairs = candidates(half, torch.full((items,), PAIRS))
    done("candidates")
    counts = torch.from_numpy(np.random.default_rng(2).integers(0, 9, tuple(pairs.shape)))
    lap = time.perf_counter()
    verified(whole, clients, pairs, counts, PENALTY)
    done("weights")
    found["rank"] = float(whole.shape[1])
    found["MiB"] = _peak() - before
    return found


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Measure all sizes, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="items of the largest size")
    parser.add_argument("--one", type=int, help="measure this size alone, and print it as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one)))
        return
    rows = []
    for size in SIZES:
        if size <= given.most:
            line = [sys.executable, "-m", "benchmarks.discovery", "--one", str(size)]
            rows.append(json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout))
    table = pl.DataFrame(rows)
    shown = Table(*table.columns, title=f"seconds and MiB, {torch.get_num_threads()} threads")
    for row in table.rows():
        shown.add_row(*(f"{value:,.4g}" for value in row))
    Console().print(shown)
    table.write_csv(HERE / "discovery.csv")
    plot(table, HERE / "discovery.png")


def plot(table: pl.DataFrame, path: Path) -> None:
    """Seconds and memory against the number of items."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for part in ("factor", "labels", "candidates", "weights"):
        seconds.loglog(table["items"], table[part], "o-", label=part)
    seconds.set(xlabel="items", ylabel="seconds", title=f"discovery, {2 * COLUMNS} columns")
    seconds.legend()
    memory.loglog(table["items"], table["MiB"], "o-", label="measured")
    memory.loglog(table["items"], table["MiB"][-1] * table["items"] / table["items"][-1], "k:", label="linear")
    memory.set(xlabel="items", ylabel="MiB", title="memory beyond the sums")
    memory.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
