"""The leak of the field's protocol: clients that train alone, measured as the field measures, and honestly.

    python -m benchmarks.leak [--rounds 30] [--seeds 5] [--data ../shared/data]

Local is the control: no server, nothing shared. On ML-100K with the published settings (SGD at 0.1, table at 13,456,
two local epochs) it can know nothing about held-out items. Under `reference` its negatives avoid them all the same.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import mean

from lightning import Fabric
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cgfedrec.data import FederatedDataModule, Format
from cgfedrec.evaluation.ranking import evaluate
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import Local
from cgfedrec.protocol import Protocol

LAYOUT = Format(header=False, user_column=0, item_column=1, timestamp_column=3)
EVERY = 10


def ratings(path: Path, protocol: Protocol, seed: int) -> FederatedDataModule:
    """ML-100K under a protocol."""
    data = FederatedDataModule(str(path), LAYOUT)
    data.attach(protocol, seed, run="a benchmark")  # whose noise is the same each time
    data.setup()
    return data


def local(path: Path, name: str, seed: int, rounds: int) -> dict[int, tuple[float, float]]:
    """Train Local. Returns test HR@10 after every tenth round, sampled and in full ranking."""
    sampled, full = (ratings(path, Protocol(name, candidates), seed) for candidates in ("sampled", "full"))  # type: ignore[arg-type]
    found = {}

    class Measure:
        def on_round_end(self, loop: FederatedLoop) -> None:
            if loop.round % EVERY == 0 or loop.round == rounds:
                results = (evaluate(data, "test", loop.score, 64)["test/hr@10"] for data in (sampled, full))
                found[loop.round] = (next(results), next(results))

    loop = FederatedLoop(rounds=rounds, evaluate_every=rounds)
    loop.setup(Fabric(accelerator="cpu", devices=1, callbacks=[Measure()]), sampled, Local())
    loop.fit()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CGFEDREC_DATA", "../shared/data")))
    arguments = parser.parse_args()
    path = arguments.data / "ml-100k" / "ratings.csv"
    reference = local(path, "reference", 0, arguments.rounds)
    strict = [local(path, "strict", seed, arguments.rounds) for seed in track(range(arguments.seeds), "strict seeds")]
    table = Table("rounds", "reference, sampled", "strict, sampled", "strict, full", title="Local, ML-100K, test HR@10")
    for round in reference:
        honest, in_full = ([run[round][column] for run in strict] for column in (0, 1))
        cells = (f"{mean(values):.3f} ({min(values):.3f}-{max(values):.3f})" for values in (honest, in_full))
        table.add_row(str(round), f"{reference[round][0]:.3f}", *cells)
    console = Console()
    console.print(table)
    console.print(f"chance is 0.100 sampled; strict: mean of {arguments.seeds} seeds (smallest-largest)")


if __name__ == "__main__":
    main()
