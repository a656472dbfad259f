"""Data with true times, for what knows time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgfedrec.data import FederatedDataModule, Format
from cgfedrec.data.rolling import Rolling
from cgfedrec.protocol import Protocol

DAY = 86_400
NOON = 900_000_000
"""Seconds since 1970, of the cut of `at_cut`."""
LAYOUT = Format(header=False, user_column=0, item_column=1, timestamp_column=2)

Interaction = tuple[int, int, float]
"""A user, an item, and how many days before `NOON` it was."""


def drawn(users: int = 40, items: int = 30, each: int = 12, seed: int = 0) -> list[Interaction]:
    """Random interactions of all users, most of them before `NOON`."""
    random = np.random.default_rng(seed)
    return [
        (user, int(item), float(random.uniform(-20, 60)))
        for user in range(users)
        for item in random.choice(items, each, replace=False)
    ]


def timed(path: Path, interactions: Sequence[Interaction], **arguments: Any) -> FederatedDataModule:
    """Data of these interactions; ``arguments`` are those of `FederatedDataModule`."""
    arguments.setdefault("format", LAYOUT)
    rows = (f"u{user},i{item},{NOON - round(days * DAY)}\n" for user, item, days in interactions)
    path.write_text("".join(rows))
    data = FederatedDataModule(str(path), negatives=2, **arguments)
    data.attach(Protocol(), 0)
    data.setup()
    return data


def at_cut(path: Path, interactions: Sequence[Interaction], chooses: bool = False) -> FederatedDataModule:
    """The same at a cut at `NOON`, whose next items are for validation if it ``chooses``, or for test."""
    rolling = Rolling(at=[NOON, NOON + 1e6], choosing=int(chooses), cut=1)
    return timed(path, interactions, split="rolling", rolling=rolling, min_interactions=1)
