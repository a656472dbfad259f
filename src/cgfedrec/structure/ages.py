"""Ages of a history in buckets, and questions about it: which item came next, among others drawn at random."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from cgfedrec.data.histories import History
from cgfedrec.random import Stream, bits
from cgfedrec.structure.discover import CELLS

BUCKETS = 8
"""Of ages: 0, 1, 2-3, 4-7, and so on; the last one is open."""
QUESTIONS = 8
"""How many a client asks itself at most, of the newest quarter of its items."""
SHARE = 4
"""Of how many of a client's items one is asked for."""
OTHERS = 200
"""Items drawn against the one that came next."""
TRAIN_ROUNDS = 8
STEPS = 5
"""That a client takes in a round of training."""
STEP_SIZE = 1.0
"""Of Adam, whose steps do not depend on how large the weights of a data set are."""
START = 16.0
"""Of what is trained: what an item of age 0 counts at first. In other buckets it is this times 2^(-bucket / 2)."""


class Questions(NamedTuple):
    """What cohorts train a reading on."""

    features: Tensor
    """`[clients, QUESTIONS, 1 + OTHERS, BUCKETS]`, float32: of the item that came next, then of others, the summed
    weights from those items that were there before it, by the bucket of their age at that time."""
    items: Tensor
    """`[clients, QUESTIONS, 1 + OTHERS]`, int64: which items these are."""
    open: Tensor
    """`[clients, QUESTIONS, 1 + OTHERS]`, bool: which may be the answer. Items drawn that a client has are not."""
    weights: Tensor
    """`[clients, QUESTIONS]`, float32: those of a client sum to 1. A client of too few items asks nothing."""


def bucket(ages: Tensor) -> Tensor:
    """The bucket of each age, `[...]`, int64.

    >>> bucket(torch.tensor([0, 1, 2, 3, 4, 1000]))
    tensor([0, 1, 2, 2, 3, 7])
    """
    edges = 2 ** torch.arange(BUCKETS - 1)
    return torch.bucketize(ages, edges, right=True)


def questions(history: History, users: Tensor, weights: csr_array, seed: int, round: int) -> Questions:
    """Ask for the newest of clients' own items, by what is older than each.

    Args:
        history: Their training items.
        users: `[clients]`, int64: who they are.
        weights: `[items, items]`: row j holds the weights of an owned item j for each target.
        seed: The private one, from which others are drawn.
        round: From 1. Others are drawn anew in each.
    """
    num_items = weights.shape[1]
    clients = len(users)
    places = torch.arange(QUESTIONS)
    asked = (history.lengths // SHARE).clamp_max(QUESTIONS)
    valid = places < asked[:, None]  # [clients, QUESTIONS]
    whose, which, _ = history.entries()
    own = torch.zeros(clients, num_items, dtype=torch.bool)
    own[whose, which] = True

    drawn = bits(seed, Stream.READING, users.numpy()[:, None, None], round, places.numpy()[:, None], np.arange(OTHERS))
    others = torch.from_numpy((drawn % np.uint64(num_items)).astype(np.int64))
    longest = history.items.shape[1]
    answers = torch.nn.functional.pad(history.items, (0, max(0, QUESTIONS - longest)))[:, :QUESTIONS].clamp_min(0)
    items = torch.cat((answers[..., None], others), dim=2)  # [clients, QUESTIONS, 1 + OTHERS]
    open_ = ~own.gather(1, items.flatten(1)).view_as(items)
    open_[..., 0] = True

    features = torch.zeros(*items.shape, BUCKETS)
    block = max(1, CELLS // (BUCKETS * num_items))
    for place in range(int(asked.max())):
        for start in range(0, clients, block):
            part = slice(start, start + block)
            scores = _by_bucket(History(*(value[part] for value in history)), place, weights)  # [block, BUCKETS, items]
            chosen = items[part, place, None].expand(-1, BUCKETS, -1)
            features[part, place] = scores.gather(2, chosen).mT
    return Questions(features, items, open_, valid / asked.clamp_min(1)[:, None])


def _by_bucket(history: History, place: int, weights: csr_array) -> Tensor:
    """Summed weights from what is older than each client's item at a place, `[clients, BUCKETS, items]`."""
    clients = len(history.items)
    older = History(*(part[:, place + 1 :] for part in history))
    whose, which, ages = older.entries()
    # Ages are 0 throughout where there are no times.
    since = (ages - history.ages[whose, place] - 1).clamp_min(0)
    rows = whose * BUCKETS + bucket(since)
    ones = torch.ones(len(rows)).numpy()
    table = csr_array((ones, (rows.numpy(), which.numpy())), shape=(clients * BUCKETS, weights.shape[0]))
    return torch.from_numpy((table @ weights).toarray()).view(clients, BUCKETS, -1)
