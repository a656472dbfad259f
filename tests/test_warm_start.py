"""A warm start: a run on other data begins with the tables of then, each item with its own rows."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

import cgfedrec
from cgfedrec.data.changes import Changes
from cgfedrec.errors import Notice
from cgfedrec.kit.means import TableServer
from cgfedrec.loop import FederatedLoop
from cgfedrec.random import shared_seed
from cgfedrec.run.api import start
from cgfedrec.run.checkpoint import read_checkpoint
from cgfedrec.settings.sources import said
from tests.test_updating import drawn, fitted

SMALL: dict[str, Any] = {"method": "FedMF", "method.dim": 4, "loop.rounds": 2, "data.min_interactions": 3}
NUMBERS = pl.col("user", "item").str.slice(1).cast(pl.Int64)


def begun(older: cgfedrec.Run, table: pl.DataFrame, folder: Path) -> tuple[TableServer, Changes]:
    """The server of a run that goes on with a table, before its first round, and what has changed."""
    folder.mkdir()
    table.write_csv(folder / "data.csv")
    given = {"update_from": str(older.checkpoints / "last.ckpt"), "data": {"path": str(folder / "data.csv")}}
    with start(said([given | {"run_dir": str(folder / "run"), "logger": None}])) as run:
        server, changes = run.server, run.data.changes
    assert isinstance(server, TableServer)
    assert changes is not None
    return server, changes


def federation(run: cgfedrec.Run) -> FederatedLoop:
    assert isinstance(run.training, FederatedLoop)
    return run.training


def means_of(run: cgfedrec.Run, name: str) -> Tensor:
    """As they are in its checkpoint."""
    found = read_checkpoint(run.checkpoints / "last.ckpt")["loop"]["server"][f"means.{name}"]
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("method", ["FedMF", "FedNCF"])
def test_items_keep_their_rows_where_their_order_alone_has_changed(tmp_path: Path, method: str) -> None:
    """One id that is text makes all ids text, so that 10 comes before 9. What has no row for an item stays as it is."""
    table = drawn(40).with_columns(NUMBERS)
    run = fitted(table, tmp_path / "old", **SMALL | {"method": method})
    one = table[-1:].with_columns(pl.col("user", "item").cast(pl.String))
    dropped = one.with_columns(item=pl.lit("abc"), user=pl.lit("nobody"))  # who has too few
    changed = pl.concat([table.with_columns(pl.col("user", "item").cast(pl.String)), dropped])
    with pytest.warns(UserWarning, match="compared as text"):
        server, changes = begun(run, changed, tmp_path / "new")
    moved = torch.from_numpy(changes.moved)
    assert len(moved) == run.data.num_items == len(server.mean("table"))
    assert not moved.equal(torch.arange(len(moved)))
    for name, new in server.means.named_buffers():
        old = means_of(run, name)
        assert (new[moved] if name == "table" else new).equal(old)
        assert old.any()


def test_a_matrix_of_items_takes_in_a_new_item(tmp_path: Path) -> None:
    """Both of its axes go over the items; how alike the new item is to others nobody knows yet."""
    table = drawn(40)
    few = SMALL | {"method": "FedCIA", "method.fit_steps": 2}
    run = fitted(table, tmp_path / "old", **few)
    grown = pl.concat([table, table[-1:].with_columns(item=pl.lit("a new one"))])
    server, changes = begun(run, grown, tmp_path / "begun")
    moved, similarity = torch.from_numpy(changes.moved), server.mean("similarity")
    assert len(similarity) == len(moved) + 1
    assert similarity[moved][:, moved].equal(means_of(run, "similarity"))
    (new,) = set(range(len(similarity))) - set(moved.tolist())
    assert not similarity[new].any()
    assert not similarity[:, new].any()
    again = fitted(grown, tmp_path / "new", run, **few)
    assert len(again.history) == 2


@pytest.mark.parametrize("method", ["FedMF", "FedRAP", "FedCIA"])
def test_who_has_gone_trains_no_more_and_counts_in_no_mean(tmp_path: Path, method: str) -> None:
    table = drawn(40)
    few = SMALL | {"method": method} | ({"method.fit_steps": 2} if method == "FedCIA" else {})
    run = fitted(table, tmp_path / "old", **few)
    again = fitted(table.filter(pl.col("user") != run.data.user_ids[7]), tmp_path / "new", run, **few)
    assert again.data.user_ids.equals(run.data.user_ids)
    assert again.history["train/loss"].is_finite().all()
    loop, there = federation(again), [user for user in range(run.data.num_users) if user != 7]
    assert loop.sample().tolist() == there
    assert loop.clients.store.known.nonzero().squeeze(1).tolist() == there


def test_a_share_is_one_of_those_who_can_train(tmp_path: Path) -> None:
    """Where nobody has gone it is drawn among all, as it always was."""
    table, half = drawn(40), SMALL | {"loop.participation": 0.5}
    run = fitted(table, tmp_path / "old", **half)
    loop, users = federation(run), torch.arange(run.data.num_users)
    assert loop.sample().equal(loop.sampling.draw(users, len(users) // 2, shared_seed(run.data.seed), loop.round))
    gone = pl.col("user").is_in(run.data.user_ids[:10].implode())
    loop = federation(fitted(table.filter(~gone), tmp_path / "new", run, **half))
    assert len(loop.sample()) == round((len(users) - 10) / 2)
    assert loop.sample().min() >= 10


def test_that_fewer_can_train_than_are_to_take_part_is_said_once(tmp_path: Path) -> None:
    table = drawn(40)
    few = SMALL | {"loop.participants": 35, "loop.rounds": 3}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = fitted(table, tmp_path / "old", **few)
        kept = table.filter(~pl.col("user").is_in(run.data.user_ids[:4].implode()))
        fitted(kept, tmp_path / "enough", run, **few)
        assert not [one for one in told if issubclass(one.category, Notice)]
        gone = pl.col("user").is_in(run.data.user_ids[:10].implode())
        again = fitted(table.filter(~gone), tmp_path / "new", run, **few)
        cgfedrec.load(again.checkpoints / "best.ckpt")
    (notice,) = [str(one.message) for one in told if issubclass(one.category, Notice)]
    users = run.data.num_users
    expected = f"35 are to take part, and of the {users} users only {users - 10} have anything to train on"
    assert expected in notice
    loop = federation(again)
    assert loop.round == 3
    assert len(loop.sample()) == users - 10
