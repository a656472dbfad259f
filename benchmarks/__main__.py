"""How fast is a round, against the plain way of doing it, in one run on the same data?

    python -m benchmarks [--aligned 24] [--data ../shared/data] [--output benchmarks]

ML-100K, 943 clients, 2 local epochs, K = 60. The plain way (`benchmarks/baseline.py`) trains all clients without
alignment, and ``--aligned`` of them with it, spread evenly over the lengths of their histories; its seconds for all are
scaled up from these (``--aligned 943`` trains all, in some minutes). What both train must end with the same parameters.
Drawing, evaluating and checkpointing are timed apart from a round.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import torch
from lightning import Fabric
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import baseline
from benchmarks.leak import ratings
from cgfedrec.checkpoint import Checkpoint
from cgfedrec.data.module import TrainingCohort
from cgfedrec.evaluation import evaluate
from cgfedrec.loop import FederatedLoop, train
from cgfedrec.methods import CGFedRec
from cgfedrec.protocol import Protocol

PUBLISHED = {"round, aligned": 178.0, "round, not aligned": 8.7, "draw": 2.4, "evaluate": 0.6}
"""Seconds that the published code takes on 2 cores for all 943 clients."""
TOLERANCE = 1e-4


class Bench:
    """Ours and the plain way, on the same clients, batches and labels.

    Args:
        path: Of the ratings.
        aligned: How many clients the plain way trains with alignment.
    """

    def __init__(self, path: Path, aligned: int) -> None:
        self.data = ratings(path, Protocol(candidates="sampled"), 0)
        self.loop = FederatedLoop(rounds=1, evaluate_every=1)
        self.loop.setup(Fabric(accelerator="cpu", devices=1), self.data, CGFedRec())
        self.loop.fit()
        self.users = torch.arange(self.data.num_users)
        self.some = self.data.order()[:: max(1, len(self.users) // aligned)].sort().values
        self.state = self.states(self.users)
        self.seconds: dict[tuple[str, str], float] = {}

    @contextmanager
    def timed(self, what: str, who: str) -> Iterator[None]:
        """Time a block, once."""
        started = time.perf_counter()
        yield
        self.seconds[what, who] = time.perf_counter() - started

    def ours(self, what: str, users: Tensor, cohorts: list[TrainingCohort], aligns: bool) -> dict[str, Tensor]:
        """One round of ours from the stored state. Returns the state of ``users`` after it."""
        self.loop.store.load_state_dict({"users": self.users, "rows": self.state})
        with self.timed(what, "ours"):
            for cohort in cohorts:
                self.loop.store.load(self.loop.client, cohort.users)
                self.loop.client.receive(self.loop.server.broadcast(cohort.users) if aligns else None)
                train(self.loop.fabric, self.loop.module, self.loop.optimizers, cohort)
                self.loop.server.aggregate(self.loop.client.upload())
                self.loop.store.save(self.loop.client)
            self.loop.server.update(self.loop.fabric, 2)
        return self.states(users)

    def states(self, users: Tensor) -> dict[str, Tensor]:
        """The private state of some clients, copied."""
        return {name: rows[self.loop.store.place[users]] for name, rows in self.loop.store.rows.items()}

    def plain(
        self, what: str, users: Tensor, cohorts: list[TrainingCohort], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """The same in the plain way, from cohorts of one."""
        by_user = {int(cohort.users[0]): cohort.batches for cohort in cohorts}
        with self.timed(what, "plain"):
            after = [
                baseline.train({name: rows[user] for name, rows in self.state.items()}, by_user[user], labels)
                for user in users.tolist()
            ]
            torch.stack([client["table"] for client in after]).mean(0)
        return {name: torch.stack([client[name] for client in after]) for name in after[0]}

    def rounds(self) -> None:
        """A round without and with alignment; raises if the parameters differ."""
        labels = self.loop.server.get_buffer("labels").clone()
        for what, users in (("round, not aligned", self.users), ("round, aligned", self.some)):
            aligns = what == "round, aligned"
            cohorts = list(self.data.cohorts(self.users, 2, self.loop.epochs, 32))
            singles = list(self.data.cohorts(users, 2, self.loop.epochs, 1))
            self.loop.server.get_buffer("labels").copy_(labels)
            ours = self.ours(what, users, cohorts, aligns)
            plain = self.plain(what, users, singles, labels if aligns else None)
            for name, rows in plain.items():
                apart, size = ((values.reshape(len(users), -1).norm(dim=1)) for values in (ours[name] - rows, rows))
                distance = (apart / size).max().item()
                if distance > TOLERANCE:
                    raise AssertionError(f"{what}: {name} differs by {distance:.1e} of its norm")

    def apart(self) -> None:
        """Drawing, evaluating, checkpointing."""
        lists = self.data._train
        histories = [lists.items[a:b].tolist() for a, b in zip(lists.starts[:-1], lists.starts[1:], strict=True)]
        with self.timed("draw", "plain"):
            baseline.draw(histories, self.data.num_items)
        with self.timed("draw", "ours"):
            for _ in self.data.cohorts(self.users, 3, 1, 32):
                pass
        scores = torch.cat([self.loop.score(part) for part in self.users.split(64)])
        (ranking,) = self.data.ranking("test", 10_000)
        assert ranking.sampled is not None
        with self.timed("evaluate", "plain"):
            plain = baseline.evaluate(list(scores), ranking.relevant[:, 0].tolist(), ranking.sampled.tolist())
        with self.timed("evaluate", "ours"):
            ours = evaluate(self.data, "test", lambda users: scores[users], 64)["test/hr@10"]
        if abs(plain - ours) > 0.002:  # the plain way is indifferent to ties
            raise AssertionError(f"HR@10 differs: {plain} and {ours}")
        with tempfile.TemporaryDirectory() as directory, self.timed("checkpoint", "ours"):
            Checkpoint(Path(directory), {}).on_round_end(self.loop)

    def table(self) -> pl.DataFrame:
        """Seconds for all clients; the plain aligned round is scaled up from those it trained."""
        rows = []
        for (what, who), seconds in self.seconds.items():
            if who == "ours":
                plain = self.seconds.get((what, "plain"))
                if plain is not None and what == "round, aligned":
                    plain *= len(self.users) / len(self.some)
                ratio = None if plain is None else plain / seconds
                rows.append((what, plain, seconds, ratio, len(self.users) / seconds, PUBLISHED.get(what)))
        names = ["what", "plain_s", "ours_s", "ratio", "clients_per_s", "published_s"]
        return pl.DataFrame(rows, schema=names, orient="row")


def machine() -> str:
    """What this ran on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads"


