"""Labels: the cluster of each item, from a sketch of the items' co-occurrence."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cgfedrec.data.module import FederatedDataModule
from cgfedrec.random import Stream, bits, shared_seed
from cgfedrec.structure.clusters import clustered, merged
from cgfedrec.structure.columns import SignColumns
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.nystroem import coordinates, factor
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import Known


def labels_by(factor: Tensor, rows: Rows, discovery: Discovery, seed: int) -> Tensor:
    """The cluster of each row, `[rows]`, int64.

    Args:
        factor: F, `[rows, rank]`, float64.
        rows: The items that take part.
        discovery: Says how many clusters there are, and how small one may be.
        seed: The shared one.
    """
    clusters = min(discovery.num_clusters(rows.num_items), len(rows))
    of_k_means = int(bits(seed, Stream.CLUSTERS, 0) >> np.uint64(32))
    # Popular items count more: their co-occurrence is known better.
    weights = (rows.clients + 1).double().sqrt().numpy()
    labels, centroids = clustered(coordinates(factor).numpy(), clusters, of_k_means, weights=weights)
    return torch.from_numpy(merged(labels, centroids, discovery.least_items))


def labels_of(data: FederatedDataModule) -> Tensor:
    """The labels that CGFedCo finds in these data with its default settings, whichever method was trained on them.

    Nothing travels: this is for whoever evaluates a simulated federation, and so has everybody's data.

    Args:
        data: Set up.

    Returns:
        `[items]`, int64; -1 for an item that too few users have in training.
    """
    discovery, seed = Discovery(), shared_seed(data.seed)
    interactions = data.training_matrix()
    lengths = np.diff(interactions.indptr)  # [users]
    clients = np.diff(interactions.tocsc().indptr)  # [items]
    counts = np.stack((clients, interactions.T @ lengths), axis=1).astype(np.int64)  # as the first sum of CGFedCo
    rows = Rows.of(torch.from_numpy(counts), discovery.least_clients)
    found = torch.full((data.num_items,), -1)
    if not len(rows):
        return found
    known = Known(data.num_items, data.num_users, seed, rows=rows)
    columns = SignColumns(number=discovery.num_columns(data.num_items)).columns(known).double()  # C, [rows, columns]
    taking_part = interactions[:, rows.items.numpy()]  # X, [users, rows]
    sketch = torch.from_numpy(taking_part.T @ (taking_part @ columns.numpy()))  # X^T X C, [rows, columns]
    found[rows.items] = labels_by(factor(columns, sketch), rows, discovery, seed)
    return found
