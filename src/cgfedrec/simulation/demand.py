"""What is known of a federation before it starts: of its clients, of how long it trains, and of what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cgfedrec.simulation.store.blocks import Dtype
from cgfedrec.simulation.store.layout import ITEM, Layout

COPIES = 4
"""How often a cohort's parameters are in memory while it trains, beside what its optimiser keeps (`dense_copies`).

They are there as parameters, as rows read for the next cohort, as rows written of the last one, and as what is sent.
Measured.
"""
KEPT_BASES = 4
"""Of how many rounds tables that came down are kept: of this round, of the one before, and of two checkpoints."""


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
        follows: Tables of which a client has all rows as they came down, but those of its own batches. It trains the
            rows of these alone.
        touched: How many rows these are, in the mean over all users.
        most_touched: How many they are at most.
        sends_rows: Whether its upload is no more than these rows until it is added up.
        fails: Whether clients may fail, and then have to be what they were before the round.
        draws: Whether samples are drawn in each round: clients train.
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
    most_touched: int = 0
    sends_rows: bool = False
    fails: bool = False
    draws: bool = True

    @property
    def client(self) -> int:
        """Bytes of one client in training."""
        return self._nbytes_of_rows(self.example)

    @property
    def whole_tables(self) -> Demand:
        """The same for clients all of whose tables are whole, as they are where clients score."""
        return replace(self, follows=frozenset())

    def _nbytes_of_rows(self, tensors: Mapping[str, Tensor]) -> int:
        """Bytes of one client's tensors `[clients, ...]`, of tables that follow those of the rows that it touches."""
        beside = {name: value for name, value in tensors.items() if name not in self.follows}
        followed = {name: value[:, : self.most_touched] for name, value in tensors.items() if name in self.follows}
        return _row_nbytes(beside) + _row_nbytes(followed)

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
        nbytes = self._nbytes_of_rows(dense) if self.sends_rows else _row_nbytes(dense)
        return nbytes + round(entries * self.interactions / self.users)

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
    def whole(self) -> int:
        """Bytes of all users' state, tables whole."""
        return self.users * self._layout.whole

    @property
    def laid_out(self) -> int:
        """Bytes of all users' state that clients train in place: not of tables of which they train some rows."""
        beside = {name: value for name, value in self.example.items() if name not in self.follows}
        return self.users * Layout.of(beside, self.dtype).whole

    @property
    def in_place(self) -> bool:
        """Whether clients can train where their state lies: as it is kept, and with nobody to be put back.

        A few numbers that are not trained are no reason: a checkpoint would have to look at everybody's anew.
        """
        floats = [value.dtype for value in self.example.values() if value.is_floating_point()]
        return bool(floats) and not self.fails and all(dtype == getattr(torch, self.dtype) for dtype in floats)

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
