"""Run what a comparison still lacks: each run in a process of its own, some side by side."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import TaskID

from cgfedrec.experiments.compare.job import Job
from cgfedrec.files import locked, remove_leftovers, write_atomically
from cgfedrec.run.console import progress_bars
from cgfedrec.run.folder import CONFIG
from cgfedrec.run.signals import Signals
from cgfedrec.units import duration

LOOK_EVERY = 0.1
"""Seconds between two looks at the processes."""
KEPT = ".keep_checkpoints"
"""In the folder of a run whose checkpoints were asked for, so that a later comparison does not drop them."""
OUTPUT = "output.log"
"""In a run's folder: what its process printed."""


@dataclass
class Ended:
    """How the runs ended.

    Attributes:
        skipped: How many runs were finished already.
        resumed: How many went on where they had been stopped.
        failed: The names of the runs that failed, and why each did.
        signal: The number of the signal that stopped the comparison, if one did.
    """

    skipped: int = 0
    resumed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    signal: int | None = None


@dataclass
class _Running:
    """A run at work: its process, where that prints to, its progress bar, and when it began (seconds, monotonic)."""

    job: Job
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    task: TaskID
    started: float


def run_all(jobs: Sequence[Job], folder: Path, processes: int, keep_checkpoints: bool, console: Console) -> Ended:
    """Run, resume or skip every job, and go on past those that fail.

    SIGINT and SIGTERM are handed to the runs, which end their round, save and stop; a second one kills them.

    Args:
        jobs: In the order in which they are to start.
        folder: Of the comparison; locked against a second one.
        processes: How many run side by side; each gets its share of the cores.
        keep_checkpoints: Whether those of finished runs stay.
        console: Where progress is shown.

    Raises:
        InputError: if another comparison, or a run that it left behind, still works in the folder.
    """
    busy = f"--output: a comparison, or a run that one left behind, is at work in {folder}"
    with (
        locked(folder, busy) as lock,
        Signals(lambda came: "the runs end their round and save; once more to kill them") as signals,
        progress_bars(console, "what", remaining=False) as progress,
    ):
        remove_leftovers(folder)
        ended = Ended()
        waiting = []
        for job in jobs:
            if job.state() == "finished":
                ended.skipped += 1
                _drop_checkpoints(job, keep_checkpoints)  # of a run after which the comparison was killed
                continue
            waiting.append(job)
            ended.resumed += job.state() == "started"
            for problem in filter(None, (job.damage(), job.checkpoint_damage())):
                console.print(f"{problem}; {job.name} is run again", highlight=False, soft_wrap=True)
        _say_what_is_there(ended, console)
        whole = progress.add_task("runs", total=len(jobs), completed=ended.skipped, what="")
        running: list[_Running] = []
        began, number = time.monotonic(), len(waiting)
        passed_on = 0
        while running or (waiting and not signals.came):
            while waiting and len(running) < processes and not signals.came:
                job = waiting.pop(0)
                running.append(
                    _start(job, processes, lock, keep_checkpoints, progress.add_task(job.name, total=None, what=""))
                )
            if len(signals.came) > passed_on:
                # The first one is passed on as it came, and each further one kills.
                for one in running:
                    one.process.send_signal(signal.SIGKILL if passed_on else signals.came[0])
                passed_on = len(signals.came)
            time.sleep(LOOK_EVERY)  # runs take seconds to hours: to look now and then is simpler than to be told
            for one in list(running):
                code = one.process.poll()
                if code is None:
                    progress.update(one.task, what=_last_row(one.job.directory))
                    continue
                running.remove(one)
                one.output.close()
                progress.remove_task(one.task)
                seconds = f"{time.monotonic() - one.started:.1f} s"
                # Its folder says whether it is finished, whatever the exit code is.
                if one.job.state() == "finished":
                    progress.advance(whole)
                    _drop_checkpoints(one.job, keep_checkpoints)
                    left = _left(time.monotonic() - began, number, len(waiting) + len(running))
                    console.print(f"{one.job.name}: done in {seconds}{left}", highlight=False)
                elif not signals.came:
                    progress.advance(whole)
                    why = one.job.changed() or reason(one.job.directory) or f"ended with exit code {code}"
                    ended.failed[one.job.name] = why
                    console.print(f"{one.job.name}: FAILED: {ended.failed[one.job.name]}", highlight=False)
        if signals.came:
            ended.signal = signals.came[0]
    return ended


