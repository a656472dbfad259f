"""What nodes answer, read and checked: it may come from anyone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cgfedrec.deploy.parcels import Parcel, unpack_uploads
from cgfedrec.evaluation.metrics import METRICS
from cgfedrec.simulation.together import Told
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.sums import GRID
from cgfedrec.wire.values import Field


def trained(
    asked: Tensor, reply: Parcel, expected: Mapping[str, Field], reports: int, refusing: bool
) -> tuple[Upload, Told]:
    """What a node has sent for clients `[clients]`, and tells of them.

    Args:
        asked: `[clients]`, whose it is to be.
        reply: From anyone.
        expected: The fields of one client's message as it travels.
        reports: How many numbers clients tell of their training beside the loss.
        refusing: Whether single clients may be left out whose messages cannot be read.

    Raises:
        ValueError: if it is anything else.
    """
    users = reply.wholes("users")
    if not users.sort().values.equal(asked.sort().values):
        raise ValueError("it is not of the clients who were asked")
    refused: dict[int, str] = {}
    upload = unpack_uploads(reply, "uploads", expected, refused if refusing else None, asked)
    if expected and {*upload.clients.tolist(), *refused} != set(users.tolist()):
        raise ValueError("it has not one upload of each client who was asked")
    up, down = reply.wholes("bytes").tolist()
    means = reply.head.get("means")
    if not isinstance(means, list) or not all(type(mean) is float and math.isfinite(mean) for mean in means):
        raise ValueError("means are no numbers")
    if len(means) not in (0, 1 + reports):
        raise ValueError(f"{len(means)} means are told, and not those of the loss and of {reports} reports")
    rows = torch.tensor(means).expand(len(users), -1) if means else torch.empty(len(users), 0)
    return upload, without(Told(users, up, down, rows), refused)


def without(told: Told, refused: Mapping[int, str]) -> Told:
    """What is told of those clients `[clients]` who were not refused; and of the others why they were."""
    there = ~torch.isin(told.users, torch.tensor(list(refused), dtype=torch.int64))
    return told._replace(users=told.users[there], means=told.means[there], refused={**told.refused, **refused})


def evaluated(clients: int, reply: Parcel, cutoffs: int) -> tuple[int, int, dict[str, Tensor]]:
    """What a node tells of an evaluation: how many users, bytes, and each metric's sums, `[cut-offs]`, by name.

    Args:
        clients: How many live there.
        reply: From anyone.
        cutoffs: How many there are of each metric.

    Raises:
        ValueError: if it is anything else.
    """
    number, nbytes, told = reply.whole("users"), reply.whole("bytes_scoring"), reply.head.get("sums", {})
    if not number:
        return 0, nbytes, {}
    if number > clients or not isinstance(told, dict):
        raise ValueError(f"it tells of {number} of {clients} clients, or has no sums")
    sums = {name: Parcel(told, {}).wholes(name, number * int(GRID) + 1) for name in METRICS}
    if any(len(of) != cutoffs for of in sums.values()):
        raise ValueError(f"there is not one sum for each of {cutoffs} cut-offs")
    return number, nbytes, sums
