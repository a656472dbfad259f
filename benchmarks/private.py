"""CGFedCo under differential privacy: test NDCG@10 by epsilon, each a run of its own with real noise of every client.

    python -m benchmarks.private [--data ../shared/data] [--only filmtrust] [--seeds 3]
    python -m benchmarks.private --crowds [--only embedded]     (from how many people on noise costs little)

User level, add or remove one person's whole history; delta is clients^-1.1. `chosen` is what a run reports: its clients
have chosen how to read, out of the same budget. `flat` reads the same structure with rho 0 and beta 0. No epsilon: the
same method with unweighted histories and no noise, as it is by default; `kept` is what remains of its mean. 16 times
ML-100K's people means a file in which everybody stands 16 times, under 16 names.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import polars as pl
from rich.console import Console

import cgfedrec
from cgfedrec.evaluation.ranking import evaluate
from cgfedrec.loop import FederatedLoop
from cgfedrec.structure.collect import SumsServer

METRIC = "test/ndcg@10"
FORMAT = {"header": False, "user_column": 0, "item_column": 1, "timestamp_column": 3}


class Case(NamedTuple):
    """Data and the epsilons that are tried on them."""

    name: str
    epsilons: tuple[float | None, ...]
    file: str | None = None
    times: int = 1
    """How often everybody is there."""
    users: int = 0
    """Of the embedded data."""


CASES = (
    Case("filmtrust", (None, 8, 4, 1), "filmtrust/ratings.tsv"),
    Case("ml-100k, 16 times", (None, 8, 4), "ml-100k/ratings.csv", 16),
    Case("embedded, 100,000", (None, 4, 1), users=100_000),
)
CROWDS = (
    *(Case(f"embedded, {users:,}", (None, 4), users=users) for users in (300, 1_000, 3_000, 10_000, 30_000)),
    *(Case(f"ml-100k, {times} times", (None, 4), "ml-100k/ratings.csv", times) for times in (1, 4, 16, 40)),
)


def data_of(case: Case, folder: Path, scratch: Path) -> dict[str, Any]:
    """The settings of a case's data."""
    if case.file is None:
        return {"synthetic": {"users": case.users}}
    path = folder / case.file
    settings = {"format": FORMAT}
    if case.file.startswith("filmtrust"):
        settings["min_interactions"] = 5  # type: ignore[assignment]
    if case.times > 1:
        separator = "," if path.suffix == ".csv" else "\t"
        table = pl.read_csv(path, has_header=False, separator=separator)
        user = table.columns[0]
        copies = [table.with_columns(pl.format("{}-{}", pl.lit(copy), user).alias(user)) for copy in range(case.times)]
        path = scratch / f"{case.times}.csv"
        pl.concat(copies).write_csv(path, include_header=False)
    return {"path": str(path), **settings}


def measured(case: Case, epsilon: float | None, seed: int, folder: Path) -> dict[str, float]:
    """One run: what it reached, by popularity too, and what it has spent."""
    with tempfile.TemporaryDirectory() as scratch:
        method: dict[str, Any] = {"class_path": "CGFedCo"}
        if epsilon is not None:
            method["init_args"] = {"privacy": {"epsilon": epsilon}}
        run = cgfedrec.fit(
            {
                "seed_everything": seed,
                "data": data_of(case, folder, Path(scratch)),
                "method": method,
                "logger": None,
                "run_dir": f"{scratch}/run",
            }
        )
        loop = run.training
        assert isinstance(loop, FederatedLoop)
        server = loop.server
        assert isinstance(server, SumsServer)
        told = {
            "chosen": run.summary[METRIC],
            "popularity": run.summary[f"popularity/{METRIC}"],
            "spent": run.summary.get("privacy/epsilon", 0.0),
            "up": run.summary["bytes/up"] / run.summary["users"] / 1000,
            "users": run.summary["users"],
        }
        server.chosen.fill_(0)  # rho 0, beta 0
        server._sent.pop("reading", None)
        server.refresh()
        return told | {"flat": evaluate(run.data, "test", loop.score, 64)[METRIC]}


def rows(given: argparse.Namespace) -> Iterator[str]:
    """A row of the table for each case and epsilon."""
    yield (
        "| data | users | epsilon | spent | chosen, of each seed | kept | flat, of each seed | kept "
        "| popularity | KB up a client |"
    )
    yield "|---" * 10 + "|"
    for case in CROWDS if given.crowds else CASES:
        if not case.name.startswith(given.only):
            continue
        without: dict[str, float] = {}
        for epsilon in case.epsilons:
            found = [measured(case, epsilon, seed, given.data) for seed in range(given.seeds)]
            told = []
            for key in ("chosen", "flat"):
                mean = fmean(one[key] for one in found)
                kept = mean / without.setdefault(key, mean)
                told.append(f"**{mean:.4f}** ({', '.join(f'{one[key]:.4f}' for one in found)}) | {kept:.3f}")
            first, popular = found[0], fmean(one["popularity"] for one in found)
            yield (
                f"| {case.name} | {first['users']:,.0f} | {epsilon or 'none'} | {first['spent']:.4f} "
                f"| {' | '.join(told)} | {popular:.4f} | {first['up']:,.0f} |"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="", help="cases whose names begin so")
    parser.add_argument("--crowds", action="store_true", help="the same data with more and more people")
    parser.add_argument("--seeds", type=int, default=3)
    for row in rows(parser.parse_args()):
        Console().print(row, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
