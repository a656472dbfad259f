"""What one client can add to a sum at most, which is far less than what the sum can reach."""

from __future__ import annotations

import torch
from torch import Tensor

from cgfedrec.errors import RunError
from cgfedrec.structure.columns import Columns
from cgfedrec.structure.tallies import SHARES, ItemCounts, PairCounts, Tally
from cgfedrec.wire.bounds import Bounds


def implausible(tally: Tally, value: Tensor) -> dict[int, str]:
    """Which of some clients' messages no history makes, by their rows, and why.

    A client that has n items counts each of them once. A profile adds up n columns of numbers between -1 and 1. A pair
    of items counts once. Whoever sends more weighs more than one client may. A history that is invented is plausible.

    Args:
        tally: Of which sum they are.
        value: `[clients, rows, columns]`, what they send.
    """
    dense = value.to_dense().abs()  # [clients, rows, columns]
    have = dense.ne(0).any(2).sum(1)  # [clients]: of how many items a client sends anything
    most = torch.full((len(dense), dense.shape[2]), tally.unit)
    if isinstance(tally, ItemCounts):
        most[:, 0] = 1
        most[:, 1] = have * tally.unit
        most[:, 2:] = SHARES  # mass, and popularities of late: in parts of a whole also where pairs do not forget
    elif isinstance(tally, Columns):
        most[:] = have[:, None] * tally.unit
    elif not isinstance(tally, PairCounts):
        return {}
    found = {}
    for client in (dense.amax(1) > most).any(1).nonzero().squeeze(1).tolist():
        column = int((dense[client].amax(0) > most[client]).nonzero()[0])
        largest = int(dense[client, :, column].max())
        found[client] = f"adds {largest} to a number of {tally.name}, and one client adds {int(most[client, column])}"
    return found


def check_sum(name: str, total: Tensor, bounds: Bounds) -> None:
    """Raise `RunError` if a sum `[rows, columns]` over all clients is beyond what all of them together can add."""
    problem = bounds.problem(total[None])
    if problem is not None:
        raise RunError(
            f"the sum {name!r} of all clients: {problem}. Somebody has added more than a client can; "
            "loop.failures.refused lets a run go on without those whose single uploads show it"
        )
