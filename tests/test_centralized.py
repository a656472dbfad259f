"""References that see everyone's data."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import cgfedrec
from cgfedrec.centralized import EASE, MF, ItemKNN, LightGCN, Popularity, itemknn
from cgfedrec.centralized.factors import bpr, logistic
from cgfedrec.centralized.reference import Reference
from cgfedrec.data import FederatedDataModule, Format, Synthetic
from cgfedrec.errors import InputError, RunError
from cgfedrec.evaluation.ranking import evaluate
from tests.conftest import TINY, MakeData, require_data

PLANTED = Synthetic(users=200, items=100, groups=5, tastes=1, interactions=15)


def ndcg(data: FederatedDataModule, reference: Reference) -> float:
    return evaluate(data, "test", reference.fit(data).score, 64)["test/ndcg@10"]


def test_the_training_matrix_holds_training_alone(make_data: MakeData) -> None:
    data = make_data()
    matrix = data.training_matrix()
    everyone = torch.arange(data.num_users)
    held_out = torch.cat([data.ranking(everyone, stage).relevant for stage in ("val", "test")], dim=1)
    assert matrix.shape == (30, 60)
    assert matrix.sum() == data.interactions_per_user().sum() - 60
    assert not matrix.toarray()[everyone[:, None], held_out].any()


def test_training_samples_are_those_of_the_clients(make_data: MakeData) -> None:
    """One positive after another, its negatives behind it, none of them in the training set, new in every epoch."""
    data = make_data(batch_size=10_000)
    taken = torch.from_numpy(data.training_matrix().toarray()).bool()
    (users, items), (_, others) = data.training_samples(1), data.training_samples(2)
    assert len(users) == taken.sum()
    assert taken[users, items[:, 0]].all()
    assert not taken[users[:, None], items[:, 1:]].any()
    assert not items.equal(others)
    (batch,) = data.draw(torch.tensor([3]), round=1, epochs=1)
    sampled = batch.items[0, batch.weights[0] > 0]
    assert sampled.sort().values.equal(items[users == 3].flatten().sort().values)


def test_ease_solves_its_own_problem(make_data: MakeData) -> None:
    """Each column of the weights against its ridge regression without the item itself, in float64, one by one."""
    data = make_data()
    x = data.training_matrix().toarray()
    weights = np.zeros((60, 60))
    for item in range(60):
        others = np.arange(60) != item
        rest = x[:, others]
        weights[others, item] = np.linalg.solve(rest.T @ rest + 7 * np.eye(59), rest.T @ x[:, item])
    users = torch.tensor([4, 0, 29])
    found = EASE(lambda_=7).fit(data).score(users)
    assert np.allclose(found, x[users] @ weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("at_once", [1, 7 * 60, itemknn.PAIRS_AT_ONCE], ids=["an item", "seven items", "all items"])
@pytest.mark.parametrize(("neighbours", "shrinkage"), [(3, 0.0), (3, 5.0), (1000, 5.0)])
def test_itemknn_one_pair_at_a_time(
    make_data: MakeData, monkeypatch: pytest.MonkeyPatch, at_once: int, neighbours: int, shrinkage: float
) -> None:
    """In whatever blocks. Many similarities are equal here, and the first in the catalogue are kept."""
    monkeypatch.setattr(itemknn, "PAIRS_AT_ONCE", at_once)
    data = make_data(seed=7)
    x = data.training_matrix().toarray()
    counts = x.sum(0)
    assert (counts == 0).any()  # held out by all who have them
    expected = np.zeros((30, 60))
    for item in range(60):
        similar = {}
        for other in range(60):
            together = (x[:, item] * x[:, other]).sum()
            if together and other != item:
                similar[other] = together / (np.sqrt(counts[item]) * np.sqrt(counts[other]) + shrinkage)
        kept = sorted(similar, key=lambda other: (-similar[other], other))[:neighbours]
        for user in range(30):
            expected[user, item] = sum(similar[other] for other in kept if x[user, other])
    found = ItemKNN(neighbours=neighbours, shrinkage=shrinkage).fit(data)
    everyone = torch.arange(30).flip(0)
    assert np.allclose(found.score(everyone), expected[everyone], rtol=0, atol=1e-12)
    assert found.weights.nnz <= 60 * neighbours


def test_itemknn_never_holds_all_pairs_of_items(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks hold as many pairs as they may, whatever the size of the catalogue."""
    largest, seen = itemknn._largest, list[int]()

    def watched(rows: Any, number: int) -> Any:
        seen.append(rows.nnz)
        return largest(rows, number)

    monkeypatch.setattr(itemknn, "_largest", watched)
    monkeypatch.setattr(itemknn, "PAIRS_AT_ONCE", 500)
    ItemKNN().fit(make_data(synthetic=PLANTED))
    assert len(seen) == 20  # five of 100 items at a time
    assert sum(seen) > 500 > max(seen)


