"""Methods side by side: planned and checked, run, measured alike, and reported."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from cgfedrec.errors import check
from cgfedrec.experiments.compare.job import Job
from cgfedrec.experiments.compare.plan import Plan, read_plan
from cgfedrec.experiments.compare.report import show, write_report
from cgfedrec.experiments.compare.results import Results, failures
from cgfedrec.experiments.compare.runner import Ended, run_all
from cgfedrec.files import no_folder
from cgfedrec.run.console import quiet_console

__all__ = ["Ended", "Plan", "Results", "compare", "read_plan"]


def compare(
    config: str | Path,
    output: str | Path | None = None,
    processes: int = 1,
    replace: bool = False,
    keep_checkpoints: bool = False,
    console: Console | None = None,
) -> tuple[Results, Ended]:
    """Run every method on every data set with every seed, as ``cgfedrec compare`` does, and report.

    What is finished is skipped, what was stopped is resumed, and a run that fails does not end the others.

    Args:
        config: A YAML file; see `cgfedrec.experiments.compare.plan.read_plan`.
        output: Where everything goes; by default ``runs/compare/<config>``.
        processes: How many runs work side by side.
        replace: Whether a run whose config, data or code have changed since is thrown away and run anew.
        keep_checkpoints: Whether finished runs keep theirs, which hold all clients' state, twice.
        console: Where progress and results are shown; by default nowhere.

    Returns:
        What was found, and how the runs ended.

    Raises:
        InputError: naming all that cannot be used; nothing has run then.
    """
    console, path = console or quiet_console(), Path(config)
    folder = Path(output) if output else Path("runs") / "compare" / path.stem
    problems = [no_folder("--output", folder)]
    if processes < 1:
        problems.insert(0, f"--processes: {processes} is not positive")
    check(*problems)
    plan = read_plan(path, folder)
    if not replace:
        check(*(_in_the_way(job) for job in plan.jobs if job.state() == "changed"))
    for text in plan.notes:
        console.print(text, highlight=False)
    console.print(
        f"{len(plan.jobs)} runs: {len(plan.kinds)} methods, {len(plan.facts)} data sets, {len(plan.seeds)} seeds, "
        f"in {folder}",
        highlight=False,
        soft_wrap=True,
    )
    ended = run_all(plan.jobs, folder, processes, keep_checkpoints, console)
    results = Results(plan, failures(plan.jobs) | ended.failed)
    if not ended.signal:
        written = results.write() + write_report(results)
        show(console, results)
        console.print(f"{', '.join(path.name for path in written)} are in {folder}", highlight=False, soft_wrap=True)
    return results, ended


def _in_the_way(job: Job) -> str:
    """What to say of a folder that holds a run with other settings or code, or on other data."""
    problem = f"{job.directory}: holds a run {job.changed()}; choose another --output, or run it anew with --replace"
    if damage := job.damage():
        problem += f". {damage}"
    return problem
