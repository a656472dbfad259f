"""What a federation needs of the machine, estimated before it starts, and what is chosen to fit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from cgfedrec.errors import check
from cgfedrec.store import Dtype

Place = Literal["auto", "memory", "disk"]
CACHE = 32 * 2**20
"""Bytes of cohorts' tables in training at a time: about a last-level cache. Larger cohorts gain nothing on a CPU."""
SMALLEST, LARGEST = 16, 256
"""Clients of a cohort that sizes itself, on a CPU; a GPU takes as many as its memory holds."""
COHORTS = 4
"""A worker's share of a round's cohorts, at least, so that workers end together."""
COPIES = 5
"""State of a cohort in training, in units of its parameters: these, gradients, two optimiser states, temporaries."""
RESIDENT = 2**30
"""Bytes of the process itself, before any data."""
GROWTH = 9 / 8
"""By which files are longer than what is in them."""
INTERACTION = 500
"""Bytes for each interaction of the data, while they are read, split and drawn from."""


@dataclass(frozen=True)
class Capacity:
    """How large a federation's state is, where it goes, and how many clients train together.

    Args:
        store: ``memory`` or ``disk``.
        state: Bytes of all clients that are expected to take part.
        disk: Bytes that the run may lay on disk, checkpoints included.
        memory: Bytes that it may need in memory.
        cohort_size: How many clients train together.
    """

    store: Literal["memory", "disk"]
    state: int
    disk: int
    memory: int
    cohort_size: int

    def __str__(self) -> str:
        where = "in memory" if self.store == "memory" else "in memory-mapped files"
        return (
            f"clients' state: {gib(self.state)} {where}; about {gib(self.memory)} of memory and up to {gib(self.disk)} "
            f"of disk are needed; cohorts of {self.cohort_size}"
        )


@dataclass(frozen=True)
class Demand:
    """What is known of a federation before it starts.

    Args:
        users: All clients.
        participants: Of a round.
        rounds: That are left.
        resample: Whether each round draws its own participants.
        items: n.
        interactions: Of all users.
        example: Private tensors of any clients, or of none, `[clients, ...]`.
        upload: What they send, likewise.
        dtype: In which it is kept between rounds.
        workers: That train at a time.
        kept_rounds: For how many rounds the best checkpoint may keep what has been replaced since.
        checkpoint_every: For how many the last one may.
        sees_single_uploads: Whether the server holds every upload until its round ends, and what it made of them.
    """

    users: int
    participants: int
    rounds: int
    resample: bool
    items: int
    interactions: int
    example: Mapping[str, Tensor]
    upload: Mapping[str, Tensor]
    dtype: Dtype
    workers: int
    kept_rounds: int
    checkpoint_every: int
    sees_single_uploads: bool

    @property
    def client(self) -> int:
        """Bytes of one client in training."""
        return _row_nbytes(self.example)

    @property
    def sent(self) -> int:
        """Bytes of what one client sends, before it is packed."""
        return _row_nbytes(self.upload)

    @property
    def kept(self) -> int:
        """Bytes of one client between rounds."""
        size = getattr(torch, self.dtype).itemsize
        return sum(
            value.shape[1:].numel() * (size if value.is_floating_point() else value.itemsize)
            for value in self.example.values()
        )

    @property
    def clients(self) -> float:
        """How many clients are expected to take part at all."""
        share = self.participants / self.users
        return self.users * (1 - (1 - share) ** self.rounds) if self.resample else float(self.participants)


def _row_nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.shape[1:].numel() * value.itemsize for value in tensors.values())


def cohort_size(demand: Demand, device: torch.device) -> int:
    """How many clients train together where nobody says: what fits the cache of a CPU or the memory of a GPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, min(demand.participants, free // (2 * COPIES * demand.client)))
    fitting = CACHE // max(demand.client, demand.sent)
    even = -(-demand.participants // (COHORTS * demand.workers))
    return min(max(SMALLEST, min(fitting, LARGEST)), even)


def plan(demand: Demand, store: Place, size: int | Literal["auto"], device: torch.device, folder: Path) -> Capacity:
    """Choose where the clients' state goes and how many train together.

    Raises:
        InputError: if the federation cannot fit, saying what it needs and what there is.
    """
    size = cohort_size(demand, device) if size == "auto" else size
    state = round(demand.clients * demand.kept)
    uploads = 2 * max(0, demand.sent - demand.client)  # beyond the tables that are sent as they are
    working = demand.workers * size * (COPIES * demand.client + 2 * demand.kept + uploads + 6 * 4 * demand.items)
    available, free = psutil.virtual_memory().available, free_disk(folder)
    if store == "auto":
        store = "memory" if 2 * state + working <= available else "disk"
    replaced = sum(min(demand.clients, demand.participants * n) for n in (demand.kept_rounds, demand.checkpoint_every))
    disk = 3 * state if store == "memory" else round(GROWTH * (state + replaced * demand.kept))
    held = 2 * demand.participants * demand.sent if demand.sees_single_uploads else 0
    memory = RESIDENT + INTERACTION * demand.interactions + working + held
    if store == "memory":  # a checkpoint copies the rows of those who took part where not all did
        memory += state if demand.participants == demand.users else 2 * state
    smaller = "fewer participants, method.dim smaller" + (
        ", loop.state_dtype bfloat16" if demand.dtype == "float32" else ""
    )
    check(
        f"loop.store: {store} needs about {gib(memory)} of memory, and {gib(available)} are available: "
        f"{'disk, ' if store == 'memory' else 'loop.cohort_size smaller, '}{smaller} would need less"
        if memory > available
        else None,
        f"loop.store: {store} may lay {gib(disk)} on disk in {folder}, and {gib(free)} are free: {smaller} would need "
        "less, or choose another run_dir"
        if disk > free
        else None,
    )
    return Capacity(store, state, disk, memory, size)


def free_disk(folder: Path) -> int:
    """Bytes free where ``folder`` is or will be, those that this run has taken there already among them."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    ours = [*folder.glob("*"), *folder.parent.glob("*.ckpt")]
    return shutil.disk_usage(existing).free + sum(path.stat().st_blocks * 512 for path in ours)


def gib(nbytes: float) -> str:
    """Bytes in the unit in which they are read most easily."""
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:,.0f} MiB"
