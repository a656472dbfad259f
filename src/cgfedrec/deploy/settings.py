"""The settings of a federation over a network, as an app's ``[tool.flwr.app.config]`` holds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from cgfedrec.errors import InputError, check, no_count, not_positive
from cgfedrec.settings.parser import instantiate, parse
from cgfedrec.settings.sources import Said
from cgfedrec.settings.trust import settings_of

SPLITS = ("leave_one_out", "random", "none")
"""What a node can hold out by its own data alone."""


@dataclass(frozen=True)
class Terms:
    """What server and nodes agree on. Every field is a key of ``[tool.flwr.app.config]``, with dashes for underscores.

    Args:
        settings: Of the run, as YAML.
        rounds: How many there are at most, in place of ``loop.rounds``.
        nodes: How many the server waits for before the first round.
        clients: How many there are on all nodes together. Their numbers are below this.
        items: How many the catalogue has.
        catalogue: Its checksum, which every node compares with its own.
        start: Seconds that the server waits for its nodes; then it begins with those that are there.
        wait: Seconds that a round lasts at most, or each exchange of a round whose sum is masked. Whoever has not
            answered by then is not part of it.
        absent: Seconds that a node may be gone before a round goes on without it.
        folder: Where the server writes, below the directory that the SuperLink was started in.
        resume: The run that this one goes on with, as its folder is called; empty for one that begins.
    """

    settings: str
    rounds: int
    nodes: int
    clients: int
    items: int
    catalogue: str
    start: float = 600.0
    wait: float = 3600.0
    absent: float = 300.0
    folder: str = "runs/flower"
    resume: str = ""

    def __post_init__(self) -> None:
        check(
            *(no_count(name, getattr(self, name)) for name in ("rounds", "nodes", "clients", "items")),
            *(not_positive(name, getattr(self, name)) for name in ("start", "wait", "absent")),
            no_run(self.resume),
        )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Terms:
        """From the configuration of a run. Raises `InputError` for anything else."""
        given = {name.replace("-", "_"): value for name, value in config.items()}
        try:
            return cls(**given)
        except TypeError as error:
            raise InputError(f"pyproject.toml, [tool.flwr.app.config]: {error}") from error

    def run(self, id: object) -> str:
        """Which run it is, where Flower has started one of this id: that one, or the one that it goes on with."""
        return self.resume or str(id)

    def parsed(self, trusted: Collection[str] = ()) -> Namespace:
        """The settings of the run, read as data.

        Args:
            trusted: Modules or classes beside cgfedrec's and torch's that they may name.

        Raises:
            InputError: for settings that cannot be used, or that no node can follow by its own data alone.
        """
        try:
            base = settings_of(self.settings, (), trusted)
        except InputError as error:
            told = (problem.replace("ckpt_path: its", "settings:") for problem in error.problems)
            raise InputError(told) from error
        return parse(Said(), base)

    def components(self, trusted: Collection[str] = ()) -> Namespace:
        """What the settings name, built. Raises as `parsed` does."""
        settings = self.parsed(trusted)
        parts = instantiate(settings)
        check(no_split(parts.data.split))
        return parts


def no_run(name: str) -> str | None:
    """The problem with the name of a run to go on with, if it is none: files are called by it."""
    if not name or (name.isascii() and name.isalnum()):
        return None
    return f"resume: {name!r} is no run; give the number by which its folder is called, of letters and digits alone"


def no_split(split: str) -> str | None:
    """The problem with a split that nodes cannot make by their own data alone, if it is one."""
    if split in SPLITS:
        return None
    return f"data.split: {split} cuts by everyone's times, which no node has; choose {', '.join(SPLITS)}"
