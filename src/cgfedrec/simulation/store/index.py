"""Whose record lies where, and on which base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cgfedrec.simulation.store.blocks import Blocks
from cgfedrec.simulation.store.layout import Layout
from cgfedrec.simulation.store.room import Room


@dataclass
class Base:
    """A table from which clients' tables differ in some rows.

    Args:
        table: Which of the tables it is a base of.
        first: Its first block.
        sum: Its checksum.
        records: How many need it.
    """

    table: int
    first: int
    sum: int
    records: int = 0


class Index:
    """The records of some users, and the bases that these need. It has no lock: who calls it holds one.

    Args:
        num_users: Of all users.
        layout: Of the records.
        blocks: In which they lie.
        size: How many blocks count at first. None of them is free before `find_free`.

    Attributes:
        room: Shares out the blocks.
        shared: Bases by their numbers.
    """

    def __init__(self, num_users: int, layout: Layout, blocks: Blocks, size: int = 0) -> None:
        self.layout, self.room = layout, Room(blocks, size)
        # [users]: the first block of each record, -1 where there is none; and its checksum.
        self.firsts = torch.full((num_users,), -1)
        self.sums = torch.zeros(num_users, dtype=torch.int64)
        # [users, tables]: the base of each table, -1 where it is whole; and how many rows stand in the record.
        self.bases = torch.full((num_users, len(layout.tables)), -1)
        self.numbers = layout.items.repeat(num_users, 1)
        self.shared: dict[int, Base] = {}
        # The numbers of bases by table and checksum. No number is given twice.
        self._number_of: dict[tuple[int, int], int] = {}
        self._next = 0

    def lengths(self, users: Tensor) -> Tensor:
        """How many blocks the records of users `[records]` have, `[records]`."""
        return self.layout.lengths(self.bases[users] >= 0, self.numbers[users])

    def blocks_of(self, users: Tensor) -> Tensor:
        """The blocks of the records of users `[records]`, one record after another, `[blocks]`."""
        return self.room.chains(self.firsts[users], self.lengths(users))

    def blocks_of_base(self, base: Base) -> Tensor:
        """The blocks of a base, `[blocks]`."""
        return self.room.chains(torch.tensor([base.first]), torch.tensor([self.layout.base_length(base.table)]))

    def number_of(self, table: int, sum: int) -> int | None:
        """The number of the base of a table with this checksum, if it is here."""
        return self._number_of.get((table, sum))

    def add_base(self, table: int, sum: int, blocks: Tensor) -> int:
        """Have one more base, which lies in ``blocks``, `[blocks]`; returns its number."""
        self.room.link(blocks)
        number, self._next = self._next, self._next + 1
        self.shared[number] = Base(table, int(blocks[0]), sum)
        self._number_of[table, sum] = number
        return number

    def put(self, users: Tensor, blocks: Tensor, sums: Tensor, bases: Tensor, numbers: Tensor) -> None:
        """Have records of users, in place of those of before.

        Args:
            users: `[records]`
            blocks: `[blocks]`: where they lie, one record after another; linked already.
            sums: `[records]`
            bases: `[records, tables]`: numbers of bases, each of which counts them already.
            numbers: `[records, tables]`
        """
        before = users[self.firsts[users] >= 0]
        self.room.give_back(self.blocks_of(before))
        for number, records in zip(
            *(one.tolist() for one in self.bases[before].unique(return_counts=True)), strict=True
        ):
            if number >= 0:
                self.shared[number].records -= records
                self._drop_unused(number)
        self.bases[users], self.numbers[users], self.sums[users] = bases, numbers, sums
        lengths = self.lengths(users)
        self.firsts[users] = blocks[lengths.cumsum(0) - lengths]

    def _drop_unused(self, number: int) -> None:
        base = self.shared[number]
        if base.records:
            return
        self.room.give_back(self.blocks_of_base(base))
        del self.shared[number]
        # What several processes had may hold a base twice.
        if self._number_of.get((base.table, base.sum)) == number:
            del self._number_of[base.table, base.sum]

    def used(self) -> Tensor:
        """The blocks of all records and bases, `[blocks]`."""
        state = self.state_dict(torch.arange(len(self.firsts)))
        return torch.cat((state["blocks"], state["base_blocks"]))

    def state_dict(self, order: Tensor) -> dict[str, Any]:
        """Where all records lie, as `cgfedrec.simulation.store.states` says; users in an order, `[users]`."""
        users = order[self.firsts[order] >= 0]
        # Bases are numbered anew, without gaps. The last place is for -1.
        place = torch.full((self._next + 1,), -1)
        place[list(self.shared)] = torch.arange(len(self.shared))
        shared = list(self.shared.values())
        none = torch.empty(0, dtype=torch.int64)
        return {
            "users": users,
            "bases": place[self.bases[users]],
            "numbers": self.numbers[users],
            "sums": self.sums[users],
            "blocks": self.blocks_of(users),
            "base_tables": torch.tensor([base.table for base in shared], dtype=torch.int64),
            "base_sums": torch.tensor([base.sum for base in shared], dtype=torch.int64),
            "base_blocks": torch.cat([none, *(self.blocks_of_base(base) for base in shared)]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the records of a checked state; nothing was here before."""
        at, bases = 0, state["bases"]
        needed = bases[bases >= 0].bincount(minlength=len(state["base_sums"])).tolist()
        for table, sum_, records in zip(
            state["base_tables"].tolist(), state["base_sums"].tolist(), needed, strict=True
        ):
            end = at + self.layout.base_length(table)
            self.shared[self.add_base(table, sum_, state["base_blocks"][at:end])].records = records
            at = end
        self.room.link(state["blocks"])
        self.put(state["users"], state["blocks"], state["sums"], bases, state["numbers"])
