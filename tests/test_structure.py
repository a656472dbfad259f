"""The parts of CGFedCo: sums, factor, candidates, weights and bounds, each against a dense or direct computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import cgfedrec.structure.discover as discover
from cgfedrec.data.histories import History
from cgfedrec.structure.clusters import clustered, merged
from cgfedrec.structure.columns import LabelColumns, SignColumns
from cgfedrec.structure.discover import candidates, closed_form, pair_weights, quantised, verified
from cgfedrec.structure.discovery import PLAIN_BITS
from cgfedrec.structure.nystroem import coordinates, factor
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import ItemCounts, Known, PairCounts, Tally
from cgfedrec.wire.codec import decode, encode
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.values import Field, WeightLayout

LEAST = 2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def histories(ones: Tensor) -> History:
    """The histories of a matrix X, `[clients, items]`, bool."""
    items = torch.full(ones.shape, -1)
    for client, row in enumerate(ones):
        own = row.nonzero().squeeze(1)
        items[client, : len(own)] = own
    return History(items, torch.zeros_like(items), torch.zeros(items.shape))


def counted(tally: Tally, ones: Tensor, known: Known) -> Tensor:
    """What each client adds, `[clients, rows, columns]`, int64."""
    return tally.of(histories(ones), torch.arange(len(ones)), known, 0).to_dense()


def everything_known(ones: Tensor, seed: int = 0, least: int = LEAST, of: Tensor | None = None) -> Known:
    """As late in a run: rows of all clients (or of those in ``of``), and some labels and candidates."""
    first = Known(ones.shape[1], len(ones), seed)
    rows = Rows.of(counted(ItemCounts(), ones if of is None else of, first).sum(0), least)
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (len(rows),), generator=rng)
    others = torch.arange(len(rows)).expand(len(rows), -1)
    pairs = others[~torch.eye(len(rows), dtype=torch.bool)].view(len(rows), max(len(rows) - 1, 0))[:, :4].clone()
    if pairs.shape[1] > 1:
        pairs[::2, -1] = -1  # every second list is shorter
    return Known(ones.shape[1], len(ones), seed, rows, labels, pairs)


def tallies() -> list[Tally]:
    return [ItemCounts(), SignColumns(number=5), LabelColumns(), PairCounts()]


def some_ones(clients: int = 40, items: int = 30, seed: int = 0) -> Tensor:
    """X, `[clients, items]`, bool: some items have many clients, some have few."""
    share = torch.linspace(0.02, 0.6, items)
    return torch.rand(clients, items, generator=torch.Generator().manual_seed(seed)) < share


def test_sums_are_those_of_a_dense_computation() -> None:
    ones = some_ones()
    known = everything_known(ones)
    dense = ones[:, known.the_rows.items].long()  # X over the rows, in their order
    assert 0 < len(known.the_rows) < ones.shape[1]
    together = dense.T @ dense  # G
    counts = counted(ItemCounts(), ones, known).sum(0)
    assert counts[:, 0].equal(ones.sum(0))
    assert counts[:, 1].equal(ones.long().T @ ones.sum(1))
    for tally in (SignColumns(number=5), LabelColumns()):
        assert counted(tally, ones, known).sum(0).equal(together @ tally.columns(known))
    assert known.pairs is not None
    expected = together.gather(1, known.pairs.clamp_min(0)).masked_fill(known.pairs < 0, 0)
    assert counted(PairCounts(), ones, known).sum(0).equal(expected)


def test_random_signs_are_drawn_by_item_and_column_and_follow_the_shared_seed() -> None:
    ones = some_ones()
    known, other = everything_known(ones, seed=1), everything_known(ones, seed=2)
    few, many = SignColumns(number=5).columns(known), SignColumns(number=9).columns(known)
    assert many[:, :5].equal(few)
    assert few.unique().tolist() == [-1, 1]
    assert not few.equal(SignColumns(number=5).columns(other))
    # Whichever items have rows, an item keeps its signs.
    turned = everything_known(ones.flip(1), seed=1, least=10)  # in another order, and fewer
    places = known.the_rows.row_of[turned.the_rows.items]
    there = places >= 0
    assert not places.equal(torch.arange(len(places)))
    assert SignColumns(number=5).columns(turned)[there].equal(few[places[there]])


def test_rows_are_numbered_by_clients_and_then_by_item_and_scarce_items_have_none() -> None:
    rows = Rows.of(torch.tensor([[2, 9], [5, 9], [3, 8], [5, 7], [0, 0]]), least=3)
    assert rows.items.tolist() == [1, 3, 2]
    assert rows.clients.tolist() == [5, 5, 3]
    assert rows.reach.tolist() == [9, 7, 8]
    assert rows.row_of.tolist() == [-1, 0, 2, 1, -1]
    late = rows.for_others(torch.tensor([[9, 9], [2, 4], [4, 6], [3, 5], [3, 5]]))
    assert late.open.tolist() == [False, True, True]
    assert late.row_of.tolist() == [-1, -1, 2, 1, -1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_no_client_and_no_sum_goes_beyond_its_bounds(data: Any) -> None:
    """Of any histories; likewise of those who come late, by their own first sum."""
    clients, items = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    drawn = data.draw(st.lists(st.integers(0, 2**items - 1), min_size=clients, max_size=clients))
    ones = torch.tensor([[bool(number >> item & 1) for item in range(items)] for number in drawn])
    early = data.draw(st.integers(0, clients))
    first = ones[:early]
    known = everything_known(ones, of=first, least=data.draw(st.integers(1, 3)))
    if not len(known.the_rows):
        return
    late = known.for_others(counted(ItemCounts(), ones[early:], known).sum(0))
    for who, what in ((first, known), (ones[early:], late)):
        for tally in tallies():
            added = counted(tally, who, what)
            bounds = tally.bounds(what)
            assert bounds.problem(added) is None
            assert bounds.problem(added.sum(0, keepdim=True)) is None


def test_bounds_are_reached() -> None:
    """One less, and a history that fits them would be refused."""
    ones = torch.ones(4, 5, dtype=torch.bool)
    known = everything_known(ones)
    for tally in (ItemCounts(), PairCounts()):
        assert counted(tally, ones, known).sum(0).max() == tally.bounds(known).largest.max()
    # Who has an item has all that are more popular: as many have two of them as have the scarcer one.
    nested = torch.ones(6, 5, dtype=torch.bool).tril()
    partly = everything_known(nested)
    assert counted(PairCounts(), nested, partly).sum(0).equal(PairCounts().bounds(partly).largest)
    alike = Known(5, 4, 0, known.rows, torch.zeros(5, dtype=torch.int64))
    assert counted(LabelColumns(), ones, alike).sum(0).equal(LabelColumns().bounds(alike).largest)


def test_a_message_takes_the_bits_of_what_its_numbers_can_reach() -> None:
    known = everything_known(some_ones())
    for tally, values in (
        (SignColumns(number=5), 2 * known.the_rows.reach + 1),
        (LabelColumns(), known.the_rows.reach + 1),
    ):
        columns = tally.width(known)
        bits = sum(columns * (int(value) - 1).bit_length() for value in values)
        assert tally.bounds(known).nbytes == (bits + 7) // 8
        field = tally.field(known)
        upload = Upload.of_fields(
            torch.arange(1), {tally.name: counted(tally, some_ones()[:1], known)}, {tally.name: field}
        )
        overhead = len(upload.pack()[0]) - (bits + 7) // 8
        assert 0 <= overhead < 40


def test_plain_numbers_are_the_same_in_more_bits() -> None:
    ones = some_ones()
    known = everything_known(ones)
    for tight, plain in (
        (SignColumns(number=5), SignColumns(PLAIN_BITS, number=5)),
        (LabelColumns(), LabelColumns(PLAIN_BITS)),
        (PairCounts(), PairCounts(PLAIN_BITS)),
    ):
        assert counted(plain, ones, known).equal(counted(tight, ones, known))
        assert plain.bounds(known).nbytes == (PLAIN_BITS * plain.bounds(known).largest.numel() + 7) // 8
        assert plain.bounds(known).nbytes > 2 * tight.bounds(known).nbytes


def co_occurrence(rows: int = 20, rank: int = 20) -> Tensor:
    """G, `[rows, rows]`, float64, of a given rank."""
    half = random(rows, rank, seed=3)
    if rank == rows:
        half = random(rows, 10 * rows, seed=3)  # no eigenvalue is far below the others
    return half @ half.T


def test_the_factor_is_exact_on_what_the_columns_span() -> None:
    together, columns = co_occurrence(), random(20, 6).sign()
    found = factor(columns, together @ columns)
    assert found.shape == (20, 6)
    torch.testing.assert_close(found @ found.T @ columns, together @ columns)
    weights = random(6, 2, seed=1)
    torch.testing.assert_close(found @ found.T @ columns @ weights, together @ columns @ weights)
    assert not torch.allclose(found @ found.T, together, rtol=0.1)


def test_with_enough_columns_the_factor_is_all_of_the_co_occurrence() -> None:
    for rank, number in ((20, 30), (4, 6)):  # also with more columns than there is rank
        together, columns = co_occurrence(rank=rank), random(20, number)
        found = factor(columns, together @ columns)
        assert found.shape == (20, rank)
        torch.testing.assert_close(found @ found.T, together)


def test_a_column_that_says_nothing_new_changes_nothing() -> None:
    together, columns = co_occurrence(), random(20, 4)
    twice = torch.cat([columns, columns], dim=1)
    found, again = factor(columns, together @ columns), factor(twice, together @ twice)
    assert again.shape == found.shape
    torch.testing.assert_close(again @ again.T, found @ found.T)


def test_coordinates_have_length_1_or_0_and_angles_of_the_factor() -> None:
    found = random(30, 8)
    found[4] = 0
    places = coordinates(found)
    assert places.norm(dim=1).tolist() == pytest.approx([1.0] * 4 + [0.0] + [1.0] * 25, abs=1e-2)
    lengths = found.norm(dim=1).clamp_min(1e-12)
    torch.testing.assert_close(places @ places.T, found @ found.T / lengths[:, None] / lengths, atol=1e-2, rtol=1e-6)


def test_the_closed_form_is_the_inverse() -> None:
    found = random(25, 6)
    clients = (random(25, seed=2).abs() * 6).round() + 1
    lengths = found.square().sum(1)
    raised = (clients + 8 - lengths).clamp_min(4)
    assert (raised == 4).any()  # where the factor overshoots
    assert (raised > 4).any()
    inverse = torch.linalg.inv(found @ found.T + torch.diag(raised))
    half, diagonal = closed_form(found, clients, 8)
    torch.testing.assert_close(diagonal, inverse.diagonal())
    outside = ~torch.eye(25, dtype=torch.bool)
    torch.testing.assert_close((half @ half.T)[outside], -inverse[outside])


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple) else (made,):
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return made


@pytest.mark.parametrize("block", [1, 7, 50, 51, 200])
def test_candidates_are_the_largest_of_each_row_and_never_all_are_in_memory(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 101 rows: blocks of one, blocks of which the last is shorter, is one row, and one block for all."""
    rows, most = 101, 9
    half = random(rows, 4)
    sizes = torch.arange(rows) % most + 1
    monkeypatch.setattr(discover, "CELLS", block * rows)
    with Largest() as largest:
        found = candidates(half, sizes)
    assert largest.numel <= max(min(block, rows) * rows, rows * most)
    weights = (half.float() @ half.float().T).fill_diagonal_(-torch.inf)
    for row, size in enumerate(sizes.tolist()):
        expected = weights[row].topk(size).indices.sort().values.tolist()
        assert found[row].tolist() == expected + [-1] * (most - size)


