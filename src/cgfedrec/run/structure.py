"""What a server has discovered, as far as a page can show it: where items lie, their clusters, and their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop
from cgfedrec.pages.map import item_map
from cgfedrec.pages.plot import Line, chart
from cgfedrec.run.export import reader_of
from cgfedrec.serving.neighbours import NeighbourReader
from cgfedrec.structure.clusters import ClusterServer
from cgfedrec.structure.collect import SumsServer

DRAWN = 1500
"""Items on a map: those that most users have."""
CLUSTERS, ITEMS = 8, 5
"""Clusters that are listed, and items of each."""
OWNED, NEAREST = 8, 4
"""Items whose neighbours are listed, and how many of each."""
AGES = 64
"""Ages of an own item for which it is drawn what it counts."""


class Shown(NamedTuple):
    """Of what was discovered."""

    map: Markup
    caption: str
    clusters: list[tuple[int, str]]
    """The size of each large cluster, and the items in it that most users have."""
    neighbours: list[tuple[str, str]]
    """An item, and those that are recommended most to who has it, with their weights."""
    theta: Markup | None
    """What an own item counts, by its age; where clients read neighbours."""
    reading: str
    """How they read them, in a word or two."""


def shown(loop: FederatedLoop) -> Shown | None:
    """What there is to show after a run; ``None`` for a server that has discovered nothing of items.

    Args:
        loop: It has come to its end.
    """
    found = _places(loop)
    if found is None:
        return None
    items, places, labels = found
    holders = np.bincount(loop.data.training_matrix().indices, minlength=loop.data.num_items)[items.numpy()]
    names = named(loop.data, items.tolist())
    sizes = torch.bincount(labels)
    order = sizes.argsort(descending=True, stable=True)
    by_size = torch.empty_like(order)
    by_size[order] = torch.arange(len(order))
    drawn = np.argsort(-holders, kind="stable")[:DRAWN]
    flat = _flat(places.double().cpu().numpy())
    picture = item_map(
        flat[drawn],
        by_size[labels[drawn]].tolist(),
        [f"{names[place]}: cluster {int(by_size[labels[place]]) + 1}, {holders[place]:,} users" for place in drawn],
        np.sqrt(holders[drawn] / max(1, holders.max())).tolist(),
        "items by their place in what the server discovered",
    )
    caption = (
        f"{len(drawn):,} items, by the two directions in which what the server discovered varies most; larger where "
        "more users have an item; in colour the largest clusters. Point at one to see which it is."
    )
    listed = []
    for cluster in order[:CLUSTERS]:
        members = (labels == cluster).nonzero().squeeze(1).numpy()
        most = members[np.argsort(-holders[members], kind="stable")][:ITEMS]
        listed.append((len(members), "; ".join(names[place] for place in most)))
    reader = _reader(loop)
    if reader is None:
        return Shown(Markup(picture), caption, listed, [], None, "")
    near = _neighbours(loop.data, reader, items[np.argsort(-holders, kind="stable")])
    return Shown(Markup(picture), caption, listed, near, _theta(reader), reader.reading)


def named(data: FederatedDataModule, items: Sequence[int]) -> list[str]:
    """Items, by their numbers, as people know them: by their title where it is known, else by their id."""
    return [data.titles.get(one, one) for one in map(str, data.item_ids[items])]


def _places(loop: FederatedLoop) -> tuple[Tensor, Tensor, Tensor] | None:
    """Items `[rows]`, where they lie `[rows, dim]`, and their clusters `[rows]`."""
    server = loop.server
    if isinstance(server, SumsServer) and server.labels.numel() and server.discovery.second != "random_labels":
        if not server.sketched:  # labels of the run before, and nothing by which to place what has them
            return None
        return server.known.the_rows.items, server.coordinates(), server.labels.cpu()
    if isinstance(server, ClusterServer) and bool((server.labels >= 0).all()):
        return torch.arange(loop.data.num_items), server.mean("table"), server.labels.cpu()
    return None


def _flat(places: np.ndarray) -> np.ndarray:
    """Principal components, `[rows, 2]`."""
    centred = places - places.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    components = np.zeros((len(places), 2))
    number = min(2, len(sizes))
    components[:, :number] = left[:, :number] * sizes[:number]
    return components


def _reader(loop: FederatedLoop) -> NeighbourReader | None:
    """What clients read neighbours by, if they do."""
    if loop.clients.no_newcomers() is not None:
        return None
    try:
        reader = reader_of(loop)
    except InputError:  # stopped before there were any
        return None
    return reader if isinstance(reader, NeighbourReader) else None


def _theta(reader: NeighbourReader) -> Markup:
    """A chart of what an own item counts, by its age."""
    ages = np.arange(AGES)
    line = Line("theta", 0, ages.tolist(), reader.counts(ages).tolist())
    title = "what an own item counts by its age"
    return Markup(chart([line], "items of the history that are newer", "what an own item counts", title))


def _neighbours(data: FederatedDataModule, reader: NeighbourReader, items: Tensor) -> list[tuple[str, str]]:
    """The neighbours of the first of ``items`` `[rows]` that have any."""
    listed: list[tuple[str, str]] = []
    for item in items[: 4 * OWNED].tolist():
        part = slice(reader.starts[item], reader.starts[item + 1])
        order = np.argsort(-reader.weights[part], kind="stable")[:NEAREST]
        if len(order) and len(listed) < OWNED:
            own, *near = named(data, [item, *reader.targets[part][order].tolist()])
            weighed = zip(near, reader.weights[part][order], strict=True)
            listed.append((own, "; ".join(f"{one} ({weight:.2f})" for one, weight in weighed)))
    return listed
