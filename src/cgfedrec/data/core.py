"""The k-core: users and items that have enough of each other, once all others are left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.data.interactions import Interactions
from cgfedrec.errors import check

ITEMS, OUTSIDE = "items with too few users", "interactions outside the k-core"
"""What a report calls what is left out, where items need users at all."""


def core(
    data: Interactions, rows: NDArray[np.bool_], fewest: int, min_users: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The largest sets of users and items in which each user has enough items, and each item enough users.

    Whoever leaves takes interactions away from others, so that they may have to leave too: this goes on until nobody
    does.

    Args:
        data: Interactions.
        rows: `[interactions]`, bool: those that count.
        fewest: Items that a user needs.
        min_users: Users that an item needs; 1 leaves out no item, though it may have lost all of its users.

    Returns:
        Who is in it, `[users]`, and what is, `[items]`, bool.
    """
    users, items = data.users[rows], data.items[rows]
    inside = np.ones(len(data.item_ids), bool)
    while True:
        here = np.bincount(users, minlength=len(data.user_ids)) >= fewest
        kept = here[users]
        if min_users > 1:
            inside = np.bincount(items[kept], minlength=len(data.item_ids)) >= min_users
            kept = kept & inside[items]
        if kept.all() or min_users <= 1:
            return here, inside
        users, items = users[kept], items[kept]


def keep_core(data: Interactions, name: str, min_interactions: int, min_users: int) -> Interactions:
    """The interactions of the core of all positive ones; in the report, what was left out.

    Args:
        data: All that was read.
        name: What to call it in messages.
        min_interactions: Positive interactions that a user needs.
        min_users: Users that an item needs.

    Raises:
        InputError: if nobody is left.
    """
    here, inside = core(data, data.positive, min_interactions, min_users)
    check(no_core(data, data.positive, here, f"{name}:", min_interactions, min_users))
    kept = data.keep_users(here)
    if min_users > 1:
        kept = data.keep_rows(here[data.users] & inside[data.items])
        kept.report |= left_out(data, data.positive, here, inside)
    kept.report["users with too few interactions"] = int((~here).sum())
    return kept


def left_out(
    data: Interactions, rows: NDArray[np.bool_], here: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> dict[str, int]:
    """How many items and interactions a core leaves out, for a report; arguments as `core` takes and returns them."""
    outside = rows & ~(here[data.users] & inside[data.items])
    return {ITEMS: int((~inside).sum()), OUTSIDE: int(outside.sum())}


def no_core(
    data: Interactions, rows: NDArray[np.bool_], here: NDArray[np.bool_], where: str, fewest: int, min_users: int
) -> str | None:
    """The problem with a core that holds nobody.

    Args:
        data: As of `core`.
        rows: As of `core`.
        here: Who is in it, `[users]`.
        where: How the message begins.
        fewest: As of `core`.
        min_users: As of `core`.
    """
    if here.any():
        return None
    most = np.bincount(data.users[rows]).max(initial=0)
    told = f"{where} no user has {fewest} interactions or more (data.min_interactions); the most that one has is {most}"
    if min_users == 1 or most < fewest:
        return told
    most = np.bincount(data.items[rows]).max(initial=0)
    return (
        f"{where} nothing is left once every user has {fewest} interactions (data.min_interactions) and every item "
        f"{min_users} users (data.min_users), of what is left; the most users that an item has is {most}"
    )
