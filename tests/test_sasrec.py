"""SASRec: sequences, attention to what came before, and what it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cgfedrec.centralized import Popularity, SASRec, sasrec
from cgfedrec.centralized.sasrec import Block, Network, dropped, sequences, softmax
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError, RunError
from cgfedrec.evaluation.ranking import evaluate
from tests.timed import LAYOUT, Interaction, drawn, timed

ITEMS = 24
SMALL: dict[str, Any] = {"dim": 16, "length": 6, "batch_size": 16, "lr": 0.01, "epochs": 20, "patience": None}


def walks() -> list[Interaction]:
    """Users who begin anywhere and then go from item to item, k to k + 1, one each day."""
    return [(user, (user * 7 + step) % ITEMS, float(9 - step)) for user in range(60) for step in range(8)]


@pytest.fixture
def data(tmp_path: Path) -> FederatedDataModule:
    return timed(tmp_path / "ratings.csv", walks())


def made(**settings: Any) -> Network:
    """A network of random weights."""
    network = Network(SASRec(**{"dim": 8, "length": 5} | settings), 12)
    random = torch.Generator().manual_seed(0)
    for values in network.parameters():
        values.data.normal_(generator=random)
    return network


def test_sequences_are_the_newest_items_the_oldest_first(tmp_path: Path) -> None:
    days = {0: [5, 1, 3], 1: [2], 2: [9, 8, 7, 6, 4]}  # of items 0, 1, ...
    data = timed(
        tmp_path / "ratings.csv",
        [(user, item, float(day)) for user, past in days.items() for item, day in enumerate(past)]
        + [(3, 5, 1.0), (3, 6, 2.0)],
        split="none",
        min_interactions=1,
    )
    items = [str(one) for one in data.item_ids]
    i0, i1, i2, i3, i4 = (items.index(f"i{item}") for item in range(5))
    assert sequences(data, 4)[:3].tolist() == [[i0, i2, i1, -1], [i0, -1, -1, -1], [i1, i2, i3, i4]]
    assert sequences(data, 2)[:3].tolist() == [[i2, i1], [i0, -1], [i3, i4]]
    assert sequences(data, 6)[2].tolist() == [i0, i1, i2, i3, i4, -1]


def test_attention_place_by_place() -> None:
    """One block against loops over users, places, heads and earlier places."""
    network = made(blocks=1, heads=2)
    (block,) = network.blocks
    assert isinstance(block, Block)
    history = torch.tensor([[3, 1, 11, 0], [5, 5, 2, 9]])
    expected = torch.empty(2, 4, 8)
    for user in range(2):
        rows = [network.items[item] + network.places[place] for place, item in enumerate(history[user])]
        parts = [block.projections(block.before_attention(row)).split(8) for row in rows]
        for place in range(4):
            seen = []
            for head in (slice(0, 4), slice(4, 8)):
                query = parts[place][0][head]
                weights = torch.stack([query @ parts[other][1][head] / math.sqrt(4) for other in range(place + 1)])
                values = torch.stack([parts[other][2][head] for other in range(place + 1)])
                seen.append(weights.softmax(0) @ values)
            row = rows[place] + block.joined(torch.cat(seen))
            row = row + block.outer(block.inner(block.before_layers(row)).clamp_min(0))
            expected[user, place] = network.norm(row)
    assert torch.allclose(network(history), expected, atol=1e-5)


def test_nobody_looks_ahead_or_at_what_stands_behind() -> None:
    network = made()
    history = torch.tensor([[3, 1, 7, 0, 2]])
    later = torch.tensor([[3, 1, 7, 11, 9]])
    shorter = torch.tensor([[3, 1, 7, -1, -1]])
    found = network(history)[:, :3]
    assert torch.allclose(network(later)[:, :3], found, atol=1e-6)
    assert torch.allclose(network(shorter)[:, :3], found, atol=1e-6)
    assert not torch.allclose(network(history.flip(1))[:, 2], found[:, 2], atol=1e-2)  # it sees those before, in order


def test_the_loss_by_hand() -> None:
    found = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    items = torch.tensor([[0.5, 0.0], [1.0, 1.0], [-1.0, 0.3]])
    targets = torch.tensor([1, 0])
    logits = [[0.5, 3.0, -0.4], [0.0, -1.0, -0.3]]

    def mean(chosen: list[list[float]]) -> float:
        """The first of each is the target."""
        return sum(math.log(sum(map(math.exp, row))) - row[0] for row in chosen) / 2

    (a, b, c), (d, e, f) = logits
    assert softmax(found, targets, items, None).item() == pytest.approx(mean([[b, a, c], [d, e, f]]))
    # A target that was drawn is not its own negative; an item that was drawn twice counts twice.
    drawn = torch.tensor([2, 1, 2])
    assert softmax(found, targets, items, drawn).item() == pytest.approx(mean([[b, c, c], [d, f, e, f]]))


def test_dropout_leaves_out_a_share_and_keeps_the_mean() -> None:
    values = torch.ones(200, 50)
    found = dropped(values, 0.2, torch.Generator().manual_seed(3))
    assert set(found.unique().tolist()) == {0, 1.25}
    assert 0.18 < found.eq(0).float().mean() < 0.22
    assert dropped(values, 0.2, None) is values
    assert dropped(values, 0.2, torch.Generator().manual_seed(3)).equal(found)


@pytest.mark.parametrize("whole", [sasrec.WHOLE, 5], ids=["all items", "drawn ones"])
def test_it_learns_what_comes_next(data: FederatedDataModule, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(sasrec, "WHOLE", whole)
    scores = {
        type(reference): evaluate(data, "test", reference.fit(data).score, 64)["test/ndcg@10"]
        for reference in (Popularity(), SASRec(**SMALL | {"negatives": 5}))
    }
    assert scores[Popularity] < 0.4
    assert scores[SASRec] > 0.9


def test_same_bits_twice(data: FederatedDataModule) -> None:
    """Another seed gives others. The global generator of torch is neither used nor moved on."""

    def scores(global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        found = SASRec(**SMALL | {"epochs": 3}).fit(data).score(torch.arange(60))
        assert torch.get_rng_state().equal(before)
        return found

    first = scores(0)
    assert scores(1).equal(first)
    model = SASRec(**SMALL)
    model.begin(data)
    start = model.found()
    data.seed = 1
    assert not scores(0).equal(first)
    model.begin(data)
    assert not model.found().isclose(start).any()


def test_dropout_is_drawn_anew_and_only_in_training(data: FederatedDataModule) -> None:
    """Without it another network comes out; what a fitted one scores is always the same."""
    with_it, without = (SASRec(**SMALL | {"epochs": 1, "dropout": share}).fit(data) for share in (0.5, 0.0))
    assert not with_it.trained.equal(without.trained)
    assert with_it.found().equal(with_it.trained)
    assert not with_it.trained.requires_grad
    states = set()

    class Watched(Network):
        def forward(self, history: Tensor, share: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
            if generator is not None:
                states.add(generator.initial_seed())
            return super().forward(history, share, generator)

    with_it.network.__class__ = Watched
    for epoch in (1, 2):
        with_it.train(data, epoch)
    assert len(states) == 2 * math.ceil(60 / 16)


def test_without_validation_all_epochs_are_trained(tmp_path: Path) -> None:
    data = timed(tmp_path / "ratings.csv", walks(), split="none")
    assert SASRec(**SMALL | {"epochs": 3, "evaluate_every": 1}).fit(data).report() == {"train/epochs": 3}


def test_users_of_a_single_item_are_scored(tmp_path: Path) -> None:
    """A batch of them has nothing to learn from."""
    alone = [(user, user % 5, float(user)) for user in range(20)]
    data = timed(tmp_path / "ratings.csv", alone, split="none", min_interactions=1)
    scores = SASRec(**SMALL | {"epochs": 2}).fit(data).score(torch.arange(20))
    assert scores.shape == (20, 5)
    assert scores.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"length": 0, "blocks": 0, "dropout": 1, "negatives": 0, "epochs": 0},
            "method.epochs: 0 is not positive\nmethod.length: 0 is not positive\nmethod.blocks: 0 is not positive\n"
            "method.dropout: 1 is more than 0.99\nmethod.negatives: 0 is not positive",
        ),
        ({"heads": 3}, "method.heads: 3 does not divide method.dim, 64"),
        ({"heads": 0}, "method.heads: 0 is not positive"),
        ({"dim": 0}, "^method.dim: 0 is not positive$"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SASRec(**settings)


def test_data_without_times_and_a_divergence_are_named(data: FederatedDataModule, tmp_path: Path) -> None:
    timeless = timed(tmp_path / "other.csv", drawn(), format=replace(LAYOUT, timestamp_column=None), split="random")
    with pytest.raises(InputError, match="SASRec reads the newest items, and the data have no times"):
        SASRec(**SMALL).fit(timeless)
    with pytest.raises(InputError, match=r"method\.monitor: no 'val/auc'"):
        SASRec(monitor="val/auc").fit(data)
    with pytest.raises(RunError, match=r"epoch 1: .* not finite"):
        SASRec(**SMALL | {"lr": 1e30}).fit(data)
