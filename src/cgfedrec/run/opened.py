"""A run that holds its folder while it trains, new or going on from a checkpoint; or the data of a run alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from cgfedrec.data.changes import Before
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.run.checkpoint import State
from cgfedrec.run.console import quiet_console, tracker
from cgfedrec.run.engine import rank_of
from cgfedrec.run.folder import run_folder
from cgfedrec.run.run import Run
from cgfedrec.run.update import Update, is_too_much, warn_of_a_part
from cgfedrec.settings.parser import instantiate
from cgfedrec.structure.counting import CountingServer


@contextmanager
def open_run(
    settings: Namespace,
    state: State | None = None,
    checkpoint: Path | None = None,
    callbacks: Sequence[object] = (),
    console: Console | None = None,
    update: Update | None = None,
) -> Iterator[Run]:
    """A run, for the body to train.

    Args:
        settings: As parsed.
        state: Of the checkpoint from which it goes on, if it does.
        checkpoint: Where that lies.
        callbacks: The user's.
        console: Where progress and results are shown; by default nowhere.
        update: From where it goes on with other data. If too much has changed it starts from nothing, and says so.

    Raises:
        InputError: if it cannot be set up; nothing has been written then.
    """
    if rank_of(settings):
        # Another process of the run holds its folder, and shows how far it is.
        console = None
        held: AbstractContextManager[Path] = nullcontext(_elsewhere(settings, checkpoint))
    else:
        held = run_folder(settings)
    with held as directory:
        to_train = not (state and _is_finished(state, settings))
        run = Run(settings, directory, callbacks, console, to_train=to_train, update=update)
        if update and run.data.changes:
            if run.processes.first:
                warn_of_a_part(run.data.changes)
            why = is_too_much(run.data.changes)
            if why and run.loop.server.updates == "exactly":
                run.console.print(why, highlight=False, soft_wrap=True)
                run = Run(settings, directory, callbacks, console)
                if isinstance(run.loop.server, CountingServer):
                    run.loop.server.read_as(update.state["loop"]["server"])
        if state:
            run.restore(state, checkpoint)
        del state  # it maps the checkpoint
        yield run


def data_of(settings: Namespace, console: Console | None = None, before: Before | None = None) -> FederatedDataModule:
    """The data of a run, read and split. Raises `InputError` where they cannot serve.

    Args:
        settings: As parsed.
        console: Where progress is shown; by default nowhere.
        before: What clients had in a run that goes on with other data.
    """
    parts = instantiate(settings)
    data: FederatedDataModule = parts.data
    data.attach(parts.protocol, settings.seed_everything, tracker(console or quiet_console()), before)
    data.setup()
    return data


def _elsewhere(settings: Namespace, checkpoint: Path | None) -> Path:
    """A folder for a process that writes nothing: the one in which the clients' state lies that it may have to read."""
    if checkpoint is not None:
        return checkpoint.parent.parent
    return Path(settings.run_dir or "runs")


def _is_finished(state: State, settings: Namespace) -> bool:
    """Whether the last round is behind a checkpoint, so that all that is left is to report."""
    round = state["loop"].get("round")
    return isinstance(round, int) and round >= settings.loop.rounds
