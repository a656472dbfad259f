"""What a comparison found: a row a run, everyone's ranks, and a table a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from cgfedrec.evaluation.beyond import GROUPS
from cgfedrec.evaluation.intervals import Interval, Values, interval, paired_interval
from cgfedrec.experiments.compare.beyond import Beyond, beyond_of
from cgfedrec.experiments.compare.curve import Curve, curve_of
from cgfedrec.experiments.compare.epsilon import DELTA, EPSILON, Budgeted, budgeted
from cgfedrec.experiments.compare.job import Job, Kind
from cgfedrec.experiments.compare.plan import Plan
from cgfedrec.experiments.compare.runner import reason
from cgfedrec.experiments.compare.statistics import holm, paired_test, pareto, per_user
from cgfedrec.files import write_atomically
from cgfedrec.server import SPENT

POPULARITY = "Popularity"
RUN = ("data", "method", "seed")
SHOWN = ("test/", "val/", "popularity/test/", GROUPS, SPENT)
"""How those numbers of a summary begin that stand in ``results.csv``."""

LEAST_SEEDS = 3
"""Of which an interval is told. Over two it is as wide as chance has it, and worth nothing."""


@dataclass
class Row:
    """A method on a data set.

    Attributes:
        method: Its name.
        kind: What it is.
        seeds: How many of its runs finished.
        metrics: Mean and interval over seeds, for each metric that is shown.
        over_control: How much more of the first metric users have than under the control: mean and interval over users.
        p: The corrected p-value of the assumption that the first metric differs from the reference's only by chance;
            ``None`` for the reference itself.
        best_round, bytes, seconds: Means over seeds.
        epsilon, delta: What is spent of a budget of differential privacy, in the mean; ``None`` without one.
        front: Whether some of its rounds are on the Pareto front of bytes and the monitored metric.
        published: What papers report.
    """

    method: str
    kind: Kind
    seeds: int
    metrics: dict[str, Interval]
    over_control: Interval | None = None
    p: float | None = None
    best_round: float | None = None
    bytes: float | None = None
    seconds: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    front: bool = False
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A data set's results.

    Attributes:
        data: Its name.
        rows: Federated methods and controls first, best first among their kind; then those that see all data.
        reference: The method against which the others are tested, if any run of it finished.
        curves: Of each method that has rounds.
        levels: Of each reference that was run: the mean over seeds of the monitored metric, which has no rounds.
        front: The Pareto front of bytes and the monitored metric: (method, place in its curve), by rising bytes.
        missing: Runs that did not come to their end, and why.
        cuts: Of each method of a rolling evaluation: the test metric at every cut.
        beyond: What its methods are like beside accurate.
        budgets: What the first metric is by what methods spend of a budget of differential privacy.
    """

    data: str
    rows: list[Row]
    reference: str | None
    curves: dict[str, Curve]
    levels: dict[str, float]
    front: list[tuple[str, int]]
    missing: dict[str, str]
    cuts: dict[str, Curve]
    beyond: Beyond
    budgets: list[Budgeted]


