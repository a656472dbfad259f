"""Clients that train in place end as those whose state is copied, and their checkpoints are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cgfedrec.failures import Failures
from cgfedrec.kit.table import TableClient
from cgfedrec.method import Method
from cgfedrec.methods import CGFedRec, FedMF, PFedRec
from cgfedrec.methods.local import Local
from cgfedrec.simulation.store import MemoryStore, WholeStore
from cgfedrec.testing import trained
from tests.conftest import MakeData

COPIED = Failures(refused=0.5)
"""Nobody fails. But somebody might be refused, and so what clients were before a round is kept."""


@pytest.mark.parametrize("participants", [None, 9])
@pytest.mark.parametrize(
    "method", [lambda: FedMF(dim=16), lambda: PFedRec(dim=16), lambda: CGFedRec(dim=16, clusters=6)]
)
def test_in_place_or_copied_is_the_same(
    method: Callable[[], Method], participants: int | None, make_data: MakeData
) -> None:
    data = make_data()
    options: dict[str, Any] = {"rounds": 3, "participants": participants}
    whole, copied = (trained(method(), data, 7, **options, failures=one) for one in (Failures(), COPIED))
    assert isinstance(whole.clients.store, WholeStore)
    assert isinstance(copied.clients.store, MemoryStore)
    for row, other in zip(whole.history, copied.history, strict=True):
        seen = [name for name in row if name.startswith(("train/", "val/"))]
        assert {name: row[name] for name in seen} == {name: other[name] for name in seen}
    again = trained(method(), data, 7, **options)
    again.load_state_dict(whole.state_dict())
    ours, theirs, later = (loop.clients.store.state_dict() for loop in (whole, copied, again))
    for name in ("users", "bases", "numbers", "sums"):
        assert ours[name].equal(theirs[name]), name
        assert ours[name].equal(later[name]), name


def test_neighbours_train_where_they_lie_and_others_are_put_back() -> None:
    client = TableClient(Local(dim=4, head="private"), 400, 0)
    store = WholeStore(torch.arange(9).flip(0), client.private(), folder=Path())
    for users in ([8, 7, 6], [1, 8]):
        store.load(client, torch.tensor(users))
        lies_in_the_store = client.table.data_ptr() == store._rows["table"][9 - 1 - users[0]].data_ptr()
        assert lies_in_the_store == (users == [8, 7, 6])
        client.table.data[:, 3] = 7.0
        store.save(client)
        assert (store.read(torch.tensor(users))["table"][:, 3] == 7).all()
    assert store.known.nonzero().squeeze(1).tolist() == [1, 6, 7, 8]


def test_a_state_of_nobody_can_be_gone_back_to() -> None:
    """A node may be asked to rank before any of its clients has trained."""
    client = TableClient(Local(dim=4, head="private"), 400, 0)
    store = WholeStore(torch.arange(9), client.private(), folder=Path())
    store.load_state_dict(WholeStore(torch.arange(9), client.private(), folder=Path()).state_dict())
    assert not store.known.any()


def test_what_comes_down_to_score_with_does_not_stay(make_data: MakeData) -> None:
    """FedMF's clients put the table that came down in place of their own before they score."""
    data = make_data()
    loop = trained(FedMF(dim=16), data, 7, rounds=1)
    users = torch.arange(data.num_users)
    before = loop.clients.store.read(users)["table"]
    loop.clients.score(data.order()[:7], loop.round)
    assert loop.clients.store.read(users)["table"].equal(before)
