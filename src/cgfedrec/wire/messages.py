"""What crosses the wire: an `Upload` from each client of a cohort, a `Broadcast` from the server.

Both turn into bytes and back, and the communication that a run reports is the length of those bytes. Uploads that have
been added up are a `Sum`: no single one can be read from it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cgfedrec.errors import RunError
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.codec import decode, encode
from cgfedrec.wire.moved import laid_out, some, sum_beside
from cgfedrec.wire.sums import GRID, Sum, rounded_sum, whole_sum
from cgfedrec.wire.values import Counts, Field, SparseRows, Value


class NotFiniteError(RunError):
    """Something that must be a number is not; ``clients`` are the internal numbers of those where it shows."""

    def __init__(self, what: str, clients: list[int]) -> None:
        super().__init__(f"the {what} of {len(clients)} clients is not finite: the state has diverged")
        self.what = what
        self.clients = clients


@dataclass(frozen=True)
class Broadcast:
    """A message from the server to a cohort.

    Args:
        values: Named values, the same for every client that receives it.
        own: What some of the clients receive besides: each a row of its own.
        kept: Bulletins by name. A client that has had the one of this name has it still, and does not download it
            again. Another version has another name.

    Examples:
        >>> from cgfedrec.wire.values import Labels
        >>> message = Broadcast({"labels": Labels(torch.arange(1682) % 60, clusters=60)})
        >>> len(message.pack())  # 6 bits a label, and 19 bytes of header
        1281
        >>> Broadcast.unpack(message.pack(), message.fields).values["labels"].values[:3]
        tensor([0, 1, 2])
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    own: Upload | None = None
    kept: Mapping[str, Bulletin] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Field]:
        """What a receiver must expect, by name."""
        return {name: Field.of(value) for name, value in self.values.items()}

    def pack(self) -> bytes:
        """The bytes of what is the same for all. What is in `own` is packed row by row, as an `Upload`."""
        return encode(self.values)

    @classmethod
    def unpack(cls, data: bytes, expected: Mapping[str, Field]) -> Broadcast:
        """The inverse of `pack`, for bytes that may come from anyone.

        Args:
            data: A packed message.
            expected: Its fields, by name, in order.

        Raises:
            ValueError: for bytes that are no such message. Until then no more is allocated than such a message takes.
        """
        return cls(decode(data, expected))


