"""What a federation needs of the machine, estimated before it starts, and what is chosen to fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from cgfedrec.errors import check
from cgfedrec.simulation.demand import Demand
from cgfedrec.simulation.machine import available_memory, free_disk, resident
from cgfedrec.units import nbytes

Place = Literal["auto", "memory", "disk"]
CACHE = 32 * 2**20
"""Bytes of a cohort's tables. That is about a last-level cache; larger cohorts gain nothing on a CPU."""
LAID_OUT = 8 * 2**20
"""Bytes of tables that are laid out at a time to score with: they are read while they lie in the cache."""
SMALLEST, LARGEST = 16, 256
"""How many clients a cohort has on a CPU if nobody says. A GPU takes as many as its memory holds."""
COHORTS = 4
"""Cohorts that each worker has to train in a round, at least, so that all workers end at about the same time."""
MODULES = 130 * 2**20
"""Bytes of the code that a process loads after its data, numba among it. Measured, with three methods."""
GROWTH = 9 / 8
"""How many times as long as their content a store's files may be: they grow by an eighth at a time."""
MOST_WHOLE = 2**30
"""Bytes of clients' state, up to which it is kept whole and trained in place; beyond, only what differs is kept."""
CHECKPOINTS = 3
"""There are two, and a third while one of them is being replaced."""
INTERACTION = 500
"""Bytes that drawing samples takes for each interaction, beside the data themselves. Measured."""
gib = partial(nbytes, binary=True)
"""Memory and disks are told in powers of two, as the operating system tells them."""


@dataclass(frozen=True)
class Capacity:
    """How large a federation's state is, where it goes, and how many clients train together.

    Args:
        store: ``memory``, ``whole`` (in memory, and trained in place) or ``disk``, or ``checkpoint`` where nothing is
            trained.
        state: Bytes of all clients that are expected to take part, at most.
        disk: Bytes that the run may lay on disk, checkpoints included.
        memory: Bytes that it needs in memory at most, with those of the process and its data. A run that goes on from a
            checkpoint may map that much of it besides, and gives it back when memory is short.
        cohort_size: How many clients train together.
        scored: How many score together where tables of which they train some rows are laid out for it.
    """

    store: Literal["memory", "whole", "disk", "checkpoint"]
    state: int
    disk: int
    memory: int
    cohort_size: int
    scored: int

    @property
    def place(self) -> str:
        """Where the state goes, in words."""
        return {"memory": "in memory", "whole": "in memory", "disk": "in files", "checkpoint": "where it lies"}[
            self.store
        ]

    def __str__(self) -> str:
        return (
            f"clients' state: at most {gib(self.state)} {self.place}; about {gib(self.memory)} of memory and up to "
            f"{gib(self.disk)} of disk are needed; cohorts of {self.cohort_size}"
        )