def _say_what_is_there(ended: Ended, console: Console) -> None:
    """Say what an earlier call has left to do."""
    there = {"are done already": ended.skipped, "go on where they were": ended.resumed}
    told = ", ".join(f"{number} {what}" for what, number in there.items() if number)
    if told:
        console.print(f"of these {told}", highlight=False)


def _left(seconds: float, number: int, unfinished: int) -> str:
    """How long what is unfinished takes if it is like what has ended after so many seconds, of a number of runs."""
    if not unfinished:
        return ""
    return f"; {unfinished} left, about {duration(seconds / (number - unfinished) * unfinished)}"


def reason(directory: Path) -> str:
    """What the process of a run that failed said last."""
    try:
        lines = (directory / OUTPUT).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.removeprefix("error: ").strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ").strip() for line in lines if line.startswith("error: ")]
    return (errors or said or [""])[-1]


def _start(job: Job, processes: int, lock: int, keep_checkpoints: bool, task: TaskID) -> _Running:
    """Start a run's process: where it was stopped, else in a folder that is empty."""
    state = job.state()
    keep_checkpoints |= state != "changed" and (job.directory / KEPT).exists()
    if state in ("new", "changed"):  # what is there is damaged, or the comparison was told to replace it
        shutil.rmtree(job.directory, ignore_errors=True)
    job.directory.mkdir(parents=True, exist_ok=True)
    (job.directory / "summary.json").unlink(missing_ok=True)  # damaged, or the job would be finished
    if keep_checkpoints:
        (job.directory / KEPT).touch()
    config = job.directory / CONFIG  # which the run writes again, word for word
    write_atomically(config, job.config)
    given = ["fit", "--config", str(config)]
    if job.checkpoint.exists():
        given += ["--ckpt_path", str(job.checkpoint)]
    else:  # where a rolling evaluation goes on
        given += ["--run_dir", str(job.directory)]
    threads = max(1, _cores() // processes)
    # A run takes its settings from its config alone, and not from the environment of whoever compares.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CGFEDREC_FIT")}
    environment |= {"OMP_NUM_THREADS": str(threads)}
    output = (job.directory / OUTPUT).open("wb")
    process = launch(given, output, environment, lock)
    return _Running(job, process, output, task, time.monotonic())


def launch(arguments: list[str], output: IO[bytes], environment: dict[str, str], lock: int) -> subprocess.Popen[bytes]:
    """Start a command line of ours that holds the comparison's lock as long as it works.

    Args:
        arguments: Of ``cgfedrec``.
        output: Where all that it prints goes.
        environment: All of its environment.
        lock: An open file: a run that outlives the comparison still keeps a second comparison out of the folder.
    """
    return subprocess.Popen(  # in a session of its own, so that Ctrl-C reaches it through us, and once
        [sys.executable, "-m", "cgfedrec.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=(lock,),
        start_new_session=True,
    )


def _drop_checkpoints(job: Job, keep: bool) -> None:
    """Remove a run's checkpoints, unless this comparison, or an earlier one, was told to keep them."""
    if not (keep or (job.directory / KEPT).exists()):
        shutil.rmtree(job.checkpoint.parent, ignore_errors=True)


def _cores() -> int:
    """The cores that this process may use; where the system cannot say that, all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _last_row(directory: Path) -> str:
    """How far a run is, from the last line of its history; nothing before it has one."""
    try:
        lines = (directory / "metrics.csv").read_text().splitlines()
    except OSError:
        return ""
    if len(lines) < 2:
        return ""
    row = dict(zip(lines[0].split(","), lines[-1].split(","), strict=False))
    if "round" not in row:
        return ""
    metric = ""
    with suppress(KeyError, ValueError):  # the last line may be half written
        metric = f"  val/ndcg@10 {float(row['val/ndcg@10']):.4f}"
    return f"round {row['round']}{metric}"
