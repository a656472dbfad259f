"""The folder of a run: where it lies, what is in it, and how it is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jsonargparse import Namespace

from cgfedrec.errors import InputError, RunError, check
from cgfedrec.files import LOCK, locked, no_folder, remove_leftovers
from cgfedrec.run.checkpoint import LAST

CLIENTS = "clients"
"""The folder of clients' state, beside the checkpoints that refer to it."""
CONFIG, METRICS, RANKS = "config.yaml", "metrics.csv", "ranks.parquet"
"""The settings, the history, and where each user's held-out items stand; the summary holds their checksums."""
STOPPING = 60.0
"""Seconds that a run over a network may take to end once it has been stopped."""


@contextmanager
def run_folder(settings: Namespace) -> Iterator[Path]:
    """The folder of a run, held against any other run; as it was before, if nothing comes of this one.

    Raises:
        InputError: if it holds a run that is not to be continued, or one is at work in it.
    """
    directory = _directory(settings)
    existed = directory.exists()
    before = {path.name for path in directory.glob("*")}
    try:
        with locked(directory, f"run_dir: a run is at work in {directory}; wait for it, or choose another"):
            _check_free(directory, settings)
            remove_leftovers(directory)
            remove_leftovers(directory / "checkpoints")
            yield directory
    except BaseException as error:
        if not isinstance(error, RunError | KeyboardInterrupt):
            _remove_begun(directory, before)
        if not existed or settings.run_dir is None:
            _remove_empty(directory)
        raise


@contextmanager
def server_folder(directory: Path) -> Iterator[None]:
    """The folder of a run over a network, on its server, held against any other; none if nothing comes of this run.

    A run that has been stopped still writes the round that it is about to end. So whoever goes on with it waits for
    its end.

    Raises:
        InputError: if it has not ended after `STOPPING`.
    """
    existed, busy = directory.exists(), f"resume: a run is at work in {directory.absolute()}; stop it, or wait for it"
    try:
        with locked(directory, busy, STOPPING):
            remove_leftovers(directory)
            remove_leftovers(directory / "checkpoints")
            yield
    finally:
        if not existed:
            _remove_empty(directory)


def _remove_begun(directory: Path, before: Collection[str]) -> None:
    """Remove what a run wrote that did not come to the end of a round, and that was not there ``before``."""
    if not (directory / "checkpoints" / LAST).exists() and not (directory / METRICS).exists():
        for name in {"config.yaml", "wandb", "checkpoints"} - set(before):
            path = directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _remove_empty(directory: Path) -> None:
    """Remove the folder of a run that wrote nothing, with the empty folders above it."""
    if {path.name for path in directory.glob("*")} <= {LOCK}:
        (directory / LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            os.removedirs(directory)


def _directory(settings: Namespace) -> Path:
    """Where a run goes: where it is told to, or beside the checkpoint that it continues, or in the next free number,
    whose folder is made at once.
    """
    if settings.run_dir:
        directory = Path(settings.run_dir)
        check(no_folder("run_dir", directory))
        return directory
    if settings.ckpt_path:
        own = _folder_of(settings.ckpt_path)
        if own is None:
            raise InputError(
                f"run_dir: {settings.ckpt_path} is in no run's folder checkpoints; say where the run is to go"
            )
        check(no_folder("run_dir", own))
        return Path(os.path.relpath(str(own)))
    named = "quickstart"
    if settings.config:
        named = Path(settings.config[0]).stem
    root = Path("runs") / named
    number = max((int(path.name) for path in root.glob("*") if path.name.isdigit()), default=-1) + 1
    check(no_folder("run_dir", root))
    root.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            (root / str(number)).mkdir()
            return root / str(number)
        except FileExistsError:  # another run has just taken it
            number += 1


def _folder_of(checkpoint: str) -> Path | None:
    """The folder of the run that a checkpoint belongs to, by where it lies."""
    folder = Path(checkpoint).absolute().parent
    if folder.name != "checkpoints":
        return None
    return folder.parent


def _check_free(directory: Path, settings: Namespace) -> None:
    """Raise `InputError` for a folder that holds a run other than the one that is to be continued."""
    own = _folder_of(settings.ckpt_path) if settings.ckpt_path else None
    if own and directory.resolve() == own.resolve():  # one of them may be named through `..`
        return
    if any(path.exists() for path in (directory / "checkpoints" / LAST, directory / "summary.json")):
        raise InputError(f"run_dir: {directory} already holds a run; choose another, or continue it with --ckpt_path")
