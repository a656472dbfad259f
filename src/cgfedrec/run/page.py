"""The page of a run: what it found, what it cost, what was discovered, and how to go on, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cgfedrec.data import FederatedDataModule
from cgfedrec.data.arguments import origin
from cgfedrec.evaluation.beyond import GROUPS
from cgfedrec.history import Row
from cgfedrec.loop import FederatedLoop
from cgfedrec.pages.plot import Figure, Line, chart
from cgfedrec.pages.render import alone, page
from cgfedrec.run.beyond import groups_told, titled, within
from cgfedrec.run.console import METRICS, OF_LATE, TITLES, metric_name
from cgfedrec.run.structure import Shown
from cgfedrec.run.training import Training
from cgfedrec.server import CLIENTS, READINGS, SPENT
from cgfedrec.structure.quality import MEASURED
from cgfedrec.units import duration, nbytes

PAGE = "report.html"
READ = 6
"""Ways to read a structure that are listed, the best first."""


def page_of(
    summary: Mapping[str, Any],
    training: Training,
    data: FederatedDataModule,
    config: str,
    directory: Path,
    structure: Shown | None,
) -> str:
    """The page of a run that has ended.

    Args:
        summary: As in ``summary.json``.
        training: What came to its end.
        data: On which.
        config: The settings as YAML.
        directory: The run's folder.
        structure: What was discovered, if anything.
    """
    metric = training.monitor.removeprefix("val/")
    protocol, named = data.protocol, Path(origin(data.path, type(data).__name__)).name
    method = str(summary["method"]).rpartition(".")[2]
    loop = training if isinstance(training, FederatedLoop) else None
    beyond, sizes = titled(within(summary, "test/"), metric), within(summary, GROUPS)
    present = {prefix: title for prefix, title in TITLES.items() if any(name.startswith(prefix) for name in summary)}
    judged = within(summary, READINGS)
    return page(
        "run.html.j2",
        title=f"{method} on {named}",
        found=_found(summary, method, metric),
        leaks=protocol.leaks,
        columns=present,
        accuracy=[f"{short}@{k}" for short in METRICS for k in protocol.cutoffs],
        metric_name=metric_name,
        beyond=beyond,
        groups=groups_told(sizes) if sizes and beyond else "",
        summary=summary,
        charts=_figures(training),
        bytes=_bytes(summary),
        phases=_phases(training.history),
        structure=structure,
        worth=_worth(training.history),
        readings=sorted(judged.items(), key=lambda one: -one[1])[:READ],
        judged=len(judged),
        private=f"{SPENT}epsilon" in summary,
        protocol=protocol,
        took=duration(summary["seconds"]),
        config=config,
        checkpoint=directory / "checkpoints" / "best.ckpt",
        last=directory / "checkpoints" / "last.ckpt",
        directory=directory,
        federated=loop is not None,
        rolling="cuts" in summary,
    )


def _found(summary: Mapping[str, Any], method: str, metric: str) -> list[str]:
    """What the run found, in sentences."""
    name = metric_name(metric)
    if f"test/{metric}" not in summary:
        return [f"{method} was trained on everything: nothing was held out, and so nothing can be told."]
    told = f"{method} reaches {name} {summary[f'test/{metric}']:.4f} on the test"
    difference = summary.get(f"over_popularity/test/{metric}")
    budget = _budget(summary)
    if difference is None:
        return [f"{told}.", *budget]
    told += f"; showing everybody what is popular reaches {summary[f'popularity/test/{metric}']:.4f}."
    low, high = (summary.get(f"over_popularity/test/{metric}/{end}") for end in ("low", "high"))
    if low is None or high is None:
        return [told, *budget]
    who = "cases" if "cuts" in summary else "users"
    interval = f"95% interval of the difference, paired over {summary['over_popularity/users']:,} {who}: "
    interval += f"{low:+.4f} to {high:+.4f}."
    verdict = "It is clearly better."
    if high < 0:
        verdict = "It is worse."
    elif low == high == 0:
        verdict = "All users' held-out items stand where popularity has them."
    elif low <= 0:
        verdict = "The difference may be chance."
    found = [told, f"{verdict} The {interval}", *budget]
    if "cuts" in summary:
        found.append(f"This popularity forgets nothing; {OF_LATE}.")
    return found


def _budget(summary: Mapping[str, Any]) -> list[str]:
    """What of differential privacy the sums have, in a sentence; nothing where they have none."""
    if f"{SPENT}epsilon" not in summary:
        return []
    epsilon, delta = (summary[f"{SPENT}{name}"] for name in ("epsilon", "delta"))
    return [
        f"Differential privacy of a whole history, of what the sums told: epsilon {epsilon:.3g} at delta {delta:.1e}. "
        "The figures on this page look at the data themselves, and have none."
    ]


def pictures(training: Training, structure: Shown | None) -> dict[str, str]:
    """Each picture of the page of a run that has ended, alone and for a paper: SVG by the name of its file."""
    found = {f"{one.name}.svg": alone(one.svg) for one in _figures(training)}
    if structure is not None:
        found["items.svg"] = alone(structure.map)
        if structure.theta is not None:
            found["ages.svg"] = alone(structure.theta)
    return found


def _figures(training: Training) -> list[Figure]:
    """Accuracy against rounds and bytes, or cuts, of what came to its end; nothing of a single point."""
    metric = training.monitor.removeprefix("val/")
    name = metric_name(metric)
    at_cuts = f"test/{metric}"
    cuts = [row for row in training.history if at_cuts in row]
    if len(cuts) > 1:
        numbers = [float(row["round"]) for row in cuts]
        lines = [
            Line(told, style, numbers, [float(row[key]) for row in cuts])
            for told, style, key in (("this run", 0, at_cuts), ("popularity", -1, f"popularity/{at_cuts}"))
        ]
        drawn = chart(lines, "cut in time", f"test {name}", f"test {name} at each cut in time")
        return [Figure("cuts", Markup(drawn), f"Test {name} at each cut that asked anybody.")]
    rows = [row for row in training.history if training.monitor in row]
    if len(rows) < 2:
        return []
    values = [float(row[training.monitor]) for row in rows]
    best = max(range(len(values)), key=values.__getitem__)
    y = f"validation {name}"
    line = Line("this run", 0, [float(row["round"]) for row in rows], values, mark=best)
    caption = f"{y[0].upper()}{y[1:]} after each evaluated round; the mark is the best, which was tested."
    found = [Figure("rounds", Markup(chart([line], "round", y, f"{y} against rounds")), caption)]
    sent = [float(row.get("bytes/total", 0)) for row in rows]
    if min(sent) > 0:
        line = Line("this run", 0, sent, values, mark=best)
        x = "bytes up and down, all clients together"
        drawn = chart([line], x, y, f"{y} against bytes", x_format=lambda value: nbytes(value, 0))
        found.append(Figure("bytes", Markup(drawn), "The same against the packed length of all messages."))
    return found


def _worth(history: Sequence[Row]) -> list[tuple[int, Row]]:
    """What each structure that was found is worth: its round, and the measures by their names."""
    told = [(int(row["round"]), within(row, MEASURED)) for row in history]
    return [(round, measures) for round, measures in told if measures]


def _bytes(summary: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    """What travelled by direction: its name, bytes of all clients, and of one in the mean."""
    named = {"up": "bytes/up", "down": "bytes/down", "down, to score with": "bytes/scoring"}
    if "bytes/up" not in summary:
        return []
    return [(what, int(summary[key]), summary[key] / summary["users"]) for what, key in named.items() if key in summary]


def _phases(history: Sequence[Row]) -> list[tuple[str, int, int, int, float]]:
    """Of each sum that was counted: its name, clients, bytes up and down, and seconds; empty where nothing counts."""
    found: list[tuple[str, int, int, int, float]] = []
    up = down = 0
    seconds = 0.0
    for row in history:
        seconds += float(row["time/round"]) if "time/round" in row else 0.0
        for name in (name for name in row if name.startswith(CLIENTS)):
            sent = int(row["bytes/up"]), int(row["bytes/down"])
            found.append((name.removeprefix(CLIENTS), int(row[name]), sent[0] - up, sent[1] - down, seconds))
            (up, down), seconds = sent, 0.0
    return found