def test_the_losses_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]], dtype=torch.float64)
    sigmoid = 1 / (1 + np.exp(-logits.numpy()))
    targets = np.array([[1, 0, 0], [1, 0, 0]])
    assert logistic(logits).item() == pytest.approx(-np.log(np.where(targets, sigmoid, 1 - sigmoid)).mean())
    pairs = [1 / (1 + np.exp(-difference)) for difference in (3, 1.5, -1, 3)]
    assert bpr(logits).item() == pytest.approx(-np.log(pairs).mean())


def test_lightgcn_passes_vectors_on_as_the_paper_says(make_data: MakeData) -> None:
    """Vectors and the gradient of a function of them, against dense matrices in float64."""
    data = make_data()
    model = LightGCN(layers=2)
    model.setup(data)
    x = torch.from_numpy(data.training_matrix().toarray())
    adjacency = torch.cat((torch.cat((torch.zeros(30, 30), x), 1), torch.cat((x.T, torch.zeros(60, 60)), 1)))
    root = adjacency.sum(1).clamp_min(1).rsqrt()
    step = root[:, None] * adjacency * root
    mean = (torch.eye(90) + step + step @ step) / 3
    table = torch.randn(90, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(90, 4, generator=torch.Generator().manual_seed(1))
    vectors = model.vectors(table)
    vectors.backward(weights)
    assert table.grad is not None
    assert torch.allclose(vectors.double(), mean @ table.double(), atol=1e-5)
    assert torch.allclose(table.grad.double(), mean @ weights.double(), atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_step_descends_the_penalised_loss(make_data: MakeData, decay: float) -> None:
    """One batch that holds everything, with a step of Adam, lr x sign(gradient), against the gradient by hand."""
    data = make_data()
    arguments: dict[str, Any] = {"dim": 3, "batch_size": 10_000, "weight_decay": decay, "lr": 1e-3, "evaluate_every": 1}
    before, after = (MF(loss="logistic", epochs=1, **arguments | {"lr": lr}).fit(data).trained for lr in (1e-30, 1e-3))
    users, items = (samples.numpy() for samples in data.training_samples(1))
    table = before.double().numpy()
    p, q = table[users], table[30:][items]
    error = 1 / (1 + np.exp(-(q * p[:, None]).sum(2))) - (np.arange(5) == 0)
    gradient = np.zeros_like(table)
    np.add.at(gradient, users, (error[:, :, None] * q).sum(1) / items.size + decay * p / len(users))
    np.add.at(gradient, items + 30, error[:, :, None] * p[:, None] / items.size + decay * q / len(users))
    clear = np.abs(gradient) > 1e-6
    assert clear.mean() > 0.95
    assert (np.sign(gradient)[clear] == np.sign(table - after.numpy())[clear]).all()


@pytest.mark.parametrize(
    "reference",
    [EASE(lambda_=20), ItemKNN(), MF(loss="bpr", lr=0.01), MF(loss="logistic", lr=0.01), LightGCN(lr=0.01)],
    ids=["EASE", "ItemKNN", "bpr", "logistic", "LightGCN"],
)
def test_it_learns_planted_groups(make_data: MakeData, reference: Reference) -> None:
    data = make_data(synthetic=PLANTED)
    assert ndcg(data, reference) > 1.5 * ndcg(data, Popularity())


def test_validation_chooses_the_epoch_and_ends_training(make_data: MakeData) -> None:
    """The best of the epochs that were tried, and none after `patience` worse ones."""
    data = make_data(synthetic=PLANTED)
    settings: dict[str, Any] = {"dim": 8, "lr": 0.05, "monitor": "val/mrr@20", "evaluate_every": 2, "weight_decay": 0}
    tried: list[torch.Tensor] = []

    class Watched(MF):
        def score(self, users: torch.Tensor) -> torch.Tensor:
            if not tried or tried[-1] is not self.trained:
                tried.append(self.trained)
            return super().score(users)

    found = Watched(epochs=1000, patience=3, **settings).fit(data)
    best = found.report()["train/epochs"]
    assert best % 2 == 0
    assert len(tried) == best / 2 + 3
    assert MF(epochs=int(best), patience=None, **settings).fit(data).trained.equal(found.trained)
    values = []
    for found.trained in tuple(tried):
        values.append(evaluate(data, "val", found.score, 64)["val/mrr@20"])
    assert np.argmax(values) == best / 2 - 1


def test_without_validation_all_epochs_are_trained(make_data: MakeData) -> None:
    data = make_data(split="none")
    assert MF(epochs=3, evaluate_every=1).fit(data).report() == {"train/epochs": 3}


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool = False, fails: int = 0, split: str = "leave_one_out") -> str:
    """What a run of MF shows whose epochs take four seconds each by its clock; one of them may fail."""
    clock, out, train = [0], io.StringIO(), MF.train

    def slow(self: MF, data: FederatedDataModule, epoch: int) -> None:
        clock[0] += 4
        if epoch == fails:
            raise RunError("this epoch fails")
        train(self, data, epoch)

    method = {"class_path": "MF", "epochs": 8, "patience": None, "evaluate_every": 3, "dim": 4}
    console = Console(file=out, width=200, force_terminal=terminal)
    with monkeypatch.context() as patched:
        patched.setattr("cgfedrec.run.reference.time", SimpleNamespace(perf_counter=lambda: clock[0]))
        patched.setattr("cgfedrec.centralized.MF.train", slow)
        with pytest.raises(RunError, match="this epoch fails") if fails else nullcontext():
            cgfedrec.fit(TINY | {"method": method, "run_dir": "run"}, {"data.split": split}, console=console)
    return out.getvalue()


def test_epochs_are_told_every_so_often_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [line for line in shown(monkeypatch).splitlines() if line.startswith("epoch ")]
    assert told[0] == "epoch 1/8  at most 28 s left"
    assert re.fullmatch(r"epoch 4/8  val/ndcg@10 0\.\d{4}  at most 16 s left", told[1])
    assert re.fullmatch(r"epoch 7/8  val/ndcg@10 0\.\d{4}  at most 4 s left", told[2])
    assert len(told) == 3


def test_epochs_are_told_where_nothing_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [line for line in shown(monkeypatch, split="none").splitlines() if line.startswith("epoch ")]
    assert told == [f"epoch {epoch}/8  at most {left} s left" for epoch, left in ((1, 28), (4, 16), (7, 4))]


@pytest.mark.parametrize("fails", [0, 3])
def test_a_terminal_has_a_bar_of_epochs_which_goes_away(fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = shown(monkeypatch, True, fails)
    assert "epochs" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor is there again
    assert "at most" not in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EASE(lambda_=0), "method.lambda_: 0 is below 1e-06"),
        (
            lambda: ItemKNN(neighbours=0, shrinkage=-1),
            "method.neighbours: 0 is not positive\nmethod.shrinkage: -1 is below 0",
        ),
        (lambda: MF(dim=0, epochs=-1), "method.dim: 0 is not positive\nmethod.epochs: -1 is not positive"),
        (lambda: MF(weight_decay=-1), "method.weight_decay: -1 is below 0"),
        (lambda: LightGCN(layers=-1), "method.layers: -1 is below 0"),
    ],
)
def test_settings_that_cannot_work_are_named(make: Callable[[], Reference], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_an_unknown_monitor_and_a_divergence_are_named(make_data: MakeData) -> None:
    with pytest.raises(InputError, match=r"method\.monitor: no 'val/auc'; choose one of val/hr@5"):
        MF(monitor="val/auc").fit(make_data())
    with pytest.raises(RunError, match=r"epoch 1: .* not finite"):
        MF(lr=1e30, batch_size=64).fit(make_data())


@pytest.mark.parametrize(
    ("reference", "expected"), [(Popularity(), 0.0391), (EASE(lambda_=200), 0.0693), (ItemKNN(), 0.0579)]
)
def test_real_ratings(reference: Reference, expected: float) -> None:
    """ML-100K, against an independent implementation."""
    layout = Format(header=False, user_column=0, item_column=1, timestamp_column=3)
    data = FederatedDataModule(str(require_data("ml-100k/ratings.csv")), layout)
    data.setup()
    assert ndcg(data, reference) == pytest.approx(expected, abs=0.001)