def plot(table: pl.DataFrame, path: Path) -> None:
    """Ratios as bars."""
    from matplotlib.figure import Figure

    compared = table.filter(pl.col("ratio").is_not_null())
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(compared["what"], compared["ratio"])
    axes.bar_label(bars, [f"{ratio:.1f}x" for ratio in compared["ratio"]], padding=3)
    axes.set_xlabel("times as fast as the plain way")
    axes.set_title("ML-100K, 2 local epochs, one run", fontsize=10)
    axes.margins(x=0.15)
    figure.savefig(path, dpi=120)


def report(table: pl.DataFrame, state: float, peak: float) -> str:
    """RESULTS.md."""
    lines = [
        "# Results",
        "",
        f"`python -m benchmarks`, on {machine()}. Ratios within this one run; both ways end with the "
        "same parameters. The plain aligned round is scaled up from a sample of clients.",
        "",
        "| 943 clients | plain, s | cgfedrec, s | ratio | cgfedrec, clients/s | published code, s |",
        "|---|---|---|---|---|---|",
    ]
    for what, *numbers in table.iter_rows():
        cells = ("" if number is None else f"{number:,.3g}" for number in numbers)
        lines.append(f"| {what} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Peak memory of this process, both ways included: {peak:,.0f} MiB; the clients' state: {state:,.0f} MiB.",
        "",
        "![ratios](results.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write results.csv, results.png and RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aligned", type=int, default=24)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CGFEDREC_DATA", "../shared/data")))
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    arguments = parser.parse_args()
    bench = Bench(arguments.data / "ml-100k" / "ratings.csv", arguments.aligned)
    steps: list[Callable[[], None]] = [bench.rounds, bench.apart]
    for step in steps:
        step()
    table = bench.table()
    printed = Table(*table.columns)
    for row in table.iter_rows():
        printed.add_row(*("" if cell is None else cell if isinstance(cell, str) else f"{cell:,.3g}" for cell in row))
    Console().print(printed)
    table.write_csv(arguments.output / "results.csv")
    plot(table, arguments.output / "results.png")
    state = sum(rows.nbytes for rows in bench.state.values()) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    (arguments.output / "RESULTS.md").write_text(report(table, state, peak))


if __name__ == "__main__":
    main()
