"""Where each part of a round stands against this machine's limits: bytes moved, rows fetched, exponentials, products.

    python -m benchmarks.limits [--data ../shared/data]

What must be done at least is counted from the data of ML-100K, 943 clients, two local epochs; how fast the machine does
each kind of it is measured on one thread, and taken times the threads. What ``python -m benchmarks`` measured last
(``results.csv``) is put beside it. Of a limit of 1 nothing is left to gain.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from benchmarks import threads
from benchmarks.__main__ import machine, markdown
from benchmarks.leak import ratings
from benchmarks.threads import Others
from cgfedrec.kernels import alignment
from cgfedrec.protocol import Protocol
from cgfedrec.random import Stream, bits

DIM, EPOCHS, CLUSTERS = 32, 2, 60
PRODUCTS = 3
"""Products of items x clusters x dim in a contrast against prototypes, with those of its gradient."""


def fastest(work: Callable[[], object], amount: float) -> float:
    """How much of it a second, at best."""
    best = math.inf
    for _ in range(7):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return amount / best


def shared(work: Callable[[Tensor], object]) -> float:
    """Bytes a second and thread, where each thread does this to memory of its own, `[2, any]`, at the same time."""
    large = [torch.ones(2, 2**24) for _ in range(threads.cores())]
    with ThreadPoolExecutor(len(large), initializer=lambda: torch.set_num_threads(1)) as pool:
        return fastest(lambda: list(pool.map(work, large)), large[0].nbytes)


def rates(items: int) -> dict[str, float]:
    """What one thread does a second: with memory, which threads share, while the others do so too."""
    tables = torch.zeros(155 * items, DIM)  # a cohort's
    rows = torch.randint(len(tables), (155 * 256,))
    values, spread = torch.ones(len(rows), DIM), rows[:, None].expand(-1, DIM)
    tile, left = torch.rand(512, 512), torch.rand(512, DIM)
    arguments = -tile.numpy(), np.float32(2), np.zeros(512, np.float32), np.zeros(512, np.float32)
    cosines, prototypes = torch.rand(items, DIM), torch.rand(DIM, CLUSTERS)
    positions = np.arange(2**18)
    return {
        "bytes copied": shared(lambda memory: memory[0].copy_(memory[1])) / 2,
        "bytes read": shared(torch.sum),
        "rows fetched": fastest(lambda: torch.embedding(tables, rows), len(rows)),
        "rows added": fastest(lambda: tables.scatter_add_(0, spread, values), len(rows)),
        "exponentials": fastest(lambda: alignment.exponentials(*arguments), tile.numel()),
        "products with rows": fastest(lambda: torch.mm(tile, left), 2 * 512 * 512 * DIM),
        "products of rows": fastest(lambda: torch.mm(left, left.T), 2 * 512 * 512 * DIM),
        "prototype products": fastest(lambda: torch.mm(cosines, prototypes), 2 * items * DIM * CLUSTERS),
        "random numbers": fastest(lambda: bits(1, Stream.NEGATIVES, positions), len(positions)),
    }


def needed(path: Path) -> tuple[dict[str, dict[str, float]], int]:
    """How much of each a part needs at least, and how many items there are."""
    data = ratings(path, Protocol(), 0)
    counts, items = data.batches.counts, data.num_items  # [clients]: samples of an epoch
    tables = data.num_users * items * DIM * 4.0
    samples = EPOCHS * float(counts.sum())
    contrasts = EPOCHS * float((-(-counts // data.batch_size)).sum())
    unaligned = {"bytes copied": tables, "bytes read": tables, "rows fetched": samples, "rows added": samples}
    pairs = contrasts * items**2 / 2
    return {
        "round, not aligned": unaligned,
        "round, aligned": unaligned
        | {"exponentials": pairs, "products of rows": 2 * pairs * DIM, "products with rows": 4 * pairs * DIM},
        "round, prototypes": unaligned
        | {
            "exponentials": contrasts * items * CLUSTERS,
            "prototype products": PRODUCTS * contrasts * 2 * items * CLUSTERS * DIM,
        },
        "draw negatives": {"random numbers": float(counts.sum()) * data.negatives / (1 + data.negatives)},
        "evaluate": {"bytes read": tables},
    }, items


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.csv")
    arguments = parser.parse_args()
    others = Others()
    work, items = needed(arguments.data / "ml-100k" / "ratings.csv")
    with threads.on(1):
        rate = rates(items)
    taken = dict(pl.read_csv(arguments.results).select("what", "ours_s").iter_rows())
    rows = []
    for what, parts in work.items():
        seconds = {name: amount / rate[name] / threads.cores() for name, amount in parts.items()}
        most = max(seconds, key=lambda name: seconds[name])
        limit = sum(seconds.values())
        rows.append((what, taken[what], limit, taken[what] / limit, most, seconds[most]))
    table = pl.DataFrame(
        rows, ["what", "ours_s", "limit_s", "times the limit", "most of it", "of which s"], orient="row"
    )
    a_second = pl.DataFrame([{"one thread": name, "a second": f"{value:.3g}"} for name, value in rate.items()])
    print(f"{machine()}, {threads.cores()} workers\n\n{markdown(a_second)}\n\n{markdown(table)}")
    if warning := others.warning():
        print(warning)


if __name__ == "__main__":
    main()