def cohort_size(demand: Demand, device: torch.device) -> int:
    """How many clients train together if nobody says: what fits the cache of a CPU or the memory of a GPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Half of it stays free: what kernels take beside tensors is not estimated.
        return max(1, min(demand.participants, free // (2 * (demand.copies + 1) * demand.client)))
    fitting = CACHE // max(demand.client, demand.sent)
    even = -(-demand.participants // (COHORTS * demand.workers * demand.processes))
    return min(max(SMALLEST, min(fitting, LARGEST)), even)


def plan(
    demand: Demand,
    store: Place,
    size: int | Literal["auto"],
    device: torch.device,
    folder: Path,
    to_train: bool = True,
) -> Capacity:
    """Choose where the clients' state goes and how many train together.

    Args:
        demand: What is known of the federation.
        store: What the user asked for.
        size: How many clients train together, as the user asked for.
        device: On which they train.
        folder: Where files of state go.
        to_train: If not, a state is read where it lies, and nothing is laid anywhere.

    Raises:
        InputError: if the federation cannot fit, saying what it needs and what there is.
    """
    if size == "auto":
        size = cohort_size(demand, device)
    scored = size
    if demand.follows and device.type == "cuda":
        scored = min(size, cohort_size(demand.whole_tables, device))
    elif demand.follows:
        scored = max(1, min(size, LAID_OUT // demand.whole_tables.client))
    state = round(demand.clients * demand.kept) + demand.bases
    working = _working(demand, size, scored)
    # Each process has code, data and a server of its own.
    base = demand.processes * (resident() + MODULES + demand.server) + working
    if demand.sees_single_uploads:
        # Every upload of the round, and as much again for what the server makes of them.
        base += 2 * demand.participants * demand.sent * demand.processes
    if not to_train:
        return Capacity("checkpoint", state, 0, base, size, scored)
    available = available_memory()
    if demand.processes > 1:
        # The first one gathers all rows for a checkpoint.
        base += state
        if store == "disk":
            check("loop.store: clients' state in files is for one process; choose memory, or fabric.devices 1")
        store = "memory"
    if store == "auto":
        # Twice the state, so that memory is chosen only where it leaves room for others.
        store = "memory" if 2 * state + working <= available else "disk"
    kind: Literal["memory", "whole", "disk"] = store
    if store == "memory":
        memory, disk = base + state, CHECKPOINTS * state
        # Rows that were trained are there once more, while the next ones are.
        whole = memory + demand.laid_out + (state if demand.follows else 0)
        if demand.in_place and demand.whole <= MOST_WHOLE and whole <= available / 2:
            kind, memory = "whole", whole
    else:
        # A file holds each client's latest record, and those replaced since that a checkpoint still needs.
        spans = (demand.kept_rounds, demand.checkpoint_every)
        replaced = sum(min(demand.clients, demand.participants * rounds) for rounds in spans)
        memory, disk = base, round(GROWTH * (state + replaced * demand.kept))
    disk += CHECKPOINTS * demand.saved
    check(*_lacks(demand, store, memory, available, disk, folder))
    return Capacity(kind, state, disk, memory, size, scored)


def _working(demand: Demand, size: int, scored: int) -> int:
    """Bytes that work takes at a time, beside the state of the clients who wait: cohorts of ``size`` clients train, and
    of ``scored`` clients score.
    """
    client = demand.copies * demand.client
    if demand.dtype != "float32":
        client += 2 * demand.kept  # the rows are converted, when they are read and when they are written
    client += 2 * max(0, demand.sent - demand.client)  # what is sent beyond the parameters as they are
    ranked = 6 * 4 * demand.items  # scores, and what ranks them; in training, which items are touched
    drawn = INTERACTION * demand.interactions if demand.draws else 0
    most = max(size * (client + ranked), scored * (2 * demand.whole_tables.client + ranked))
    return demand.processes * (demand.workers * most + drawn)


def _lacks(demand: Demand, store: str, memory: int, available: int, disk: int, folder: Path) -> Iterator[str]:
    """What the machine lacks, and what would need less."""
    smaller = "fewer items (data.min_users)"  # of the server's numbers, where clients keep none of theirs
    if any(value.is_floating_point() for value in demand.example.values()):
        smaller = "fewer participants, method.dim smaller"
        if demand.dtype == "float32":
            smaller += ", loop.state_dtype bfloat16"
    # What the process has already is in `memory`, and no longer in `available`.
    if memory - resident() > available:
        first = "disk" if store == "memory" else "loop.cohort_size smaller"
        yield (
            f"loop.store: {store} needs about {gib(memory)} of memory, and {gib(available)} are available: {first}, "
            f"{smaller} would need less"
        )
    free = free_disk(folder)
    if disk > free:
        where = folder if store == "disk" else folder.parent  # where checkpoints lie, which are all that is written
        left = gib(free) if free >= 2**20 else "less than 1 MiB"
        yield (
            f"loop.store: {store} may lay {gib(disk)} on disk in {where}, and {left} are free: {smaller} would need "
            "less, or choose another run_dir"
        )
