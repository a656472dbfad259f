"""What a federation needs of the machine, estimated before it starts, and what is chosen to fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cgfedrec.errors import check
from cgfedrec.simulation.machine import available_memory, free_disk, resident
from cgfedrec.simulation.store.blocks import Dtype
from cgfedrec.simulation.store.layout import ITEM, Layout
from cgfedrec.units import nbytes

Place = Literal["auto", "memory", "disk"]
CACHE = 32 * 2**20
"""Bytes of a cohort's tables. That is about a last-level cache; larger cohorts gain nothing on a CPU."""
SMALLEST, LARGEST = 16, 256
"""How many clients a cohort has on a CPU if nobody says. A GPU takes as many as its memory holds."""
COHORTS = 4
"""Cohorts that each worker has to train in a round, at least, so that all workers end at about the same time."""
COPIES = 4
"""How often a cohort's parameters are in memory while it trains, beside what its optimiser keeps (`dense_copies`).

They are there as parameters, as rows read for the next cohort, as rows written of the last one, and as what is sent.
Measured.
"""
MODULES = 40 * 2**20
"""Bytes of the code that a process loads after its data. Measured, with three methods."""
GROWTH = 9 / 8
"""How many times as long as their content a store's files may be: they grow by an eighth at a time."""
KEPT_BASES = 4
"""Of how many rounds tables that came down are kept: of this round, of the one before, and of two checkpoints."""
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
        store: ``memory`` or ``disk``, or ``checkpoint`` where nothing is trained.
        state: Bytes of all clients that are expected to take part, at most.
        disk: Bytes that the run may lay on disk, checkpoints included.
        memory: Bytes that it needs in memory at most, with those of the process and its data. A run that goes on from a
            checkpoint may map that much of it besides, and gives it back when memory is short.
        cohort_size: How many clients train together.
    """

    store: Literal["memory", "disk", "checkpoint"]
    state: int
    disk: int
    memory: int
    cohort_size: int

    @property
    def place(self) -> str:
        """Where the state goes, in words."""
        return {"memory": "in memory", "disk": "in files", "checkpoint": "where it lies"}[self.store]

    def __str__(self) -> str:
        return (
            f"clients' state: at most {gib(self.state)} {self.place}; about {gib(self.memory)} of memory and up to "
            f"{gib(self.disk)} of disk are needed; cohorts of {self.cohort_size}"
        )


@dataclass(frozen=True)
class Plans:
    """How long a federation trains, and how many clients.

    Args:
        participants: How many clients take part in a round.
        rounds: How many rounds are left.
        resample: Whether each round draws its own participants.
        kept_rounds: For how many rounds the best checkpoint may need rows that have been replaced since.
        checkpoint_every: For how many rounds the last checkpoint may need them.
    """

    participants: int
    rounds: int
    resample: bool
    kept_rounds: int
    checkpoint_every: int


@dataclass(frozen=True)
class Demand:
    """What is known of a federation before it starts.

    Args:
        users: All clients.
        participants: How many clients take part in a round.
        rounds: How many rounds are left.
        resample: Whether each round draws its own participants.
        items: How many items the catalogue has.
        interactions: Of all users together.
        example: Private tensors of any clients, or of none, `[clients, ...]`: only shapes and types are looked at.
        upload: What these clients send, likewise.
        dtype: The type in which state is kept between rounds.
        dense_copies: How many tensors as large as a client's its optimiser works with.
        workers: How many cohorts train at a time.
        kept_rounds: For how many rounds the best checkpoint may need rows that have been replaced since.
        checkpoint_every: For how many rounds the last checkpoint may need them.
        sees_single_uploads: Whether the server holds every upload until its round ends, and what it made of them.
        server: Bytes that the server itself takes (`cgfedrec.server.Server.working`).
        saved: Bytes of its state in a checkpoint.
        processes: How many share the clients, all of them on this machine.
        follows: Tables of which a client has all rows as they came down, but those of its own batches.
        touched: How many rows these are, in the mean over all users.
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
    server: int = 0
    saved: int = 0
    processes: int = 1
    follows: frozenset[str] = frozenset()
    touched: float = 0

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
        """Bytes of what one client sends, before it is packed. Of a sparse tensor a row for each interaction."""
        dense, entries = {}, 0
        for name, value in self.upload.items():
            if value.layout == torch.strided:
                dense[name] = value
            else:
                entries += value.shape[value.sparse_dim() :].numel() * value.itemsize
        return _row_nbytes(dense) + round(entries * self.interactions / self.users)

    @property
    def kept(self) -> int:
        """Bytes of one client between rounds, at most."""
        layout = self._layout
        if not self.follows:
            return layout.whole
        nbytes = layout.whole
        for table, name in enumerate(layout.tables):
            if name in self.follows:
                # Of each row that differs also which item it is of.
                nbytes += round(self.touched * (int(layout.widths[table]) + ITEM)) - layout.base_nbytes(table)
        return min(layout.whole, nbytes + layout.block)  # the last block is not filled

    @property
    def bases(self) -> int:
        """Bytes of the tables from which those of clients differ, at most."""
        layout = self._layout
        one = sum(layout.base_nbytes(table) for table, name in enumerate(layout.tables) if name in self.follows)
        # Where all take part in each round, nobody needs an older one but a checkpoint.
        number = self.rounds
        if self.participants >= self.clients:
            number = min(self.rounds, KEPT_BASES)
        return number * one

    @property
    def _layout(self) -> Layout:
        return Layout.of(self.example, self.dtype)

    @property
    def clients(self) -> float:
        """How many clients are expected to take part in at least one round."""
        if not self.resample:
            return float(self.participants)
        # A client is left out of one round with probability 1 - share, and of all with that to the power of the rounds.
        share = self.participants / self.users
        return self.users * (1 - (1 - share) ** self.rounds)


