"""Reading, numbering and splitting, against their plain definition, an interaction at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgfedrec.data import FederatedDataModule, Format
from cgfedrec.data.ratings import read
from cgfedrec.data.split import Part
from cgfedrec.errors import Notice
from cgfedrec.protocol import Protocol

Row = tuple[int, int, int, int]
ROWS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.integers(0, 3)), min_size=40)
FEWEST = 3


def plain(rows: list[Row], threshold: int) -> dict[str, Any]:
    """What the data module must find: by loops and dictionaries, as anyone would write it down."""
    earliest: dict[tuple[int, int], tuple[int, int]] = {}
    for place, (user, item, _, time) in enumerate(rows):
        earliest[user, item] = min(earliest.get((user, item), (time, place)), (time, place))
    unique = [rows[place] for place in sorted(place for _, place in earliest.values())]
    liked: dict[int, list[tuple[int, int, int]]] = {}
    for place, (user, item, rating, time) in enumerate(unique):
        if rating >= threshold:
            liked.setdefault(user, []).append((time, -place, item))  # the row that stands first counts as later
    kept = sorted(user for user, own in liked.items() if len(own) >= FEWEST)
    parts: dict[Part, dict[int, list[int]]] = {part: {} for part in Part}
    for user in kept:
        in_time = [item for _, _, item in sorted(liked[user])]
        parts[Part.TRAIN][user], parts[Part.VAL][user] = sorted(in_time[:-2]), [in_time[-2]]
        parts[Part.TEST][user] = [in_time[-1]]
    return {
        "users": kept,
        "items": sorted({item for user, item, _, _ in unique if user in kept}),
        "parts": parts,
        "duplicates": len(rows) - len(unique),
        "few": len({row[0] for row in rows} - set(kept)),
        "disliked": {user: sorted(i for u, i, r, _ in unique if u == user and r < threshold) for user in kept},
    }


def write(rows: list[Row], spell: Callable[[int], str]) -> None:
    lines = [f"{spell(user)},{spell(item)},{rating},{time}" for user, item, rating, time in rows]
    Path("r.csv").write_text("\n".join(["user,item,rating,timestamp", *lines]) + "\n")


@pytest.mark.parametrize("spell", [str, lambda number: f"id{number:03}"], ids=["numbers", "text"])
@given(rows=ROWS, threshold=st.integers(1, 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_finds_what_the_plain_definition_says(spell: Callable[[int], str], rows: list[Row], threshold: int) -> None:
    expected = plain(rows, threshold)
    if not expected["users"] or len(expected["items"]) < 13:
        rows = rows + [(20 + user, item, 5, item) for user in range(2) for item in range(1, 14)]
        rows += [(30, 40 + item, 5, item) for item in range(20)]
        expected = plain(rows, threshold)
    write(rows, spell)
    data = FederatedDataModule("r.csv", Format(rating_column="rating", threshold=threshold), negatives=1)
    data.attach(Protocol(), 0)
    data.setup()
    assert [str(user) for user in data.user_ids] == [spell(user) for user in expected["users"]]
    assert [str(item) for item in data.item_ids] == [spell(item) for item in expected["items"]]
    assert (data.report["duplicates"], data.report["users with too few interactions"]) == (
        expected["duplicates"],
        expected["few"],
    )
    number = {item: place for place, item in enumerate(expected["items"])}
    for place, user in enumerate(expected["users"]):
        for lists, items in (
            *((data._parts[part], expected["parts"][part][user]) for part in Part),
            (data._disliked, expected["disliked"][user]),
        ):
            mine = lists.items[lists.starts[place] : lists.starts[place + 1]]
            assert mine.tolist() == [number[item] for item in items]


def test_times_of_two_units_are_told(tmp_path: Path) -> None:
    path, rows = tmp_path / "times.csv", [f"{user},{item},{978300760 + item}" for user in range(3) for item in range(5)]
    path.write_text("\n".join(("user,item,timestamp", *rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(path)
    rows[7] += "000"
    path.write_text("\n".join(("user,item,timestamp", *rows)))
    with pytest.warns(Notice, match="two units: 14 of 15 are like 978300760, others like 978300762000"):
        read(path)


def test_when_something_was_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Though nothing else may follow from it than how much it counts by now."""
    found = set()
    for when in (1, 2):
        rows = [f"{user},{2 * user + place},{978300760 + 86400 * place}" for user in range(3) for place in range(5)]
        rows[0] = f"0,0,{978300760 + when}"
        (tmp_path / "times.csv").write_text("\n".join(("user,item,timestamp", *rows)))
        data = FederatedDataModule(str(tmp_path / "times.csv"), min_interactions=3, negatives=1)
        data.attach(Protocol(), 0)
        data.setup()
        found.add(data.fingerprint())
    assert len(found) == 2


def test_what_a_user_dislikes_is_part_of_the_fingerprint() -> None:
    rows = [(user, item, 5 if item < 20 else 1, item) for user in range(1, 5) for item in range(1, 22)]
    found = []
    for changed in (rows, [*rows[:-1], (4, 21, 5, 21)], [*rows[:-1], (4, 22, 1, 21)], rows):
        write(changed, str)
        data = FederatedDataModule("r.csv", Format(rating_column="rating", threshold=3), negatives=1)
        data.attach(Protocol(), 0)
        data.setup()
        found.append(data.fingerprint())
    assert found[0] == found[3]
    assert len(set(found)) == 3


def test_items_that_another_user_dislikes_change_it_too() -> None:
    """The items are the same, and so is everything that is liked."""
    rows = [(user, item, 5, item) for user in range(1, 5) for item in range(1, 20)]
    found = set()
    for disliker in (1, 2):
        write([*rows, (3, 30, 1, 30), (4, 31, 1, 31), (disliker, 30, 1, 32)], str)
        data = FederatedDataModule("r.csv", Format(rating_column="rating", threshold=3), negatives=1)
        data.attach(Protocol(), 0)
        data.setup()
        found.add(data.fingerprint())
    assert len(found) == 2


@pytest.mark.parametrize("ties", ["file_first", "random"])
@pytest.mark.parametrize("split", ["leave_one_out", "random"])
def test_one_item_is_held_out_for_each_part_of_every_user(ties: Any, split: Any) -> None:
    rng = np.random.default_rng(1)
    write([(int(u), int(i), 5, int(t)) for u, i, t in rng.integers(1, 40, (3000, 3))], str)
    data = FederatedDataModule("r.csv", split=split)
    data.attach(Protocol(ties=ties), 3)
    data.setup()
    assert set(data._parts[Part.VAL].lengths) == set(data._parts[Part.TEST].lengths) == {1}
    assert data.part_size(Part.TRAIN) == int(data.interactions_per_user().sum()) - 2 * data.num_users
