"""Neighbours read by what clients have trained: how much an item of each age counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor

from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.data.histories import History
from cgfedrec.data.own import Own
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo
from cgfedrec.structure import Neighbours
from cgfedrec.structure.ages import BUCKETS, OTHERS, QUESTIONS, SHARE, START, TRAIN_ROUNDS, bucket, questions
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.discovery import TRAIN
from cgfedrec.structure.neighbours import TrainedClient
from cgfedrec.testing import prepared, same, trained

ITEMS = 30
ROUNDS = 4 + TRAIN_ROUNDS + 1
SHARED, PERSONAL = -2, -1
"""Where these stand among the readings."""
METHOD = CGFedCo(columns=8, structure=Neighbours(reading="trained"))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data() -> FederatedDataModule:
    """Some clients have too few items to ask anything."""
    made = prepared(synthetic=Synthetic(users=40, items=80, groups=6, interactions=12))
    assert made.histories(torch.arange(40)).lengths.min() < SHARE
    return made


@pytest.fixture
def loop(data: FederatedDataModule) -> FederatedLoop:
    return trained(METHOD, data, cohort_size=17, rounds=ROUNDS, evaluate_every=1)


@pytest.fixture
def weights() -> Tensor:
    """`[items, items]`: row j holds the weights of an owned item j."""
    drawn = torch.rand(ITEMS, ITEMS, generator=torch.Generator().manual_seed(0))
    return drawn * (drawn > 0.6)


def history_of(*lists: list[int], times: bool = True) -> History:
    longest = max(map(len, lists))
    items = torch.tensor([own + [-1] * (longest - len(own)) for own in lists])
    return History(items, torch.arange(longest).expand_as(items) * int(times), torch.zeros(items.shape))


def test_questions_are_of_the_newest_by_what_is_older(weights: Tensor) -> None:
    own = [7, 3, 9, 1, 0, 25, 12, 6, 2, 11, 4, 8]  # the newest first
    asked = questions(history_of(own, [5, 6, 8]), torch.tensor([4, 2]), csr_array(weights.numpy()), seed=1, round=3)
    assert asked.features.shape == (2, QUESTIONS, 1 + OTHERS, BUCKETS)
    assert asked.items[0, :3, 0].tolist() == own[:3]  # the newest quarter
    assert asked.weights[0].tolist() == pytest.approx([1 / 3] * 3 + [0] * (QUESTIONS - 3))
    assert not asked.weights[1].any()  # three items are too few
    for place in range(3):
        expected = torch.zeros(1 + OTHERS, BUCKETS)
        for age, item in enumerate(own[place + 1 :]):
            expected[:, int(bucket(torch.tensor(age)))] += weights[item, asked.items[0, place]]
        torch.testing.assert_close(asked.features[0, place], expected)
        others = asked.items[0, place, 1:]
        assert asked.open[0, place, 0]
        assert asked.open[0, place, 1:].equal(~torch.isin(others, torch.tensor(own)))
    assert asked.open[0].any()
    assert not asked.open[0].all()


def test_others_are_drawn_for_each_client_question_and_round_and_lie_anywhere(weights: Tensor) -> None:
    history, sparse = history_of(list(range(12)), list(range(12))), csr_array(weights.numpy())

    def others(users: list[int], seed: int = 1, round: int = 3) -> Tensor:
        return questions(history, torch.tensor(users), sparse, seed, round).items[:, :3, 1:]

    drawn = others([4, 2])
    assert drawn.unique().tolist() == list(range(ITEMS))
    assert drawn[[1, 0]].equal(others([2, 4]))
    for different in (drawn[[1, 0]], others([4, 2], seed=2), others([4, 2], round=4), drawn.roll(1, dims=1)):
        assert not drawn.equal(different)


def test_without_times_all_ages_are_alike(weights: Tensor) -> None:
    history = history_of(list(range(12)), times=False)
    asked = questions(history, torch.tensor([0]), csr_array(weights.numpy()), seed=1, round=1)
    assert asked.features[..., 0].any()
    assert not asked.features[..., 1:].any()


def test_clients_train_in_rounds_of_their_own_and_get_better_at_it(loop: FederatedLoop) -> None:
    assert isinstance(loop.server, SumsServer)
    steps = loop.server.timeline
    assert [step.phase for step in steps[4:-1]] == [TRAIN] * TRAIN_ROUNDS
    losses = [row["train/loss"] for row in loop.history if row.get("train/loss")]
    assert len(losses) == TRAIN_ROUNDS
    assert losses[-1] < losses[0]
    assert len(loop.server.judged) == len(loop.server.structure.readings) == 22


def test_trained_together_is_trained_alone(data: FederatedDataModule) -> None:
    alone, *others = (trained(METHOD, data, size, rounds=ROUNDS) for size in (1, 7, 100))
    for together in others:
        same(together, alone)


def test_a_reading_counts_each_bucket_by_what_was_trained(data: FederatedDataModule, loop: FederatedLoop) -> None:
    users = torch.tensor([3, 11])
    scores, apart, weights, popularity = read(data, loop, users)
    assert isinstance(loop.server, SumsServer)
    average = loop.server.average
    assert average.shape == (BUCKETS + 1,)
    assert apart.any()
    history = data.histories(users)
    for reading, factor in ((SHARED, 0), (PERSONAL, 1)):
        for client, counts in enumerate(average + factor * apart):
            expected = counts[-1] * popularity
            for item, age in zip(history.items[client].tolist(), history.ages[client], strict=True):
                if item >= 0:
                    expected = expected + counts[bucket(age)] * weights[item]
            torch.testing.assert_close(scores[reading][client], expected, rtol=1e-4, atol=1e-4)


def read(
    data: FederatedDataModule, loop: FederatedLoop, users: Tensor
) -> tuple[dict[int, Tensor], Tensor, Tensor, Tensor]:
    """Scores by both trained readings, what clients found, the neighbours' weights `[items, items]`, and popularity."""
    with loop.clients.workers.one() as worker:
        client = worker.client
        assert isinstance(client, TrainedClient)
        loop.clients.store.load(client, users)
        client.own = data_of(data, users)
        client.receive(loop.server.broadcast(users, ROUNDS + 1), ROUNDS + 1)
        number = len(client.structure.readings)
        scores = {reading: client.read(number + reading) for reading in (SHARED, PERSONAL)}
        return scores, client.apart.detach().clone(), torch.from_numpy(client.weights.toarray()), client.popularity


