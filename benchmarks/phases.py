"""What CGFedCo's sums take of clients and of the server, against the machine's limit, and how that grows.

    python -m benchmarks.phases [--largest 16000]      (some minutes; writes phases.csv)

A sample of clients goes through all sums of synthetic federations (as ``cgfedrec estimate`` has it), one thread. A
client that has m items adds m rows to a sum, of a number for each column or candidate. Its limit is the time in which
this machine copies these numbers, 8 bytes each, twice: they are written, and added to a sum. All other rows are zeros,
which travel, and of which a simulation computes nothing. Exponents are slopes between an axis' smallest and largest
value.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from lightning import Fabric
from rich.progress import track

from benchmarks import threads
from benchmarks.__main__ import machine, markdown
from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo
from cgfedrec.protocol import Protocol
from cgfedrec.run.estimates import InTurn
from cgfedrec.run.rehearsal import tried_out

BASE: dict[str, int] = {"users": 4000, "items": 4000, "columns": 64, "interactions": 25}
POINTS = 3
"""Values of each axis: the largest, a quarter of it, and a quarter of that."""
HERE = Path(__file__).parent


def copying() -> float:
    """Seconds in which this machine copies one number of 8 bytes that is not in a cache."""
    source = np.ones(2**24)
    target, best = np.empty_like(source), math.inf
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - started)
    return best / len(source)


def measured(point: dict[str, int]) -> tuple[InTurn, dict[str, float]]:
    """An estimate of a federation, and how many numbers that are not zero a client adds in each phase, in the mean."""
    synthetic = Synthetic(point["users"], point["items"], groups=20, interactions=point["interactions"])
    data = FederatedDataModule(synthetic=synthetic)
    data.attach(Protocol(), 0)
    data.setup()
    loop = FederatedLoop(1000)
    loop.setup(
        Fabric(accelerator="cpu", devices=1), data, CGFedCo(columns=point["columns"], clusters=point["columns"]), HERE
    )
    found = tried_out(loop)
    assert isinstance(found, InTurn)
    own = float(data.interactions_per_user().mean())
    wide = {"bounds": 2, "sketch": point["columns"], "labels": point["columns"], "verify": 64}
    return found, {name: own * columns for name, columns in wide.items()}


def rows(axis: str, value: int, number: float) -> list[dict[str, Any]]:
    """A row for each phase of one federation; copying a number takes so many seconds."""
    found, numbers = measured(BASE | {axis: value})
    return [
        {
            "axis": axis,
            "value": value,
            "phase": one.phase.name,
            "client_us": 1e6 * one.clients / found.enrolled,
            "limit_us": 2e6 * number * numbers[one.phase.name] if one.phase.name in numbers else None,
            "up_kB": one.phase.up / 1000,
            "server_s": one.server,
        }
        for one in found.phases
    ]


def exponents(points: pl.DataFrame) -> pl.DataFrame:
    """How what a phase takes grows along each axis."""
    found = []
    for (axis, phase), group in points.group_by("axis", "phase", maintain_order=True):
        first, last = group.sort("value")[0], group.sort("value")[-1]
        wide = math.log(last["value"].item() / first["value"].item())
        slopes = {
            name: math.log(max(last[name].item(), 1e-9) / max(first[name].item(), 1e-9)) / wide
            for name in ("client_us", "up_kB", "server_s")
        }
        found.append({"axis": axis, "phase": phase, **slopes})
    return pl.DataFrame(found)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=16_000, help="users and items, at most (%(default)s)")
    parser.add_argument("--output", type=Path, default=HERE / "phases.csv")
    arguments = parser.parse_args()
    threads.use(1)
    sizes = [arguments.largest // 4**power for power in range(POINTS)]
    axes = {"users": sizes, "items": sizes, "columns": [16, 32, 64]}
    others = threads.Others()
    number = copying()
    jobs = [(axis, value) for axis, values in axes.items() for value in values]
    table = pl.DataFrame(list(itertools.chain.from_iterable(rows(*job, number) for job in track(jobs, "phases"))))
    table.write_csv(arguments.output)
    print(f"{machine()}; a number of 8 bytes is copied in {1e9 * number:.2f} ns\n\n{markdown(table)}")
    print(f"\nExponents:\n\n{markdown(exponents(table))}")
    if warning := others.warning():
        print(warning)


if __name__ == "__main__":
    main()
