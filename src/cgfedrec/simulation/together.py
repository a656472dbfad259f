"""What the clients of several processes have, put together as if they had been in one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgfedrec.evaluation.metrics import NO_RANK
from cgfedrec.evaluation.ranking import Ranked
from cgfedrec.processes import Processes
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.wire import Wire


class Told(NamedTuple):
    """What a cohort, or all participants, have to tell of a round beside what they send."""

    users: Tensor
    """`[clients]`, int64: of whom something was taken in."""
    bytes_up: int
    bytes_down: int
    means: Tensor
    """`[clients, 1 + reports]`: mean loss, and what else its clients report; `[clients, 0]` where nothing was trained.
    See `cgfedrec.train.train`."""
    refused: Mapping[int, str] = MappingProxyType({})
    """Whose uploads were refused, and why."""


class Trained(NamedTuple):
    """What comes of a cohort's part in a round."""

    part: Upload | Sum
    """What is left of its uploads for the server: their sum, or each of them where the server needs that."""
    told: Told


def told(processes: Processes, cohorts: Sequence[Told], wire: Wire) -> Told:
    """What cohorts have to tell, those of all processes, clients in ascending order.

    Args:
        processes: That train together.
        cohorts: Of this one.
        wire: Whose steps may send something besides.
    """
    nobody = torch.empty(0, dtype=torch.int64)
    users = torch.cat([nobody, *(one.users for one in cohorts)])
    # A process without participants does not know whether anything was trained.
    trained = [one.means for one in cohorts if len(one.users)]
    widest = _most(processes, max((means.shape[1] for means in trained), default=0))
    means = torch.cat([torch.empty(len(nobody), widest), *trained])
    refused = {client: why for one in cohorts for client, why in one.refused.items()}
    sent = torch.tensor([sum(one.bytes_up for one in cohorts), sum(one.bytes_down for one in cohorts)])
    if processes.number > 1:
        users, means = torch.cat(processes.together(users)), torch.cat(processes.together(means))
        sent = processes.sum(sent)
        for theirs in processes.texts(json.dumps(refused)):
            refused |= {int(client): why for client, why in json.loads(theirs).items()}
        refused = dict(sorted(refused.items()))
    bytes_up, bytes_down = (sent + torch.tensor(wire.traffic(len(users)))).tolist()
    users, ascending = users.sort()
    return Told(users, bytes_up, bytes_down, means[ascending], refused)


def ranks(processes: Processes, found: Ranked, place: Tensor) -> Ranked:
    """Where the held-out items of all processes' users stand.

    Args:
        processes: That train together.
        found: Of the users of this one.
        place: `[users]`: where each stands in the order in which one process alone ranks them.
    """
    if processes.number == 1:
        return found
    users = torch.cat(processes.together(found.users))
    in_order = place[users].argsort()
    widest = _most(processes, found.ranks.shape[1])
    ranks, items = (
        torch.cat(processes.together(F.pad(rows, (0, widest - rows.shape[1]), value=fill)))[in_order]
        for rows, fill in ((found.ranks, NO_RANK), (found.items, -1))
    )
    return Ranked(users[in_order], ranks, items, torch.cat(processes.together(found.shown))[in_order])


def masks(processes: Processes, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of users by name, `[users]`, bool, each true for whom it is in any process."""
    if processes.number == 1:
        return {name: mask.clone() for name, mask in ours.items()}
    names = [name for lines in processes.texts("\n".join(ours)) for name in lines.split("\n")]
    nobody = torch.zeros_like(next(iter(ours.values())))
    return {name: processes.sum(ours.get(name, nobody).long()) > 0 for name in dict.fromkeys(names)}


def store(processes: Processes, state: dict[str, Any]) -> dict[str, Any]:
    """The state of all processes' stores in memory, in the first one (`cgfedrec.simulation.store.states`)."""
    if processes.number == 1:
        return state
    piece = torch.cat(state["pieces"])
    # Bases and blocks are numbered behind those of the processes before.
    sizes = torch.cat(processes.together(torch.tensor([[len(state["base_sums"]), len(piece)]])))
    bases, blocks = sizes[: processes.rank].sum(0).tolist()
    moved = state | {
        "bases": torch.where(state["bases"] < 0, -1, state["bases"] + bases),
        "blocks": state["blocks"] + blocks,
        "base_blocks": state["base_blocks"] + blocks,
        "pieces": piece,
    }
    whole: dict[str, Any] = {name: processes.at_first(rows) for name, rows in moved.items()}
    return whole | {"pieces": [whole["pieces"]]}


def _most(processes: Processes, number: int) -> int:
    return max(int(each) for each in processes.together(torch.tensor([number])))
