from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from cgfedrec.data import FederatedDataModule, Format, Synthetic
from cgfedrec.data.split import Part
from cgfedrec.errors import InputError
from cgfedrec.protocol import Protocol
from cgfedrec.random import private_seed
from tests.conftest import MakeData

POSITIONS = Format(header=False, user_column=0, item_column=1, timestamp_column=2)


def items_of(data: FederatedDataModule, part: Part, user: int) -> set[Any]:
    lists = data._parts[part]
    return set(data.item_ids[lists.items[lists.starts[user] : lists.starts[user + 1]]].to_list())


def from_text(make_data: MakeData, tmp_path: Path, text: str, **arguments: object) -> FederatedDataModule:
    path = tmp_path / "ratings.csv"
    path.write_text(text + "".join(f"{u},filler{n},{n}\n" for u in (90, 91) for n in range(12)))
    return make_data(path=str(path), format=POSITIONS, **arguments)


def test_leave_one_out_holds_out_the_latest(make_data: MakeData, tmp_path: Path) -> None:
    data = from_text(make_data, tmp_path, "1,d,4\n1,a,1\n1,c,3\n1,b,2\n")
    assert items_of(data, Part.TEST, 0) == {"d"}
    assert items_of(data, Part.VAL, 0) == {"c"}
    assert items_of(data, Part.TRAIN, 0) == {"a", "b"}


def test_of_equal_times_the_first_row_counts_as_later(make_data: MakeData, tmp_path: Path) -> None:
    text = "1,a,5\n1,b,5\n1,c,5\n1,d,5\n"
    data = from_text(make_data, tmp_path, text)
    assert items_of(data, Part.TEST, 0) == {"a"}
    assert items_of(data, Part.VAL, 0) == {"b"}
    chosen = {
        next(
            iter(items_of(from_text(make_data, tmp_path, text, protocol=Protocol(ties="random"), seed=s), Part.TEST, 0))
        )
        for s in range(30)
    }
    assert chosen == {"a", "b", "c", "d"}


def test_of_a_repeated_pair_the_earliest_counts_and_of_equal_or_no_times_the_first(
    make_data: MakeData, tmp_path: Path
) -> None:
    text = "1,a,9,2\n1,b,5,5\n1,c,6,5\n1,a,3,5\n1,d,7,5\n1,a,3,1\n1,e,8,5\n1,b,5,2\n1,a,4,1\n"
    rated = Format(header=False, user_column=0, item_column=1, timestamp_column=2, rating_column=3, threshold=3)
    path = tmp_path / "ratings.csv"
    path.write_text(text + "".join(f"{u},filler{n},{n},5\n" for u in (90, 91) for n in range(12)))
    data = make_data(path=str(path), format=rated)
    assert data.report["duplicates"] == 4
    assert data.report["below the threshold"] == 0
    assert [items_of(data, part, 0) for part in (Part.TRAIN, Part.VAL, Part.TEST)] == [{"a", "b", "c"}, {"d"}, {"e"}]
    read = data.read()
    assert read.times is not None
    own = read.users == 0
    assert read.times[own].tolist() == [5, 6, 3, 7, 8]  # in the order of the file
    timeless = make_data(path=str(path), format=replace(rated, timestamp_column=None), split="random")
    assert timeless.report["below the threshold"] == 1  # a, with its first rating


def test_temporal_split_cuts_at_one_time_for_all(make_data: MakeData) -> None:
    data = make_data(split="temporal", synthetic=Synthetic(users=80, items=100, groups=6, interactions=12))
    drawn = data.synthetic.draw(0)
    assert drawn.times is not None
    times = {
        (int(drawn.user_ids[int(u)]), int(drawn.item_ids[int(i)])): t
        for u, i, t in zip(drawn.users, drawn.items, drawn.times, strict=True)
    }
    latest = {
        part: [times[id, i] for user, id in enumerate(data.user_ids.to_list()) for i in items_of(data, part, user)]
        for part in Part
    }
    assert max(latest[Part.TRAIN]) <= min(latest[Part.VAL])
    assert max(latest[Part.VAL]) <= min(latest[Part.TEST])
    assert data.report["users without training interactions"] == 80 - data.num_users


