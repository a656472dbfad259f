"""A cohort's messages as they travel: headers in bytes, and read-only views of the values where they lie.

Joining and splitting the messages of a cohort would copy every number twice. In one process nothing asks for that: a
message is the same message whether its bytes are in one piece or not. So only the headers are made anew, and the items
of sparse rows. The values stay where the clients hold them, seen as bytes. Whole numbers of known bounds have bytes of
another layout than their memory: these are counted and not made, and the numbers are checked as if they had been read.
Nor are the rows made that a table shares with a base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.codec import COUNT, check, fixed_length, header, kind_of
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.sparse import ITEM, row_nbytes, scatter_rows
from cgfedrec.wire.tensors import raw
from cgfedrec.wire.values import Field


@dataclass(frozen=True)
class Frame:
    """One field of every message of a cohort.

    Args:
        name: As the messages call it.
        headers: One for all clients. Of sparse rows one for each client, since it says how many rows follow.
        buffers: `[bytes]`, uint8: the values of all clients one after another; of sparse rows first their items. They
            may be the clients' own memory: whoever keeps them longer than a round copies them.
    """

    name: str
    headers: Sequence[bytes]
    buffers: Sequence[Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the values of all clients."""
        return sum(buffer.numel() for buffer in self.buffers)


@dataclass(frozen=True)
class CountedFrame:
    """One field of every message of a cohort, whose bytes are counted and not made.

    Args:
        name: As the messages call it.
        headers: One for all clients.
        values: Whole numbers `[clients, rows, columns]` or `[clients, rows]`, dense or sparse; or tables
            `[clients, items, dim]` beside a base. The clients' own memory.
        each: Bytes of one client's: each sends all its numbers.
        bounds: Of whole numbers, with which the clients would make bytes of them.
    """

    name: str
    headers: Sequence[bytes]
    values: Tensor
    each: int
    bounds: Bounds | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values of all clients."""
        return len(self.values) * self.each


@dataclass(frozen=True)
class Frames:
    """The messages of a cohort.

    Args:
        clients: `[clients]`, who sends or receives.
        fields: In the order of the message.
        bases: As of `Upload`.
    """

    clients: Tensor
    fields: Sequence[Frame | CountedFrame]
    bases: Mapping[str, Tensor]

    @classmethod
    def of(cls, upload: Upload) -> Frames:
        """The messages of an upload. An upload without values is no message at all.

        Raises:
            ValueError: for a value that no message can hold, naming the field.
        """
        declared = upload.fields
        clients = len(upload.clients)
        frames = []
        for name, value in upload.values.items():
            upload.check_layout(name)
            frames.append(_frame(name, declared[name], value, clients))
        return cls(upload.clients, frames, upload.bases)

    @property
    def nbytes(self) -> int:
        """Bytes of all messages: as many as `Upload.pack` joins."""
        if not self.fields:
            return 0
        clients = len(self.clients)
        total = clients  # each message begins with the number of its fields, in one byte
        for frame in self.fields:
            headers = sum(map(len, frame.headers))
            if len(frame.headers) == 1:  # one for all, and yet each client sends it
                headers *= clients
            total += headers + frame.nbytes
        return total

    def read(self, expected: Mapping[str, Field]) -> Upload:
        """The upload that arrives. Its values are views of the same memory; sparse rows are laid out in new tables.

        Args:
            expected: The fields of one client's message.

        Raises:
            ValueError: where the messages are laid out in another way, naming the field.
        """
        names = [frame.name for frame in self.fields]
        if names != list(expected):
            raise ValueError(f"the message holds {_list(names)}, where {_list(expected)} is expected")
        values = {
            name: _read(name, field, frame, len(self.clients))
            for (name, field), frame in zip(expected.items(), self.fields, strict=True)
        }
        return replace(Upload.of_fields(self.clients, values, expected), bases=self.bases)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _frame(name: str, field: Field, value: Tensor, clients: int) -> Frame | CountedFrame:
    """One field of a cohort, from its values `[clients, ...]`."""
    check(name, field)
    if len(value) != clients:
        raise ValueError(f"field {name!r} has {len(value)} rows for {clients} clients")
    if field.bounds is not None:
        return CountedFrame(name, [header(name, field)], value, field.bounds.nbytes, field.bounds)
    if value.is_sparse:
        return CountedFrame(name, [header(name, field)], value, kind_of(field).size(field, 0))
    if not field.sparse:
        return Frame(name, [header(name, field)], [raw(value)])
    touched = value.ne(0).any(-1)  # [clients, items]
    items = touched.nonzero()[:, 1].int()  # [rows], client after client
    counts = touched.sum(1).tolist()
    return Frame(name, [header(name, field, count) for count in counts], [raw(items), raw(value[touched])])


def _read(name: str, field: Field, frame: Frame | CountedFrame, clients: int) -> Tensor:
    """The values of one field, `[clients, ...]`."""
    wanted = header(name, field)
    fixed = fixed_length(wanted, field)
    for head in frame.headers:
        if head[:fixed] != wanted[:fixed] or len(head) != len(wanted):
            raise ValueError(f"field {name!r} is not {field}")
    if len(frame.headers) != (clients if field.sparse else 1):
        raise ValueError(f"field {name!r} has {len(frame.headers)} headers for {clients} clients")
    if isinstance(frame, CountedFrame):
        return _read_counted(name, field, frame)
    if field.sparse:
        return _read_sparse(name, field, frame, clients)
    (buffer,) = frame.buffers
    if buffer.numel() != clients * kind_of(field).size(field, 0):
        raise ValueError(f"field {name!r} is cut off")
    return buffer.view(field.dtype).view(clients, *field.shape)


def _read_counted(name: str, field: Field, frame: CountedFrame) -> Tensor:
    """The values as they are, `[clients, ...]`; whole numbers once they are known to be what their bytes can hold."""
    if frame.bounds != field.bounds:  # bytes made with others would be read as other numbers
        raise ValueError(f"field {name!r} has other bounds than are expected")
    if frame.bounds is None:
        return frame.values
    problem = frame.bounds.problem(frame.values)
    if problem is not None:
        raise ValueError(f"field {name!r}: {problem}")
    return frame.values


def _read_sparse(name: str, field: Field, frame: Frame, clients: int) -> Tensor:
    """Tables with the rows that arrived, and zeros elsewhere, `[clients, items, dim]`."""
    item_bytes, row_bytes = frame.buffers
    counts = torch.tensor(
        [int.from_bytes(head[-COUNT:], "little") for head in frame.headers],
        dtype=torch.int64,
        device=item_bytes.device,
    )
    total = int(counts.sum())
    if len(item_bytes) != total * ITEM or len(row_bytes) != total * row_nbytes(field):
        raise ValueError(f"field {name!r} is cut off")
    # [rows]: whose each row is, from how many each client sends
    owners = torch.arange(clients, device=item_bytes.device).repeat_interleave(counts)
    items = item_bytes.view(torch.int32).long()
    rows = row_bytes.view(field.dtype).view(len(owners), field.shape[1])
    try:
        return scatter_rows(field, owners, items, rows, clients)
    except ValueError as error:
        raise ValueError(f"field {name!r}: {error}") from error
