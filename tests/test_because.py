"""Why an item is recommended: own items and what they add to a score, or a label that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pytest
import torch

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.data.histories import History
from cgfedrec.run.because import Why, because, why
from cgfedrec.structure.clusters import ClusterServer
from cgfedrec.structure.labelling import labels_of
from tests.conftest import TINY

LOCAL = {"class_path": "Local", "init_args": {"dim": 8}}


def trained(method: Any) -> cgfedrec.run.run.Run:
    small = {name: value for name, value in TINY.items() if name != "method"}
    return cgfedrec.fit(small, {"method": method, "loop.rounds": 12, "run_dir": f"runs/{uuid4()}"})


def history_of(*items: list[int]) -> History:
    longest = max(map(len, items))
    padded = torch.tensor([[*own, *[-1] * (longest - len(own))] for own in items], dtype=torch.int64)
    return History(padded, torch.arange(longest).expand(len(items), -1), torch.zeros(len(items), longest).double())


def test_the_own_items_that_add_most_are_named_and_none_that_adds_nothing() -> None:
    table = torch.tensor([[0.0, 3.0], [0.0, 1.0], [-2.0, 2.0], [5.0, 2.5], [0.0, 9.0]])  # [own items, shown items]
    reason = Why(lambda own, ages, shown: table[own, shown] / (1 + ages), "so")
    # Ages count: item 0 is the newest, and item 3 the oldest.
    found = because(reason, history_of([0, 1, 2, 3], [4]), torch.tensor([[0, 1], [1, 0]]))
    assert found == [[[3], [0, 2, 3]], [[4], []]]
    assert because(reason, history_of([], []), torch.tensor([[0], [1]])) == [[[]], [[]]]


@pytest.mark.parametrize(
    "method", ["CGFedCo", "EASE", "ItemKNN", "FedGF", {"class_path": "EASE", "decay": 0.5}], ids=str
)
def test_what_items_add_is_the_score(method: Any) -> None:
    """All that a history adds, and what does not depend on it, is what the model scores."""
    run = trained(method)
    users, items = torch.arange(6), torch.arange(run.data.num_items)
    history, scores = run.data.histories(users), run.scorer.score(users).double()
    reason = why(run.scorer)
    assert "add most to the score" in reason.said
    beside = []
    for user, row in enumerate(history.items):
        own, ages = row[row >= 0], history.ages[user][row >= 0]
        pairs = (part.flatten() for part in torch.broadcast_tensors(own[:, None], ages[:, None], items))
        added = reason.adds(*pairs).double().view(len(own), -1).sum(0)
        # An own item adds nothing to its own score, which nobody is shown.
        others = torch.ones(len(items), dtype=torch.bool).scatter(0, own, False)
        beside.append((scores[user] - added).masked_fill(~others, torch.nan))
    together = torch.stack(beside)
    for column in together.T:  # what is beside is the same for everybody
        seen = column[~column.isnan()]
        assert (seen - seen.mean()).abs().max() < 1e-5


def test_elsewhere_it_is_a_label_that_items_share() -> None:
    run = trained(TINY["method"])
    assert isinstance(run.server, ClusterServer)
    assert "its server sends down" in why(run.scorer).said
    labels = dict(zip(run.data.item_ids, run.server.labels.tolist(), strict=True))
    table = run.recommend(top_k=5, explain=True)
    named = [(item, own) for item, mine in table.select("item", "because").iter_rows() for own in mine]
    assert len(named) > 40
    assert all(labels[item] == labels[own] for item, own in named)

    run = trained(LOCAL)
    assert "CGFedCo finds in these data" in why(run.scorer).said
    labels = dict(zip(run.data.item_ids, labels_of(run.data).tolist(), strict=True))
    table = run.recommend(top_k=5, explain=True)
    named = [(item, own) for item, mine in table.select("item", "because").iter_rows() for own in mine]
    assert named
    assert all(labels[item] == labels[own] >= 0 for item, own in named)
    assert all(len(set(mine)) == len(mine) <= 3 for mine in table["because"].to_list())


def test_only_own_items_are_named() -> None:
    run = trained("CGFedCo")
    matrix = run.data.training_matrix()
    for user, mine in run.recommend(explain=True).select("user", "because").iter_rows():
        place = run.data.user_ids.to_list().index(user)
        assert set(mine) <= {run.data.item_ids[int(item)] for item in matrix[[place]].indices}


def test_recommend_explains_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("CGFedCo")
    line = ["recommend", "--ckpt_path", str(run.checkpoints / "best.ckpt"), "--explain", "--top_k", "3"]
    assert main([*line, "--user", "1"]) == 0
    told = capsys.readouterr()
    assert "because: own items that add most to the score" in told.err
    first = run.recommend([1], 1, explain=True)["because"][0].to_list()
    assert "; ".join(map(str, first)) in told.out

    ids = run.data.item_ids.cast(pl.String)
    pl.DataFrame({"id": ids[1:], "title": [f"<{one}>" for one in ids[1:]]}).write_csv("items.csv")
    assert main([*line, "--user", "1", "--items", "items.csv"]) == 0
    named = [f"<{one}>" if str(one) != ids[0] else str(one) for one in first]  # one id has no title
    assert "; ".join(named) in capsys.readouterr().out

    own = [str(one) for one in run.data.item_ids[:5]]
    assert main([*line, "--have", *own, "--output", "you.csv"]) == 0
    texts = pl.read_csv("you.csv", schema_overrides={"because": pl.String})["because"].drop_nulls().to_list()
    assert texts
    assert all(set(text.split("; ")) <= set(own) for text in texts if text)
    assert main([*line, "--output", "all.parquet"]) == 0
    assert pl.read_parquet("all.parquet")["because"].dtype == pl.List(run.data.item_ids.dtype)
    assert "because" not in Path("all.parquet").with_name("you.csv").read_text().split("\n")[1]


def test_who_is_shown_what_is_popular_has_no_reason() -> None:
    rows = [(f"u{user}", f"i{(user * 3 + place) % 20}", place) for user in range(12) for place in range(8)]
    pl.DataFrame([*rows, ("rare", "i0", 1)], ["user", "item", "timestamp"], orient="row").write_csv("t.csv")
    run = cgfedrec.fit({"data.path": "t.csv", "method": "EASE", "logger": None, "run_dir": "run"})
    table = run.recommend(explain=True)
    assert table.filter(source="popularity")["user"].unique().to_list() == ["rare"]
    assert table.filter(source="popularity")["because"].list.len().sum() == 0
    assert table.filter(source="model")["because"].list.len().sum() > 0
