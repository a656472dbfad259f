"""The history: as a table in checkpoints, as a CSV that grows, and what is best in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cgfedrec
from cgfedrec.history import Growing, Row, rows_of, table_of
from cgfedrec.loop import FederatedLoop
from tests.conftest import TINY

NUMBERS = st.one_of(st.integers(0, 2**52), st.floats(allow_nan=False))
KEEP: dict[str, Any] = {"patience": None}


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), NUMBERS)))
def test_rows_come_back_as_they_were(rows: list[Row]) -> None:
    back = rows_of(table_of(rows))
    assert back == rows
    for one, other in zip(back, rows, strict=True):
        for name, value in other.items():
            whole = all(isinstance(row.get(name, 0), int) for row in rows)
            assert type(one[name]) is (int if whole else float), value


@given(st.lists(st.dictionaries(st.sampled_from("abc"), NUMBERS)), st.lists(st.integers(0, 3)))
def test_a_table_that_grew_is_the_table_of_all_rows(rows: list[Row], steps: list[int]) -> None:
    growing, end = Growing(), 0
    for step in [*steps, len(rows)]:
        end = min(len(rows), end + step)
        found, expected = growing.of(rows[:end]), table_of(rows[:end])
        assert rows_of(found) == rows_of(expected) == rows[:end]
        assert set(found["whole"]) == set(expected["whole"])
        assert found["values"].untyped_storage().nbytes() == found["values"].nbytes


@pytest.mark.parametrize(
    "change",
    [
        {"columns": ["a", "a"]},
        {"columns": ["a"]},
        {"columns": [1, 2]},
        {"values": torch.zeros(2, 2)},
        {"values": torch.zeros(2, dtype=torch.float64)},
    ],
)
def test_what_is_no_table_is_refused(change: dict[str, Any]) -> None:
    table = table_of([{"a": 1, "b": 0.5}, {"a": 2}])
    with pytest.raises(ValueError, match="no table"):
        rows_of(table | change)


@given(st.lists(st.integers(0, 5), min_size=1))
def test_the_best_is_the_first_of_the_highest_however_it_was_asked_for(values: list[int]) -> None:
    asked, whole = FederatedLoop(monitor="m"), FederatedLoop(monitor="m")
    for round, value in enumerate(values, 1):
        asked.history.append({"round": round, "m": value})
        assert asked.best == max(asked.history, key=lambda row: row["m"])
    whole.history = list(asked.history)
    assert whole.best == asked.best
    assert asked.since_best == len(values) - 1 - values.index(max(values))
    whole.history = whole.history[:1]
    assert (whole.best, whole.since_best) == ({"round": 1, "m": values[0]}, 0)


def test_the_csv_is_the_history_after_every_round_and_when_training_goes_on() -> None:
    seen: list[bytes] = []

    class Look:
        def on_round_end(self, loop: FederatedLoop) -> None:
            table = pl.DataFrame(loop.history, infer_schema_length=None)
            assert Path("run/metrics.csv").read_text() == table.write_csv()
            seen.append(Path("run/metrics.csv").read_bytes())

    cgfedrec.fit(TINY, {"run_dir": "run", "loop": {"rounds": 3, **KEEP}}, callbacks=[Look()])
    assert len(seen) == 3
    assert seen[2].startswith(seen[1]), "a row is added, and nothing written again"
    with Path("run/metrics.csv").open("a") as file:
        file.write("4,0.12")  # cut off by a kill
    more = {"ckpt_path": "run/checkpoints/last.ckpt", "loop": {"rounds": 5}, "logger": None}
    cgfedrec.fit(more, callbacks=[Look()])
    assert seen[-1].startswith(seen[2])
    assert pl.read_csv("run/metrics.csv")["round"].to_list() == [1, 2, 3, 4, 5]
