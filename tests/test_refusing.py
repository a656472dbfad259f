"""An active server: it aims columns and candidates, and asks twice; clients add nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Fabric

from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import RunError
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.discover import spread
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.refusing import refusal
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import Known
from cgfedrec.testing import StopAfter
from tests.sums import server_of, small_data


@pytest.fixture
def data() -> FederatedDataModule:
    return small_data()


def after(rounds: int, data: FederatedDataModule) -> FederatedLoop:
    """A federation of which so many sums have been opened."""
    loop = FederatedLoop(rounds=20, cohort_size=100)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[StopAfter(rounds)])
    loop.setup(fabric, data, CGFedCo(columns=8), Path("clients"))
    loop.fit()
    loop.should_stop = False
    return loop


def one_item_alone(server: SumsServer) -> None:
    """A cluster of one item: its column would say who has that item."""
    server.labels = torch.where(torch.arange(len(server.labels)) == 5, int(server.labels.max()) + 1, server.labels)


def itself(server: SumsServer) -> None:
    """An item among its own candidates."""
    server.pairs = server.pairs.clone()
    server.pairs[0, 0] = 0


@pytest.mark.parametrize(
    ("sums", "aim", "told"),
    [
        (2, one_item_alone, r"sum 'labels': cluster \d+ has 1 items, .*fewer than 3 \(method.least_items\)"),
        (3, itself, r"sum 'verify': item \d+ is its own candidate"),
        (4, itself, r"sum 'choose': item \d+ is its own candidate"),
    ],
)
def test_a_server_that_aims_a_sum_gets_nothing_and_the_run_says_why(
    sums: int, aim: Callable[[SumsServer], None], told: str, data: FederatedDataModule
) -> None:
    loop = after(sums, data)
    server = server_of(loop)
    assert loop.score(torch.arange(4)).isfinite().all()
    aim(server)
    server._sent = {}
    server.refresh()
    with pytest.raises(RunError, match=f"clients refuse to add to the {told}"):
        loop.fit()
    assert server.sum is None, "nothing was added"


def known(number: int, pairs: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> Known:
    """What has come down of so many items, each of 8 clients."""
    clients = torch.full((number,), 8)
    rows = Rows(torch.arange(number), clients, 10 * clients, clients, number, 3)
    return Known(number, 100, 7, rows=rows, labels=labels, pairs=pairs)


def circles(number: int, most: int) -> torch.Tensor:
    """Candidates of each item: those that follow it, ascending, `[number, most]`."""
    return ((torch.arange(number)[:, None] + torch.arange(1, most + 1)) % number).sort(1).values


def test_candidates_that_follow_the_rules_are_added_to_and_others_are_not() -> None:
    settings = Discovery()
    good = circles(1000, 16)
    assert refusal(known(1000, good), settings) is None
    for change, told in {
        "aimed": "a candidate of 999 others, more than 16 times as many",
        "many": "item 0 has 65 candidates, and may have 64",
        "beyond": "among 1001 have come, and there are 1000",
        "twice": "not in ascending order",
        "few": "candidates of 999 items",
        "self": "item 7 is its own candidate",
    }.items():
        bad = good.clone()
        if change == "aimed":  # every list leads to item 0
            bad[1:, 0], bad[1:, 1:] = 0, bad[1:, 1:].sort(1).values
            bad[1:] = bad[1:].sort(1).values
            rows = bad[1:, 1:] == 0  # it was there already
            bad[1:, 1:][rows] = 1
            bad[1] = good[1]
            bad[1, 0] = 0
        elif change == "many":
            bad = circles(1000, 65)
        elif change == "beyond":
            bad[5, -1] = 1000
        elif change == "twice":
            bad[5, 1] = bad[5, 0]
        elif change == "few":
            bad = good[:999]
        else:
            bad[7] = torch.arange(7, 23)
        found = refusal(known(1000, bad), settings)
        assert found is not None, change
        assert told in found, (change, found)


def test_clusters_and_participants_below_the_floor_are_refused() -> None:
    settings = Discovery(least_items=4, least_clients=3)
    labels = torch.arange(20) % 5
    assert refusal(known(20, labels=labels), settings) is None
    labels[0] = 1  # one cluster is left with three
    assert "cluster 0 has 3 items" in (refusal(known(20, labels=labels), settings) or "")
    assert "19 labels have come for 20 items" in (refusal(known(20, labels=labels[:19]), settings) or "")
    few = replace(known(20), num_clients=2)
    assert "2 clients take part, and with fewer than 3" in (refusal(few, settings) or "")


def test_the_same_sum_asked_again_with_one_client_less_gets_nothing(data: FederatedDataModule) -> None:
    """The difference of the two would be that client's history."""
    loop = after(2, data)
    server = server_of(loop)
    state = {name: value.clone() for name, value in server.state_dict().items()}
    loop.fabric._callbacks.clear()
    before = server.at.clone()
    loop.rounds = 3  # one more: the second sketch is opened
    loop.fit()
    assert int(server.at) == int(before) + 1
    server.load_state_dict(state)
    server.enrolled[7] = False
    loop.rounds = 4
    with pytest.raises(RunError, match="0 clients have added to the sum 'labels', where 39 were asked"):
        loop.fit()


@pytest.mark.parametrize("before", [0, 500])
def test_a_server_keeps_to_what_clients_take(before: int) -> None:
    """Item 3 would be a candidate of 90 others, item 4 of 70; of the first rows nothing may be taken away."""
    rows, most = 600, 16
    pairs = (torch.arange(rows)[:, None] + torch.arange(1, 5)).remainder(rows)
    pairs[510:600, 0], pairs[520:590, 1] = 3, 4
    pairs = pairs.sort(1).values
    found = spread(pairs, most, before)
    there = found >= 0
    lists = torch.bincount(found[there], minlength=rows)
    assert (lists <= most * there.sum(1)).all()
    assert found[:510].equal(pairs[:510])
    assert int(lists[3]) == int(lists[4]) == most * 4
    assert (found[599] == 3).sum() == 0  # the rarest item's list is the first to lose it
    for one, other in zip(found, pairs, strict=True):
        assert one[one >= 0].tolist() == [item for item in other.tolist() if item in one.tolist()]
        assert (one[(one >= 0).sum() :] == -1).all()


def test_candidates_that_clients_take_stay_as_they_are() -> None:
    pairs = torch.tensor([[1, 2], [0, 2], [0, -1]])
    assert spread(pairs, 16).equal(pairs)