def _row_nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of one client's share of tensors with a clients axis, `[clients, ...]`."""
    return sum(value.shape[1:].numel() * value.itemsize for value in tensors.values())


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
    state = round(demand.clients * demand.kept) + demand.bases
    working = _working(demand, size)
    # Each process has code, data and a server of its own.
    base = demand.processes * (resident() + MODULES + demand.server) + working
    if demand.sees_single_uploads:
        # Every upload of the round, and as much again for what the server makes of them.
        base += 2 * demand.participants * demand.sent * demand.processes
    if not to_train:
        return Capacity("checkpoint", state, 0, base, size)
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
    if store == "memory":
        memory, disk = base + state, CHECKPOINTS * state
    else:
        # A file holds each client's latest record, and those replaced since that a checkpoint still needs.
        spans = (demand.kept_rounds, demand.checkpoint_every)
        replaced = sum(min(demand.clients, demand.participants * rounds) for rounds in spans)
        memory, disk = base, round(GROWTH * (state + replaced * demand.kept))
    disk += CHECKPOINTS * demand.saved
    check(*_lacks(demand, store, memory, available, disk, folder))
    return Capacity(store, state, disk, memory, size)


def _working(demand: Demand, size: int) -> int:
    """Bytes that training takes at a time, beside the state of the clients who wait: cohorts of ``size`` clients."""
    client = demand.copies * demand.client
    if demand.dtype != "float32":
        client += 2 * demand.kept  # the rows are converted, when they are read and when they are written
    client += 2 * max(0, demand.sent - demand.client)  # what is sent beyond the parameters as they are
    client += 6 * 4 * demand.items  # scores, and what ranks them
    return demand.processes * (demand.workers * size * client + INTERACTION * demand.interactions)


def _lacks(demand: Demand, store: str, memory: int, available: int, disk: int, folder: Path) -> Iterator[str]:
    """What the machine lacks, and what would need less."""
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
        yield (
            f"loop.store: {store} may lay {gib(disk)} on disk in {folder}, and {gib(free)} are free: {smaller} would "
            "need less, or choose another run_dir"
        )
