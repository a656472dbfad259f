"""Uploads that cannot be taken in: who sent them, and why not. A round goes on with the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cgfedrec.wire.messages import NotFiniteError, Upload
from cgfedrec.wire.sums import EXACT, GRID
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import RefusedError, WireError

LARGEST = EXACT / GRID
"""A single number beyond this makes a sum inexact, whatever the others are."""

Take = Callable[[Upload], tuple[Upload, int]]
"""Carries an upload: what arrives, and its bytes. It raises `WireError` or `NotFiniteError` for what cannot be read."""

Check = Callable[[Upload], Mapping[int, str]]
"""By client, why its upload is not taken."""


def carried(
    upload: Upload, take: Take, expected: Mapping[str, Field], refusing: bool, implausible: Check
) -> tuple[Upload, int, dict[int, str]]:
    """Carry an upload. Where ``refusing``, who sent what cannot be taken in is left out; otherwise that is an error.

    Args:
        upload: What clients send.
        take: Carries it.
        expected: The fields of one client's message, as they arrive.
        refusing: Whether the others are to go on.
        implausible: Says of what arrived whose it cannot be.

    Returns:
        What arrives of the others, the bytes of all that could be sent, and by client why it was refused.
    """
    refused: dict[int, str] = {}
    if not refusing:
        return *take(upload), refused
    upload = upload.whole()  # each client's is looked at
    try:
        arrived, nbytes = take(upload)
    except (WireError, NotFiniteError):
        # It does not say of all who are to blame. So each client is tried by itself.
        arrived, nbytes = _one_by_one(upload, take, expected, refused)
    refused = {**implausible(arrived), **unsound(arrived), **refused}
    if refused:
        arrived = arrived.only(arrived.clients[~torch.isin(arrived.clients, torch.tensor(list(refused)))])
    return arrived, nbytes, refused


def _one_by_one(
    upload: Upload, take: Take, expected: Mapping[str, Field], refused: dict[int, str]
) -> tuple[Upload, int]:
    parts, total = [], 0
    for client in upload.clients:
        alone = upload.only(client[None])
        try:
            part, nbytes = take(alone)
        except (WireError, NotFiniteError) as error:
            why = str(error)
            if isinstance(error, RefusedError):
                why = error.refused[int(client)]
            refused[int(client)] = why
            total += sum(map(len, alone.pack())) if _packs(alone) else 0
            continue
        parts.append(part)
        total += nbytes
    return _joined(parts, expected), total


def _packs(upload: Upload) -> bool:
    """Whether it is any message at all: what no message can hold has not been sent."""
    try:
        upload.pack()
    except ValueError:
        return False
    return True


def _joined(parts: list[Upload], expected: Mapping[str, Field]) -> Upload:
    """The uploads of some clients as one, `[clients, ...]` each; of no clients if there are none."""
    if not parts:
        values = {name: torch.zeros(0, *field.shape, dtype=field.dtype) for name, field in expected.items()}
        return Upload.of_fields(torch.empty(0, dtype=torch.int64), values, expected)
    values = {name: torch.cat([part.values[name] for part in parts]) for name in expected}
    values = {name: value.coalesce() if value.is_sparse else value for name, value in values.items()}
    return Upload.of_fields(torch.cat([part.clients for part in parts]), values, expected)


def unsound(upload: Upload) -> dict[int, str]:
    """Whose numbers are not finite, or so large that no sum of them would be exact (`LARGEST`), and what they are.

    Whole numbers with bounds are within them by now.
    """
    found: dict[int, str] = {}
    for name, value in upload.values.items():
        if name in upload.bounds or not value[0:1].numel():
            continue
        largest: Tensor = value.detach().float().abs().flatten(1).amax(1).cpu()  # [clients]; NaN if there is one
        for row in (~(largest <= LARGEST)).nonzero().squeeze(1).tolist():
            why = f"has numbers up to {largest[row]:g}, where none is beyond {LARGEST:g}"
            if not largest[row].isfinite():
                why = "is not finite"
            found.setdefault(int(upload.clients[row]), f"uploaded {name} {why}")
    return found
