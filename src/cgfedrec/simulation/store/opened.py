"""Clients' state where a checkpoint has it, to be read and not trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cgfedrec.simulation.store.base import ClientStore, rows_of
from cgfedrec.simulation.store.rowfiles import Rows


class OpenedStore(ClientStore):
    """Serves the rows of a checkpoint from where they lie, for tests and recommendations. It keeps no rows itself.

    Rows in the checkpoint take memory as they are used. Rows in files are read, and checked, each time they are used.
    """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `ClientStore`."""
        self._check(state)
        self._state = state
        # [users]: where each user stands in the state, -1 for those it does not name.
        self._place = torch.full((self.num_users,), -1)
        self._place[state["users"]] = torch.arange(len(state["users"]))
        self.known.zero_()
        self.known[state["users"]] = True

    def state_dict(self) -> dict[str, Any]:
        """The state as it was loaded."""
        return self._state

    def read(self, users: Tensor) -> Rows:
        """The rows of ``users``, `[clients, ...]`. Raises `DamagedError` if one in a file is not what was written."""
        return rows_of(self._state, self._place[users], self._files)

    def write(self, users: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Raise ``RuntimeError``: nothing can be trained that was opened to be read."""
        raise RuntimeError("this federation was opened to be read; `fit` goes on from a checkpoint")

    def pin(self, name: str) -> None:
        """Nothing: a checkpoint that is only read needs nothing new."""
