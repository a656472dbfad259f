"""CoFedRec: co-clustering of items and clients (He et al., WWW 2024, arXiv 2411.01690).

As in CGFedRec, item tables go up and labels of the items come down, and clients align their tables to the labels. In
every round the server also looks for a group: clients whose tables agree on the items of one cluster. The group's mean
table replaces those of its clients. All others keep theirs.
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
    """An `AlignedClient` that goes on from its group's table if one waits for it."""

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        super().receive(broadcast, round)
        if broadcast is not None and broadcast.own is not None:
            places, tables = broadcast.own.of(self.users, "table")
            self.table.data[places] = tables.to(self.table.device)


class GroupServer(GatherServer, ClusterServer):
    """Clusters the mean item table. Then finds one group of clients (`similar`) and averages their tables.

    The group is looked for around one of the round's participants and on one of the clusters, both drawn at random. Its
    table waits for each of its clients until that client takes part again.

    Args:
        num_items: n.
        dim: d.
        clustering: The settings.
        seed: The shared one, of k-means and of the draws too.
    """

    def __init__(self, num_items: int, dim: int, clustering: Clustering, seed: int) -> None:
        super().__init__(num_items, dim, clustering, seed)
        self.groups = Mailbox("table", num_items, dim)

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        """Labels for all. Besides, a group's mean table for those who were in one since they last took part."""
        broadcast = super().broadcast(users, round)
        return broadcast and replace(broadcast, own=self.groups.of(users))

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """Average, cluster, and find the group. Report also how large the group is."""
        # 1. The mean of all tables and its clusters, as if the uploads had been added up one after another.
        uploads = self.take_uploads()
        for piece in uploads.pieces:
            ClusterServer.aggregate(self, piece)
        report = super().update(users, round)

        # 2. One client and one cluster. Only clusters that have items are drawn.
        used = self.labels.unique()
        one, cluster = integers(bits(self.seed, Stream.GROUPS, round, [0, 1]), [len(users), len(used)]).tolist()

        # 3. Who agrees with that client on the items of that cluster, `[participants]`.
        group = similar(uploads.of("table", self.labels == used[cluster]), one)

        # 4. The group's mean table, some items at a time: all tables at once would take as much memory again.
        members = users[group.to(users.device)]
        parts = [tables[group].mean(0, dtype=torch.float64) for _, tables in uploads.slices("table")]
        self.groups.discard(users)  # who took part has received what waited
        # One row, which waits for all members: place 0 for each.
        self.groups.put(members, torch.cat(parts).float()[None], torch.zeros_like(members))
        return report | {"group/clients": float(group.sum())}


def similar(rows: Tensor, one: int) -> Tensor:
    """Who is in the group of client ``one``: those whose rows of some items agree with its own.

    The cosines of two clients' rows are summed over the items. The other clients are sorted, the most similar first.
    Those before the elbow of these sums are in the group.

    Args:
        rows: `[clients, items, dim]`.
        one: The client to which all others are compared. It is always in the group.

    Returns:
        `[clients]`, bool.
    """
    rows = rows.double()
    sums = F.cosine_similarity(rows, rows[one], dim=2).sum(1)  # [clients]
    sums[one] = torch.inf  # it comes first, whatever rounding made of its cosines with itself
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
    # How far each value lies above the chord. Its distance from the chord is that times one number for all values.
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

    Decided here: the client that is drawn is itself in the group. Only clusters that have items are drawn. The mean
    table that is clustered is that of this round's participants alone, and only they can be in the group.
    """

    clusters: int = 30
    """K, the number of item clusters; at most the number of items. The published 30 is for ML-100K."""
    kmeans: KMeansKind = "full"

    client_class: ClassVar[type[TableClient]] = CoFedRecClient

    def server(self, num_items: int, seed: int) -> GroupServer:
        self.check_clusters(num_items)
        return GroupServer(num_items, self.dim, Clustering(self.clusters, self.kmeans), seed)