class Results:
    """All that the finished runs of a plan found.

    Args:
        plan: Whose folder is read.
        failed: Why runs failed, by name.
    """

    def __init__(self, plan: Plan, failed: Mapping[str, str] | None = None) -> None:
        self.plan = plan
        self.failed = dict(failed or {})
        self.finished = [job for job in plan.jobs if job.state() == "finished"]

    @cached_property
    def runs(self) -> pl.DataFrame:
        """A row a run: data, method, seed, status, best round, all metrics, bytes, seconds."""
        return pl.DataFrame([self._run(job) for job in self.plan.jobs], infer_schema_length=None)

    def _run(self, job: Job) -> dict[str, Any]:
        row: dict[str, Any] = {"data": job.data, "method": job.method, "seed": job.seed}
        row["kind"] = self.plan.kinds[job.method]
        row["protocol"] = self.plan.facts[job.data].protocol.name
        if job not in self.finished:
            status = "failed" if job.name in self.failed else "missing"
            return row | {"status": status, "error": self.failed.get(job.name, "")}
        summary = job.summary()
        row |= {"status": "finished", "error": "", "best_round": summary.get("best_round")}
        row |= {"rounds": summary.get("rounds"), "seconds": summary.get("seconds")}
        row |= {f"bytes/{way}": summary.get(f"bytes/{way}") for way in ("up", "down", "total", "scoring")}
        return row | {k: v for k, v in summary.items() if k.startswith(SHOWN)}

    @cached_property
    def ranks(self) -> pl.DataFrame:
        """A row for each held-out item of each run: data, method, seed, user, item, rank.

        Of a rolling evaluation a user stands there once for each cut: ``ann, cut 7``.
        """
        frames = [_ranks(job) for job in self.finished]
        if not frames:
            return pl.DataFrame(schema=[*RUN, "user", "item", "rank"])
        return pl.concat(frames)

    @cached_property
    def tables(self) -> list[Table]:
        """One for each data set, in the plan's order."""
        return [self._table(data) for data in self.plan.facts]

    def _table(self, data: str) -> Table:
        runs = self.runs.filter(pl.col("data") == data)
        done = runs.filter(pl.col("status") == "finished")
        published = self.plan.published.get(data, {})
        rows = [
            self._row(method, kind, mine, published.get(method, {}))
            for method, kind in self.plan.kinds.items()
            if len(mine := done.filter(pl.col("method") == method))
        ]
        first = self.plan.metrics[0]
        rows.sort(key=lambda row: (row.kind == "centralised", -row.metrics[first].mean))
        reference = self._reference(rows)
        self._test(data, rows, reference)
        if rows and POPULARITY not in self.plan.kinds:
            rows.append(self._popularity(done))
        curves = {row.method: curve for row in rows if (curve := self._curve(data, row.method))}
        costs = [(method, place) for method, curve in curves.items() for place in range(len(curve.values))]
        costs = [(method, place) for method, place in costs if self.plan.kinds[method] != "centralised"]
        front = pareto(
            [curves[method].bytes[place] for method, place in costs],
            [curves[method].values[place] for method, place in costs],
        )
        on_front = [costs[place] for place in front]
        for row in rows:
            row.front = any(method == row.method for method, _ in on_front)
        names = (f"{data}/{method}/{seed}" for method, seed in runs.select("method", "seed").iter_rows())
        finished = {job.name for job in self.finished}
        missing = {name: self.failed.get(name, "has not run") for name in names if name not in finished}
        for job in self.finished:
            if job.data == data and (phase := job.summary().get("unfinished")):
                missing[job.name] = f"its rounds were too few; the phase {phase!r} has not ended"
        cuts = {row.method: curve for row in rows if (curve := self._over_cuts(data, row.method))}
        metric = self.plan.facts[data].monitor.removeprefix("val/")
        beyond = beyond_of(done, [row.method for row in rows], POPULARITY, metric)
        levels = _levels(done, self.plan.facts[data].monitor)
        settings = {method: shown for (where, method), shown in self.plan.settings.items() if where == data}
        budgets = budgeted(done, settings, f"test/{first}")
        return Table(data, rows, reference, curves, levels, on_front, missing, cuts, beyond, budgets)

    def _row(self, method: str, kind: Kind, runs: pl.DataFrame, published: Mapping[str, float]) -> Row:
        """A method's row, from its finished runs."""
        metrics = {metric: over_seeds(runs[f"test/{metric}"].to_numpy()) for metric in self.plan.metrics}
        row = Row(method, kind, len(runs), metrics, seconds=_mean(runs, "seconds"), published=published)
        if kind != "centralised":  # which has no rounds and sends nothing
            row.best_round, row.bytes = _mean(runs, "best_round"), _mean(runs, "bytes/total")
            row.epsilon, row.delta = _mean(runs, EPSILON), _mean(runs, DELTA)
        return row

    def _popularity(self, runs: pl.DataFrame) -> Row:
        """Popularity's row. Every run measures it beside its method, so one run of each seed is enough."""
        seeds = runs.unique("seed", keep="first", maintain_order=True)
        metrics = {name: over_seeds(seeds[f"popularity/test/{name}"].to_numpy()) for name in self.plan.metrics}
        return Row(POPULARITY, "centralised", len(seeds), metrics)

    def _reference(self, rows: Sequence[Row]) -> str | None:
        """The method against which the others are tested, if there is one among these rows, best first."""
        methods = [row.method for row in rows]
        if self.plan.reference in methods:
            return self.plan.reference
        eligible = [row.method for row in rows if row.kind == "federated"] or methods
        if eligible and self.plan.reference is None:
            return eligible[0]
        return None

    def _test(self, data: str, rows: Sequence[Row], reference: str | None) -> None:
        """Fill in how each row differs from the control and from the reference, user by user.

        A user's value is the mean over the seeds that both methods finished.
        """
        values = per_user(self.ranks.filter(pl.col("data") == data), self.plan.metrics[0], ("method", "seed"))

        def pairs(first: str, second: str) -> pl.DataFrame:
            mine, theirs = (values.filter(pl.col("method") == name) for name in (first, second))
            both = mine.join(theirs, ["seed", "user"], suffix="_other")
            return both.group_by("user").agg(pl.col("value", "value_other").mean()).sort("user")

        control, tested = self.plan.control, [row for row in rows if reference and row.method != reference]
        for row in rows:
            both = pairs(row.method, control)
            if row.method != control and len(both):
                row.over_control = paired_interval(both["value"].to_numpy(), both["value_other"].to_numpy())
        p_values = []
        for row in tested:
            both = pairs(row.method, str(reference))
            p_values.append(paired_test(both["value"].to_numpy(), both["value_other"].to_numpy(), self.plan.test))
        for row, p in zip(tested, holm(p_values) if p_values else [], strict=True):
            row.p = p

    def _curve(self, data: str, method: str) -> Curve | None:
        """A method's curve over the seeds that finished; none for a method without rounds."""
        return curve_of(self._rows(data, method), "bytes/total", self.plan.facts[data].monitor)

    def _over_cuts(self, data: str, method: str) -> Curve | None:
        """What a method reaches at each cut of a rolling evaluation; none under other splits."""
        if self.plan.facts[data].split != "rolling":
            return None
        return curve_of(self._rows(data, method), "cases", f"test/{self.plan.metrics[0]}")

    def _rows(self, data: str, method: str) -> list[Path]:
        """Where the rows of a method's finished runs are."""
        finished = [job.directory / "metrics.csv" for job in self.finished if (job.data, job.method) == (data, method)]
        return [path for path in finished if path.exists()]

    def write(self) -> list[Path]:
        """Write ``results.csv``, ``results.parquet`` and ``ranks.parquet``, each in one atomic step."""
        writers: dict[str, Callable[[BinaryIO], object]] = {
            "results.csv": self.runs.write_csv,
            "results.parquet": self.runs.write_parquet,
            "ranks.parquet": self.ranks.write_parquet,
        }
        for name, write in writers.items():
            write_atomically(self.plan.directory / name, write)
        return [self.plan.directory / name for name in writers]


