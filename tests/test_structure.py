"""The parts of structure from sums: the sums themselves, what is found from them, what travels, and whose items."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cgfedrec.data.histories import History
from cgfedrec.structure import discover
from cgfedrec.structure.clusters import merged
from cgfedrec.structure.discover import candidates, closed_form, pair_weights, verified
from cgfedrec.structure.neighbours import quantised
from cgfedrec.structure.nystroem import factor
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import ItemCounts, Known, LabelColumns, PairCounts, SignColumns, Tally
from cgfedrec.wire.codec import decode, encode
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.values import Field, WeightLayout, Weights
from cgfedrec.wire.wire import Wire

HISTORIES = st.lists(st.sets(st.integers(0, 11), min_size=1), min_size=3, max_size=9)
"""Each client's items, of 12."""


def history_of(owned: list[set[int]]) -> History:
    """Histories of clients with these items, the highest number being the newest."""
    longest = max(map(len, owned))
    items = torch.tensor([sorted(one, reverse=True) + [-1] * (longest - len(one)) for one in owned])
    return History(items, torch.arange(longest).expand_as(items))


def dense_of(owned: list[set[int]]) -> Tensor:
    """X, `[clients, items]`, int64."""
    ones = torch.zeros(len(owned), 12, dtype=torch.int64)
    for client, items in enumerate(owned):
        ones[client, list(items)] = 1
    return ones


def known_of(ones: Tensor, least: int, seed: int = 5) -> Known:
    """What is known once the first sum, labels and pairs have been found, the last two being made up."""
    counts = torch.stack((ones.sum(0), (ones * ones.sum(1, keepdim=True)).sum(0)), dim=1)
    rows = Rows.of(counts, least)
    labels = torch.arange(len(rows)) % 3
    pairs = torch.stack([(torch.arange(len(rows)) + shift) % max(len(rows), 1) for shift in (1, 2)], dim=1)
    pairs = pairs.sort(dim=1).values
    pairs[::2, 1] = -1
    return Known(ones.shape[1], len(ones), seed, rows, labels, pairs)


def added(tally: Tally, owned: list[set[int]], known: Known) -> Upload:
    """What these clients send, after a journey over the wire, which refuses what is beyond its bounds."""
    users = torch.arange(len(owned))
    value = tally.of(history_of(owned), users, known, 3)
    upload = Upload(users, {tally.name: value}, bounds={tally.name: tally.bounds(known)})
    arrived, _ = Wire().up(upload, {tally.name: tally.field(known)}, 1, 3)
    return arrived


# The sums