def test_nothing_need_be_held_out(make_data: MakeData) -> None:
    data = make_data(split="none")
    assert not data.holds_out("val")
    assert not data.holds_out("test")
    assert data.part_size(Part.TRAIN) == data.interactions_per_user().sum()


def test_users_with_too_few_interactions_are_dropped_and_counted(make_data: MakeData, tmp_path: Path) -> None:
    data = from_text(make_data, tmp_path, "1,a,1\n1,b,2\n2,a,1\n2,c,1\n2,d,2\n2,e,3\n", min_interactions=4)
    assert data.user_ids.to_list() == [2, 90, 91]
    assert "b" not in data.item_ids
    assert data.report["users with too few interactions"] == 1
    assert data.people.clients.tolist() == [-1, 0, 1, 2]
    assert data.item_ids.filter(data.people.kept_from(np.array([0]))[0].tolist()).to_list() == ["a"]


def test_missing_times_need_a_split_without_them(tmp_path: Path, make_data: MakeData) -> None:
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{u},{i}\n" for u in range(5) for i in range(u, u + 8)))
    layout = Format(header=False, user_column=0, item_column=1, timestamp_column=None)
    with pytest.raises(InputError, match="choose the split random or none"):
        make_data(path=str(path), format=layout)
    assert make_data(path=str(path), format=layout, split="random").part_size(Part.TEST) == 5


@pytest.mark.parametrize("name", ["strict", "reference"])
def test_negatives_follow_the_protocol(name: str, make_data: MakeData) -> None:
    data = make_data(Protocol(name, candidates="full"), batch_size=64)  # type: ignore[arg-type]
    drawn = {user: set[int]() for user in range(data.num_users)}
    for round in range(1, 30):
        for users in data.cohorts(torch.arange(data.num_users), 7):
            for batch in data.draw(users, round, 1):
                for user, items, targets, weights in zip(users.tolist(), *batch[:3], strict=False):
                    real = weights > 0
                    positives = items[real & (targets == 1)].tolist()
                    assert set(positives) <= set(
                        data._train.items[data._train.starts[user] : data._train.starts[user + 1]]
                    )
                    drawn[user] |= set(items[real & (targets == 0)].tolist())
    everything = set(range(data.num_items))
    for user, negatives in drawn.items():
        parts = [set(p.items[p.starts[user] : p.starts[user + 1]].tolist()) for p in data._parts]
        kept_out = parts[0] | parts[1] | parts[2] if name == "reference" else parts[0]
        assert not negatives & kept_out
        assert len(everything - kept_out - negatives) <= 2, "every allowed item is drawn sooner or later"


