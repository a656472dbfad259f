"""What crosses the wire: an `Upload` from each client of a cohort, a `Broadcast` from the server.

Both turn into bytes and back, and the communication that a run reports is the length of those bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cgfedrec.wire.codec import header, payload, unpack
from cgfedrec.wire.values import SparseRows, Value


@dataclass(frozen=True)
class Broadcast:
    """A message from the server to a cohort.

    Args:
        values: Named values, the same for every client that receives it.
        own: What only some of the clients receive besides, a row of their own each.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    own: Upload | None = None

    def deliver(self, clients: int) -> tuple[Broadcast, int]:
        """Send it to so many clients: the message as it arrives, and the bytes that all of them receive."""
        packed = self.pack()
        arrived = Broadcast(unpack(packed, self.values), self.own)
        return arrived, len(packed) * clients + (0 if self.own is None else self.own.nbytes)

    def pack(self) -> bytes:
        """The bytes of what is the same for all; `own` is packed row by row, as an `Upload`."""
        fields = (header(name, value) + payload(value) for name, value in self.values.items())
        return bytes([len(self.values)]) + b"".join(fields)

    @classmethod
    def unpack(cls, data: bytes, expected: Mapping[str, Value]) -> Broadcast:
        """The inverse of `pack`, for bytes that may come from anyone.

        Args:
            data: A packed message.
            expected: Values of the names, kinds, types and shapes that it must have; what is in them does not matter.

        Raises:
            ValueError: for bytes that are no such message. No more has been allocated than one would take.
        """
        return cls(unpack(data, expected))


@dataclass(frozen=True)
class Upload:
    """One message for each of some clients: those of a cohort to the server, or the server's to some of a cohort.

    Args:
        clients: `[clients]`, who sends or receives.
        values: Named tensors `[clients, ...]`; row c belongs to ``clients[c]``.
        sparse: The names of tables `[clients, items, dim]` that travel as `SparseRows`, so that each client's message
            has its own length.
    """

    clients: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)
    sparse: frozenset[str] = frozenset()

    def pack(self) -> list[bytes]:
        """The bytes that each client would send, in the order of ``clients``."""
        return [Broadcast(self._row(row)).pack() for row in range(len(self.clients))]

    @property
    def nbytes(self) -> int:
        """The length of all clients' packed messages, without joining them: their headers and their raw values."""
        if not self.values:
            return 0
        headers = sum(len(header(name, value)) for name, value in self._row(0).items())
        return len(self.clients) * (1 + headers) + sum(map(self._payload_nbytes, self.values))

    def _payload_nbytes(self, name: str) -> int:
        value = self.values[name]
        if name not in self.sparse:
            return value.nbytes
        return int(SparseRows(value).touched.sum()) * (4 + value.shape[-1] * value.itemsize)

    @classmethod
    def unpack(cls, clients: Tensor, messages: Sequence[bytes], expected: Mapping[str, Value]) -> Upload:
        """The inverse of `pack`, for bytes that may come from anyone.

        Args:
            clients: `[clients]`, who sent them.
            messages: One of each.
            expected: Of one client, as for `Broadcast.unpack`.

        Raises:
            ValueError: for bytes that are no such message, naming the client.
        """
        if len(messages) != len(clients):
            raise ValueError(f"{len(messages)} messages of {len(clients)} clients")
        rows: list[dict[str, Any]] = []
        for client, message in zip(clients.tolist(), messages, strict=True):
            try:
                rows.append(unpack(message, expected))
            except ValueError as error:
                raise ValueError(f"client {client}: {error}") from error
        sparse = frozenset(name for name, value in expected.items() if isinstance(value, SparseRows))
        values = {
            name: torch.stack([row[name].values if name in sparse else row[name] for row in rows]) for name in expected
        }
        return cls(clients, values, sparse)

    @property
    def expected(self) -> dict[str, Value]:
        """What a server can expect of one client's message: values like those of any other client here."""
        return self._row(0)

    def of(self, users: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The places among ``users`` of those that have a row here, and their rows of the value ``name``."""
        places, rows = (users[:, None] == self.clients).nonzero(as_tuple=True)
        value = self.values[name]
        return places, value[rows.to(value.device)]

    def _row(self, row: int) -> dict[str, Value]:
        return {
            name: SparseRows(value[row]) if name in self.sparse else value[row] for name, value in self.values.items()
        }
