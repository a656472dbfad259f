"""Clients' state whole in memory, where cohorts train in place: the fastest way, for federations that are small."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgfedrec.client import Client
from cgfedrec.simulation.store.base import NONE, ClientStore
from cgfedrec.simulation.store.blocks import Blocks, MemoryBlocks
from cgfedrec.simulation.store.checkpointed import COPIED_AT_ONCE
from cgfedrec.simulation.store.differing import differing
from cgfedrec.simulation.store.layout import Rows, kept_as
from cgfedrec.simulation.store.memory import MemoryStore
from cgfedrec.wire.moved import of_rows, some


class TrainedRows(NamedTuple):
    """Tables of a cohort that it has trained by their rows (`cgfedrec.touched`)."""

    users: Tensor
    """`[clients]`, int64: whose."""
    rows: Rows
    """`[clients, items, dim]` each, sparse, by the name of the table."""
    bases: Mapping[str, Tensor]
    """`[items, dim]` each, likewise: the other rows."""


class WholeStore(ClientStore):
    """Keeps every tensor whole, a row for each user, and makes records only where a checkpoint wants them.

    A cohort whose users stand next to each other trains in the store's own memory: a round copies nothing and compares
    nothing. What a client was before the round is gone then. So this store is for federations in which nobody fails,
    and whose state is kept in the types in which clients compute. Tables of which clients train some rows
    (`cgfedrec.touched`) are kept as these rows.

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
        # Tables that were trained by their rows are kept so, and laid out for whoever reads them. By numbers; and
        # [users]: among which each user's are, -1 for none.
        self._trained: dict[int, TrainedRows] = {}
        self._waiting = torch.full((self.num_users,), -1)
        # [users, tables], bool: which tables have moved away from the start, and do not come back to it.
        self._moved = torch.zeros(self.num_users, len(self.layout.tables), dtype=torch.bool)

    def _load(self, client: Client, users: Tensor, to_train: bool, without: Collection[str]) -> None:
        known, waiting = self.known[users], self._waiting[users] >= 0
        private = self._in_place(users)
        # What comes down to score with may change a client's private state, which must not stay here.
        changes = not to_train and (client.scores_after == "aggregation" or not known.all())
        if private is None or changes or (waiting.any() and not to_train):
            private = self._memory_of(client, len(users))
            skipped = {*without, *client.follows} if waiting.all() else without
            for name, rows in private.items():
                if name not in skipped:
                    torch.index_select(self._rows[name], 0, self._place[users], out=rows)
        self._lay_out(users, private, without)
        self._become(client, users, private, without)

    def _kinds(self, users: Tensor) -> Tensor:
        return self._waiting[users, None]

    def _beside(self, users: Tensor, names: Collection[str]) -> tuple[Rows, Rows] | None:
        waiting = self._waiting[users].unique()
        if len(waiting) > 1 or waiting[0] < 0:
            return None
        trained, places = self._trained[int(waiting)], self._place[users]
        if not set(names) <= trained.rows.keys():
            return None
        there = (users[:, None] == trained.users).nonzero()[:, 1]
        rows = {name: some(kept, there) for name, kept in trained.rows.items()}
        rows |= {name: whole[places] for name, whole in self._rows.items() if name not in rows}
        return rows, {name: trained.bases[name] for name in trained.rows}

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
        self.write(client.users, client.private(), {**alike, **client.bases})
        self.known[client.users] = True

    def _lay_out(self, users: Tensor, rows: Rows, without: Collection[str] = ()) -> None:
        """Lay out, in ``rows``, tables of users `[clients]` that are kept by the rows that were trained."""
        waiting = self._waiting[users]
        for number in waiting[waiting >= 0].unique().tolist():
            trained = self._trained[number]
            here = (waiting == number).nonzero().squeeze(1)
            there = (users[here, None] == trained.users).nonzero()[:, 1]
            for name, kept in trained.rows.items():
                if name in without:
                    continue
                chosen, tables = some(kept, there), rows[name]
                if len(here) == len(users):
                    tables.copy_(trained.bases[name])
                else:
                    tables[here] = trained.bases[name]
                owners, items = chosen.indices()
                # All tables as one, [clients * items, dim]
                places = here[owners] * tables.shape[1] + items
                tables.view(-1, tables.shape[2]).index_copy_(0, places, chosen.values())

    def _cut(self, number: int) -> None:
        """Drop rows whose clients have trained again since, once they are half of those that were kept together."""
        if number < 0:
            return
        trained = self._trained[number]
        left = (self._waiting[trained.users] == number).nonzero().squeeze(1)
        if not len(left):
            del self._trained[number]
        elif 2 * len(left) <= len(trained.users):
            rows = {name: some(value, left).clone() for name, value in trained.rows.items()}
            self._trained[number] = TrainedRows(trained.users[left], rows, trained.bases)

    def _read(self, users: Tensor, into: Rows | None, without: Collection[str] = ()) -> Rows:
        rows = {name: rows[self._place[users]] for name, rows in self._rows.items()}
        self._lay_out(users, rows)
        return rows

    def _as_it_lies(self, users: Tensor) -> Rows:
        """The rows of users `[clients]`, `[clients, ...]` of each tensor: of tables that wait anything."""
        return self._in_place(users) or {name: rows[self._place[users]] for name, rows in self._rows.items()}

    def write(self, users: Tensor, rows: Mapping[str, Tensor], bases: Mapping[str, Tensor] = NONE) -> None:
        places = self._place[users]
        trained = {name: kept_as(value, self.dtypes[name]) for name, value in rows.items() if value.is_sparse}
        for name, value in rows.items():
            here = self._rows[name]
            if name not in trained and value.data_ptr() != here[places[0]].data_ptr():  # else it lies here already
                here[places] = value.to("cpu", here.dtype)
        alike = {name: base.to("cpu", self.dtypes[name]) for name, base in bases.items() if name in self.dtypes}
        with self._lock:
            self._number[users] = number = self._number_of(alike)
            before = self._waiting[users].unique().tolist()
            self._waiting[users] = -1
            if trained:
                waiting = max(self._trained, default=-1) + 1
                self._trained[waiting] = TrainedRows(users, trained, self._alike[number])
                self._waiting[users] = waiting
            for one in before:
                self._cut(one)

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
            kinds = torch.stack((self._number[users], self._waiting[users]), dim=1)
            for kind in kinds.unique(dim=0):
                theirs = users[(kinds == kind).all(1)]
                number, waiting = kind.tolist()
                rows, near = self._as_it_lies(theirs), self._near(theirs, number)
                if waiting >= 0:
                    trained = self._trained[waiting]
                    places = (theirs[:, None] == trained.users).nonzero()[:, 1]
                    rows |= {name: some(value, places) for name, value in trained.rows.items()}
                    near |= {name: trained.bases[name] for name in trained.rows}
                made.write(theirs, rows, near)
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
        for numbers, alike in records.bases_of(state["users"]).items():
            theirs = state["users"][(records.index.bases[state["users"]] == torch.tensor(numbers)).all(1)]
            for users in theirs.split(COPIED_AT_ONCE):
                rows = records.read(users)
                self.write(users, rows | {name: _beside(rows[name], base) for name, base in alike.items()}, alike)
        self._moved[state["users"]] = records.index.bases[state["users"]] < 0


def _beside(tables: Tensor, base: Tensor) -> Tensor:
    """The rows of tables `[clients, items, dim]` that are not those of a base `[items, dim]`, a sparse tensor."""
    differs = torch.from_numpy(differing(tables, base))
    return of_rows(differs.nonzero().T, tables[differs], tables.shape)


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether two of them are alike, `[items, dim]` by name."""
    if some.keys() != others.keys():
        return False
    return all(one is others[name] or one.equal(others[name]) for name, one in some.items())