def test_the_private_seed_draws_negatives_and_order_and_nothing_else(make_data: MakeData) -> None:
    def drawn(seed: int, private: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        data = FederatedDataModule(synthetic=Synthetic(users=30, items=60, groups=6, interactions=12), split="random")
        data.attach(Protocol("reference", num_candidates=20), seed)
        data.private_seed = private
        data.setup()
        users = next(iter(data.cohorts(torch.arange(data.num_users), 9)))
        items, targets, *_ = data.draw(users, 1, 1)[0]
        of_all = data.training_samples(1)[1]
        everyone = data.ranking(torch.arange(data.num_users), "test")
        assert everyone.sampled is not None
        return [of_all[:, 1:], items], [targets], [of_all[:, 0], everyone.relevant, everyone.sampled]

    first, second, third = drawn(3, 3), drawn(3, 4), drawn(4, 3)
    for kind in range(2):
        assert not any(one.equal(other) for one, other in zip(first[kind], second[kind], strict=True))
    assert all(one.equal(other) for one, other in zip(first[2], second[2], strict=True))
    assert not any(one.equal(other) for one, other in zip(first[2], third[2], strict=True))
    assert make_data(seed=7).private_seed == private_seed(7)


def test_every_epoch_holds_each_sample_once_in_a_new_order(make_data: MakeData) -> None:
    data = make_data(batch_size=16)
    cohorts = list(data.cohorts(torch.arange(data.num_users), 5))
    assert sum(len(users) for users in cohorts) == data.num_users
    for users in cohorts:
        drawn = data.draw(users, 1, 2)
        for row, user in enumerate(users.tolist()):
            mine = [batch for batch in drawn if len(batch.items) > row]
            assert mine == drawn[: len(mine)]
            steps = len(mine) // 2
            epochs = []
            for epoch in range(2):
                batches = mine[epoch * steps : (epoch + 1) * steps]
                sizes = [int((b.weights[row] > 0).sum()) for b in batches]
                assert sizes[:-1] == [16] * (steps - 1)
                assert 0 < sizes[-1] <= 16
                epochs.append(
                    [(i, t) for b in batches for i, t, w in zip(*(v[row].tolist() for v in b[:3]), strict=True) if w]
                )
                for b, size in zip(batches, sizes, strict=True):
                    assert b.sizes[row].item() == size
                    assert b.weights[row].sum().item() == pytest.approx(1)
            positives = int(data._train.lengths[user])
            assert len(epochs[0]) == positives * 5
            assert sorted(epochs[0]) == sorted(epochs[1])
            assert epochs[0] != epochs[1]
            assert sum(t for _, t in epochs[0]) == positives


def test_batches_do_not_depend_on_the_cohort(make_data: MakeData) -> None:
    data = make_data(batch_size=16)
    together = {}
    for users in data.cohorts(torch.arange(data.num_users), 100):
        for row, user in enumerate(users.tolist()):
            together[user] = [
                [values[row] for values in batch] for batch in data.draw(users, 3, 1) if len(batch.items) > row
            ]
    for user in (5, 0, 17):
        for batch, expected in zip(data.draw(torch.tensor([user]), 3, 1), together[user], strict=True):
            assert all(ours[0].equal(theirs) for ours, theirs in zip(batch, expected, strict=True))


def test_negatives_of_a_positive_are_different_and_new_in_every_round(make_data: MakeData) -> None:
    data = make_data()
    rounds = [data.batches.samples(np.arange(10), round, data.private_seed) for round in (1, 2)]
    for samples in rounds:
        negatives = np.sort(samples[..., 1:], axis=-1)
        assert (np.diff(negatives, axis=-1) > 0).all()
    assert (rounds[0][..., 1:] != rounds[1][..., 1:]).any()


def test_ranking_leaves_out_what_is_known_at_each_stage(make_data: MakeData) -> None:
    data = make_data(Protocol(candidates="sampled", num_candidates=20))
    for stage in ("val", "test"):
        seen = 0
        for cohort in (data.ranking(users, stage) for users in data.ranked(stage, 8)):
            assert cohort.sampled is not None
            for row, user in enumerate(cohort.users.tolist()):
                train, val, test = (set(p.items[p.starts[user] : p.starts[user + 1]].tolist()) for p in data._parts)
                candidates = set(cohort.candidates[row].nonzero().squeeze(1).tolist())
                assert set(cohort.relevant[row].tolist()) == (val if stage == "val" else test)
                assert candidates == set(range(data.num_items)) - train - (val if stage == "test" else set())
                sampled = cohort.sampled[row].tolist()
                assert len(set(sampled)) == 20
                assert not set(sampled) & (train | val | test)
                seen += 1
        assert seen == data.num_users


def test_items_rated_below_the_threshold_are_no_candidates(make_data: MakeData, tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    rows = [f"{u},{(u * 5 + i * i) % 80},{1 + (i % 5)},{i}" for u in range(20) for i in range(15)]
    path.write_text("\n".join(rows))
    data = make_data(
        path=str(path),
        format=Format(None, False, 0, 1, 2, 3, threshold=3),
        protocol=Protocol(candidates="sampled", num_candidates=20),
    )
    low = pl.read_csv(path, has_header=False, new_columns=["user", "item", "rating", "time"]).filter(
        pl.col("rating") < 3
    )
    assert len(low)
    for cohort in (data.ranking(users, "test") for users in data.ranked("test", 7)):
        assert cohort.sampled is not None
        for row, user in enumerate(cohort.users.tolist()):
            mine = low.filter(pl.col("user") == data.user_ids[user])["item"]
            numbers = data.item_ids.search_sorted(mine.filter(mine.is_in(data.item_ids.implode()))).to_list()
            assert not cohort.candidates[row, numbers].any()
            assert not set(numbers) & set(cohort.sampled[row].tolist())


def test_a_user_without_room_for_negatives_is_dropped_and_counted(make_data: MakeData, tmp_path: Path) -> None:
    text = "".join(f"7,filler{n},{n}\n" for n in range(12)) + "7,a,50\n7,b,51\n7,c,52\n8,a,1\n8,c,2\n8,b,3\n"
    data = from_text(make_data, tmp_path, text)
    assert data.user_ids.to_list() == [8, 90, 91]
    assert data.report["users with too few items left as negatives"] == 1


def test_sampled_candidates_stay_the_same(make_data: MakeData) -> None:
    draws = []
    for seed, size in ((0, 4), (0, 50), (1, 50)):
        data = make_data(Protocol(candidates="sampled", num_candidates=9), seed)
        cohorts = [data.ranking(users, "val") for users in data.ranked("val", size)]
        draws.append(torch.cat([cohort.sampled for cohort in cohorts if cohort.sampled is not None]))
    assert draws[0].equal(draws[1])
    assert draws[0].shape == draws[2].shape
    assert not draws[0].equal(draws[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_interactions": 2}, "below 3"),
        ({"min_interactions": 1000}, "no user has 1000 interactions"),
        ({"negatives": 52}, "different ones are asked for"),
        ({"protocol": Protocol(candidates="sampled", num_candidates=55)}, "of 60 items untouched"),
        ({"temporal_fractions": (0.9, 0.8)}, "must rise"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: dict[str, object], message: str, make_data: MakeData) -> None:
    with pytest.raises(InputError, match=message):
        make_data(**arguments)


def test_the_embedded_data_are_what_their_description_says() -> None:
    made = Synthetic(users=500, items=200, groups=10, tastes=2, focus=0.9, skew=0.8, interactions=20)
    data = made.draw(3)
    groups = made.item_groups(3)
    assert np.bincount(groups).tolist() == [20] * 10
    assert len(set(zip(data.users.tolist(), data.items.tolist(), strict=True))) == len(data.users)
    counts = np.bincount(data.users)
    assert counts.min() >= 5
    assert 17 <= np.median(counts) <= 23
    original = data.item_ids.to_numpy()[data.items] - 1
    shares = np.zeros((500, 10))
    np.add.at(shares, (data.users, groups[original]), 1)
    assert 0.7 < (np.sort(shares, axis=1)[:, -2:].sum(1) / counts).mean() < 1
    popularity = np.sort(np.bincount(original, minlength=200))
    assert popularity[-20:].mean() > 3 * popularity[:20].mean()
    assert (made.draw(3).items == data.items).all()
    assert not np.array_equal(made.draw(4).items, data.items)


def test_the_embedded_data_refuse_what_cannot_be() -> None:
    with pytest.raises(InputError) as error:
        Synthetic(users=0, groups=1000, focus=2, interactions=1)
    assert len(error.value.problems) == 4
