"""The k-core: who and what is left, what is counted, and that nothing after a cut decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import cgfedrec
from cgfedrec.data import FederatedDataModule, Format
from cgfedrec.data.newcomers import Newcomers
from cgfedrec.data.rolling import Rolling
from cgfedrec.data.split import Part
from cgfedrec.errors import InputError
from cgfedrec.protocol import Protocol
from cgfedrec.run.describe import show_data

Rows = list[tuple[str, str, int]]
# Only b has z, and without it b has two items, which are too few. Without b, y has two users, which are too few for 3.
CHAIN: Rows = [
    *((user, item, 1) for user, lacks in zip("acefg", "pqrst", strict=True) for item in "pqrst" if item != lacks),
    *(("b", item, 2) for item in "yzp"),
    ("a", "y", 3),
    ("c", "y", 3),
]


def write(path: Path, rows: Rows) -> str:
    pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row").write_csv(path)
    return str(path)


def opened(path: str, **arguments: Any) -> FederatedDataModule:
    given = {"split": "none", "min_interactions": 3, "min_users": 3, "negatives": 1}
    data = FederatedDataModule(path, **{**given, **arguments})
    data.attach(Protocol(), 0)
    data.setup()
    return data


def plain(rows: Rows, fewest: int, users: int) -> Rows:
    """As anyone would write it down: leave out one at a time, until there is nothing to leave out."""
    while True:
        mine = {user: sum(row[0] == user for row in rows) for user, _, _ in rows}
        theirs = {item: sum(row[1] == item for row in rows) for _, item, _ in rows}
        wrong = [row for row in rows if mine[row[0]] < fewest or theirs[row[1]] < users]
        if not wrong:
            return rows
        one = wrong[0]
        rows = [row for row in rows if row[0 if mine[one[0]] < fewest else 1] != one[0 if mine[one[0]] < fewest else 1]]


def drawn(seed: int, number: int = 160) -> Rows:
    draws = np.random.default_rng(seed)
    pairs = {(f"u{draws.integers(24)}", f"i{int(30 * draws.random() ** 2)}") for _ in range(number)}
    return [(user, item, int(draws.integers(1, 99))) for user, item in sorted(pairs)]


def triples(data: FederatedDataModule, part: Part = Part.TRAIN) -> set[tuple[str, str]]:
    lists = data._parts[part]
    owners = np.repeat(np.arange(data.num_users), lists.lengths)
    return set(zip(data.user_ids[owners], data.item_ids[lists.items.astype(np.int64)], strict=True))


def test_who_leaves_makes_others_leave_and_all_are_counted(tmp_path: Path) -> None:
    data = opened(write(tmp_path / "r.csv", CHAIN))
    assert data.user_ids.to_list() == ["a", "c", "e", "f", "g"]
    assert data.item_ids.to_list() == ["p", "q", "r", "s", "t"]
    counts = ("users with too few interactions", "items with too few users", "interactions outside the k-core")
    assert [data.report[name] for name in counts] == [1, 2, 5]


@pytest.mark.parametrize(("seed", "fewest", "users"), [(0, 3, 3), (1, 4, 2), (2, 2, 5), (3, 4, 4), (4, 1, 6)])
def test_it_is_what_the_plain_definition_says(seed: int, fewest: int, users: int, tmp_path: Path) -> None:
    rows = drawn(seed)
    left = plain(rows, fewest, users)
    assert 0 < len(left) < len(rows)
    data = opened(write(tmp_path / "r.csv", rows), min_interactions=fewest, min_users=users)
    assert triples(data) == {row[:2] for row in left}
    assert set(data.item_ids) == {row[1] for row in left}
    people, items = {row[0] for row in rows}, {row[1] for row in rows}
    assert data.report["users with too few interactions"] == len(people) - data.num_users
    assert data.report["items with too few users"] == len(items) - data.num_items
    assert data.report["interactions outside the k-core"] == len(rows) - len(left)
    assert data.people.ids.to_list() == sorted(people)  # whoever is left out may still ask


def test_without_it_nothing_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", drawn(0))
    plainly = FederatedDataModule(path, split="none", negatives=1)
    plainly.attach(Protocol(), 0)
    plainly.setup()
    one, core = opened(path, min_users=1), opened(path)
    assert one.fingerprint() == plainly.fingerprint() != core.fingerprint()
    assert one.report == plainly.report
    assert "items with too few users" not in one.report


def test_only_what_is_liked_counts(tmp_path: Path) -> None:
    """An item that users only dislike is no item of theirs; what is left of others they may dislike."""
    rows = [(u, i, 5) for u, lacks in zip("abce", "pqrs", strict=True) for i in "pqrs" if i != lacks]
    rows += [("d", "p", 5), ("d", "q", 1), ("a", "p", 1), *((u, "x", 1) for u in "abc")]
    pl.DataFrame(rows, ["user", "item", "rating"], orient="row").write_csv(tmp_path / "r.csv")
    layout = Format(rating_column="rating", timestamp_column=None, threshold=3)
    data = opened(str(tmp_path / "r.csv"), format=layout, min_users=2)
    assert data.item_ids.to_list() == ["p", "q", "r", "s"]
    assert data.user_ids.to_list() == ["a", "b", "c", "e"]
    assert data.report["items with too few users"] == 1  # x
    assert data.report["interactions outside the k-core"] == 1  # d's p


def test_nothing_left_is_refused_in_plain_words(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", CHAIN)
    with pytest.raises(InputError) as failed:
        opened(path, min_users=6)
    assert "nothing is left once every user has 3 interactions (data.min_interactions) and every item 6 users" in str(
        failed.value
    )
    assert "the most users that an item has is 5" in str(failed.value)
    with pytest.raises(InputError, match=r"no user has 9 interactions or more \(data\.min_interactions\); .* is 5"):
        opened(path, min_interactions=9, min_users=9)
    with pytest.raises(InputError, match=r"data\.min_users: 0"):
        FederatedDataModule(path, min_users=0)


def test_counts_are_told(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    show_data(console, opened(write(tmp_path / "r.csv", drawn(1)), min_interactions=4, min_users=2), details=True)
    text = console.export_text()
    assert "items with too few users, " in text.splitlines()[0]
    assert "interactions outside the k-core" in text.splitlines()[0]
    assert text.count("items with too few users") == 2


class TestAtACut:
    """What comes after a cut must not say who and what is there before it."""

    def at(self, path: str, cut: int | None = 1, **arguments: Any) -> FederatedDataModule:
        rolling = Rolling(at=[60.0, 80.0], choosing=0, least=3, cut=cut)
        given = {"split": "rolling", "rolling": rolling, "min_interactions": 2, "min_users": 3}
        return opened(path, **{**given, **arguments})

    def test_before_it_the_core_is_that_of_a_file_that_ends_there(self, tmp_path: Path) -> None:
        rows = drawn(5, 300)
        known = [row for row in rows if row[2] < 60]
        data = self.at(write(tmp_path / "r.csv", rows))
        left = plain(known, 2, 3)
        assert triples(data) == {row[:2] for row in left} != {row[:2] for row in known}
        assert data.report["interactions outside the k-core"] == len(known) - len(left)
        # Each is asked for what comes next among the items of the core.
        asked, items = dict(sorted(triples(data, Part.TEST))), {row[1] for row in left}
        enough = {u for u, _, _ in left if sum(row[0] == u for row in left) >= 3}
        later = sorted(
            (row for row in rows if row[2] >= 60 and row[0] in enough and row[1] in items), key=lambda r: r[2]
        )
        times = {(user, item): time for user, item, time in later}
        assert {user: times[user, item] for user, item in asked.items()} == {
            user: min(row[2] for row in later if row[0] == user) for user in {row[0] for row in later}
        }
        assert set(data.item_ids) == items

    def test_what_comes_after_it_changes_nothing_before(self, tmp_path: Path) -> None:
        rows = drawn(5, 300)
        data = self.at(write(tmp_path / "r.csv", rows))
        more = [(f"u{n}", "i29", 90) for n in range(24)] + [("u1", f"i{n}", 91) for n in range(30)]
        there = {row[:2] for row in rows}
        again = self.at(write(tmp_path / "s.csv", rows + [row for row in more if row[:2] not in there]))
        assert triples(again) == triples(data)
        assert again.item_ids.to_list() == data.item_ids.to_list()

    def test_cuts_tell_how_many_they_ask(self, tmp_path: Path) -> None:
        path = write(tmp_path / "r.csv", drawn(5, 300))
        counted = self.at(path, None).asked
        assert counted == [len(triples(self.at(path, cut), Part.TEST)) for cut in (1, 2)]

    def test_nothing_before_it_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "r.csv", [(u, i, 50) for u, i, _ in CHAIN] + [("a", "w", 61), ("c", "w", 85)])
        with pytest.raises(InputError, match=r"before the cut 60.0 nothing is left once every user has 4"):
            opened(
                path, split="rolling", rolling=Rolling(at=[60.0], choosing=0, cut=1), min_interactions=4, min_users=9
            )


def test_newcomers_have_the_catalogue_of_the_core_and_need_none_of_their_own(tmp_path: Path) -> None:
    trained = opened(write(tmp_path / "r.csv", drawn(1)), min_interactions=4, min_users=2)
    outside = next(row[1] for row in drawn(1) if row[1] not in set(trained.item_ids))
    newcomers = Newcomers(trained, {"new": [trained.item_ids[0], outside]})
    newcomers.setup()
    assert newcomers.item_ids.to_list() == trained.item_ids.to_list()
    assert newcomers.unknown.to_list() == [outside]


def test_a_run_goes_on_with_other_data(tmp_path: Path) -> None:
    """An item that has lost its users stays in the catalogue of then, and its interactions are taken back."""
    then = [(f"u{n}", f"i{k}", n + k) for n in range(30) for k in range(12) if (n + k) % 3 or k == 0]
    now = [row for row in then if row[1] != "i3" or row[0] in ("u1", "u2")]
    given = {
        "data": {"split": "none", "min_interactions": 2, "min_users": 4, "negatives": 1},
        "method": "CGFedCo",
        "method.least_clients": 2,
        "loop.rounds": 20,
        "logger": None,
    }
    old = {**given, "data.path": write(tmp_path / "then.csv", then), "run_dir": str(tmp_path / "then")}
    cgfedrec.fit(old)
    new = {**given, "data.path": write(tmp_path / "now.csv", now), "run_dir": str(tmp_path / "now")}
    run = cgfedrec.fit({**new, "update_from": str(tmp_path / "then" / "checkpoints" / "last.ckpt")})
    assert run.data.changes is not None
    assert "i3" in run.data.item_ids
    assert run.data.report["interactions outside the k-core"] == 2
    gone = run.data.changes.different.filter(pl.col("item") == run.data.item_ids.to_list().index("i3"))
    assert set(gone["what"]) == {"taken back"}
    counts = run.server.get_buffer("counts")
    assert counts[run.data.item_ids.to_list().index("i3")].tolist() == [0, 0]
