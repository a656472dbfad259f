"""CGFedRec: learning to collaborate via structures (arXiv 2602.21957).

Clients upload item tables; the server averages them, clusters the items and sends back one label for each. A client
pulls its own embeddings of items with the same label together, and its table is never overwritten.
"""

from __future__ import annotations

from typing import Any, Literal

from cgfedrec.errors import check, not_positive
from cgfedrec.structure.clusters import ClusterServer
from cgfedrec.table import TableMethod


class CGFedRec(TableMethod):
    """CGFedRec (arXiv 2602.21957): tables go up, cluster labels come down.

    Args:
        clusters: K, the number of item clusters; at most the number of items.
        reg: Weight of the alignment towards the labels.
        temperature: T of the alignment (`cl_t` of the published code).
        contrast: ``exact``, or against cluster ``prototypes``: an approximation that costs items x clusters.
        kmeans: ``minibatch`` or ``full``, with centroids kept from round to round.
        labels: ``clustered``, or a control: ``permuted``, sent in a random order, shows whether it is the labels that
            help; ``frozen``, never found anew once the first have gone down, whether it helps to go on looking.
        silent_rounds: After how many rounds the first labels go down.
        kwargs: The client's settings.
    """

    def __init__(
        self,
        clusters: int = 60,
        reg: float = 0.005,
        temperature: float = 0.1,
        contrast: Literal["exact", "prototypes"] = "exact",
        kmeans: Literal["minibatch", "full"] = "minibatch",
        labels: Literal["clustered", "permuted", "frozen"] = "clustered",
        silent_rounds: int = 1,
        **kwargs: Any,
    ) -> None:
        check(
            f"method.clusters: {clusters} is below 2" if clusters < 2 else None,
            None if reg == 0 else not_positive("method.reg", reg),
            not_positive("method.temperature", temperature),
            not_positive("method.silent_rounds", silent_rounds),
        )
        super().__init__(**kwargs)
        self.clusters = clusters
        self.reg = reg
        self.temperature = temperature
        self.contrast: Literal["exact", "prototypes"] = contrast
        self.kmeans: Literal["minibatch", "full"] = kmeans
        self.labels: Literal["clustered", "permuted", "frozen"] = labels
        self.silent_rounds = silent_rounds

    def client_settings(self, num_items: int) -> dict[str, Any]:
        alignment = {"reg": self.reg, "temperature": self.temperature, "contrast": self.contrast}
        return super().client_settings(num_items) | alignment

    def server(self, num_items: int, seed: int) -> ClusterServer:
        check(
            f"method.clusters: {self.clusters} is more than the {num_items} items of the data"
            if self.clusters > num_items
            else None
        )
        permute, freeze = (self.labels == control for control in ("permuted", "frozen"))
        return ClusterServer(num_items, self.dim, self.clusters, self.kmeans, permute, self.silent_rounds, seed, freeze)
