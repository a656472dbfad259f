"""A cohort's messages as they travel: headers in bytes, and read-only views of the values where they lie.

Joining and splitting the messages of a cohort would copy every number twice. In one process nothing asks for that: a
message is the same message whether its bytes are in one piece or not. So only the headers are made anew, and the items
of sparse rows. The values stay where the clients hold them, seen as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cgfedrec.wire.codec import COUNT, LONGEST_NAME, fixed_length, header, raw, row_nbytes, scatter_rows, size
from cgfedrec.wire.messages import Upload
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


@dataclass(frozen=True)
class Frames:
    """The messages of a cohort.

    Args:
        clients: `[clients]`, who sends or receives.
        fields: In the order of the message.
    """

    clients: Tensor
    fields: Sequence[Frame]

    @classmethod
    def of(cls, upload: Upload) -> Frames:
        """The messages of an upload. An upload without values is no message at all.

        Raises:
            ValueError: for a value that no message can hold, naming the field.
        """
        declared = upload.fields
        clients = len(upload.clients)
        return cls(
            upload.clients, [_frame(name, declared[name], value, clients) for name, value in upload.values.items()]
        )

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
            total += headers
            total += sum(buffer.numel() for buffer in frame.buffers)
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
        return Upload(self.clients, values, frozenset(name for name, field in expected.items() if field.sparse))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _frame(name: str, field: Field, value: Tensor, clients: int) -> Frame:
    """One field of a cohort, from its values `[clients, ...]`."""
    problem = field.problem()
    if problem is not None or len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"field {name!r} {problem or 'has too long a name'}")
    if len(value) != clients:
        raise ValueError(f"field {name!r} has {len(value)} rows for {clients} clients")
    if not field.sparse:
        return Frame(name, [header(name, field)], [raw(value)])
    touched = value.ne(0).any(-1)  # [clients, items]
    items = touched.nonzero()[:, 1].int()  # [rows], client after client
    counts = touched.sum(1).tolist()
    return Frame(name, [header(name, field, count) for count in counts], [raw(items), raw(value[touched])])


def _read(name: str, field: Field, frame: Frame, clients: int) -> Tensor:
    """The values of one field, `[clients, ...]`."""
    wanted = header(name, field)
    fixed = fixed_length(wanted, field)
    for head in frame.headers:
        if head[:fixed] != wanted[:fixed] or len(head) != len(wanted):
            raise ValueError(f"field {name!r} is not {field}")
    if len(frame.headers) != (clients if field.sparse else 1):
        raise ValueError(f"field {name!r} has {len(frame.headers)} headers for {clients} clients")
    if not field.sparse:
        (buffer,) = frame.buffers
        if buffer.numel() != clients * size(field):
            raise ValueError(f"field {name!r} is cut off")
        return buffer.view(field.dtype).view(clients, *field.shape)
    item_bytes, row_bytes = frame.buffers
    counts = torch.tensor(
        [int.from_bytes(head[-COUNT:], "little") for head in frame.headers],
        dtype=torch.int64,
        device=item_bytes.device,
    )
    total = int(counts.sum())
    if len(item_bytes) != total * COUNT or len(row_bytes) != total * (row_nbytes(field) - COUNT):
        raise ValueError(f"field {name!r} is cut off")
    # [rows]: whose each row is, from how many each client sends
    owners = torch.arange(clients, device=item_bytes.device).repeat_interleave(counts)
    return scatter_rows(
        name,
        field,
        owners,
        item_bytes.view(torch.int32).long(),
        row_bytes.view(field.dtype).view(len(owners), field.shape[1]),
        clients,
    )