@pytest.mark.parametrize("cells", [1, 300, 2**22])
def test_weights_of_pairs_are_those_of_the_whole_matrix(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, clients = random(23, 5), torch.full((23,), 4)
    half, diagonal = closed_form(found, clients, 10)
    sizes = torch.arange(23) % 6 + 1
    pairs = candidates(half, sizes)
    monkeypatch.setattr(discover, "CELLS", cells)
    dense = half @ half.T / diagonal[:, None]
    expected = dense.gather(1, pairs.clamp_min(0)).masked_fill(pairs < 0, 0)
    torch.testing.assert_close(pair_weights(half, diagonal, pairs), expected)


@pytest.mark.parametrize("cells", [1, 300, 2**22])
def test_verified_weights_solve_each_row_by_itself(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, most, penalty = 23, 6, 10.0
    found, clients = random(rows, 5), torch.arange(rows) % 9
    lengths = found.square().sum(1)
    assert (lengths > clients).any()  # where the factor says more than the count
    assert (lengths < clients).any()
    pairs = candidates(found, torch.arange(rows) % most + 1)
    counts = (random(rows, most, seed=5).abs() * 3).long()  # also where no pair is: there nobody may look
    monkeypatch.setattr(discover, "CELLS", cells)
    weights = verified(found, clients, pairs, counts, penalty)
    for row in range(rows):
        chosen = pairs[row][pairs[row] >= 0]
        near = found[chosen]
        system = near @ near.T
        system.fill_diagonal_(0)
        system += torch.diag(torch.maximum(clients[chosen].double(), lengths[chosen]) + penalty)
        number = len(chosen)
        expected = torch.linalg.solve(system, counts[row, :number].double())
        expected[counts[row, :number] == 0] = 0
        torch.testing.assert_close(weights[row, :number], expected)
        assert not weights[row, number:].any()


@pytest.mark.parametrize("scale", [1.0, 0.003])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_a_weight_in_few_bits_is_at_most_half_a_step_off(bits: int, scale: float) -> None:
    sizes = torch.tensor([9] * 40 + [5, 1])
    weights = random(len(sizes), 9, seed=bits) * scale
    weights = weights.masked_fill(torch.arange(9) >= sizes[:, None], 0)
    weights[3] = 0
    weights[4] = -weights[4].abs()
    sent = quantised(weights, sizes, 0.5, bits)
    field = Field(tuple(weights.shape), torch.float16, lists=WeightLayout(sizes, bits))
    received = decode(encode({"weights": sent}), {"weights": field})["weights"]
    assert received == sent
    steps = sent.scales.double()[:, None].expand_as(weights)  # [rows, most]
    found = sent.levels * steps
    # Which may stay: the larger half of a list, rounded up, of what is above 0.
    for row, size in enumerate(sizes.tolist()):
        largest = weights[row].topk((size + 1) // 2).indices
        may = torch.zeros(9, dtype=torch.bool)
        may[largest] = True
        may &= weights[row] > 0
        assert not (sent.kept[row] & ~may).any()
        apart = (found[row] - weights[row])[may].abs()
        assert (apart <= steps[row][may] / 2 * (1 + 1e-9)).all()
        if may.any() and bits <= 4:  # the unit of more bits may be less than a half can tell apart
            assert sent.levels[row].max() == (1 << bits) - 1
    assert not sent.kept[3:5].any()


def test_all_candidates_stay_where_that_is_wanted() -> None:
    weights = random(20, 8).abs() + 0.5
    sizes = torch.full((20,), 8)
    assert quantised(weights, sizes, 1.0, 8).kept.all()
    assert quantised(weights, sizes, 0.25, 8).kept.sum(1).tolist() == [2] * 20


def test_small_clusters_are_merged_with_their_nearest_until_none_is_left() -> None:
    places = coordinates(random(60, 4)).numpy()
    labels, centroids = clustered(places, 20, seed=0)
    sizes = np.bincount(labels)
    assert (sizes < 3).any()
    found = merged(labels, centroids, 3)
    assert np.bincount(found).min() >= 3
    assert found.max() + 1 == len(np.unique(found))
    # Items of one cluster stay together, and clusters that are large enough and are nobody's nearest stay as they are.
    for label in np.unique(labels):
        assert len(np.unique(found[labels == label])) == 1
    assert np.array_equal(merged(labels, centroids, 1), np.unique(labels, return_inverse=True)[1])
    assert not merged(labels, centroids, 61).any()  # fewer items than a cluster needs: one for all
