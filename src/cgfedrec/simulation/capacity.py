"""What a federation needs of the machine, estimated before it starts, and what is chosen to fit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch
from torch import Tensor

from cgfedrec.errors import check
from cgfedrec.simulation.store import Dtype
from cgfedrec.units import nbytes

Place = Literal["auto", "memory", "disk"]
CACHE = 32 * 2**20
"""Bytes of cohorts' tables in training at a time: about a last-level cache. Larger cohorts gain nothing on a CPU."""
SMALLEST, LARGEST = 16, 256
"""Clients of a cohort that sizes itself, on a CPU; a GPU takes as many as its memory holds."""
COHORTS = 4
"""A worker's share of a round's cohorts, at least, so that workers end together."""
COPIES = 4
"""What a cohort in training takes beside what its optimiser works with (`dense_copies`), in units of its parameters:
these, what is read for the next one and written of the last, and what is sent. Measured.
"""
MODULES = 40 * 2**20
"""Bytes that a process takes for what it loads after it has its data: measured, with three methods."""
GROWTH = 9 / 8
"""By which files are longer than what is in them."""
INTERACTION = 500
"""Bytes for each interaction of the data, while they are drawn from, beside the data themselves."""
gib = partial(nbytes, binary=True)
"""Memory and disks are told in powers of two, as the operating system tells them."""


@dataclass(frozen=True)
class Capacity:
    """How large a federation's state is, where it goes, and how many clients train together.

    Args:
        store: ``memory`` or ``disk``, or ``checkpoint`` where nothing is trained.
        state: Bytes of all clients that are expected to take part.
        disk: Bytes that the run may lay on disk, checkpoints included.
        memory: Bytes that it needs in memory at most, those of the process and its data included. A run that goes on
            from a checkpoint may map as much of that as it loads, and give it back when memory is short.
        cohort_size: How many clients train together.
    """

    store: Literal["memory", "disk", "checkpoint"]
    state: int
    disk: int
    memory: int
    cohort_size: int

    def __str__(self) -> str:
        where = {"memory": "in memory", "disk": "in files", "checkpoint": "where it lies"}[self.store]
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
        dense_copies: Tensors as large as a client's that its optimiser works with.
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
    dense_copies: int
    workers: int
    kept_rounds: int
    checkpoint_every: int
    sees_single_uploads: bool

    @property
    def client(self) -> int:
        """Bytes of one client in training."""
        return _row_nbytes(self.example)

    @property
    def copies(self) -> int:
        """What a client in training takes, in units of `client`."""
        return COPIES + self.dense_copies

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

    @property
    def most_clients(self) -> int:
        """More than which will hardly take part: four standard deviations above `clients`."""
        return min(self.users, math.ceil(self.clients + 4 * math.sqrt(self.clients)))


def _row_nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.shape[1:].numel() * value.itemsize for value in tensors.values())


def cohort_size(demand: Demand, device: torch.device) -> int:
    """How many clients train together where nobody says: what fits the cache of a CPU or the memory of a GPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, min(demand.participants, free // (2 * (demand.copies + 1) * demand.client)))
    fitting = CACHE // max(demand.client, demand.sent)
    even = -(-demand.participants // (COHORTS * demand.workers))
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
        demand: Of the federation.
        store: What was asked for.
        size: How many clients train together, likewise.
        device: On which they do.
        folder: Where files of state go.
        to_train: Otherwise a state is read where it lies, and nothing is laid anywhere.

    Raises:
        InputError: if the federation cannot fit, saying what it needs and what there is.
    """
    size = cohort_size(demand, device) if size == "auto" else size
    state = round(demand.clients * demand.kept)
    uploads = 2 * max(0, demand.sent - demand.client)  # beyond the tables that are sent as they are
    packed = 0 if demand.dtype == "float32" else 2 * demand.kept
    cohort = size * (demand.copies * demand.client + packed + uploads + 6 * 4 * demand.items)
    working = demand.workers * cohort + INTERACTION * demand.interactions
    held = 2 * demand.participants * demand.sent if demand.sees_single_uploads else 0
    base = resident() + MODULES + working + held
    if not to_train:
        return Capacity("checkpoint", state, 0, base, size)
    available = available_memory()
    if store == "auto":
        store = "memory" if 2 * state + working <= available else "disk"
    replaced = sum(min(demand.clients, demand.participants * n) for n in (demand.kept_rounds, demand.checkpoint_every))
    disk = 3 * state if store == "memory" else round(GROWTH * (state + replaced * demand.kept))
    memory = base + state if store == "memory" else base
    free = free_disk(folder)
    smaller = "fewer participants, method.dim smaller" + (
        ", loop.state_dtype bfloat16" if demand.dtype == "float32" else ""
    )
    check(
        f"loop.store: {store} needs about {gib(memory)} of memory, and {gib(available)} are available: "
        f"{'disk, ' if store == 'memory' else 'loop.cohort_size smaller, '}{smaller} would need less"
        if memory - resident() > available
        else None,
        f"loop.store: {store} may lay {gib(disk)} on disk in {folder}, and {gib(free)} are free: {smaller} would need "
        "less, or choose another run_dir"
        if disk > free
        else None,
    )
    return Capacity(store, state, disk, memory, size)


def resident() -> int:
    """Bytes of memory that this process has already, the data among them."""
    return int(psutil.Process().memory_info().rss)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take: what is free, and what its container's limits leave.

    Args:
        root: Of the file system in which the system says so.
    """
    free: int = psutil.virtual_memory().available
    return min([free, *_left_by_limits(root)])


class _Limits(NamedTuple):
    """Where a version of control groups says what a group may take, and takes."""

    folder: str
    limit: str
    used: str
    cache: str
    """In ``memory.stat``: bytes of files that count as used, and are given back when somebody needs them."""


_VERSION_1 = _Limits("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Limits("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def _left_by_limits(root: Path) -> Iterator[int]:
    """What each limit leaves that holds for this process: those of its control group and of the groups around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not every system has control groups
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = _VERSION_1 if controllers else _VERSION_2
        inner = Path(name.strip("/"))
        for group in (inner, *inner.parents):  # seen from a container, its own group may be the outermost
            yield from _left_by_limit(root / version.folder / group, version)


def _left_by_limit(group: Path, version: _Limits) -> Iterator[int]:
    try:
        limit = (group / version.limit).read_text().strip()
        used = int((group / version.used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # this group has no limit
        return
    if limit != "max":
        yield max(0, int(limit) - max(0, used - int(stat.get(version.cache, 0))))


def free_disk(folder: Path) -> int:
    """Bytes free where ``folder`` is or will be, those that this run has taken there already among them."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    ours = [*folder.glob("*"), *folder.parent.glob("*.ckpt")]
    return shutil.disk_usage(existing).free + sum(path.stat().st_blocks * 512 for path in ours)
