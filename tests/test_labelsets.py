"""Label sets: what is found and learned is as computed by hand, and the choice is the loop's own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cgfedrec.data import FederatedDataModule
from cgfedrec.data.own import Own
from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo
from cgfedrec.random import Stream, bits
from cgfedrec.structure import LabelSets
from cgfedrec.structure.clusters import clustered
from cgfedrec.structure.labelsets import CLASSES, DECAYS, NONE, LabelSetsClient
from cgfedrec.structure.nystroem import coordinates
from cgfedrec.testing import Conformance, trained
from tests.sums import opened_after_fit, server_of, small_data

COUNTED = 3
"""Rounds before clients train: bounds, sketch, labels."""
ENOUGH = 10_000
"""More rounds than any of these runs needs: they end when all is done."""


def method(**settings: Any) -> CGFedCo:
    return CGFedCo(columns=8, structure=LabelSets(**{"sets": 3, "clusters": 8, "rounds": 2} | settings))


class TestLabelSets(Conformance):
    uploads: ClassVar = {"bounds", "sketch", "labels", "train", "choose"}
    rounds: ClassVar = 6
    optimizers: ClassVar = {}
    wrong: ClassVar = {"columns": 0}
    odd: ClassVar = {"structure": LabelSets(sets=2, clusters=7, rounds=2)}
    good: ClassVar = {"structure": LabelSets(sets=4, clusters=8, rounds=8), "columns": 16}

    def method(self, **settings: Any) -> CGFedCo:
        chosen: dict[str, Any] = {"columns": 8, "structure": LabelSets(sets=3, clusters=8, rounds=2)}
        return CGFedCo(**chosen | settings)


@pytest.fixture
def data() -> FederatedDataModule:
    return small_data()


def client_in(loop: FederatedLoop, users: Tensor) -> LabelSetsClient:
    """These clients, `[clients]`, with what has come down, in the next round."""
    with loop.clients.workers.one() as worker:
        client = worker.client
    assert isinstance(client, LabelSetsClient)
    client.load(users, loop.clients.store.read(users))
    client.own = Own(loop.data, users, loop.round + 1, 1)
    client.receive(loop.server.broadcast(users, loop.round + 1), loop.round + 1)
    return client


def test_clients_know_a_step_that_no_byte_tells(data: FederatedDataModule) -> None:
    """With two passes, as many rounds of training as there may be and the choice there are 257 steps."""
    discovered = CGFedCo(columns=8, share=0.5, structure=LabelSets(sets=3, clusters=8, rounds=250))
    loop = trained(discovered, data, 100, rounds=COUNTED)
    server = server_of(loop)
    for step in (255, 256):
        server.at.fill_(step)
        server.refresh()
        client = client_in(loop, torch.arange(4))
        assert client.step == server.step == server.timeline[step]
    assert server.phase == "choose"
    with pytest.raises(InputError, match=r"method\.structure\.rounds: 251 is more than 250"):
        method(rounds=251)


@pytest.mark.parametrize("before", [COUNTED, COUNTED + 1])
def test_the_gradient_is_that_of_a_computation_by_hand(before: int, data: FederatedDataModule) -> None:
    """Without an average as yet, and with one; all rho; items with rows and without."""
    loop = trained(method(), data, 100, rounds=before)
    users = next(loop.data.cohorts(torch.arange(loop.data.num_users), 5))
    client = client_in(loop, users)
    random = torch.Generator().manual_seed(0)
    client.weights.data = torch.randn(client.weights.shape, generator=random)
    (batch, *others) = client.train_batches()
    assert len(others) == 4
    output = client.training_step(batch, 0)
    (gradient,) = torch.autograd.grad(output.loss.sum(), client.weights)
    assert (client.average is None) == (before == COUNTED)
    for row, user in enumerate(users.tolist()):
        weights = client.weights[row].detach().double().numpy()  # [labels, decays]
        mean = 0.0 if client.average is None else client.average.double().numpy()
        owned = loop.data.histories(torch.tensor([user])).entries()
        ages = dict(zip(owned[1].tolist(), owned[2].tolist(), strict=True))
        expected = 0.02 * (weights - mean)
        loss = 0.01 * np.square(weights - mean).sum()
        inside = int(batch.sizes[row])
        assert inside == 5 * len(ages)
        samples = [
            (int(item), int(target))
            for item, target in zip(batch.items[row, :inside], batch.targets[row, :inside], strict=True)
        ]
        assert {item for item, target in samples if target} == set(ages)
        for place, decay in enumerate(DECAYS):
            total = sum((1 + age) ** -decay for age in ages.values())
            for item, target in samples:
                labels = [label for label in client.labels[item].tolist() if label != NONE]
                share = (1 + ages[item]) ** -decay / total if target else 1 / (4 * len(ages))
                score = weights[labels, place].sum()
                chance = 1 / (1 + np.exp(-score))
                loss -= share * np.log(chance if target else 1 - chance)
                expected[labels, place] += share * (chance - target)
        np.testing.assert_allclose(gradient[row].numpy(), expected, atol=1e-6, rtol=1e-4)
        assert output.loss[row].item() == pytest.approx(loss, rel=1e-5)


def test_labels_are_clusters_of_coordinates_and_of_projections(data: FederatedDataModule) -> None:
    loop = trained(method(), data, 100, rounds=COUNTED)
    server = server_of(loop)
    client = client_in(loop, torch.tensor([0]))
    rows = server.known.the_rows
    found = client.labels[rows.items]  # [rows, sets + 1]
    seed = int(bits(server.seed, Stream.CLUSTERS, 1, 0) >> np.uint64(32))
    weights = (rows.clients + 1).double().sqrt().numpy()
    expected, _ = clustered(coordinates(server.factor()).numpy(), 8, seed, weights=weights)
    assert found[:, 0].tolist() == expected.tolist()
    for number in range(3):
        assert set((found[:, number] - 8 * number).tolist()) == set(range(8))
    assert len({tuple((found[:, number] - 8 * number).tolist()) for number in range(3)}) == 3


def test_an_item_without_a_row_has_its_class_of_popularity_alone(data: FederatedDataModule) -> None:
    loop = trained(method(), data, 100, rounds=ENOUGH)
    client = client_in(loop, torch.arange(40))
    counts = torch.from_numpy(loop.data.training_matrix().sum(0))
    scarce = counts < 3
    assert scarce.any()
    assert client.labels[scarce, :-1].eq(NONE).all()
    assert client.labels[~scarce, :-1].ne(NONE).all()
    classes = client.labels[:, -1] - 3 * 8
    # 60 items in 32 classes: one or two in each, the most popular ones first
    assert set(torch.bincount(classes).tolist()) == {1, 2}
    assert len(torch.bincount(classes)) == CLASSES
    assert all(counts[classes == one].min() >= counts[classes == one + 1].max() for one in range(CLASSES - 1))
    decay, beta = client.structure.options[3]
    popularity = counts.log1p() / counts.log1p().max()
    expected = client.weights[:, client.labels[scarce, -1], decay] + beta * popularity[scarce]
    torch.testing.assert_close(client.read(3)[:, scarce], expected.detach().float())


def test_a_score_is_the_sum_of_its_labels_weights(data: FederatedDataModule) -> None:
    loop = trained(method(), data, 100, rounds=ENOUGH)
    users = loop.data.order()[:4]
    client = client_in(loop, users)
    for reading, (decay, beta) in enumerate(client.structure.options):
        weights = torch.nn.functional.pad(client.weights.detach()[..., decay], (0, 1))  # 0 where there is no label
        expected = weights[:, client.labels].sum(2) + beta * client.popularity
        torch.testing.assert_close(client.read(reading), expected)
    assert client.weights.detach()[..., 0].ne(client.weights.detach()[..., -1]).any()


def test_what_goes_up_is_averaged_over_the_clients_of_a_round(data: FederatedDataModule) -> None:
    loop = trained(method(), data, 7, rounds=COUNTED + 1)
    weights = loop.clients.store.read(torch.arange(40))["weights"]
    assert weights.abs().sum() > 0
    torch.testing.assert_close(server_of(loop).average, weights.mean(0))


def test_a_client_that_has_not_trained_scores_by_the_average(data: FederatedDataModule) -> None:
    """The others score by their own weights."""
    loop = trained(method(rounds=1), data, 7, rounds=ENOUGH, participants=10)
    users = torch.arange(40)
    trained_ones = loop.clients.store.read(users)["trained"] > 0
    assert 0 < int(trained_ones.sum()) <= 10
    client = client_in(loop, users)
    decay, beta = client.structure.options[client.chosen]
    scores = client.score()
    assert client.average is not None
    mean = torch.nn.functional.pad(client.average[:, decay], (0, 1))
    expected = mean[client.labels].sum(1) + beta * client.popularity
    torch.testing.assert_close(scores[~trained_ones], expected.expand(int((~trained_ones).sum()), -1))
    assert not torch.isclose(scores[trained_ones], expected).all(1).any()


def test_the_choice_is_made_once_all_have_trained_and_is_that_of_the_loop(data: FederatedDataModule) -> None:
    """Early stopping does not end a run before: the first reading is not what the run will use."""
    loop = trained(method(rounds=6), data, 100, rounds=ENOUGH, patience=1)
    server = server_of(loop)
    assert server.finished
    assert loop.round == COUNTED + 6 + 1
    last = loop.history[-1]
    judged = [last[f"readings/{reading}"] for reading in server.structure.readings]
    assert int(server.chosen) == int(np.argmax(judged))
    assert len(set(judged)) > 5
    assert last["val/ndcg@10"] == pytest.approx(max(judged), abs=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"sets": 0}, {"clusters": 1}, {"rounds": 0}, {"steps": 0}, {"step_size": 0.0}, {"pull": 1.5}]
)
def test_wrong_settings_are_named(wrong: dict[str, Any], data: FederatedDataModule) -> None:
    with pytest.raises(InputError, match=rf"method\.structure\.{next(iter(wrong))}"):
        trained(method(**wrong), data, 5)


def test_it_is_named_on_the_command_line_and_a_checkpoint_of_it_is_trusted() -> None:
    loop = opened_after_fit("LabelSets", "--method.structure.sets", "2")
    structure = server_of(loop).structure
    assert isinstance(structure, LabelSets)
    assert structure.sets == 2
    assert loop.server.finished
