"""What is drawn for many users at once is what `cgfedrec.random` says for each draw alone."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cgfedrec.data import FederatedDataModule, Interactions
from cgfedrec.data.lists import Lists
from cgfedrec.data.synthetic import Synthetic
from cgfedrec.kernels import draws
from cgfedrec.protocol import Protocol
from cgfedrec.random import Stream, bits, integers


def lists_of(lists: list[list[int]], dtype: type) -> Lists:
    lengths = [len(one) for one in lists]
    return Lists(np.append(0, np.cumsum(lengths)), np.array([item for one in lists for item in one], dtype))


def floyd(random: NDArray[np.uint64], pool: list[int]) -> list[int]:
    """Different items of a pool, as Bentley and Floyd draw them."""
    places: list[int] = []
    for place, word in enumerate(random):
        last = len(pool) - len(random) + place
        drawn = int(integers(word[None], last + 1)[0])
        places.append(last if drawn in places else drawn)
    return [pool[place] for place in places]


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    high=st.sampled_from([9, 40, 3000]),  # of the largest, items are searched for; of the others, written down
    number=st.integers(0, 6),
    dtype=st.sampled_from([np.int32, np.int64]),
)
def test_items_outside_lists_are_drawn_as_said(seed: int, high: int, number: int, dtype: type) -> None:
    generator = np.random.default_rng(seed)
    lists = [sorted(generator.permutation(high)[: generator.integers(0, high - number + 1)].tolist()) for _ in range(5)]
    users = generator.permutation(5)[:4]
    times = generator.integers(0, 4, 4)
    states = bits(seed, Stream.NEGATIVES, users, 7)
    found = iter(lists_of(lists, dtype).drawn_outside(users, states, times, number, high).tolist())
    for user, often in zip(users.tolist(), times.tolist(), strict=True):
        pool = sorted(set(range(high)) - set(lists[user]))
        for time in range(often):
            positions = time * number + np.arange(number)
            assert next(found) == floyd(bits(seed, Stream.NEGATIVES, user, 7, positions), pool)
    assert next(found, None) is None


def test_every_set_is_equally_likely() -> None:
    users = np.arange(60_000)
    lists = lists_of([[1]] * len(users), np.int64)
    drawn = lists.drawn_outside(users, bits(0, Stream.NEGATIVES, users), np.ones_like(users), 2, 5)
    sets, counts = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
    assert sets.tolist() == [[0, 2], [0, 3], [0, 4], [2, 3], [2, 4], [3, 4]]
    assert abs(counts / 10_000 - 1).max() < 0.05


def test_more_than_there_are_cannot_be_drawn() -> None:
    users, lists = np.arange(2), lists_of([[0, 1, 2], [3]], np.int32)
    states = bits(0, Stream.NEGATIVES, users)
    assert len(lists.drawn_outside(users, states, np.array([0, 2]), 3, 5)) == 2
    with pytest.raises(ValueError, match="fewer than 3 items"):
        lists.drawn_outside(users, states, np.array([1, 2]), 3, 5)


@pytest.mark.parametrize("lists", [[[3, 1], [2]], [[1], [2, 2]]])
def test_lists_that_do_not_ascend_are_refused(lists: list[list[int]]) -> None:
    users, states = np.arange(2), bits(0, Stream.NEGATIVES, np.arange(2))
    assert lists_of([[3], [1], [], [0, 1]], np.int32).ascend
    with pytest.raises(ValueError, match="do not ascend"):
        lists_of(lists, np.int32).drawn_outside(users, states, np.ones_like(users), 1, 9)


def test_nobody_is_given_their_own_items_whatever_the_order_of_ids() -> None:
    """Items are numbered anew where a run goes on, and a data module may have had them in any order."""

    class Reversed(FederatedDataModule):
        def read(self) -> Interactions:
            made = super().read()
            items = (len(made.item_ids) - 1 - made.items).astype(made.items.dtype)
            parts = made.user_ids, made.item_ids.reverse(), made.users, items, made.times, made.positive
            return Interactions(*parts, dict(made.report))

    synthetic = Synthetic(users=30, items=300, groups=6, interactions=12)
    first = Reversed(synthetic=synthetic)
    first.attach(Protocol("reference"), 0, run="a")
    first.setup()
    then = Reversed(synthetic=synthetic)
    then.attach(Protocol("reference"), 0, before=first.to_keep(), run="a")
    then.setup()
    for data in first, then:
        everyone = np.arange(data.num_users)
        row, samples = data._train.flat(everyone).row, data.batches.samples(everyone, 1, data.private_seed)
        sampled = data.ranking(torch.from_numpy(everyone), "test").sampled
        assert sampled is not None
        for user in everyone:
            own = data.candidates.touched.flat(everyone[user : user + 1]).items
            assert not np.isin(samples[row == user, 1:], own).any()
            assert not np.isin(sampled[user].numpy(), own).any()


def test_samples_of_another_number_are_refused(make_data: Callable[..., FederatedDataModule]) -> None:
    data = make_data()
    users = next(data.cohorts(torch.arange(data.num_users), 100))
    fewer = data.batches.samples(users.numpy(), 1, 0)[:, :-1]
    for wrong in fewer, data.batches.samples(users.numpy(), 1, 0).astype(np.int32):
        with patch.object(type(data.batches), "samples", lambda *_: wrong), pytest.raises(ValueError, match="and not"):  # noqa: B023
            data.draw(users, 1, 1)


def test_batches_are_shuffled_and_cut_as_said(make_data: Callable[..., FederatedDataModule]) -> None:
    data, round, epochs = make_data(batch_size=16), 4, 2
    negatives = data.batches.negatives
    for users in data.cohorts(torch.arange(data.num_users), 9):
        found = data.draw(users, round, epochs)
        for row, user in enumerate(users.tolist()):
            samples = data.batches.samples(np.array([user]), round, data.private_seed).ravel()
            mine = [[values[row] for values in batch] for batch in found if len(batch.items) > row]
            for epoch in range(epochs):
                keys = bits(data.private_seed, Stream.SHUFFLE, user, round, epoch, np.arange(len(samples)))
                order = keys.argsort()
                for part in range(0, len(samples), 16):
                    expected = order[part : part + 16]
                    items, targets, weights, size, ends = mine.pop(0)
                    assert items[: len(expected)].tolist() == samples[expected].tolist()
                    assert targets[: len(expected)].tolist() == (expected % (1 + negatives) == 0).tolist()
                    assert weights[: len(expected)].tolist() == [np.float32(1 / len(expected))] * len(expected)
                    assert not torch.stack((items, targets, weights))[:, len(expected) :].any(), "padding"
                    assert size == len(expected)
                    assert ends == (part + 16 >= len(samples))
            assert not mine


def test_users_who_are_no_cohort_are_refused(make_data: Callable[..., FederatedDataModule]) -> None:
    data = make_data(batch_size=16)
    (users,) = data.cohorts(torch.arange(data.num_users), 100)
    assert data.batches.steps[users[0]] > data.batches.steps[users[-1]]
    assert data.draw(users, 1, 1)
    with pytest.raises(ValueError, match="none of `cohorts`"):
        data.draw(users.flip(0), 1, 1)
    wide = make_data(batch_size=1000)
    first, second = list(wide.cohorts(torch.arange(wide.num_users), 100))[:2]
    with pytest.raises(ValueError, match="differ in width"):
        wide.draw(torch.cat((first, second)), 1, 1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=60))
@example([])
@example([5] * 40)
def test_keys_are_sorted_wherever_they_lie(keys: list[int]) -> None:
    found = np.array(keys, np.uint64)
    draws.sort(found, np.empty(len(keys), np.uint64), np.empty(2 * len(keys) + 3, np.int64))
    assert found.tolist() == sorted(keys)
