"""CGFedRec: learning to collaborate via structures (arXiv 2602.21957).

Clients upload item tables; the server averages them, clusters the items and sends back one label for each. A client
pulls its own embeddings of items with the same label together, and its table is never overwritten.
"""

from __future__ import annotations

from typing import Any, Literal

from cgfedrec.errors import checked_with, no_count
from cgfedrec.structure.alignment import AlignedMethod
from cgfedrec.structure.clusters import ClusterServer


class CGFedRec(AlignedMethod):
    """CGFedRec (arXiv 2602.21957): tables go up, cluster labels come down.

    Args:
        clusters: K, the number of item clusters; at most the number of items.
        labels: ``clustered``, or a control: ``permuted``, sent in a random order, shows whether it is the labels that
            help; ``frozen``, never found anew once the first have gone down, whether it helps to go on looking.
        silent_rounds: After how many rounds the first labels go down.
        kwargs: Settings of the alignment and of the client.
    """

    def __init__(
        self,
        clusters: int = 60,
        labels: Literal["clustered", "permuted", "frozen"] = "clustered",
        silent_rounds: int = 1,
        **kwargs: Any,
    ) -> None:
        with checked_with(no_count("method.silent_rounds", silent_rounds)):
            super().__init__(clusters, **kwargs)
        self.labels: Literal["clustered", "permuted", "frozen"] = labels
        self.silent_rounds = silent_rounds

    def server(self, num_items: int, seed: int) -> ClusterServer:
        self.check_clusters(num_items)
        permute, freeze = (self.labels == control for control in ("permuted", "frozen"))
        return ClusterServer(num_items, self.dim, self.clusters, self.kmeans, permute, self.silent_rounds, seed, freeze)
