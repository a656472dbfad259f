"""What every store of clients' state can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from cgfedrec.client import Client
from cgfedrec.files import DamagedError
from cgfedrec.memory import shared_by
from cgfedrec.simulation.store.blocks import Blocks, Dtype, FileBlocks, checked, checksums
from cgfedrec.simulation.store.checkpointed import Checkpointed
from cgfedrec.simulation.store.differing import Bytes, raw
from cgfedrec.simulation.store.index import Index
from cgfedrec.simulation.store.layout import Layout, Rows, kept_as
from cgfedrec.wire.moved import laid_out, some

FEW = 4
"""Clients whose tables are laid out in the time that a part takes for itself, where tables are small."""
NONE: Mapping[str, Tensor] = MappingProxyType({})


class ClientStore(Checkpointed):
    """Holds every client's private tensors, a record for each client.

    A client that never took part has no record: it is still at its start, which `Client.start` can make at any time. So
    a store grows with the clients that have trained, not with all that there are. A table is kept as what differs from
    a base that many clients share, where that is less: the start, or what was sent to all of them (`Client.alike`). A
    base is kept as long as a record needs it.

    Args:
        order: All users, `[users]`. Users who train in one cohort stand next to each other.
        example: Private tensors of any clients, or of none, `[clients, ...]`: only shapes and types are looked at.
        dtype: The type in which floating-point values are kept between rounds.
        folder: Where a `DiskStore` keeps its file. The other kinds need it too, to take over a state that lies there.
    """

    blocks: Blocks

    def __init__(
        self, order: Tensor, example: Mapping[str, Tensor], dtype: Dtype = "float32", folder: Path | None = None
    ) -> None:
        self.order = order
        self.num_users = len(order)
        # The type in which each tensor lies here, and the type in which the client computes with it.
        self.layout = Layout.of(example, dtype)
        self.dtypes = self.layout.dtypes
        self.computed = {name: one.dtype for name, one in example.items()}
        self.files = FileBlocks((folder or Path()) / f"records.{dtype}", self.layout.block)
        self._lock = Lock()
        self._starts: Mapping[str, Tensor] | None = None
        self._memory: WeakKeyDictionary[Client, Rows] = WeakKeyDictionary()
        self._forget(self._new_blocks())

    @abstractmethod
    def _new_blocks(self) -> Blocks:
        """Where records will lie."""

    def _forget(self, blocks: Blocks, size: int = 0) -> None:
        """Have no records. The first ``size`` blocks are not free."""
        self.blocks, self.index = blocks, Index(self.num_users, self.layout, blocks, size)
        # [users], bool: who has a record.
        self.known = torch.zeros(self.num_users, dtype=torch.bool)

    def load(self, client: Client, users: Tensor, to_train: bool = True, without: Collection[str] = ()) -> None:
        """Turn ``client`` into the cohort ``users``, each as it was left, or at its start.

        Args:
            client: The module of any worker.
            users: `[clients]`, int64.
            to_train: Whether the state will change. If not, clients that are all at one start may share its memory.
            without: Tables that need not be read, since the client overwrites them: they hold anything.

        Raises:
            DamagedError: if a record is no longer what was written.
        """
        # Clients that start alike come as one row expanded to `[clients, ...]`.
        if not (to_train or self.known[users].any()):
            client.load(users, client.start(users))
            return
        if not to_train and takes_moved(client) and (found := self._beside(users, client.follows)):
            client.load(users, *found)
            return
        self._load(client, users, to_train, without)

    def _load(self, client: Client, users: Tensor, to_train: bool, without: Collection[str]) -> None:
        """As `load`, with tables in full."""
        known, private = self.known[users], self._memory_of(client, len(users))
        if known.all():
            self._read_into(users, private, without)
        elif known.any():
            for name, rows in self.read(users[known]).items():
                private[name][known] = rows.to(private[name].dtype)
        self._become(client, users, private, without)

    def parts(self, client: Client, users: Tensor, laid_out: int) -> Sequence[Tensor]:
        """Users `[clients]` in parts who can be loaded together to score.

        Args:
            client: That scores.
            users: Whose scores are wanted.
            laid_out: How many have room for tables that are laid out.
        """
        parts: Sequence[Tensor] = users.split(laid_out if client.follows else max(len(users), 1))
        if not takes_moved(client) or not len(users):
            return parts
        kinds = self._kinds(users)
        whole = self.known[users] & (kinds < 0).any(1)  # these are laid out
        found: list[Tensor] = []
        for run, as_they_lie in zip(*self._runs(users, kinds, whole), strict=True):
            found += run.split(laid_out) if as_they_lie else [run]
        return found if len(found) <= len(parts) + int((~whole).sum()) // FEW else parts

    def _runs(self, users: Tensor, kinds: Tensor, whole: Tensor) -> tuple[Sequence[Tensor], Sequence[bool]]:
        """Users `[clients]` in runs of one kind, and of each run whether tables are ``whole`` `[clients]`."""
        both = torch.hstack((self.known[users, None], kinds))  # [clients, any]
        lengths = both.unique_consecutive(dim=0, return_counts=True)[1]
        return users.split(lengths.tolist()), whole[lengths.cumsum(0) - 1].tolist()

    def _kinds(self, users: Tensor) -> Tensor:
        """`[clients, any]`: alike for users whose tables `_beside` can tell together, negative for whole tables."""
        return self.index.bases[users]

    def _beside(self, users: Tensor, names: Collection[str]) -> tuple[Rows, Rows] | None:
        """The state of users `[clients]`, of which tables ``names`` are what differs from a base, and these bases.

        ``None`` where they have no base, or not the same one.
        """
        if not (self.known[users].all() and set(names) <= set(self.layout.tables)):
            return None
        found = {name: self.index.bases[users, self.layout.tables.index(name)].unique() for name in names}
        if any(len(numbers) > 1 or numbers[0] < 0 for numbers in found.values()):
            return None
        rows = self._unpacked(users, beside=names)
        bases = {name: self.layout.table(name, self._base(int(numbers))) for name, numbers in found.items()}
        rows, bases = ({name: one.to(self.computed[name]) for name, one in some.items()} for some in (rows, bases))
        return rows, bases

    def _become(self, client: Client, users: Tensor, private: Rows, without: Collection[str]) -> None:
        """Turn ``client`` into a cohort, of whom ``private`` has what those were left with who have taken part."""
        new = ~self.known[users]
        starts = client.start(users) if new.any() else {}
        for name, start in starts.items():
            if name in without:
                continue
            if name in client.follows and name in self._starts_of(client) and new.all():
                private[name] = shared_by(start[0], len(users))  # rows of it are trained, and not itself
            elif new.all():
                private[name].copy_(start)
            else:
                private[name][new] = start[new]
        # What is not read is one row of anything, so that nobody copies it.
        client.load(users, private | {name: shared_by(private[name][0], len(users)) for name in without})

    def _memory_of(self, client: Client, clients: int) -> Rows:
        """Room for a cohort, `[clients, ...]` of each tensor: where the client has had the cohort before.

        New memory would take longer to get than rows take to copy.
        """
        with self._lock:
            memory = self._memory.setdefault(client, {})
        for name, dtype in self.computed.items():
            if name not in memory or len(memory[name]) < clients:
                memory[name] = torch.empty(clients, *self.layout.shapes[name], dtype=dtype)
        return {name: value[:clients] for name, value in memory.items()}

    def _read_into(self, users: Tensor, private: Rows, without: Collection[str]) -> None:
        """Read rows, `[clients, ...]` of each tensor, in the types in which clients compute."""
        if self.computed == self.dtypes:
            self._read(users, private, without)
            return
        for name, rows in self.read(users).items():
            private[name].copy_(rows)

    def save(self, client: Client, alike: Mapping[str, Tensor] = NONE, only: Tensor | None = None) -> None:
        """Keep the private state of the client's cohort. Raises `RunError` if there is no room for it.

        Args:
            client: Holds the cohort.
            alike: What `Client.alike` said when they began to train.
            only: `[clients]`, bool: of whom; by default of all. The others stay what they were.
        """
        users, private = client.users, client.private()
        if only is not None:
            if not only.any():
                return
            places = only.nonzero().squeeze(1)
            users, private = users[only], {name: some(rows, places) for name, rows in private.items()}
        bases = {**alike, **client.bases}
        for name, start in self._starts_of(client).items():
            # A table that has moved away from its start does not come back: it is not compared again.
            whole = self.index.bases[users, self.layout.tables.index(name)] < 0
            if name not in bases and not (whole & self.known[users]).all():
                bases[name] = start
        self.write(users, private, bases)
        # Last: clients whose records found no room have none, and a checkpoint must not say that they do.
        self.known[users] = True

    def _starts_of(self, client: Client) -> Mapping[str, Tensor]:
        """Tables with which all clients start, `[items, dim]` by name: `Client.start` expands them."""
        if self._starts is None:
            two = client.start(self.order[:1].repeat(2))
            self._starts = {name: two[name][0] for name in self.layout.tables if two[name].stride(0) == 0}
        return self._starts

    def read(self, users: Tensor) -> Rows:
        """The rows of users who took part, `[clients, ...]` of each tensor.

        Raises:
            DamagedError: if a record is not what was written.
        """
        return self._read(users, None)

    def _read(self, users: Tensor, into: Rows | None, without: Collection[str] = ()) -> Rows:
        return self._unpacked(users, into, without)

    def _unpacked(
        self, users: Tensor, into: Rows | None = None, without: Collection[str] = (), beside: Collection[str] = ()
    ) -> Rows:
        """Records as `Layout.unpack` tells them. Bases are read for tables that are laid out."""
        index = self.index
        bases, numbers = index.bases[users], index.numbers[users]
        content = checked(self.blocks, index.blocks_of(users), index.lengths(users), index.sums[users])
        others = [table for table, name in enumerate(self.layout.tables) if name not in beside]
        tables = {number: self._base(number) for number in bases[:, others].unique().tolist() if number >= 0}
        try:
            return self.layout.unpack(content, bases, numbers, tables, into, without, beside)
        except ValueError as error:
            raise DamagedError(f"{self.blocks.name}: {error}") from error

    def _base(self, number: int) -> Bytes:
        """The bytes of a base, `[bytes]`. Raises `DamagedError` as `read` does."""
        base = self.index.shared[number]
        blocks = self.index.blocks_of_base(base)
        found = checked(self.blocks, blocks, torch.tensor([len(blocks)]), torch.tensor([base.sum]))
        return found.reshape(-1)[: self.layout.base_nbytes(base.table)]

    def write(self, users: Tensor, rows: Mapping[str, Tensor], bases: Mapping[str, Tensor] = NONE) -> None:
        """Replace users' records. Several threads may call it at a time, each for other users.

        Args:
            users: `[clients]`, int64.
            rows: `[clients, ...]` of each tensor, a sparse one beside its base.
            bases: Of tables, `[items, dim]` by name: what many of the clients may have in most rows.

        Raises:
            RunError: if the disk is full.
        """
        here = {}
        for name, value in rows.items():
            if value.is_sparse and name not in self.layout.tables:  # small tables are always kept whole
                value = laid_out(value, bases[name])
            here[name] = kept_as(value, self.dtypes[name])
        near = {name: bases[name].to("cpu", self.dtypes[name]) for name in self.layout.tables if name in bases}
        packed = self.layout.pack(len(users), here, near)
        lengths = self.layout.lengths(packed.on_base, packed.numbers)
        sums = checksums(packed.content, lengths)
        # The lock is held to share out blocks, and not while writing: a block belongs to one thread by then.
        with self._lock:
            numbers = self._hold(packed.on_base, near)
            new = self.index.room.take(len(packed.content))
            self.index.room.link(new)
        self.blocks.write(new, packed.content)
        with self._lock:
            self.index.put(users, new, sums, numbers, packed.numbers)

    def _hold(self, on_base: Tensor, bases: Mapping[str, Tensor]) -> Tensor:
        """The numbers of the bases that clients need, `[clients, tables]`, which count them from now on."""
        numbers = torch.full(on_base.shape, -1)
        for table in on_base.any(0).nonzero().squeeze(1).tolist():
            content = np.zeros((self.layout.base_length(table), self.layout.block), np.uint8)
            content.reshape(-1)[: self.layout.base_nbytes(table)] = raw(bases[self.layout.tables[table]])
            sum_ = int(checksums(content, torch.tensor([len(content)])))
            number = self.index.number_of(table, sum_)
            if number is None:
                new = self.index.room.take(len(content))
                self.blocks.write(new, content)
                number = self.index.add_base(table, sum_, new)
            self.index.shared[number].records += int(on_base[:, table].sum())
            numbers[on_base[:, table], table] = number
        return numbers


def takes_moved(client: Client) -> bool:
    """Whether a client scores with tables as what differs from a base (`Client.scores_moved`)."""
    if client.replaced("score") or "score" in vars(client):
        return False
    return client.scores_moved and bool(client.follows) and client.device.type == "cpu"
