"""Parcels: what a server and a node send each other, and how one lies in a message of Flower's.

A parcel has a head, plain values as JSON, and a body, bytes by name: the messages that `Broadcast.pack`, `Upload.pack`
and `encode` give. Nothing in it is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from cgfedrec.deploy.layouts import pack_layout, unpack_layout
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.codec import decode, encode
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Field

FORMAT = 2
"""Of parcels, raised whenever what they hold changes."""
REFUSED, MISSING, FAILED, DONE = "refused", "missing", "failed", "done"
"""What may become of what a node is asked: the ``status`` of its answer."""


class Parcel(NamedTuple):
    """What is sent at once."""

    head: Mapping[str, Any]
    body: Mapping[str, bytes]

    def records(self) -> RecordDict:
        """As Flower carries it."""
        arrays = {name: Array("uint8", (len(data),), "bytes", data) for name, data in self.body.items() if data}
        head = ConfigRecord({"head": json.dumps({**self.head, "format": FORMAT})})
        return RecordDict({"head": head, "body": ArrayRecord(arrays)})

    @classmethod
    def of(cls, records: RecordDict) -> Parcel:
        """The inverse of `records`, for what may come from anyone. Raises ``ValueError`` for anything else."""
        try:
            head = json.loads(str(records["head"]["head"]))
            body = {str(name): bytes(array.data) for name, array in records["body"].items()}  # type: ignore[union-attr]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError("a message without head or body") from error
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise ValueError("a message of another version of cgfedrec; install the same one everywhere")
        return cls(head, body)

    def joined(self, other: Parcel) -> Parcel:
        """Both in one."""
        return Parcel({**self.head, **other.head}, {**self.body, **other.body})

    def cut(self, name: str, size: int, number: int) -> list[bytes]:
        """As many pieces of the body as there are to be, each of so many bytes. Raises ``ValueError`` for others."""
        data = self.body.get(name, b"")
        if len(data) != size * number:
            raise ValueError(f"{name} has {len(data)} bytes, and not {number} times {size}")
        return list(_cut(data, [size] * number))

    def whole(self, name: str) -> int:
        """A whole number of the head, at least 0. Raises ``ValueError`` for anything else."""
        value = self.head.get(name)
        if type(value) is not int or not 0 <= value < 2**63:
            raise ValueError(f"{name} is no count")
        return value

    def number(self, name: str) -> float:
        """A number of the head. Raises ``ValueError`` for anything else."""
        value = self.head.get(name)
        if type(value) not in (int, float):
            raise ValueError(f"{name} is no number")
        return float(value)  # type: ignore[arg-type]

    def text(self, name: str) -> str:
        """A text of the head; the empty one where there is none."""
        return str(self.head.get(name, ""))

    def texts(self, name: str) -> list[str]:
        """Texts of the head. Raises ``ValueError`` for anything else."""
        value = self.head.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{name} is no list of names")
        return value

    def wholes(self, name: str, below: int = 2**62) -> Tensor:
        """Whole numbers of the head, `[numbers]`, int64, in [0, below). Raises ``ValueError`` for anything else."""
        value = self.head.get(name, [])
        if not isinstance(value, list) or not all(type(one) is int and 0 <= one < below for one in value):
            raise ValueError(f"{name} is no list of numbers below {below}")
        return torch.tensor(value, dtype=torch.int64)


def declined(status: str, why: str) -> Parcel:
    """The answer of a node that does not do what it is asked."""
    return Parcel({"status": status, "why": why}, {})


def pack_broadcast(name: str, broadcast: Broadcast | None) -> Parcel:
    """A broadcast, without its bulletins, whose names alone stand in the head."""
    if broadcast is None:
        return Parcel({name: False}, {})
    head: dict[str, Any] = {name: True, f"{name}/kept": list(broadcast.kept)}
    body = {f"{name}/values": broadcast.pack(), f"{name}/layout": pack_layout(broadcast.fields)}
    if broadcast.own is not None:
        head[f"{name}/clients"], head[f"{name}/sizes"], body[f"{name}/own"] = _packed(broadcast.own)
        body[f"{name}/own layout"] = pack_layout(broadcast.own.fields)
    return Parcel(head, body)


def unpack_broadcast(name: str, parcel: Parcel, kept: Mapping[str, Bulletin]) -> Broadcast | None:
    """The inverse of `pack_broadcast`.

    Args:
        name: Of the broadcast.
        parcel: In which it came, from anyone.
        kept: All bulletins that have come.

    Raises:
        ValueError: for anything else.
    """
    if not parcel.head.get(name):
        return None
    fields = unpack_layout(parcel.body.get(f"{name}/layout", b""))
    values = Broadcast.unpack(parcel.body.get(f"{name}/values", b""), fields).values
    own = None
    if f"{name}/own layout" in parcel.body:
        own = unpack_uploads(parcel, name, unpack_layout(parcel.body[f"{name}/own layout"]))
    return Broadcast(values, own, {one: kept[one] for one in parcel.texts(f"{name}/kept")})


def pack_uploads(uploads: Sequence[Upload], name: str = "uploads") -> Parcel:
    """Single messages of clients, one after another, and whose each is."""
    clients: list[int] = []
    sizes: list[int] = []
    messages = b""
    for upload in uploads:
        of, lengths, joined = _packed(upload)
        clients, sizes, messages = clients + of, sizes + lengths, messages + joined
    return Parcel({f"{name}/clients": clients, f"{name}/sizes": sizes}, {f"{name}/own": messages})


def unpack_uploads(
    parcel: Parcel,
    name: str,
    expected: Mapping[str, Field],
    refused: dict[int, str] | None = None,
    asked: Tensor | None = None,
) -> Upload:
    """The inverse of `pack_uploads`, for what may come from anyone.

    Args:
        parcel: In which they came.
        name: Of the uploads.
        expected: The fields of one client's message.
        refused: As of `Upload.unpack`.
        asked: Whose they may be alone, `[clients]`. Few bytes can stand for large tables, so nobody else's are read.

    Raises:
        ValueError: for anything else.
    """
    clients, sizes = parcel.wholes(f"{name}/clients"), parcel.wholes(f"{name}/sizes")
    if len(clients.unique()) != len(clients):
        raise ValueError("a client sends twice")
    if asked is not None and not torch.isin(clients, asked).all():
        raise ValueError("it is of clients who were not asked")
    joined = parcel.body.get(f"{name}/own", b"")
    if not expected:  # no message at all, then
        if joined:
            raise ValueError("nothing is expected, and something came")
        return Upload(clients)
    if int(sizes.sum()) != len(joined):
        raise ValueError("messages are not as long as is said")
    return Upload.unpack(clients, list(_cut(joined, sizes.tolist())), expected, refused)


def _packed(upload: Upload) -> tuple[list[int], list[int], bytes]:
    """Whose the messages are, how long each is, and all of them joined."""
    messages = upload.pack() if upload.values else [b""] * len(upload.clients)
    return upload.clients.tolist(), [len(message) for message in messages], b"".join(messages)


def _cut(joined: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield joined[at : at + size]
        at += size


def pack_bulletin(bulletin: Bulletin) -> tuple[bytes, bytes]:
    """A bulletin, and its layout."""
    return encode(bulletin.values), pack_layout({name: Field.of(value) for name, value in bulletin.values.items()})


def unpack_bulletin(data: bytes, layout: bytes) -> Bulletin:
    """The inverse of `pack_bulletin`, for bytes that may come from anyone. Raises ``ValueError`` for others."""
    return Bulletin(decode(data, unpack_layout(layout)), len(data))
