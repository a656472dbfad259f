"""CoFedRec: co-clustering of items and clients (He et al., WWW 2024, arXiv 2411.01690).

As in CGFedRec, item tables go up, and labels of the items come down, towards which clients align theirs. In every round
the server also looks for a group: clients whose tables agree on the items of one cluster. The group's mean table comes
down in place of its clients' own; all others keep theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cgfedrec.kit.gather import GatherServer, Mailbox
from cgfedrec.kit.table import TableClient
from cgfedrec.random import Stream, bits, integers
from cgfedrec.structure.alignment import AlignedClient, AlignedMethod
from cgfedrec.structure.clusters import Clustering, ClusterServer, KMeansKind
from cgfedrec.wire.messages import Broadcast


class CoFedRecClient(AlignedClient):
    """An `AlignedClient` that starts from its group's table if there is one for it."""

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        super().receive(broadcast, round)
        if broadcast is not None and broadcast.own is not None:
            places, tables = broadcast.own.of(self.users, "table")
            self.table.data[places] = tables.to(self.table.device)


class GroupServer(GatherServer, ClusterServer):
    """Clusters the mean item table; then finds one group of clients, and averages their tables (`similar`).

    One of the round's participants and one of the clusters are drawn at random. A group's table waits for each of its
    clients until that client takes part again.

    Args:
        num_items: n.
        dim: d.
        clustering: The settings.
        seed: Of the shared start, of k-means and of the draws.
    """

    def __init__(self, num_items: int, dim: int, clustering: Clustering, seed: int) -> None:
        super().__init__(num_items, dim, clustering, seed)
        self.groups = Mailbox("table", num_items, dim)

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        """Labels for all, and for those who were in a group since they last took part its mean table."""
        broadcast = super().broadcast(users, round)
        return broadcast and replace(broadcast, own=self.groups.of(users))

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """Average, cluster, find the group; report besides what `ClusterServer` does how large the group is."""
        uploads = self.take_uploads()
        for upload in uploads:
            ClusterServer.aggregate(self, upload)
        report = super().update(users, round)
        tables = [upload.values["table"] for upload in uploads]
        used = self.labels.unique()
        one, cluster = integers(bits(self.seed, Stream.GROUPS, round, [0, 1]), [len(users), len(used)]).tolist()
        group = similar(torch.cat([table[:, self.labels == used[cluster]] for table in tables]), one)
        chosen = group.split([len(table) for table in tables])
        total = sum(table[rows].sum(0, dtype=torch.float64) for table, rows in zip(tables, chosen, strict=True))
        members = users[group.to(users.device)]
        self.groups.discard(users)  # who took part has received what waited
        self.groups.put(members, (total / group.sum()).float()[None], torch.zeros_like(members))
        return report | {"group/clients": float(group.sum())}


def similar(rows: Tensor, one: int) -> Tensor:
    """Who is in the group of client ``one``, by how its rows of some items agree with those of the others.

    The cosines of two clients' rows are summed over the items. The other clients, the most similar first, are cut at
    the elbow of these sums.

    Args:
        rows: `[clients, items, dim]`.
        one: The client to which all others are compared; always of the group.

    Returns:
        `[clients]`, bool.
    """
    rows = rows.double()
    sums = F.cosine_similarity(rows, rows[one], dim=2).sum(1)
    sums[one] = torch.inf
    order = sums.argsort(descending=True, stable=True)
    group = torch.zeros_like(sums, dtype=torch.bool)
    group[order[: 1 + before_elbow(sums[order[1:]])]] = True
    return group


def before_elbow(falling: Tensor) -> int:
    """How many of some falling values come before their elbow.

    The elbow is the value farthest from the chord, the straight line from the first value to the last. If it lies
    above the chord, it is the last one before a fall: it is counted. If it lies below, it is the first one after a
    fall: it is not counted. Where there is no elbow, among equal values or fewer than three, all are counted.

    Args:
        falling: `[values]`, float64, none above the one before it.

    >>> before_elbow(torch.tensor([9.0, 8.0, 7.0, 1.0, 0.0, 0.0, 0.0]))
    3
    """
    if len(falling) < 3:
        return len(falling)
    gap = falling - torch.linspace(
        falling[0].item(), falling[-1].item(), len(falling), dtype=falling.dtype, device=falling.device
    )
    elbow = int(gap.abs().argmax())
    if elbow == 0:
        return len(falling)
    return elbow + int(gap[elbow] > 0)


@dataclass(frozen=True, kw_only=True)
class CoFedRec(AlignedMethod):
    """CoFedRec (arXiv 2411.01690): tables go up; labels come down to all, a table of its own to one group a round.

    What the card leaves open is decided thus. The client that is drawn is itself of the group. Only clusters that have
    items are drawn. The mean table that is clustered, and the group, are of this round's participants alone.
    """

    clusters: int = 30
    """K, the number of item clusters; at most the number of items. The published 30 is for ML-100K."""
    kmeans: KMeansKind = "full"

    client_class: ClassVar[type[TableClient]] = CoFedRecClient

    def server(self, num_items: int, seed: int) -> GroupServer:
        self.check_clusters(num_items)
        return GroupServer(num_items, self.dim, Clustering(self.clusters, self.kmeans), seed)
