"""Which users can take part, and whether what remains can be drawn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.data.core import keep_core
from cgfedrec.data.interactions import Interactions
from cgfedrec.data.lists import Lists
from cgfedrec.data.split import Part
from cgfedrec.errors import check
from cgfedrec.protocol import Protocol


def drop_users(
    data: Interactions,
    name: str,
    split: Callable[[Interactions], NDArray[np.int8]],
    min_interactions: int,
    min_users: int,
    negatives: int,
    leaks: bool,
) -> tuple[Interactions, NDArray[np.int8]]:
    """Leave out users who cannot take part, and items that too few users have; count them in the report.

    These are users with too few positive interactions, with none to train on, or with too few items left as negatives.
    The core (`cgfedrec.data.core`) is found before the split: users who are left out after it count for their items.

    Args:
        data: All that was read.
        name: What to call it in messages.
        split: Gives the `Part` of each positive interaction.
        min_interactions: Users with fewer positive ones are left out.
        min_users: Items that fewer users have are left out.
        negatives: How many different items a positive needs beside it.
        leaks: Whether negatives avoid a user's held-out items too.

    Returns:
        What is kept, and the part of each positive interaction in it, `[positives]`.

    Raises:
        InputError: if nobody is left.
    """
    kept = keep_core(data, name, min_interactions, min_users)
    # The split comes after the first drop, since a cut in time depends on who is there.
    part = split(kept)
    owners = kept.users[kept.positive]
    training = owners[part == Part.TRAIN]
    avoided = owners if leaks else training
    num_users, num_items = len(kept.user_ids), len(kept.item_ids)
    roomy = num_items - np.bincount(avoided, minlength=num_users) >= negatives  # [users]
    trained = np.bincount(training, minlength=num_users) > 0  # [users]
    check(*_nobody(name, roomy, trained, num_items, negatives))
    usable = roomy & trained
    part = part[usable[owners]]
    kept = kept.keep_users(usable)
    kept.report |= {
        "users without training interactions": int((~trained).sum()),
        "users with too few items left as negatives": int((trained & ~roomy).sum()),
    }
    return kept, part


def _nobody(
    name: str, roomy: NDArray[np.bool_], trained: NDArray[np.bool_], num_items: int, negatives: int
) -> Iterator[str]:
    """Why nobody is left, if that is so.

    Args:
        name: Of the data.
        roomy: `[users]`: who has room for negatives.
        trained: `[users]`: who has something to train on.
        num_items: Of the catalogue.
        negatives: How many are asked for.
    """
    if not trained.any():
        yield "data.temporal_fractions: no user has interactions before the first cut"
    if not roomy.any():
        yield (
            f"data.negatives: {negatives} different ones are asked for, but every user has all but {negatives - 1} of "
            f"the {num_items} items or more"
        )
    # Each alone spares somebody, and both together spare nobody.
    if trained.any() and roomy.any() and not (trained & roomy).any():
        yield (
            f"{name}: of {len(trained)} users, {int((~trained).sum())} have nothing to train on, and the others have "
            f"all but {negatives - 1} of the {num_items} items or more (data.negatives)"
        )


def pool_problems(
    user_ids: pl.Series, num_items: int, negatives: int, no_negatives: Lists, touched: Lists, protocol: Protocol
) -> Iterator[str]:
    """What cannot be drawn for the user who leaves fewest items.

    It is asked again after users were dropped: the catalogue shrinks with every user who leaves.

    Args:
        user_ids: Original ids, `[users]`.
        num_items: Of the catalogue.
        negatives: How many different ones a positive needs beside it.
        no_negatives: Each user's items that cannot be negatives.
        touched: All items of each user, whatever they are for.
        protocol: Says whether candidates are sampled, and how many.
    """
    spare = num_items - no_negatives.lengths
    user = int(spare.argmin())
    if spare[user] < negatives:
        yield (
            f"data.negatives: {negatives} different ones are asked for, but user {user_ids[user]} leaves only "
            f"{spare[user]} of {num_items} items to draw from"
        )
    unseen = num_items - touched.lengths
    user = int(unseen.argmin())
    if protocol.ranking == "sampled" and unseen[user] < protocol.num_candidates:
        yield (
            f"protocol.num_candidates: {protocol.num_candidates} is too many: user {user_ids[user]} leaves only "
            f"{unseen[user]} of {num_items} items untouched; give at most that, or protocol.candidates full"
        )