@dataclass(frozen=True)
class Upload:
    """One message for each of some clients: those of a cohort to the server, or the server's to some of a cohort.

    Args:
        clients: `[clients]`, who sends or receives.
        values: Named tensors `[clients, ...]`; row c belongs to ``clients[c]``.
        sparse: The names of tables `[clients, items, dim]` of which only rows that are not all zero travel
            (`SparseRows`). Each client's message then has a length of its own.
        bounds: By name, of the shape of one client's value: what whole numbers can reach, which travel in as many bits
            as that takes. (Under a secure sum, what their sum can reach.) Such a value is int64, of the shape
            `[clients, rows, columns]` or `[clients, rows]`. Where most rows of a client are zero, it may be a coalesced
            sparse tensor with entries for `[clients, rows]`: that saves memory. Its bytes are the same, since all rows
            travel, and none tells whether it is zero.
        bases: By name, `[items, dim]`. A table `[clients, items, dim]` of such a name may be a coalesced sparse tensor,
            whose entries are rows `[clients, items]`: the others are those of the base. All rows travel even so.
        public: Tells what everybody knows beforehand of one client's value, `[...]` by name. It does not travel.

    Examples:
        >>> upload = Upload(torch.tensor([4, 9]), {"table": torch.zeros(2, 1682, 32)})
        >>> [len(message) for message in upload.pack()]
        [215314, 215314]

        Of two sparse tables with one row and with three rows, a row takes its 32 numbers and 4 bytes for its item:

        >>> tables = torch.zeros(2, 1682, 32)
        >>> tables[0, 7] = tables[1, 5:8] = 1
        >>> sparse = Upload(torch.tensor([4, 9]), {"table": tables}, sparse=frozenset({"table"}))
        >>> [len(message) for message in sparse.pack()]
        [154, 418]

        Whole numbers up to 3, of which each takes 2 bits, and the same in 20 bits each:

        >>> numbers = torch.arange(8).view(2, 4) % 4
        >>> for bounds in (Bounds(torch.tensor([3]).expand(4)), Bounds(torch.tensor([3]).expand(4), bits=20)):
        ...     counted = Upload(torch.tensor([4, 9]), {"count": numbers}, bounds={"count": bounds})
        ...     print([len(message) for message in counted.pack()], counted.sum().values["count"])
        [15, 15] tensor([0, 2, 4, 6])
        [24, 24] tensor([0, 2, 4, 6])
    """

    clients: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)
    sparse: frozenset[str] = frozenset()
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    bases: Mapping[str, Tensor] = field(default_factory=dict)
    public: Callable[[], Mapping[str, Tensor]] = dict

    @property
    def fields(self) -> dict[str, Field]:
        """What one client's message holds, by name."""
        return {
            name: Field(tuple(value.shape[1:]), value.dtype, name in self.sparse, bounds=self.bounds.get(name))
            for name, value in self.values.items()
        }

    def pack(self) -> list[bytes]:
        """The bytes that each client would send, in the order of ``clients``. A message holds nothing of the others."""
        whole = self.whole()
        return [encode(whole._row(row)) for row in range(len(self.clients))]

    @classmethod
    def unpack(
        cls,
        clients: Tensor,
        messages: Sequence[bytes],
        expected: Mapping[str, Field],
        refused: dict[int, str] | None = None,
    ) -> Upload:
        """The inverse of `pack`, for bytes that may come from anyone.

        Args:
            clients: `[clients]`, who sent them.
            messages: One of each.
            expected: The fields of one client's message.
            refused: Where it is given, who sent bytes that are no such message is left out, and here stands why.

        Raises:
            ValueError: for bytes that are no such message, naming the client; and for messages of other clients.
        """
        if len(messages) != len(clients):
            raise ValueError(f"{len(messages)} messages of {len(clients)} clients")
        rows: dict[str, list[Tensor]] = {
            name: [torch.zeros(0, *field.shape, dtype=field.dtype)] for name, field in expected.items()
        }
        for client, message in zip(clients.tolist(), messages, strict=True):
            try:
                received = decode(message, expected)
            except ValueError as error:
                if refused is None:
                    raise ValueError(f"client {client}: {error}") from error
                refused[client] = str(error)
                continue
            for name, value in received.items():
                if isinstance(value, SparseRows | Counts):  # as a table
                    value = value.values
                assert isinstance(value, Tensor)
                rows[name].append(value[None])
        if refused:
            clients = clients[~torch.isin(clients, torch.tensor(list(refused)))]
        return cls.of_fields(clients, {name: torch.cat(values) for name, values in rows.items()}, expected)

    @classmethod
    def of_fields(cls, clients: Tensor, values: Mapping[str, Tensor], fields: Mapping[str, Field]) -> Upload:
        """An upload of such fields.

        Args:
            clients: `[clients]`.
            values: By name, `[clients, ...]`.
            fields: Of one client's message, by name: they say which values are sparse, and which have bounds.
        """
        sparse = frozenset(name for name, field in fields.items() if field.sparse)
        bounds = {name: field.bounds for name, field in fields.items() if field.bounds is not None}
        return cls(clients, values, sparse, bounds)

    def beside(self, public: Callable[[], Mapping[str, Tensor]]) -> Upload:
        """The same upload, beside what everybody knows of it."""
        return replace(self, public=public)

    def whole(self) -> Upload:
        """The same upload; tables that lie beside a base are laid out in full."""
        beside = {name for name, value in self.values.items() if name in self.bases and value.is_sparse}
        if not beside:
            return self
        values = {
            name: laid_out(value, self.bases[name]) if name in beside else value for name, value in self.values.items()
        }
        return replace(self, values=values)

    def check_layout(self, name: str) -> None:
        """Refuse a sparse tensor without bounds or a base, by a ValueError that names it."""
        if self.values[name].layout != torch.strided and name not in self.bounds and name not in self.bases:
            raise ValueError(
                f"field {name!r} is a sparse tensor, and only whole numbers with bounds and tables with a base travel "
                "as one"
            )

    def _row(self, row: int) -> dict[str, Value]:
        """One client's values, as they travel."""
        values: dict[str, Value] = {}
        for name, value in self.values.items():
            self.check_layout(name)
            values[name] = value[row]
            if name in self.sparse:
                values[name] = SparseRows(value[row])
            elif name in self.bounds:
                values[name] = Counts(dense(value[row]), self.bounds[name])
        return values

    def sum(self) -> Sum:
        """The sum over the clients: of whole numbers with bounds in int64, of all others in float64 (see `GRID`).

        Raises:
            NotFiniteError: naming the clients, if a value is not finite, or beyond some 1e26, where nothing sound is.
        """
        # Whatever is not finite shows in the sum. Single messages are looked at only then, to tell whose it is.
        sums = {}
        for name, value in self.values.items():
            if name in self.bounds:
                sums[name] = whole_sum(value)
            elif value.is_sparse:
                sums[name] = sum_beside(value, self.bases[name])
            else:
                sums[name] = rounded_sum(value)
        for name, total in sums.items():
            if name not in self.bounds and not total.isfinite().all():
                finite = (self.whole().values[name] * GRID).flatten(1).isfinite().all(1).cpu()
                bad = self.clients[~finite].tolist()
                raise NotFiniteError(f"uploaded {name}", bad or self.clients.tolist())
        return Sum(sums, len(self.clients))

    def only(self, users: Tensor) -> Upload:
        """What those clients sent that are among ``users`` `[users]`."""
        rows = torch.isin(self.clients, users).nonzero().squeeze(1)
        values = {name: some(value, rows) for name, value in self.values.items()}
        return replace(self, clients=self.clients[rows], values=values)

    def of(self, users: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The rows of the value ``name`` that are for some of ``users`` `[users]`.

        Returns:
            The places of those users among ``users``, `[found]`, int64, and their rows, `[found, ...]`.

        Examples:
            >>> upload = Upload(torch.tensor([4, 9]), {"score": torch.tensor([0.25, 0.75])})
            >>> upload.of(torch.tensor([9, 2]), "score")
            (tensor([0]), tensor([0.7500]))
        """
        places, rows = (users[:, None] == self.clients).nonzero(as_tuple=True)
        value = self.values[name]
        return places, dense(value.index_select(0, rows.to(value.device)))


def dense(value: Tensor) -> Tensor:
    """The same numbers `[...]`, where they lie in a sparse tensor laid out in full."""
    if value.layout == torch.strided:
        return value
    return value.to_dense()
