"""The server of CGFedRec: clusters the mean item table and broadcasts a label for each item."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from cgfedrec.kit.means import MeanServer
from cgfedrec.random import Stream, bits
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.values import Field, Labels

KMeansKind = Literal["minibatch", "full"]
LabelsKind = Literal["clustered", "permuted", "frozen"]
BATCH = 1024
"""Items in a batch of mini-batch k-means, or as many as there are clusters if these are more."""


@dataclass(frozen=True)
class Clustering:
    """How items are clustered, and when and in which order their labels go down."""

    clusters: int
    """K, at most the number of items."""
    kmeans: KMeansKind = "minibatch"
    """``minibatch`` or ``full``."""
    labels: LabelsKind = "clustered"
    """``clustered``, or a control: ``permuted``, sent in an order drawn at random, tells whether it is the labels that
    help; ``frozen``, the first that go down kept for ever, whether finding them anew does."""
    silent_rounds: int = 1
    """After how many rounds the first labels go down. Clients that align make the labels come true, so labels found too
    early stay."""


class ClusterServer(MeanServer):
    """Keeps the mean item table, runs k-means on its rows, and broadcasts the labels.

    Centroids stay from round to round, and so labels stay comparable. A fit from scratch would rename most of them.

    Args:
        num_items: n.
        dim: d.
        clustering: The settings.
        seed: The shared one, of k-means too.
    """

    centroids: Tensor
    labels: Tensor

    def __init__(self, num_items: int, dim: int, clustering: Clustering, seed: int) -> None:
        super().__init__({"table": Field((num_items, dim))}, seed)
        self.clustering = clustering
        self.alike_from = clustering.silent_rounds + 1
        self.register_buffer("centroids", torch.zeros(clustering.clusters, dim))
        self.register_buffer("labels", torch.full((num_items,), -1))

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        """The label of every item, ceil(log2 K) bits each; nothing in the silent rounds."""
        if round <= self.clustering.silent_rounds:
            return None
        labels = self.labels
        if self.clustering.labels == "permuted":
            # One order for all rounds: the labels stay as comparable as before, and say nothing of the items.
            order = bits(self.seed, Stream.PERMUTATION, np.arange(len(labels))).argsort()
            labels = labels[torch.from_numpy(order).to(labels.device)]
        return Broadcast({"labels": Labels(labels, self.clustering.clusters)})

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """Average and cluster. Report how many clusters are in use, and which share of the labels has changed."""
        report = super().update(users, round)
        before = self.labels.clone()
        # Frozen labels are those that go down first: found at the end of the last silent round.
        if not (self.clustering.labels == "frozen" and round > self.clustering.silent_rounds):
            self._cluster(round)
        report["clusters/used"] = float(self.labels.unique().numel())
        if before[0] >= 0:  # -1 until the first labels are found
            report["clusters/changed"] = (before != self.labels).double().mean().item()
        return report

    def histograms(self) -> dict[str, Tensor]:
        """How many items each cluster has, `[clusters]`."""
        return {"clusters/sizes": torch.bincount(self.labels, minlength=self.clustering.clusters)}

    def _cluster(self, round: int) -> None:
        init: str | np.ndarray = "k-means++"
        if self.labels[0] >= 0:  # there are centroids to go on from
            init = self.centroids.cpu().numpy()
        seed = int(bits(self.seed, Stream.CLUSTERS, round) >> np.uint64(32))
        rows = self.mean("table").cpu().numpy()  # [items, dim]
        labels, centroids = clustered(rows, self.clustering.clusters, seed, self.clustering.kmeans, init)
        self.centroids.copy_(torch.from_numpy(centroids))
        self.labels.copy_(torch.from_numpy(labels))


def clustered(
    rows: np.ndarray,
    clusters: int,
    seed: int,
    kind: KMeansKind = "minibatch",
    init: str | np.ndarray = "k-means++",
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run k-means.

    Args:
        rows: `[items, dim]`, of numbers.
        clusters: K, at most the number of items.
        seed: Of k-means, below 2^32.
        kind: Which k-means.
        init: Where centroids begin, `[clusters, dim]`, or how to choose that.
        weights: `[items]`: how much each item counts; by default all alike.

    Returns:
        Labels `[items]`, int64, and centroids `[clusters, dim]`. Fewer distinct rows than clusters leave some empty.
    """
    # Imported here: a node of a network starts a process for each message, and has nothing to cluster.
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    shared = {"n_clusters": clusters, "init": init, "n_init": 1, "random_state": seed}
    if kind == "full":
        model = KMeans(**shared)
    else:
        model = MiniBatchKMeans(batch_size=max(BATCH, clusters), **shared)
    # One thread: sums in a fixed order, so that a resumed run finds the same labels.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer distinct rows than clusters
        labels = model.fit_predict(rows, sample_weight=weights)
    return labels.astype(np.int64), model.cluster_centers_


def merged(labels: np.ndarray, centroids: np.ndarray, smallest: int) -> np.ndarray:
    """Merge clusters of too few items with their nearest, the smallest first, and number those that are left anew.

    Args:
        labels: `[items]`, int64.
        centroids: `[clusters, dim]`.
        smallest: How many items a cluster needs.

    Returns:
        `[items]`, int64, from 0 without gaps.

    >>> merged(np.array([0, 0, 2, 1, 1]), np.array([[0.0], [5.0], [4.0]]), smallest=2)
    array([0, 0, 1, 1, 1])
    """
    labels = labels.copy()
    while True:
        used, sizes = np.unique(labels, return_counts=True)
        small = sizes.argmin()
        if sizes[small] >= smallest or len(used) == 1:
            break
        others = np.delete(used, small)
        apart = np.square(centroids[others] - centroids[used[small]]).sum(1)
        labels[labels == used[small]] = others[apart.argmin()]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
