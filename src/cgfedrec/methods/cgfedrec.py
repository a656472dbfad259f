"""CGFedRec: learning to collaborate via structures (arXiv 2602.21957).

Clients upload item tables. The server averages them, clusters the items, and sends back one label for each item. A
client pulls its own embeddings of items with one label together. Its table is never overwritten.

The client is `AlignedClient`, the server `ClusterServer`: CoFedRec builds on both, and so they stand in `structure`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cgfedrec.errors import no_count
from cgfedrec.kit.robust import Aggregation, Robust, RobustMethod
from cgfedrec.server import Server
from cgfedrec.structure.alignment import AlignedMethod
from cgfedrec.structure.clusters import Clustering, ClusterServer, LabelsKind


class RobustClusterServer(Robust, ClusterServer):
    """Clusters the items of a table that is robust, in place of the mean one."""


@dataclass(frozen=True, kw_only=True)
class CGFedRec(AlignedMethod, RobustMethod):
    """CGFedRec (arXiv 2602.21957): tables go up, cluster labels come down."""

    clusters: int = 60
    labels: LabelsKind = "clustered"
    """``clustered``, or a control: ``permuted``, sent in a random order, shows whether it is the labels that help;
    ``frozen``, never found anew once the first have gone down, whether it helps to go on looking."""
    silent_rounds: int = 1
    """After how many rounds the first labels go down."""
    aggregation: Aggregation = "mean"

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.silent_rounds", self.silent_rounds)
        yield from super().problems()

    def server(self, num_items: int, seed: int) -> Server:
        self.check_clusters(num_items)
        clustering = Clustering(self.clusters, self.kmeans, self.labels, self.silent_rounds)
        return self.aggregating(ClusterServer, RobustClusterServer, num_items, self.dim, clustering, seed)
