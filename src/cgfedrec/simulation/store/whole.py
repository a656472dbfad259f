"""Clients' state whole in memory, where cohorts train in place: the fastest way, for federations that are small."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from cgfedrec.client import Client
from cgfedrec.simulation.store.base import COPIED_AT_ONCE, NONE, ClientStore
from cgfedrec.simulation.store.blocks import Blocks, MemoryBlocks
from cgfedrec.simulation.store.layout import Rows
from cgfedrec.simulation.store.memory import MemoryStore


class WholeStore(ClientStore):
    """Keeps every tensor whole, a row for each user, and makes records only where a checkpoint wants them.

    A cohort whose users stand next to each other trains in the store's own memory: a round copies nothing and compares
    nothing. What a client was before the round is gone then. So this store is for federations in which nobody fails,
    and whose state is kept in the types in which clients compute.

    Args:
        order: As in `ClientStore`.
        example: As in `ClientStore`.
        dtype: As in `ClientStore`.
        folder: As in `ClientStore`.
    """

    def _new_blocks(self) -> Blocks:
        return MemoryBlocks(self.layout.block)

    def _forget(self, blocks: Blocks, size: int = 0) -> None:
        super()._forget(blocks, size)
        # [users]: where each stands in the order, and so in memory.
        self._place = torch.empty_like(self.order)
        self._place[self.order] = torch.arange(self.num_users)
        # Most systems give memory only once it is written to: users who never take part cost nothing.
        self._rows = {
            name: torch.empty(self.num_users, *shape, dtype=self.dtypes[name])
            for name, shape in self.layout.shapes.items()
        }
        # What was alike when a cohort began to train, by numbers; and [users]: whose it was, -1 for none.
        self._alike: dict[int, Mapping[str, Tensor]] = {}
        self._number = torch.full((self.num_users,), -1)
        # [users, tables], bool: which tables have moved away from the start, and do not come back to it.
        self._moved = torch.zeros(self.num_users, len(self.layout.tables), dtype=torch.bool)

    def load(self, client: Client, users: Tensor, to_train: bool = True, without: Collection[str] = ()) -> None:
        known = self.known[users]
        if not (to_train or known.any()):
            client.load(users, client.start(users))
            return
        private = self._in_place(users)
        # What comes down to score with may change a client's private state, which must not stay here.
        changes = not to_train and (client.scores_after == "aggregation" or not known.all())
        if private is None or changes:
            private = self._memory_of(client, len(users))
            for name, rows in private.items():
                if name not in without:
                    torch.index_select(self._rows[name], 0, self._place[users], out=rows)
        if not known.all():
            for name, start in client.start(users).items():
                if name not in without:
                    private[name][~known] = start[~known]
        client.load(users, private)

    def _in_place(self, users: Tensor) -> Rows | None:
        """The rows of users `[clients]` where they lie, `[clients, ...]`; none where others stand between them."""
        places = self._place[users]
        first = int(places[0])
        if not places.equal(torch.arange(first, first + len(users))):
            return None
        return {name: rows[first : first + len(users)] for name, rows in self._rows.items()}

    def save(self, client: Client, alike: Mapping[str, Tensor] = NONE, only: Tensor | None = None) -> None:
        """As in `ClientStore`. Raises ``RuntimeError`` where some are to stay what they were."""
        if only is not None:
            raise RuntimeError("clients have trained in place: what some of them were before is gone")
        self._starts_of(client)
        self.write(client.users, client.private(), alike)
        self.known[client.users] = True

    def _read(self, users: Tensor, into: Rows | None, without: Collection[str] = ()) -> Rows:
        return {name: rows[self._place[users]] for name, rows in self._rows.items()}

    def write(self, users: Tensor, rows: Mapping[str, Tensor], bases: Mapping[str, Tensor] = NONE) -> None:
        places = self._place[users]
        for name, value in rows.items():
            here = self._rows[name]
            if value.data_ptr() != here[places[0]].data_ptr():  # else it has changed where it lies
                here[places] = value.to("cpu", here.dtype)
        near = {name: bases[name].to("cpu", self.dtypes[name]) for name in self.layout.tables if name in bases}
        with self._lock:
            self._number[users] = self._number_of(near)

    def _number_of(self, alike: Mapping[str, Tensor]) -> int:
        """The number of what was alike. All cohorts of a round have the same one, as a rule."""
        newest = max(self._alike, default=-1)
        if newest >= 0 and _same(self._alike[newest], alike):
            return newest
        needed = set(self._number.unique().tolist())
        self._alike = {number: one for number, one in self._alike.items() if number in needed} | {newest + 1: alike}
        return newest + 1

    def pin(self, name: str) -> None:
        """Nothing: each checkpoint gets records of its own."""

    def state_dict(self) -> dict[str, Any]:
        """As in `MemoryStore`, with records that are made for it."""
        made = MemoryStore(self.order, self._rows)
        known = self.order[self.known[self.order]]
        for users in known.split(COPIED_AT_ONCE):
            numbers = self._number[users]
            for number in numbers.unique().tolist():
                some = users[numbers == number]
                made.write(some, self._in_place(some) or self.read(some), self._near(some, number))
        # What came down anew in each round may be near again; the start is not.
        self._moved[known] = made.index.bases[known] < 0
        return made.state_dict()

    def _near(self, users: Tensor, number: int) -> dict[str, Tensor]:
        """Tables from which those of users `[clients]` may differ in some rows only: what was alike, else the start."""
        near, starts = dict(self._alike.get(number, {})), self._starts or {}
        for table, name in enumerate(self.layout.tables):
            if name not in near and name in starts and not self._moved[users, table].all():
                near[name] = starts[name]
        return near

    def _take_over(self, state: dict[str, Any], source: Blocks) -> None:
        records = MemoryStore(self.order, self._rows)
        records._take_over(state, source)
        self._forget(self._new_blocks())
        if not len(state["users"]):  # all are at their start
            return
        self.known[state["users"]] = True
        for number, (numbers, alike) in enumerate(records.bases_of(state["users"]).items()):
            self._alike[number] = alike
            theirs = (records.index.bases[state["users"]] == torch.tensor(numbers)).all(1)
            self._number[state["users"][theirs]] = number
        self._moved[state["users"]] = records.index.bases[state["users"]] < 0
        for users in state["users"].split(COPIED_AT_ONCE):
            for name, rows in records.read(users).items():
                self._rows[name][self._place[users]] = rows


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether two of them are alike, `[items, dim]` by name."""
    if some.keys() != others.keys():
        return False
    return all(one is others[name] or one.equal(others[name]) for name, one in some.items())