@given(HISTORIES, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_sums_are_those_of_the_dense_matrix_and_never_beyond_their_bounds(owned: list[set[int]], least: int) -> None:
    ones = dense_of(owned)
    known = known_of(ones, least)
    first = added(ItemCounts(), owned, Known(12, len(owned), 5)).sum().values["bounds"]
    lengths = ones.sum(1, keepdim=True)
    assert first.equal(torch.stack((ones.sum(0), (ones * lengths).sum(0)), dim=1))
    assert Rows.of(first, least).items.equal(known.the_rows.items)
    assert set(known.the_rows.items.tolist()) == {item for item in range(12) if ones[:, item].sum() >= least}
    if not len(known.the_rows):
        return
    in_rows = ones[:, known.the_rows.items]
    together = in_rows.T @ in_rows
    signs = SignColumns(number=5).columns(known)
    assert set(signs.unique().tolist()) <= {-1, 1}
    assert known.labels is not None
    assert known.pairs is not None
    one_hot = torch.nn.functional.one_hot(known.labels)
    counted = together.gather(1, known.pairs.clamp_min(0)).masked_fill(known.pairs < 0, 0)
    expected = {
        SignColumns(number=5): together @ signs,
        LabelColumns(): together @ one_hot,
        PairCounts(): counted,
    }
    for tally, dense in expected.items():
        total = added(tally, owned, known).sum().values[tally.name]
        assert total.equal(dense)
        bounds = tally.bounds(known)
        assert (total.abs() <= bounds.largest).all()
        # As few bits as the largest value takes, and another value would take more.
        values = bounds.largest * (1 + bounds.signed) + 1
        assert bounds.widths.equal(torch.tensor([[(int(v) - 1).bit_length() for v in row] for row in values]))


def test_bounds_are_reached() -> None:
    """By clients who all have the same: with fewer bits, their sum would not fit."""
    owned = [{1, 4, 7}] * 4
    known = known_of(dense_of(owned), 3)
    assert known.the_rows.reach.tolist() == [12, 12, 12]
    first = added(ItemCounts(), owned, Known(12, 4, 5)).sum().values["bounds"]
    assert first[1].tolist() == [4, 12]
    pairs = added(PairCounts(), owned, known).sum().values["verify"]
    assert pairs.equal(PairCounts().bounds(known).largest)
    assert pairs.max() == 4


# What is found from them


@pytest.fixture
def ones() -> Tensor:
    """X, `[clients, items]`, float64, with 9 items of 40 clients."""
    return torch.from_numpy(np.random.default_rng(2).random((40, 9)) < 0.4).double()


def test_nystroem_is_exact_on_what_the_columns_span(ones: Tensor) -> None:
    gram = ones.T @ ones
    columns = torch.from_numpy(np.random.default_rng(3).choice([-1.0, 1.0], (9, 4)))
    found = factor(columns, gram @ columns)
    assert found.shape == (9, 4)
    torch.testing.assert_close(found @ found.T @ columns, gram @ columns)
    assert (found @ found.T - gram).norm() > 0.1 * gram.norm()  # and not beyond it
    whole = factor(torch.eye(9).double(), gram)
    torch.testing.assert_close(whole @ whole.T, gram)
    twice = torch.cat((columns, columns), dim=1)  # columns that say nothing new change nothing
    again = factor(twice, gram @ twice)
    assert again.shape == (9, 4)
    torch.testing.assert_close(again @ again.T, found @ found.T)


@pytest.mark.parametrize("penalty", [0.5, 20.0])
def test_closed_form_is_the_direct_inverse(penalty: float, ones: Tensor) -> None:
    gram = ones.T @ ones
    columns = torch.from_numpy(np.random.default_rng(3).choice([-1.0, 1.0], (9, 4)))
    found = factor(columns, gram @ columns)
    half, diagonal = closed_form(found, ones.sum(0), penalty)
    raised = (ones.sum(0) + penalty - found.square().sum(1)).clamp_min(penalty / 2)
    direct = torch.linalg.inv(found @ found.T + torch.diag(raised))
    ours = -half @ half.T
    ours.diagonal().copy_(diagonal)
    torch.testing.assert_close(ours, direct)
    pairs = torch.tensor([[(row + 1) % 9, -1] for row in range(9)])
    weights = -direct / direct.diagonal()[:, None]
    expected = weights.gather(1, pairs.clamp_min(0)).masked_fill(pairs < 0, 0)
    torch.testing.assert_close(pair_weights(half, diagonal, pairs), expected)


@pytest.mark.parametrize("cells", [1, 37, 74, 75, 111, 2**22])
def test_candidates_are_the_largest_of_the_dense_weights(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a block: of one row, of two and the last of one, of all."""
    monkeypatch.setattr(discover, "CELLS", cells)
    rng = np.random.default_rng(4)
    half = torch.from_numpy(rng.normal(size=(37, 5)))
    sizes = torch.from_numpy(rng.integers(1, 9, 37))
    found = candidates(half, sizes)
    weights = half @ half.T
    weights.fill_diagonal_(-torch.inf)
    order = weights.argsort(dim=1, descending=True)
    assert found.shape == (37, int(sizes.max()))
    for row, size in enumerate(sizes.tolist()):
        assert found[row, :size].tolist() == sorted(order[row, :size].tolist())
        assert (found[row, size:] == -1).all()


def test_candidates_need_no_square_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product of more than `CELLS` numbers is made."""
    monkeypatch.setattr(discover, "CELLS", 1000)
    largest = 0
    multiply = Tensor.__matmul__

    def watched(one: Tensor, other: Tensor) -> Tensor:
        nonlocal largest
        made = multiply(one, other)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(Tensor, "__matmul__", watched)
    candidates(torch.from_numpy(np.random.default_rng(4).normal(size=(300, 5))), torch.full((300,), 4))
    assert 0 < largest <= 1000


@pytest.mark.parametrize("cells", [1, 100, 2**22])
def test_verified_weights_solve_each_row(cells: int, ones: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "CELLS", cells)
    gram, clients = ones.T @ ones, ones.sum(0)
    columns = torch.from_numpy(np.random.default_rng(3).choice([-1.0, 1.0], (9, 3)))
    found = factor(columns, gram @ columns)
    pairs = torch.tensor([sorted({(row + 1) % 9, (row + 4) % 9, (row + 6) % 9}) for row in range(9)])
    pairs[::2, 2] = -1
    counts = gram.gather(1, pairs.clamp_min(0)).long().masked_fill(pairs < 0, 0)
    counts[3, 1] = 0  # nobody has both
    ours = verified(found, clients, pairs, counts, 5.0)
    for row in range(9):
        chosen = [one for one in pairs[row].tolist() if one >= 0]
        some = found[chosen]
        system = some @ some.T
        system.diagonal().copy_(torch.maximum(clients[chosen], some.square().sum(1)) + 5.0)
        expected = torch.linalg.solve(system, counts[row, : len(chosen)].double())
        expected[counts[row, : len(chosen)] == 0] = 0
        torch.testing.assert_close(ours[row, : len(chosen)], expected)
        assert not ours[row, len(chosen) :].any()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_no_merged_cluster_is_too_small(labels: list[int], smallest: int) -> None:
    centroids = np.random.default_rng(0).normal(size=(7, 2))
    found = merged(np.array(labels), centroids, smallest)
    sizes = np.bincount(found)
    assert len(sizes) == 1 or sizes.min() >= smallest
    large = {label for label in labels if labels.count(label) >= smallest}
    for one, other in product(large, large):  # what is large enough stays apart
        places = [labels.index(one), labels.index(other)]
        assert (found[places[0]] == found[places[1]]) == (one == other)


@given(st.integers(0, 2**32), st.integers(1, 8), st.sampled_from([0.2, 0.5, 1.0]), st.floats(1e-4, 10))
@settings(max_examples=60, deadline=None)
def test_quantised_weights_survive_the_wire_within_half_a_step(seed: int, bits: int, keep: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = torch.from_numpy(rng.integers(1, 8, 6))
    inside = torch.arange(7) < sizes[:, None]
    weights = torch.from_numpy(rng.normal(size=(6, 7)) * scale) * inside
    made = quantised(weights, sizes, keep, bits)
    (arrived,) = decode(
        encode({"w": made}), {"w": Field((6, 7), torch.float16, lists=WeightLayout(sizes, bits))}
    ).values()
    assert isinstance(arrived, Weights)
    assert arrived == made
    assert int(made.levels.max()) < 2**bits
    values = arrived.levels * arrived.scales.double()[:, None]
    most = (sizes * keep).ceil().long()
    for row in range(6):
        largest = weights[row].clamp_min(0).topk(int(most[row])).values
        kept = weights[row] >= largest[-1].clamp_min(1e-12)
        assert not values[row, ~kept].any()
        assert int(arrived.kept[row].sum()) <= int(most[row])
        # Half a step, and what a half-precision scale itself is off, times the level.
        step = float(arrived.scales[row])
        off = (values[row] - weights[row])[kept].abs()
        assert not kept.any() or off.max() <= step / 2 + 2**bits * step * 2**-11
