"""Refusing: what a client looks at before it adds to a sum whose columns or candidates a server has chosen.

A server that does not do as it should can aim a sum. The column of a cluster of one item says who has that item; a list
of candidates that are all one item's says what goes with it. So a client that is asked for more than the method asks
for adds nothing. It can only look at what it was sent: that the counts are true, how the labels were found, and that
others were sent the same, it cannot tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.tallies import Known

AIMED = 16
"""An item may be a candidate of so many times as many items as it has candidates itself. With good candidates the most
popular neighbours are in up to 4.3 times as many on ML-100K, and 6.1 times on LastFM."""
MOST_PAIRS = 64
"""Candidates of an item, at most, where the settings say nothing else."""


def refusal(known: Known, discovery: Discovery) -> str | None:
    """Why clients add to no sum with such columns or candidates, if that is so.

    Args:
        known: From what has come down.
        discovery: The client's own settings.
    """
    if known.num_clients < discovery.least_clients:
        return (
            f"{known.num_clients} clients take part, and with fewer than {discovery.least_clients} "
            "(method.least_clients) a sum says too much of each"
        )
    if known.rows is None:
        return None
    number = len(known.rows)
    if known.labels is not None:
        least = min(discovery.least_items, number)
        sizes = torch.bincount(known.labels)
        small = (sizes > 0) & (sizes < least)
        if len(known.labels) != number:
            return f"{len(known.labels)} labels have come for {number} items"
        if small.any():
            cluster = int(small.nonzero()[0])
            return (
                f"cluster {cluster} has {int(sizes[cluster])} items, and the column of one with fewer than {least} "
                "(method.least_items) says too much of them"
            )
    if known.pairs is not None:
        return _not_plausible(known.pairs, known, discovery)
    return None


def _not_plausible(pairs: Tensor, known: Known, discovery: Discovery) -> str | None:
    """What is wrong with candidates `[rows, most]`, if anything is."""
    rows = known.the_rows
    there = pairs >= 0
    sizes = there.sum(1)
    if len(pairs) != len(rows) or bool((pairs >= len(rows)).any()):
        return f"candidates of {len(pairs)} items among {int(pairs.max()) + 1} have come, and there are {len(rows)}"
    most = discovery.sizes(rows)
    if rows.given:  # they were found when other numbers of clients had the items
        most = torch.full_like(sizes, discovery.most_pairs or MOST_PAIRS)
    if (sizes > most).any():
        row = int((sizes > most).nonzero()[0])
        return f"item {_item(known, row)} has {int(sizes[row])} candidates, and may have {int(most[row])}"
    if (pairs == torch.arange(len(pairs))[:, None]).any():
        row = int((pairs == torch.arange(len(pairs))[:, None]).any(1).nonzero()[0])
        return f"item {_item(known, row)} is its own candidate"
    ascending = (pairs[:, 1:] > pairs[:, :-1]) | ~there[:, 1:]
    if not ascending.all() or (there[:, 1:] & ~there[:, :-1]).any():
        return "lists of candidates are not in ascending order"
    of_others = torch.bincount(pairs[there], minlength=len(rows))
    aimed = of_others > AIMED * sizes.clamp_min(1)
    if aimed.any():
        row = int(aimed.nonzero()[0])
        return (
            f"item {_item(known, row)} is a candidate of {int(of_others[row])} others, more than {AIMED} times as many "
            f"as it has itself ({int(sizes[row])}): the candidates are aimed at it"
        )
    return None


def _item(known: Known, row: int) -> int:
    return int(known.the_rows.items[row])
