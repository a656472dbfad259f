"""`cgfedrec.fit(data=...)`: a table in memory is read by the rule for files, and its run can be opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

import cgfedrec
from cgfedrec.errors import InputError
from tests.documents import interactions

GIVEN: dict[str, Any] = {"logger": None}


def test_a_table_in_memory_is_the_file_that_holds_it() -> None:
    table = interactions()
    table.write_csv("table.csv")
    of_file = cgfedrec.fit(GIVEN, {"data.path": "table.csv"})
    of_polars = cgfedrec.fit(GIVEN, data=table)
    of_pandas = cgfedrec.fit(GIVEN, data=pd.DataFrame(table.to_dict(as_series=False), index=range(1, len(table) + 1)))
    assert of_file.data.fingerprint() == of_polars.data.fingerprint() == of_pandas.data.fingerprint()
    assert of_file.summary["test/ndcg@10"] == of_polars.summary["test/ndcg@10"] == of_pandas.summary["test/ndcg@10"]
    again = cgfedrec.load(of_polars.checkpoints / "best.ckpt")
    assert again.recommend(["u7"]).equals(of_polars.recommend(["u7"]))


def test_the_same_table_is_kept_once() -> None:
    for _ in range(2):
        cgfedrec.fit(GIVEN, data=interactions())
    assert len(list(Path("runs/data").iterdir())) == 1


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (interactions().rename({"item": "sku"}), "no column 'item'"),
        (interactions().with_columns(timestamp=pl.lit("yesterday")), "expected a number or an ISO date"),
        (interactions().lazy(), "collect"),
        ([1, 2], "must be a polars or pandas DataFrame, not list"),
        (pd.DataFrame({"user": [1, "a"], "item": [1, 2], "timestamp": [1, 2]}), "the column 'user' holds values"),
    ],
)
def test_what_cannot_be_read_is_refused_and_nothing_is_left(data: object, what: str) -> None:
    with pytest.raises(InputError, match=what):
        cgfedrec.fit(GIVEN, data=data)
    assert not list(Path().iterdir())


def test_a_table_and_a_file_are_not_both_taken() -> None:
    with pytest.raises(InputError, match=r"config names data\.path"):
        cgfedrec.fit(GIVEN, {"data": {"path": "table.csv"}}, data=interactions())


def test_missing_values_of_pandas_are_refused_as_those_of_files() -> None:
    table = pd.DataFrame(interactions().to_dict(as_series=False))
    table.loc[3, "item"] = None
    with pytest.raises(InputError, match="row 4"):
        cgfedrec.fit(GIVEN, data=table)
