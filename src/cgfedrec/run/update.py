"""A run that goes on from another one's sums with data that have changed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import yaml

from cgfedrec.data import FederatedDataModule
from cgfedrec.data.changes import Before, Changes, forgotten
from cgfedrec.data.report import counted, many
from cgfedrec.errors import InputError, Notice, check
from cgfedrec.files import write_atomically
from cgfedrec.run.checkpoint import LAST, State, read_with_clients
from cgfedrec.run.resume import changed
from cgfedrec.settings.own import code_of, tell_of_changes
from cgfedrec.structure.updating import ANEW

HISTORIES, BEFORE = "histories.parquet", "before.parquet"
"""Beside checkpoints: what clients had in training, and what they had in the run from which this one goes on."""
PART = 0.5
"""Where more of the interactions of before than this share is gone, a table may be a part, such as the new rows."""


class Update(NamedTuple):
    """From where a run goes on."""

    state: State
    before: Before

    @classmethod
    def read(cls, checkpoint: Path) -> Update:
        """Read a checkpoint and what lies beside it. Raises `InputError` where that is no run that can be added to."""
        path = checkpoint.with_name(HISTORIES)
        state = read_with_clients(checkpoint, LAST, "update_from")
        if not path.is_file():
            raise InputError(
                f"update_from: no file {path}; what its clients had is kept by runs that have come to their end, of a "
                "method that adds up sums"
            )
        return cls(state, Before.read(path))

    def check(self, method: str, config: str) -> None:
        """Raise `InputError` where a run of this method, with this config, cannot go on from it."""
        other = None
        if self.state["method"] != method:
            other = f"update_from: was trained with {self.state['method']}, this run uses {method}"
        check(other)  # alone: another method has other settings
        check(*changed(yaml.safe_load(self.state["config"]), yaml.safe_load(config), False))
        tell_of_changes("update_from", self.state["code"], code_of(config))


def told(changes: Changes, how: str) -> str:
    """What has changed, in words, and how a server goes on from there (`cgfedrec.server.Server.updates`)."""
    counts = changes.counts
    parts = [counted(counts[name], name) for name in ("new users", "users gone", "new items") if counts[name]]
    kinds = [name for name in ("added", "taken back", "at another time") if counts[name]]
    parts += [counted(counts[name], f"interactions {name}") for name in kinds]
    text = f"changed since: {', '.join(parts) or 'nothing'}"
    if changes.days:
        text += f", {changes.days:.1f} days later"
    if how == "warm":
        return f"{text}\na warm start: training begins with the tables of then, which is not equal to starting again"
    return f"{text}; {many(counts['changed users'], 'client adds', 'clients add')} what has changed"


def is_too_much(changes: Changes) -> str | None:
    """Why columns and candidates are found anew, if so much has changed."""
    if changes.share <= ANEW:
        return None
    return (
        f"{changes.share:.0%} of the interactions have changed, more than {ANEW:.0%}: columns and candidates are found "
        "anew, by all clients"
    )


def warn_of_a_part(changes: Changes) -> None:
    """A `Notice` (a warning) where so much is gone that the table may not be all of it."""
    if changes.gone > PART:
        text = (
            f"{changes.gone:.0%} of the interactions of before are not in this table any more: is it the whole table?"
        )
        warnings.warn(f"{text} The new rows alone are not enough", Notice, stacklevel=3)


def before_beside(folder: Path) -> Before | None:
    """What clients had in the run from which the one with these checkpoints goes on, if it does."""
    path = folder / BEFORE
    if not path.is_file():
        return None
    return Before.read(path)


def forget(data: FederatedDataModule, folder: Path) -> None:
    """Keep no longer what clients have taken back, once all of them have: what they had is not asked for again."""
    if data.before and data.changes:
        keep(forgotten(data.before, data.changes, data.user_ids, data.item_ids), folder, BEFORE)


def keep(before: Before, folder: Path, name: str) -> None:
    """Write histories beside checkpoints."""
    write_atomically(folder / name, before.write)
