"""What a person reads on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from rich.table import Column, Table
from rich.text import Text

from cgfedrec.data.synthetic import Track
from cgfedrec.errors import printable
from cgfedrec.protocol import Protocol
from cgfedrec.units import nbytes

T = TypeVar("T")
METRICS = {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR"}
TITLES = {"val/": "validation", "test/": "test", "popularity/test/": "test, popularity"}
"""Of metrics, by how their names begin."""
NEWCOMERS = "newcomers/"
"""Before these names, of people who were not in training."""
USERS_SHOWN = 10
LEFT_BY_A_RUN = ("report.html", "metrics.csv", "ranks.parquet", "summary.json", "config.yaml", "checkpoints")
"""As far as they are there: a split that holds nothing out has no ranks."""
LONG = 3.0
"""Seconds of work after which it is said, where there is no terminal for a bar, how long it will take."""


def console(stderr: bool = False) -> Console:
    """Where a command shows what it does: ids, titles and paths as they are, whatever brackets they hold, but with
    nothing in them that a terminal would obey.
    """
    return _Escaping(markup=False, emoji=False, stderr=stderr)


class _Escaping(Console):
    """Every text that is printed, in a table or by itself, passes here."""

    def render_str(self, text: str, **options: Any) -> Text:  # rich has half a dozen, and they are its own
        return super().render_str(printable(text), **options)


def quiet_console() -> Console:
    """One that shows nothing."""
    return Console(quiet=True)


def tracker(console: Console) -> Track:
    """What tells of long work: a bar on a terminal, elsewhere one line, once it is sure to take long."""

    def told(parts: Sequence[T], what: str) -> Iterator[T]:
        started, said = time.perf_counter(), False
        for number, part in enumerate(parts):
            yield part
            seconds = time.perf_counter() - started
            if seconds > LONG and not said and number + 1 < len(parts):
                said = True
                whole = seconds / (number + 1) * len(parts)
                console.print(f"{what}: about {whole:,.0f} s", highlight=False, soft_wrap=True)

    def shown(parts: Sequence[T], what: str) -> Iterable[T]:
        if not console.is_terminal:
            return told(parts, what)
        return track(parts, escape(printable(what)), console=console, transient=True)

    return shown


def metric_name(name: str) -> str:
    """A metric as a reader knows it: ``val/ndcg@10`` is validation NDCG@10."""
    stage, _, metric = name.rpartition("/")
    short, _, k = metric.partition("@")
    known = f"{METRICS.get(short, short)}@{k}"
    if stage == "val":
        return f"validation {known}"
    return known


def show_metrics(console: Console, metrics: Mapping[str, float], protocol: Protocol) -> None:
    """Test metrics beside those of popularity, and validation metrics where there are any."""
    columns = TITLES | {f"{NEWCOMERS}{name}": f"newcomers, {title}" for name, title in TITLES.items()}
    present = {prefix: title for prefix, title in columns.items() if any(name.startswith(prefix) for name in metrics)}
    table = Table(
        "", *present.values(), title=f"{protocol.name} protocol, {protocol.ranking} candidates", title_justify="left"
    )
    for short, long in METRICS.items():
        for k in protocol.cutoffs:
            cells = (metrics.get(f"{prefix}{short}@{k}") for prefix in present)
            table.add_row(f"{long}@{k}", *("" if cell is None else f"{cell:.4f}" for cell in cells))
    if present:
        console.print(table)
    if protocol.leaks:
        console.print(
            "The reference protocol leaks: training negatives avoid the held-out items. Compare with "
            "cgfedrec.methods.Local under the same protocol, and with protocol: strict."
        )


OF_LATE = "what is to be beaten is that of late: --method Popularity --method.half_life chosen"
"""Said where methods are asked for what people do next, which popularity without time hardly tells."""


def show_standing(console: Console, metrics: Mapping[str, Any], monitor: str) -> None:
    """How far the test is above popularity, and a warning where it is not clearly so; nothing where neither was found.

    Args:
        console: Where to.
        metrics: Of `cgfedrec.run.summary.tested`.
        monitor: The validation metric whose test value they compare.
    """
    metric = monitor.replace("val/", "test/")
    difference = metrics.get(f"over_popularity/{metric}")
    if difference is None:
        return
    users, who = metrics["over_popularity/users"], "cases" if "cuts" in metrics else "users"
    low, high = (metrics.get(f"over_popularity/{metric}/{end}") for end in ("low", "high"))
    told = (
        f"{metric_name(metric)} {metrics[metric]:.4f} against popularity's {metrics[f'popularity/{metric}']:.4f}: "
        f"{difference:+.4f}"
    )
    if low is None or high is None:
        told += " (of one user, which is too few for an interval)"
        why = "one user cannot show it"
    else:
        told += f" (95% interval {low:+.4f} to {high:+.4f}, paired over {users:,} {who})"
        why = "the difference may be chance"
        if low == high == 0:
            why = "all users' held-out items stand where popularity has them"
        elif high < 0:
            why = "it is worse; these settings do not serve these data (yet)"
    console.print(told, highlight=False, soft_wrap=True)
    if "cuts" in metrics and low is not None and low > 0:
        console.print(f"this popularity forgets nothing; {OF_LATE}", highlight=False, soft_wrap=True)
    if low is None or low <= 0:
        console.print(
            f"warning: not clearly better than showing everybody what is popular: {why}",
            highlight=False,
            soft_wrap=True,
        )


def show_unfinished(console: Console, phase: str, rounds: int, going_on: str) -> None:
    """A warning where rounds were over before a method that counts in phases had come to its end.

    Args:
        console: Where to.
        phase: That in which it stands.
        rounds: How many there were.
        going_on: The command that goes on with the run.
    """
    console.print(
        f"warning: {rounds} rounds were too few: the phase {phase!r} has not ended, and clients rank by what came "
        "down before it: at first nothing, then popularity. More participants in a round need fewer rounds; to go "
        f"on: {going_on} --loop.rounds {2 * rounds}",
        highlight=False,
        soft_wrap=True,
    )


def show_result(
    console: Console, summary: Mapping[str, Any], protocol: Protocol, monitor: str, directory: Path
) -> None:
    """The end of a run: metrics, communication, and where everything is.

    Args:
        console: Where to.
        summary: Of the run, as in its ``summary.json``.
        protocol: By which it was measured.
        monitor: The validation metric that chose the best round; its test value is compared with popularity's.
        directory: The run's folder.
    """
    show_metrics(console, summary, protocol)
    show_standing(console, summary, monitor)
    if "cuts" in summary:
        reported = summary["cuts"] - summary["choosing"]
        told = f"{summary['cases']:,} cases at {reported} cuts"
        if summary["choosing"]:
            told += f"; the {summary['choosing']} before them are for choosing settings alone"
        console.print(told, highlight=False, soft_wrap=True)
    if "bytes/up" in summary:  # a reference has no rounds, sends nothing and leaves no checkpoint
        told = f"{nbytes(summary['bytes/up'])} up, {nbytes(summary['bytes/down'])} down"
        if "cuts" in summary:
            told += ", at one cut in the mean"
        else:
            told = f"best round {summary['best_round']} of {summary['rounds']}; {told}"
        console.print(told, highlight=False)
        show_scoring(console, summary["bytes/scoring"])
    left = [name for name in LEFT_BY_A_RUN if (directory / name).exists()]
    if any(directory.glob("*.svg")):
        left.insert(1, "its pictures (*.svg)")
    console.print(
        f"{summary['seconds']:.1f} s; {', '.join(left)} are in {directory}",
        highlight=False,
        soft_wrap=True,
    )


def show_scoring(console: Console, downloaded: int) -> None:
    """What clients would have to download to score with, if anything, in bytes; none of it counts as training."""
    if downloaded:
        console.print(f"to score with, clients would download {nbytes(downloaded)} more", highlight=False)


def show_recommendations(console: Console, table: pl.DataFrame, by: str = "model") -> None:
    """A table of recommendations; of many users, the first.

    Args:
        console: Where to.
        table: What to show.
        by: What a user lacks who is shown what is popular.
    """
    users = table["user"].unique(maintain_order=True)
    shown = table.filter(pl.col("user").is_in(users.head(USERS_SHOWN).implode()))
    printed = Table(
        *(Column(name, overflow="fold") for name in shown.columns)
    )  # ids are whole, on more lines if need be
    for row in shown.iter_rows(named=True):
        printed.add_row(*map(_cell, row.values()))
    if not console.is_terminal:  # nothing limits a line there
        unlimited = console.options.update(max_width=sys.maxsize)
        console.width = max(console.width, Measurement.get(console, unlimited, printed).maximum)
    console.print(printed)
    if len(users) > USERS_SHOWN:
        console.print(f"{len(users) - USERS_SHOWN:,} more users: --output FILE.csv writes all, --user ID chooses")
    if (shown["source"] == "popularity").any():
        console.print(f"source popularity: this user has no {by}, and is shown what is popular among the others")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return "; ".join(map(_cell, value))
    return str(value).replace("\n", "\\n").replace("\t", "\\t")  # an id or a title has one line


def progress_bars(console: Console, field: str, remaining: bool = True) -> Progress:
    """Bars for long work, on a terminal alone: done of all, time, and a task's ``field`` behind it.

    Args:
        console: Where to.
        field: The name of a text that every task has.
        remaining: Whether the time that is left is guessed, too.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    if remaining:
        columns.append(TimeRemainingColumn())
    return Progress(
        *columns,
        TextColumn(f"{{task.fields[{field}]}}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
