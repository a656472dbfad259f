"""Sums that forget: each interaction counts what is left of it, within what both ends know to be possible."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cgfedrec.data.histories import History
from cgfedrec.structure.columns import LabelColumns, SignColumns
from cgfedrec.structure.plausible import implausible
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import SHARES, ItemCounts, Known, PairCounts, Tally

HALF_LIFE = 6.0
CLIENTS, ITEMS = 40, 25


def histories() -> tuple[History, Tensor]:
    """Histories of several lengths and ages, and X `[clients, items]`: what is left of each, so that pairs halve."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.zeros(CLIENTS, ITEMS, dtype=torch.float64)
    items = torch.full((CLIENTS, 12), -1)
    days = torch.zeros(CLIENTS, 12, dtype=torch.float64)
    for client in range(CLIENTS):
        length = 2 + client % 11
        mine = torch.randperm(ITEMS, generator=generator)[:length]
        ago = torch.rand(length, generator=generator, dtype=torch.float64) * 40
        items[client, :length], days[client, :length] = mine, ago.sort().values
        weights[client, mine] = 2 ** (-days[client, :length] / (2 * HALF_LIFE))
    return History(items, torch.arange(12).expand_as(items), days), weights


def known_of(history: History) -> Known:
    first = Known(ITEMS, CLIENTS, 5)
    counts = ItemCounts(half_life=HALF_LIFE).of(history, torch.arange(CLIENTS), first, 1).to_dense().sum(0)
    rows = Rows.of(counts, 3, SHARES)
    labels = torch.arange(len(rows)) % 4
    pairs = torch.stack([torch.arange(6)] * len(rows))
    return Known(ITEMS, CLIENTS, 5, rows, labels, pairs)


def summed(tally: Tally, history: History, known: Known) -> Tensor:
    return tally.of(history, torch.arange(CLIENTS), known, 1).to_dense().sum(0)


def test_each_sum_is_that_of_what_is_left_to_rounding() -> None:
    history, weights = histories()
    known = known_of(history)
    some = weights[:, known.the_rows.items]  # X over the rows, in their order
    together = some.T @ some
    for tally in (SignColumns(half_life=HALF_LIFE, number=5), LabelColumns(half_life=HALF_LIFE)):
        found = summed(tally, history, known).double() / SHARES
        assert torch.allclose(found, together @ tally.columns(known).double(), atol=0.5 / SHARES * CLIENTS)
    pairs = summed(PairCounts(half_life=HALF_LIFE), history, known).double() / SHARES
    assert known.pairs is not None
    assert torch.allclose(pairs, together.gather(1, known.pairs), atol=0.5 / SHARES * CLIENTS)
    assert torch.allclose(known.the_rows.diagonal, together.diagonal(), atol=0.5 / SHARES * CLIENTS)


def test_the_first_sum_has_popularities_of_late() -> None:
    history, weights = histories()
    tally = ItemCounts(half_life=HALF_LIFE, recents=(3.0, 30.0))
    found = summed(tally, history, Known(ITEMS, CLIENTS, 5))
    assert found.shape == (ITEMS, 5)
    assert found[:, 0].equal((weights > 0).sum(0))
    days = torch.zeros(CLIENTS, ITEMS, dtype=torch.float64)
    clients, items, _ = history.entries()
    days[clients, items] = history.entry_days()
    for column, half_life in ((3, 3.0), (4, 30.0)):
        expected = ((weights > 0) * 2 ** (-days / half_life)).sum(0)
        assert torch.allclose(found[:, column].double() / SHARES, expected, atol=0.5 / SHARES * CLIENTS)


@pytest.mark.parametrize("half_life", [None, HALF_LIFE])
def test_honest_popularities_of_late_are_plausible_and_more_is_not(half_life: float | None) -> None:
    """They travel in parts of a whole, also where pairs never forget and so count 1."""
    history, _ = histories()
    tally = ItemCounts(half_life=half_life, recents=(3.0, 1e9))
    honest = tally.of(history, torch.arange(CLIENTS), Known(ITEMS, CLIENTS, 5), 1)
    assert honest.to_dense()[..., -1].amax() == SHARES, "somebody has something right now"
    assert implausible(tally, honest) == {}
    lies = honest.to_dense()
    lies[7, 4, -2:] = SHARES + 1
    assert implausible(tally, lies) == {7: "adds 257 to a number of bounds, and one client adds 256"}


@pytest.mark.parametrize("late", [False, True])
def test_no_sum_and_no_part_of_one_is_beyond_its_bounds(late: bool) -> None:
    """Not even where histories agree, so that bounds are nearly reached."""
    history, _ = histories()
    if late:  # everybody has the same items, at the same times
        history = History(*(part[-1:].expand(CLIENTS, -1).contiguous() for part in history))
    known = known_of(history)
    if late:  # and all are in one cluster, so that a row is as large as its reach
        known = replace(known, labels=torch.zeros(len(known.the_rows), dtype=torch.int64))
    tallies = (
        ItemCounts(half_life=HALF_LIFE, recents=(3.0,)),
        SignColumns(half_life=HALF_LIFE, number=9),
        LabelColumns(half_life=HALF_LIFE),
        PairCounts(half_life=HALF_LIFE),
    )
    for tally in tallies:
        each = tally.of(history, torch.arange(CLIENTS), known, 1)
        largest = tally.bounds(known).largest
        assert (each.to_dense().abs() <= largest).all()
        total = each.to_dense().sum(0)
        assert (total.abs() <= largest).all()
        assert tally.field(known).bounds == tally.bounds(known)
    if late:  # all agree: the mean of the pairs' bounds is not far from what they are
        pairs = PairCounts(half_life=HALF_LIFE)
        there = summed(pairs, history, known) > 0
        ratio = pairs.bounds(known).largest[there] / summed(pairs, history, known)[there]
        assert ratio.max() < 1.5


def test_a_long_half_life_comes_near_to_never() -> None:
    history, _ = histories()
    never = ItemCounts().of(history, torch.arange(CLIENTS), Known(ITEMS, CLIENTS, 5), 1).to_dense().sum(0)
    rows = Rows.of(never, 3)
    known = Known(ITEMS, CLIENTS, 5, rows)
    plain = summed(SignColumns(number=5), history, known)
    long = summed(SignColumns(half_life=1e9, number=5), history, known)
    assert long.equal(plain * SHARES)
