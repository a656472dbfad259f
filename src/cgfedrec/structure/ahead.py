"""What sums will take that are counted one after another, before any of them has been: by phase, at most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cgfedrec.data.module import FederatedDataModule
from cgfedrec.kit.sums import SumsInTurn
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.discovery import TRAIN
from cgfedrec.structure.judging import judgement
from cgfedrec.structure.private import CHOOSE
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import Known
from cgfedrec.wire.codec import header
from cgfedrec.wire.sums import whole_sum
from cgfedrec.wire.values import Field

AT_ONCE = 1024
"""Clients that are counted together."""


class Phase(NamedTuple):
    """One of the sums."""

    name: str
    up: int
    """Bytes that a client sends for it, at most."""
    rounds: int


def phases(server: SumsInTurn, first: Tensor | None, participants: int) -> Iterator[Phase]:
    """The sums to come, in order.

    How wide numbers are follows from the first sum, which everybody will know.
    Labels and candidates are not known yet: there are as many as can be, and candidates are what the most have.

    Args:
        server: Who has counted nothing yet.
        first: As `first_of` has it, `[items, columns]`.
        participants: How many clients take part in a round.
    """
    fields: list[Field | None]
    if isinstance(server, SumsServer):
        assert first is not None
        known = _known(server, first)
        fields = [_field(server, known, place) for place in range(len(server.timeline))]
    else:
        fields = [server.field(name) for name in server.sums]
    rounds = -(-int(server.enrolled.sum()) // participants)
    for name, field in zip(server.sums, fields, strict=True):
        nbytes = 0 if field is None else _nbytes(server.wire.travelling({name: field}))
        yield Phase(name, nbytes, 1 if name == TRAIN else rounds)


def _field(server: SumsServer, known: Known, place: int) -> Field | None:
    step = server.timeline[place]
    if step.phase == CHOOSE:
        return judgement(len(server.structure.readings), server.discovery, server.known.num_clients)
    if step.phase == TRAIN:
        return server.structure.average(known)
    assert step.tally is not None
    return step.tally.field(known)


def first_of(server: SumsInTurn, data: FederatedDataModule) -> Tensor | None:
    """The first sum over all clients, `[items, columns]`, int64, added up from the data; none where sums are others.

    Args:
        server: Who has counted nothing yet.
        data: Of all clients.
    """
    if not isinstance(server, SumsServer):
        return None
    first, known = server.tallies[0], _unknown(server)
    counts = torch.zeros(known.num_items, first.bounds(known).shape[1], dtype=torch.int64)
    for users in server.enrolled.nonzero().squeeze(1).split(AT_ONCE):
        counts.add_(whole_sum(first.of(data.histories(users), users, known, 0)))  # which may be sparse
    return counts


def _unknown(server: SumsServer) -> Known:
    """What is known before anything is counted."""
    return Known(server.num_items, int(server.enrolled.sum()), server.seed)


def _known(server: SumsServer, counts: Tensor) -> Known:
    """What will be known at most, by the first sum, `[items, columns]`."""
    first, discovery, known = server.tallies[0], server.discovery, _unknown(server)
    rows = Rows.of(server.first_sum(counts), server.least, first.unit)
    server.check_rows(len(rows))
    sizes, places = discovery.sizes(rows), torch.arange(len(rows))
    # Rows are in the order of how many have them: the first ones bound all others.
    pairs = torch.arange(int(sizes.max())).expand(len(rows), -1)
    return replace(
        known,
        rows=rows,
        labels=places % discovery.num_clusters(known.num_items),
        pairs=pairs.masked_fill(pairs >= sizes[:, None], -1),
        directions=torch.zeros(len(rows), discovery.num_clusters(known.num_items)),
    )


def _nbytes(fields: Mapping[str, Field]) -> int:
    """Bytes of a message of dense fields, or whole numbers."""
    nbytes = 1
    for name, field in fields.items():
        payload = field.bounds.nbytes if field.bounds else torch.Size(field.shape).numel() * field.dtype.itemsize
        nbytes += len(header(name, field)) + payload
    return nbytes
