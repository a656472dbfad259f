"""Clients that align their items to the labels of a server: method and client."""

from __future__ import annotations

from typing import Any

from cgfedrec.errors import check, checked_with, no_count, not_between
from cgfedrec.kit.table import TableMethod
from cgfedrec.structure.clusters import KMeansKind
from cgfedrec.structure.contrast import Kind


class AlignedMethod(TableMethod):
    """A method whose server clusters the items, and whose clients align their tables to the labels.

    Args:
        clusters: K, the number of item clusters; at most the number of items.
        reg: Weight of the alignment towards the labels.
        temperature: T of the alignment (`cl_t` of the published code).
        contrast: ``exact``, or against cluster ``prototypes``: an approximation that costs items x clusters.
        kmeans: ``minibatch`` or ``full``, with centroids kept from round to round.
        kwargs: The client's settings.
    """

    def __init__(
        self,
        clusters: int,
        reg: float = 0.005,
        temperature: float = 0.1,
        contrast: Kind = "exact",
        kmeans: KMeansKind = "minibatch",
        **kwargs: Any,
    ) -> None:
        with checked_with(
            no_count("method.clusters", clusters, 2),
            not_between("method.reg", reg, 0),
            not_between("method.temperature", temperature, 1e-3, 1e6),
        ):
            super().__init__(**kwargs)
        self.clusters = clusters
        self.reg = reg
        self.temperature = temperature
        self.contrast: Kind = contrast
        self.kmeans: KMeansKind = kmeans

    def client_settings(self, num_items: int) -> dict[str, Any]:
        alignment = {"reg": self.reg, "temperature": self.temperature, "contrast": self.contrast}
        return super().client_settings(num_items) | alignment

    def check_clusters(self, num_items: int) -> None:
        """Raise `InputError` for more clusters than items."""
        check(
            f"method.clusters: {self.clusters} is more than the {num_items} items of the data"
            if self.clusters > num_items
            else None
        )
