"""What every store of clients' state can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgfedrec.client import Client
from cgfedrec.simulation.store.rowfiles import Dtype, RowFiles, Rows
from cgfedrec.simulation.store.states import check_state

COPIED_AT_ONCE = 64
"""Rows that are copied at a time from one kind of store to another: all at once would take the state's memory twice."""


class ClientStore(ABC):
    """Holds every client's private tensors, a row for each client.

    A client that never took part has no row: it is still at its start, which `Client.start` can make at any time. So
    a store grows with the clients that have trained, not with all that there are.

    Args:
        order: All users, `[users]`. Users who train in one cohort stand next to each other.
        example: Private tensors of any clients, or of none, `[clients, ...]`: only shapes and types are looked at.
        dtype: The type in which floating-point values are kept between rounds.
        folder: Where a `DiskStore` keeps its files. The other kinds need it too, to take over a state that lies there.
    """

    def __init__(
        self, order: Tensor, example: Mapping[str, Tensor], dtype: Dtype = "float32", folder: Path | None = None
    ) -> None:
        self.order = order
        self.num_users = len(order)
        # [users], bool: who has a row.
        self.known = torch.zeros(self.num_users, dtype=torch.bool)
        kept: torch.dtype = getattr(torch, dtype)
        # The type in which each tensor lies here, and the type in which the client computes with it.
        self.dtypes = {name: kept if one.is_floating_point() else one.dtype for name, one in example.items()}
        self.computed = {name: one.dtype for name, one in example.items()}
        # Of one client's row: without the clients axis.
        self.shapes = {name: tuple(one.shape[1:]) for name, one in example.items()}
        self._files = RowFiles(folder or Path(), self.shapes, self.dtypes)

    def load(self, client: Client, users: Tensor, to_train: bool = True) -> None:
        """Turn ``client`` into the cohort ``users``, each as it was left, or at its start.

        Args:
            client: The module of any worker.
            users: `[clients]`, int64.
            to_train: Whether the state will change. If not, clients that are all at one start may share its memory.

        Raises:
            DamagedError: if a row is no longer what was written, naming the file.
        """
        known = self.known[users]
        if known.all():
            # In a store in memory these rows may be the store's own: the cohort then trains in place.
            client.load(users, {name: rows.to(self.computed[name]) for name, rows in self.read(users).items()})
            return
        private = client.start(users)
        # Clients that start alike come as one row expanded to `[clients, ...]`. Whoever writes into one of them writes
        # into all, so each gets memory of its own first.
        if to_train or known.any():
            private = {name: value.clone(memory_format=torch.contiguous_format) for name, value in private.items()}
        if known.any():
            for name, rows in self.read(users[known]).items():
                private[name][known] = rows.to(private[name].dtype)
        client.load(users, private)

    def save(self, client: Client) -> None:
        """Keep the private state of the client's cohort. Raises `RunError` if there is no room for it."""
        self.write(client.users, client.private())
        # Last: clients whose rows found no room have none, and a checkpoint must not say that they do.
        self.known[client.users] = True

    def expect(self, users: Tensor) -> None:  # noqa: B027  # most kinds need nothing
        """Make room for users who are about to take part.

        Args:
            users: `[clients]`, in the order of their cohorts.
        """

    @abstractmethod
    def read(self, users: Tensor) -> Rows:
        """The rows of users who took part, `[clients, ...]` of each tensor; they may be the store's own memory."""

    @abstractmethod
    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Replace users' rows. Several threads may call it at a time, each for other users.

        Args:
            users: `[clients]`, int64.
            rows: `[clients, ...]` of each tensor.
        """

    @abstractmethod
    def pin(self, name: str) -> None:
        """Keep all that is here now for the checkpoint ``name``, which is about to be written.

        What an earlier checkpoint of this name needed may be overwritten from now on.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what `state_dict` returned, whichever kind of store that was.

        Clients that the state does not name are at their start afterwards.

        Raises:
            DamagedError: if a row in a file is no longer what was written.
            FileNotFoundError: if the state refers to files that are not in this store's folder.
            ValueError: if it is no state of such a store.
        """

    def _check(self, state: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` if a state, which may come from anybody, is no state of this store."""
        check_state(state, self.num_users, self.shapes, self.dtypes, self._files)


def parts(number: int) -> Iterator[Tensor]:
    """The numbers in [0, number), `COPIED_AT_ONCE` at a time, `[numbers]`."""
    for start in range(0, number, COPIED_AT_ONCE):
        yield torch.arange(start, min(start + COPIED_AT_ONCE, number))


def rows_of(state: Mapping[str, Any], places: Tensor, files: RowFiles) -> Rows:
    """Some of the rows that a state holds or refers to.

    Args:
        state: Of any kind of store, and checked.
        places: `[rows]`: where their clients stand in the state's list of users.
        files: In which the rows lie if the state only refers to them.

    Raises:
        DamagedError: if a row in a file is no longer what was written.
    """
    if "rows" in state:
        return {name: rows[places] for name, rows in state["rows"].items()}
    return files.read(state["slots"][places], state["sums"][places])