def _levels(runs: pl.DataFrame, metric: str) -> dict[str, float]:
    """What each reference reaches by a validation metric, which has no rounds: the mean over seeds."""
    if metric not in runs.columns:
        return {}
    means = runs.filter(kind="centralised").group_by("method", maintain_order=True).agg(pl.col(metric).mean())
    return dict(means.drop_nulls().iter_rows())


def _ranks(job: Job) -> pl.DataFrame:
    """What `Results.ranks` has of one run."""
    found = pl.read_parquet(job.directory / "ranks.parquet")
    user = pl.col("user").cast(pl.String)
    if "cut" in found.columns:
        user = pl.format("{}, cut {}", user, "cut").alias("user")
    return found.select(
        pl.lit(job.data).alias("data"),
        pl.lit(job.method).alias("method"),
        pl.lit(job.seed).alias("seed"),
        user,
        pl.col("item").cast(pl.String),
        pl.col("rank").cast(pl.Int64),
    )


def over_seeds(values: Values) -> Interval:
    """The mean over seeds `[seeds]`, and an interval where there are enough of them."""
    found = interval(values)
    return found if found.n >= LEAST_SEEDS else found._replace(half=None)


def _mean(runs: pl.DataFrame, column: str) -> float | None:
    """The mean of a column of numbers, if there is such a column with a number in it."""
    if column not in runs.columns:
        return None
    value = runs[column].mean()
    if value is None:
        return None
    return float(value)  # type: ignore[arg-type]


def failures(jobs: Sequence[Job]) -> dict[str, str]:
    """Why the unfinished runs of an earlier comparison failed, from what they printed."""
    return {job.name: why for job in jobs if job.state() != "finished" and (why := reason(job.directory))}
