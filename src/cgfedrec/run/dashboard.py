"""A workspace of Weights & Biases for the runs of a project: ``cgfedrec dashboard``.

The library offers no public way to a workspace's JSON, so one version of it is pinned (the extra ``dashboard``).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cgfedrec.errors import InputError, RunError, check
from cgfedrec.evaluation.metrics import is_metric
from cgfedrec.files import no_folder, write_atomically
from cgfedrec.run.console import metric_name
from cgfedrec.run.loggers import has_key

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

SYSTEM = ("system.cpu", "system.memory_percent", "system.proc.memory.rssMB", "system.disk.out")
"""What W&B measures by itself."""
SHARES = {
    "structure/explained": "of what items count by themselves, reached by the factor",
    "structure/confirmed": "of candidate pairs, those that any client has",
    "structure/same": "of neighbours, those of the structure before",
    "clusters/changed": "of items, those in another cluster than before",
}
"""What a structure is worth, round by round, in shares."""


def dashboard(project: str, entity: str | None, metric: str, output: Path, console: Console) -> None:
    """Write a workspace as JSON, and save it in W&B where a key is configured.

    Args:
        project: Whose runs it shows, as ``logger.project``.
        entity: The user or team of the project; by default that of the key.
        metric: That is plotted, such as ``ndcg@10``.
        output: Where the JSON goes.
        console: Where it is said what became of it.

    Raises:
        InputError: for a metric that there is none of, or where the library is not installed.
        RunError: if W&B does not take it; the JSON is written then.
    """
    no_metric = None if is_metric(metric) else f"--metric: {metric!r} is none of hr@k, ndcg@k, mrr@k"
    no_place = f"--output: {output} is a folder" if output.is_dir() else no_folder("--output", output.parent)
    check(no_metric, no_place)
    key = has_key()
    workspace = _workspace(project, entity or "", metric)
    write_atomically(output, json.dumps(as_json(workspace), indent=1, sort_keys=True) + "\n")
    console.print(f"the workspace is in {output}", highlight=False, soft_wrap=True)
    if not key:
        console.print(
            "it is not saved in Weights & Biases, since there is no key: `wandb login`, and call it again",
            soft_wrap=True,
        )
        return
    try:
        if not entity:
            import wandb

            workspace.entity = wandb.Api().default_entity or ""
        workspace.save()  # type: ignore[no-untyped-call]
    except Exception as error:  # of a service: it may be any
        raise RunError(f"Weights & Biases does not take the workspace ({type(error).__name__}: {error})") from error
    console.print(f"and saved: {workspace.url}", highlight=False, soft_wrap=True)


def _workspace(project: str, entity: str, metric: str) -> Workspace:
    """Sections, each with its panels."""
    reports, workspaces = _libraries()
    line, bars, scatter = reports.LinePlot, reports.BarPlot, reports.ScatterPlot
    name, val, test = metric_name(metric), f"val/{metric}", f"test/{metric}"
    of_run = reports.SummaryMetric
    sections = {
        "Accuracy against rounds": [
            line(title=f"validation {name}", x="round", y=[val], title_x="round", title_y=name),
            line(title="training loss", x="round", y=["train/loss"], title_x="round", title_y="loss"),
            bars(title=f"test {name}", metrics=[test]),
        ],
        "Accuracy against bytes": [
            line(title=f"validation {name}", x="bytes/total", y=[val], title_x="bytes, all clients", title_y=name),
            scatter(title=f"test {name} of each run", x=of_run("bytes/total"), y=of_run(test), log_x=True),
            line(title="bytes up and down", x="round", y=["bytes/up", "bytes/down"], title_x="round", title_y="bytes"),
        ],
        "Structure": [
            reports.MediaBrowser(title="items, by what the server discovered", media_keys=["structure/map"]),
            reports.MediaBrowser(title="theta: what an own item counts, by its age", media_keys=["structure/theta"]),
            *(line(title=title, x="round", y=[one], title_x="round", title_y="share") for one, title in SHARES.items()),
            bars(title="neighbours of an item", metrics=["structure/neighbours"]),
            bars(title="theta as chosen", metrics=["theta/rho", "theta/beta"]),
            reports.WeavePanelSummaryTable(table_name="structure/clusters"),
            reports.WeavePanelSummaryTable(table_name="structure/neighbours"),
            reports.WeavePanelSummaryTable(table_name="examples"),
            reports.MediaBrowser(title="page of a run", media_keys=["page"]),
        ],
        "Privacy": [
            line(title="epsilon spent", x="round", y=["privacy/epsilon"], title_x="round", title_y="epsilon"),
            scatter(title=f"test {name} against epsilon", x=of_run("privacy/epsilon"), y=of_run(test)),
        ],
        "System": [
            line(title="seconds of a round", x="round", y=["time/round"], title_x="round", title_y="s"),
            *(line(title=one, y=[one]) for one in SYSTEM),
        ],
    }
    made: Workspace = workspaces.Workspace(
        name="cgfedrec",
        project=project,
        entity=entity,
        sections=[
            workspaces.Section(name=title, panels=panels, is_open=place < 3)
            for place, (title, panels) in enumerate(sections.items())
        ],
    )
    return made


def as_json(workspace: Workspace) -> dict[str, Any]:
    """A workspace as W&B takes it. Panels have their place as id, where the library draws one by chance."""
    whole: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    sections: Sequence[Any] = whole["spec"]["section"]["panelBankConfig"]["sections"]
    for number, section in enumerate(sections):
        for place, panel in enumerate(section["panels"]):
            panel["__id__"] = f"panel{number}{place}"
    return whole


def _libraries() -> tuple[ModuleType, Any]:
    """Reports, for panels, and workspaces. Raises `InputError` where they are not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise InputError("a dashboard needs wandb-workspaces: pip install 'cgfedrec[dashboard]'") from error
    return reports, workspaces
