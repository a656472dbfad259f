"""CoFedRec: co-clustering of items and clients (He et al., WWW 2024, arXiv 2411.01690).

As in CGFedRec, item tables go up, and labels of the items come down, towards which clients align theirs. In every round
the server also looks for a group: clients whose tables agree on the items of one cluster. The group's mean table comes
down in place of its clients' own; all others keep theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import Fabric
from torch import Tensor

from cgfedrec.errors import check, not_positive
from cgfedrec.messages import Broadcast, Upload
from cgfedrec.random import Stream, bits, integers
from cgfedrec.structure.clusters import ClusterServer
from cgfedrec.table import TableClient, TableMethod


class CoFedRecClient(TableClient):
    """A `TableClient` that aligns to the labels, and starts from its group's table if there is one for it."""

    def receive(self, broadcast: Broadcast | None) -> None:
        super().receive(broadcast)
        if broadcast is not None and broadcast.own is not None:
            rows, places = (self.users[:, None] == broadcast.own.clients).nonzero(as_tuple=True)
            self.table.data[rows] = broadcast.own.values["table"].to(self.table.device)[places]


class GroupServer(ClusterServer):
    """Clusters the mean item table; then finds one group of clients, and averages their tables (`similar`).

    One of the round's participants and one of the clusters are drawn at random. A group's table waits for each of its
    clients until that client takes part again.

    Args:
        num_items: n.
        dim: d.
        clusters: K, at most n.
        kmeans: ``minibatch`` or ``full``.
        seed: Of the shared start, of k-means and of the draws.
    """

    sees_single_uploads = True
    grows = ("members", "places", "tables")
    members: Tensor
    places: Tensor
    tables: Tensor

    def __init__(
        self, num_items: int, dim: int, clusters: int, kmeans: Literal["minibatch", "full"], seed: int
    ) -> None:
        super().__init__(num_items, dim, clusters, kmeans, seed=seed)
        self.uploads: list[Upload] = []
        self.register_buffer("members", torch.empty(0, dtype=torch.int64))
        self.register_buffer("places", torch.empty(0, dtype=torch.int64))
        self.register_buffer("tables", torch.empty(0, num_items, dim))

    def broadcast(self, users: Tensor) -> Broadcast | None:
        """Labels for all, and for those who were in a group since they last took part its mean table."""
        broadcast = super().broadcast(users)
        rows, places = (users.to(self.members.device)[:, None] == self.members).nonzero(as_tuple=True)
        if broadcast is None or not len(rows):
            return broadcast
        return replace(broadcast, own=Upload(users[rows.cpu()], {"table": self.tables[self.places[places]]}))

    def reduce(self, upload: Upload) -> Upload:
        return upload

    def aggregate(self, upload: Upload) -> None:
        super().aggregate(super().reduce(upload))
        self.uploads.append(upload)

    def update(self, fabric: Fabric, round: int) -> dict[str, float]:
        """Average, cluster, find the group; report besides what `ClusterServer` does how large the group is."""
        report = super().update(fabric, round)
        tables = [upload.values["table"] for upload in self.uploads]
        users = torch.cat([upload.clients for upload in self.uploads]).to(self.members.device)
        used = self.labels.unique()
        one, cluster = integers(bits(self.seed, Stream.GROUPS, round, [0, 1]), [len(users), len(used)]).tolist()
        group = similar(torch.cat([table[:, self.labels == used[cluster]] for table in tables]), one)
        chosen = group.split([len(table) for table in tables])
        total = sum(table[rows].sum(0, dtype=torch.float64) for table, rows in zip(tables, chosen, strict=True))
        self._hand_out(users, users[group], (total / group.sum()).float())
        self.uploads = []
        return report | {"group/clients": float(group.sum())}

    def _hand_out(self, participants: Tensor, group: Tensor, table: Tensor) -> None:
        """Let ``table`` `[items, dim]` wait for the ``group``; this round's participants have received all before."""
        waiting = ~torch.isin(self.members, participants)
        self.members = torch.cat((self.members[waiting], group))
        places = torch.cat((self.places[waiting], torch.full_like(group, len(self.tables))))
        needed, self.places = places.unique(return_inverse=True)
        self.tables = torch.cat((self.tables, table[None]))[needed]


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
    """How many of some falling values come before the elbow: the one farthest from the chord from first to last.

    Above the chord the elbow is the last before a fall, and counts; below it is the first after one, and does not.
    Values without an elbow, equal ones or fewer than three, all count.
    """
    if len(falling) < 3:
        return len(falling)
    gap = falling - torch.linspace(
        falling[0].item(), falling[-1].item(), len(falling), dtype=falling.dtype, device=falling.device
    )
    elbow = int(gap.abs().argmax())
    return elbow + int(gap[elbow] > 0) if elbow else len(falling)


class CoFedRec(TableMethod):
    """CoFedRec (arXiv 2411.01690): tables go up; labels come down to all, a table of its own to one group a round.

    What the card leaves open is decided thus. The client that is drawn is itself of the group. Only clusters that have
    items are drawn. The mean table that is clustered, and the group, are of this round's participants alone.

    Args:
        clusters: K, the number of item clusters; at most the number of items. The published 30 is for ML-100K.
        reg: Weight of the alignment towards the labels.
        temperature: T of the alignment.
        contrast: ``exact``, or against cluster ``prototypes``: an approximation that costs items x clusters.
        kmeans: ``minibatch`` or ``full``, with centroids kept from round to round.
        kwargs: The client's settings.
    """

    client_class = CoFedRecClient

    def __init__(
        self,
        clusters: int = 30,
        reg: float = 0.005,
        temperature: float = 0.1,
        contrast: Literal["exact", "prototypes"] = "exact",
        kmeans: Literal["minibatch", "full"] = "full",
        **kwargs: Any,
    ) -> None:
        check(
            f"method.clusters: {clusters} is below 2" if clusters < 2 else None,
            None if reg == 0 else not_positive("method.reg", reg),
            not_positive("method.temperature", temperature),
        )
        super().__init__(**kwargs)
        self.clusters = clusters
        self.reg = reg
        self.temperature = temperature
        self.contrast: Literal["exact", "prototypes"] = contrast
        self.kmeans: Literal["minibatch", "full"] = kmeans

    def client_settings(self, num_items: int) -> dict[str, Any]:
        alignment = {"reg": self.reg, "temperature": self.temperature, "contrast": self.contrast}
        return super().client_settings(num_items) | alignment

    def server(self, num_items: int, seed: int) -> GroupServer:
        check(
            f"method.clusters: {self.clusters} is more than the {num_items} items of the data"
            if self.clusters > num_items
            else None
        )
        return GroupServer(num_items, self.dim, self.clusters, self.kmeans, seed)
