"""Where items stand in a catalogue, and which are the best of it: what `cgfedrec.evaluation` says in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels.compiled import compiled, compiled_as_written

AT_ONCE = 32
"""Scores of which it is seen at once whether any is among the best."""


@compiled_as_written
def offer(values: NDArray[Any], items: NDArray[np.int64], score: Any, item: int) -> None:
    """Put an item in its place among the best `[k]`, if it has one. The last goes; of equal ones the lower is first."""
    rank = len(values) - 1
    if not (score > values[rank] or (score == values[rank] and item < items[rank])):  # what is no number has none
        return
    while rank > 0 and (values[rank - 1] < score or (values[rank - 1] == score and items[rank - 1] > item)):
        values[rank], items[rank] = values[rank - 1], items[rank - 1]
        rank -= 1
    values[rank], items[rank] = score, item


@compiled
def best(scores: NDArray[Any], candidates: NDArray[np.bool_], values: NDArray[Any], items: NDArray[np.int64]) -> None:
    """The best candidates of each user, best first; of equal ones the lower number first.

    Args:
        scores: `[users, items]`; what is no number, or no candidate, is not among the best.
        candidates: `[users, items]`.
        values: `[users, k]`, -inf everywhere; into it go the scores of the best.
        items: `[users, k]`; likewise their numbers.
    """
    last = values.shape[1] - 1
    for user in range(len(scores)):
        mine, open_to, found, values_found = scores[user], candidates[user], items[user], values[user]
        for first in range(0, len(mine), AT_ONCE):
            piece, open_here = mine[first : first + AT_ONCE], open_to[first : first + AT_ONCE]
            above, least = False, values_found[last]
            for place in range(len(piece)):
                above |= open_here[place] & (piece[place] > least)
            if not above:
                continue
            for place in range(len(piece)):
                if open_here[place] and piece[place] > values_found[last]:
                    offer(values_found, found, piece[place], first + place)


@compiled
def ahead(
    scores: NDArray[Any], candidates: NDArray[np.bool_], relevant: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    """How many other candidates stand before each relevant item, those with an equal score among them.

    Args:
        scores: `[users, items]`.
        candidates: `[users, items]`.
        relevant: `[users, relevant]`, -1 where a user has fewer.
        counts: `[users, relevant]`: into it go the numbers of candidates, the relevant ones left out.
    """
    for user in range(len(scores)):
        mine, open_to, items = scores[user], candidates[user], relevant[user]
        for place in range(len(items)):
            count = 0
            if items[place] >= 0:
                target = mine[items[place]]
                for item in range(len(mine)):
                    # "not below" and not "at least": what is no number compares as false, and so stands last.
                    count += open_to[item] & (not mine[item] < target)
                for item in items:
                    count -= item >= 0 and open_to[item] and not mine[item] < target
            counts[user, place] = count


@compiled
def ahead_among(
    scores: NDArray[Any], sampled: NDArray[np.int64], relevant: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    """As `ahead`, among a list of candidates in place of a mask.

    Args:
        scores: `[users, items]`.
        sampled: `[users, candidates]`, item numbers, none of them relevant.
        relevant: `[users, relevant]`, as of `ahead`.
        counts: `[users, relevant]`, likewise.
    """
    for user in range(len(scores)):
        mine = scores[user]
        for place in range(relevant.shape[1]):
            count, item = 0, relevant[user, place]
            if item >= 0:
                for candidate in sampled[user]:
                    count += not mine[candidate] < mine[item]
            counts[user, place] = count