def data_of(data: FederatedDataModule, users: Tensor) -> Own:
    return Own(data, users, ROUNDS + 1, 1)


def test_a_client_that_has_not_trained_reads_by_the_average(data: FederatedDataModule, loop: FederatedLoop) -> None:
    users = torch.tensor([3, 11])
    with loop.clients.workers.one() as worker:
        client = worker.client
        assert isinstance(client, TrainedClient)
        client.load(users, client.start(users))
        client.own = data_of(data, users)
        client.receive(loop.server.broadcast(users, ROUNDS + 1), ROUNDS + 1)
        number = len(client.structure.readings)
        assert client.read(number + PERSONAL).equal(client.read(number + SHARED))


def test_a_step_goes_down_the_loss_of_the_answer_among_the_others(data: FederatedDataModule) -> None:
    first = trained(METHOD, data, cohort_size=100, rounds=4)  # training comes next
    users = torch.tensor([3, 11])
    with first.clients.workers.one() as worker:
        client = worker.client
        assert isinstance(client, TrainedClient)
        first.clients.store.load(client, users)
        client.own = data_of(data, users)
        client.receive(first.server.broadcast(users, 5), 5)
        (batch, *_) = client.batches()
        loss = client.training_step(batch, 0).loss
        asked = questions(client.own.history, users, client.weights, client.seed, ROUNDS + 1)
        start = START * 2 ** (-torch.arange(BUCKETS) / 2)
        for row in range(2):
            expected = 0.0
            for place in range(QUESTIONS):
                there = asked.open[row, place]
                scores = (asked.features[row, place] @ start)[there]
                expected += float(asked.weights[row, place] * (scores.logsumexp(0) - scores[0]))
            assert loss[row].item() == pytest.approx(expected, rel=1e-5)
