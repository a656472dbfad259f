"""Going on with data that have changed: sums are those of everybody's histories now, whatever came in between."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from torch import Tensor

import cgfedrec
from cgfedrec.data import Synthetic
from cgfedrec.errors import InputError, Notice
from cgfedrec.run.api import load_to_test
from cgfedrec.run.devices import write_client
from cgfedrec.run.structure import shown
from cgfedrec.serving import Recommender
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.tallies import SHARES
from cgfedrec.structure.updating import possible, with_new_labels, with_new_rows

GIVEN: dict[str, Any] = {
    "method": "CGFedCo",
    "data.split": "none",
    "data.min_interactions": 1,
    "loop.rounds": 50,
    "logger": None,
}


def drawn(users: int = 90) -> pl.DataFrame:
    """Interactions in the order of time, with ids as text so that new ones fall between old ones."""
    data = Synthetic(users=users, items=300, groups=5, interactions=14).draw(0)
    assert data.times is not None
    columns = {"user": data.user_ids[data.users], "item": data.item_ids[data.items], "timestamp": data.times}
    table = pl.DataFrame(columns).sort("timestamp")
    return table.with_columns(pl.format("u{}", "user").alias("user"), pl.format("i{}", "item").alias("item"))


def fitted(table: pl.DataFrame, folder: Path, older: cgfedrec.Run | None = None, /, **settings: Any) -> cgfedrec.Run:
    folder.mkdir()
    table.write_csv(folder / "data.csv")
    given = {**GIVEN, **settings, "data.path": str(folder / "data.csv"), "run_dir": str(folder / "run")}
    if older is not None:
        given["update_from"] = str(older.checkpoints / "last.ckpt")
    return cgfedrec.fit(given)


def server_of(run: cgfedrec.Run) -> SumsServer:
    assert isinstance(run.server, SumsServer)
    return run.server


def recounted(run: cgfedrec.Run) -> dict[str, Tensor]:
    """What all clients would add now, with the columns and candidates that the server has, by the name of the sum."""
    server, data = server_of(run), run.data
    users = torch.arange(data.num_users)
    history = data.histories(users)
    return {tally.name: tally.of(history, users, server.known, 7).to_dense().sum(0) for tally in server.tallies}


def pieces(table: pl.DataFrame, number: int) -> list[pl.DataFrame]:
    """The table as it grows: half of it, and then piece by piece to the end; ever again something is taken back."""
    ends = np.linspace(len(table) // 2, len(table), number).astype(int)
    found = []
    for place, end in enumerate(ends):
        gone = pl.col("user").is_in([f"u{one}" for one in (3, 17, 41)][: place // 3])  # who asks to be forgotten
        taken_back = pl.int_range(pl.len()) % 50 == 7
        rows = table[:end]
        if place >= 2:
            rows = rows.filter(~taken_back & ~gone)
        found.append(rows)
    return found


@pytest.mark.parametrize("half_life", [None, 20.0])
def test_a_stream_in_ten_pieces_ends_with_the_sums_of_all(tmp_path: Path, half_life: float | None) -> None:
    run, numbers, catalogues = None, list[int](), set[int]()
    for place, table in enumerate(pieces(drawn(), 10)):
        settings = {"method.half_life": half_life, "method.structure.recents": [5.0]}
        if run is not None:
            settings = {}
        run = fitted(table, tmp_path / str(place), run, **settings)
        server, direct = server_of(run), recounted(run)
        numbers.append(len(server.known.the_rows))
        catalogues.add(run.data.num_items)
        first = direct.pop("bounds")
        assert server.counts[:, 0].equal(first[:, 0])
        assert (server.counts[:, 1] >= first[:, 1]).all()  # a bound
        if half_life is None:
            assert server.counts[:, 1].equal(first[:, 1])
        assert (server.counts[:, -1] - first[:, -1]).abs().max() <= 20  # of late, in 256ths
        for name, expected in direct.items():
            difference = (server.total(name) - expected).abs()
            # Each client's part has been rounded by itself, in each of the updates.
            most = 0 if half_life is None else 0.02 * expected.abs().max() + 5
            assert difference.max() <= most, (place, name)
    assert numbers[-1] > numbers[0]  # new items have got rows
    assert len(catalogues) > 3  # and the catalogue has grown, with new items between old ones
    assert run is not None
    assert run.data.changes is not None
    assert run.data.changes.counts["users gone"] == 1
    # What is read from it is near what a run from scratch finds, which has columns and candidates of its own.
    table = run.recommend(top_k=5)
    assert set(table["source"]) == {"model"}


def test_what_is_taken_back_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    """Unlearning: with the same columns and candidates, the sums equal those of a run without."""
    table = drawn()
    first = fitted(table, tmp_path / "first", **{"method.half_life": None})
    forgotten = pl.col("user").is_in(["u1", "u2", "u3"])
    second = fitted(table.filter(~forgotten), tmp_path / "second", first)
    assert second.data.changes is not None
    assert second.data.changes.counts["users gone"] == 3
    server = server_of(second)
    for name, expected in recounted(second).items():
        total = server.counts if name == "bounds" else server.total(name)
        assert total.equal(expected), name
    again = fitted(table, tmp_path / "again", second)  # and back: the structure of the first run, to the bit
    for name in ("labels", "pairs"):
        assert server_of(again).get_buffer(name).equal(server_of(first).get_buffer(name))
    everyone = torch.arange(first.data.num_users)
    assert again.loop.score(everyone).equal(first.loop.score(everyone))
    assert 0.5 < second.summary["structure/same"] < 1
    assert again.summary["structure/same"] < 1
    assert "structure/same" not in first.summary


def test_nothing_is_kept_of_whoever_is_gone(tmp_path: Path) -> None:
    """Beside the checkpoints lie histories. Of someone who was taken back an id alone is left there."""
    table = drawn()
    first = fitted(table, tmp_path / "first")
    forgotten = pl.col("user").is_in(["u1", "u2", "u3"])
    second = fitted(table.filter(~forgotten), tmp_path / "second", first)
    kept = list(second.checkpoints.glob("*.parquet"))
    assert len(kept) == 2
    for path in kept:
        left = pl.read_parquet(path).filter(forgotten)
        assert left["item"].null_count() == len(left) <= 3, path
        assert len(pl.read_parquet(path)) > 100
    again = cgfedrec.load(second.checkpoints / "last.ckpt")
    assert not {"u1", "u2", "u3"} & set(again.recommend(top_k=2)["user"])
    for one in (second, again):
        with pytest.raises(InputError, match="user: 'u1' is not in the data"):
            one.recommend(["u1"])
        with pytest.raises(InputError, match="client: 'u1' is none of the clients"):
            write_client(one.loop, one.header, "u1", tmp_path / "u1.safetensors")
    back = fitted(table, tmp_path / "back", second)
    assert back.data.changes is not None
    assert back.data.changes.counts["new users"] == 3
    assert set(back.recommend(["u1"], top_k=2)["source"]) == {"model"}


@pytest.mark.parametrize("numbers", [False, True], ids=["text", "numbers"])
def test_what_only_they_had_who_are_gone_is_shown_to_nobody_and_named_by_no_export(
    tmp_path: Path, numbers: bool
) -> None:
    """Sums keep the places of such items; the catalogue that people see is that of a run that starts anew."""
    table = drawn()
    own = pl.DataFrame([("u1", f"i{900 + one}", 9 + one) for one in range(3)], table.schema, orient="row")
    table = pl.concat([table, own]).with_columns(pl.col("item").str.slice(1 if numbers else 0))
    asked = {"method.read_by": "rho 0.5, beta 0.1"}
    first = fitted(table, tmp_path / "first", **asked)
    left = table.filter(pl.col("user") != "u1")
    rest = pl.concat([left, left[:12].with_columns(user=pl.format("n{}", pl.int_range(12) % 4))])
    second, anew = (fitted(rest, tmp_path / name, one, **asked) for name, one in (("second", first), ("anew", None)))
    alone = set(table["item"]) - set(rest["item"])
    assert len(alone) >= 3
    assert alone <= set(second.data.item_ids.cast(pl.String))

    loaded = cgfedrec.load(second.checkpoints / "best.ckpt")
    exported = [run.export(tmp_path / f"served{place}") for place, run in enumerate((second, loaded))]
    before = Recommender.load(tmp_path / "served0")
    history = [*anew.data.item_ids[:5].to_list(), next(iter(alone))]
    for found in (*exported, before):
        assert found.ids == anew.data.item_ids.to_list()
        assert found.recommend(history, 5).unknown == [history[-1]]
    for run in (second, loaded):
        shown = run.recommend(["u2"], top_k=1000)["item"].cast(pl.String)
        assert set(shown) == set(rest["item"]) - set(rest.filter(pl.col("user") == "u2")["item"])
        with pytest.warns(Notice, match="1 item is not in the data"):
            lists = run.recommend_for({"me": history}, 1000)
        assert lists["item"].to_list() == before.recommend(history, 1000).items
        assert lists["score"].cast(pl.Float32).to_list() == before.recommend(history, 1000).scores


@pytest.mark.parametrize("half_life", [None, 10.0])
def test_an_item_that_is_taken_back_is_nobodys_though_what_forgets_is_rounded(
    tmp_path: Path, half_life: float | None
) -> None:
    """A total is rounded once, and what each client takes back by itself: together they missed 0, on either side."""
    table = drawn()
    settings = {"method.half_life": half_life, "method.structure.recents": [2.0, 30.0]}
    run = fitted(table, tmp_path / "first", **settings)
    # Rare ones, several nights in a row, each of them a while later.
    rare = table.group_by("item").len().filter(pl.col("len").is_between(3, 8)).sort("len", "item")["item"]
    for night in range(1, 5):
        gone = rare[: 8 * night]
        later = table.with_columns(pl.lit(f"new{night}").alias("item"), pl.col("timestamp").max() + 100_000)
        table = pl.concat([table, later.unique("user").sort("user")[:3]])
        run = fitted(table.filter(~pl.col("item").is_in(gone.to_list())), tmp_path / str(night), run)
        server = server_of(run)
        assert server.days > 0
        numbers = run.data.item_ids.search_sorted(gone).to_list()
        assert not server.counts[numbers, 2:].any()
        assert not server.recents[numbers].any()
        assert (server.counts >= 0).all()
        assert (server.counts[:, 2:] <= SHARES * server.counts[:, :1]).all()


def test_only_what_forgets_is_brought_back_to_what_can_be() -> None:
    """Mass and popularities of late; how many have an item, and reach, are not off by rounding."""
    counts = torch.tensor([[0, 5, -1, 1], [2, 900, 513, 511], [-1, -3, 0, 4]])
    assert possible(counts).tolist() == [[0, 5, 0, 0], [2, 900, 512, 511], [-1, -3, -256, -256]]
    assert possible(counts[:, :2]).equal(counts[:, :2])


def test_ids_that_are_text_from_one_night_on_are_those_that_were_numbers(tmp_path: Path) -> None:
    """One id with a letter makes a column text. The sums are those of all, and go back to those of the first night."""
    table = drawn().with_columns(pl.col("user", "item").str.slice(1))
    first = fitted(table, tmp_path / "first", **{"method.half_life": None})
    assert first.data.user_ids.dtype == first.data.item_ids.dtype == pl.Int64
    named = pl.DataFrame({"user": ["nine", "007"], "item": ["thirty", "7"], "timestamp": [10**6, 10**6]})
    grown = pl.concat([table.filter(~pl.col("user").is_in(["1", "2", "3"])), named])
    with pytest.warns(Notice, match="user ids were numbers before, and are text now: all are compared as text"):
        second = fitted(grown, tmp_path / "second", first)
    assert second.data.changes is not None
    counts = second.data.changes.counts
    assert (counts["new users"], counts["users gone"], counts["new items"], counts["added"]) == (2, 3, 1, 2)
    assert second.data.changes.histories.train.items.dtype == np.int64
    with pytest.warns(Notice, match="item ids were text before, and are numbers now"):
        third = fitted(table, tmp_path / "third", second)
    for run in (second, third):
        server = server_of(run)
        for name, expected in recounted(run).items():
            assert (server.counts if name == "bounds" else server.total(name)).equal(expected), name
    for name in ("labels", "pairs"):
        assert server_of(third).get_buffer(name).equal(server_of(first).get_buffer(name))
    found, expected_ = third.recommend(["10"], 3)["item"].to_list(), first.recommend(["10"], 3)["item"].to_list()
    assert found == [str(item) for item in expected_]


def test_times_that_are_lost_are_no_change(tmp_path: Path) -> None:
    table = drawn()
    settings = {"method.half_life": None}
    first = fitted(table[:-30], tmp_path / "first", **settings)
    path = tmp_path / "untimed.csv"
    table.with_columns(timestamp=pl.int_range(pl.len())).write_csv(path)  # an order
    given = {"data.path": str(path), "update_from": str(first.checkpoints / "last.ckpt"), "logger": None}
    second = cgfedrec.fit({**given, "run_dir": str(tmp_path / "second")})
    assert second.data.changes is not None
    assert second.data.changes.counts["at another time"] == 0
    assert second.data.changes.counts["added"] == 30
    assert second.data.changes.days == 0


def test_only_those_who_have_changed_are_asked(tmp_path: Path) -> None:
    table = drawn()
    first = fitted(table[:-30], tmp_path / "first")
    second = fitted(table, tmp_path / "second", first)
    changed = table[-30:]["user"].n_unique()
    assert second.summary["clients/bounds"] == changed
    # Then also those who have an item that enough others have by now.
    new = len(server_of(second).known.the_rows) - len(server_of(first).known.the_rows)
    asked = {second.summary[f"clients/{name}"] for name in ("sketch", "labels", "verify")}
    assert len(asked) == 1
    assert changed <= asked.pop() < second.data.num_users or new > 10
    assert second.summary["bytes/up"] < first.summary["bytes/up"]


def test_too_few_changes_wait_and_too_many_start_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = drawn()
    first = fitted(table, tmp_path / "first")
    with pytest.raises(InputError, match="only 2 clients have changes"):
        fitted(table.filter(~pl.col("user").is_in(["u1", "u2"])), tmp_path / "few", first)
    half = fitted(table[: len(table) // 2], tmp_path / "half")
    anew = fitted(table, tmp_path / "anew", half)
    assert anew.data.changes is None
    assert anew.summary["clients/bounds"] == anew.data.num_users


def test_the_new_rows_alone_are_warned_of(tmp_path: Path) -> None:
    """Everything else would be taken back. The whole table is not warned of."""
    table = drawn()
    first = fitted(table[:-200], tmp_path / "first")
    with pytest.warns(
        Notice, match="100% of the interactions of before are not in this table any more: is it the whole"
    ):
        fitted(table[-200:], tmp_path / "part", first)
    with warnings.catch_warnings(record=True, action="always") as said:
        fitted(table, tmp_path / "whole", first)
    assert not any("is it the whole" in str(one.message) for one in said)


def test_it_resumes_and_loads_like_any_run(tmp_path: Path) -> None:
    table = drawn()
    first = fitted(table[:-40], tmp_path / "first")
    whole = fitted(table, tmp_path / "whole", first)
    folder = tmp_path / "stopped"
    folder.mkdir()
    given = {"data.path": str(tmp_path / "whole" / "data.csv"), "run_dir": str(folder), "loop.rounds": 2}
    cgfedrec.fit({**given, "update_from": str(first.checkpoints / "last.ckpt")})
    resumed = cgfedrec.fit({"ckpt_path": str(folder / "checkpoints" / "last.ckpt"), "loop.rounds": 50})
    everyone = torch.arange(whole.data.num_users)
    assert resumed.loop.score(everyone).equal(whole.loop.score(everyone))
    loaded = cgfedrec.load(whole.checkpoints / "best.ckpt")
    assert loaded.recommend(top_k=3).equals(whole.recommend(top_k=3))


def test_data_of_an_updated_run_that_have_moved_are_its_own(tmp_path: Path) -> None:
    """Though somebody has left, who is in no file any more."""
    table = drawn()
    given = {"data.split": "leave_one_out", "data.min_interactions": 5}
    first = fitted(table, tmp_path / "first", **given)
    left = pl.col("user").is_in(["u1", "u2", "u3"])
    second = fitted(table.filter(~left), tmp_path / "second", first, **given)
    assert second.data.changes is not None
    moved = (tmp_path / "second" / "data.csv").rename(tmp_path / "moved.csv")
    run, newcomers = load_to_test(second.checkpoints / "best.ckpt", ["--data.path", str(moved)])
    assert newcomers is None
    assert run.test()["test/ndcg@10"] == second.summary["test/ndcg@10"]


def test_of_another_method_nothing_else_is_told(tmp_path: Path) -> None:
    """Its settings differ in all that it has."""
    first = fitted(drawn(), tmp_path / "first", method="FedMF", **{"loop.rounds": 1})
    with pytest.raises(InputError) as refused:
        fitted(drawn(), tmp_path / "second", first, method="PFedRec")
    (told,) = refused.value.problems
    assert told.startswith("update_from: was trained with cgfedrec.methods.fedmf.FedMF, this run uses ")


def test_it_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    table = drawn()
    labels = "cgfedrec.structure.LabelSets"
    first = fitted(table, tmp_path / "first", **{"method.structure": labels})
    with pytest.raises(InputError, match="LabelSets, which cannot be brought up to date"):
        fitted(table[:-30], tmp_path / "second", first)
    late = fitted(table, tmp_path / "late", **{"method.share": 0.5, "loop.participation": 0.5})
    with pytest.raises(InputError, match="came late"):
        fitted(table[:-30], tmp_path / "after", late)
    other = fitted(table, tmp_path / "other", method="FedGF")
    with pytest.raises(InputError, match="what its clients had is kept"):
        fitted(table[:-30], tmp_path / "filters", other)
    settled = fitted(table, tmp_path / "settled")
    with pytest.raises(InputError, match="penalty"):
        fitted(table[:-30], tmp_path / "changed", settled, **{"method.penalty": 7.0})


def test_tables_are_a_warm_start_that_says_so(tmp_path: Path) -> None:
    table = drawn()
    first = fitted(table[:-200], tmp_path / "first", method="FedMF", **{"loop.rounds": 4})
    with pytest.raises(InputError, match="not be changed"):
        fitted(table, tmp_path / "wider", first, method="FedMF", **{"method.dim": 8})
    console = Console(record=True, width=200)
    given = {"data.path": str(tmp_path / "first" / "data.csv"), "update_from": str(first.checkpoints / "last.ckpt")}
    table.write_csv(tmp_path / "first" / "data.csv")
    second = cgfedrec.fit({**given, "run_dir": str(tmp_path / "second"), "loop.rounds": 1}, console=console)
    assert "a warm start" in console.export_text()
    assert second.data.num_items > first.data.num_items
    # One round of clients who began with the tables of then ends nearer to them than one from the seed does.
    moved = second.data.item_ids.search_sorted(first.data.item_ids).to_list()
    cold = fitted(table, tmp_path / "cold", method="FedMF", **{"loop.rounds": 1})
    tables = [dict(run.server.named_buffers())["means.table"] for run in (first, second, cold)]
    near, far = ((one[moved] - tables[0]).norm() for one in tables[1:])
    assert near < far


def test_new_rows_come_behind_and_new_labels_are_those_of_the_nearest() -> None:
    assert with_new_rows(torch.tensor([5, 1, 9, 3, 4]), torch.tensor([0, 3]), 3).tolist() == [0, 3, 2, 4]
    places = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.2, 0.8], [0.7, 0.1]])
    assert with_new_labels(torch.tensor([2, 2, 0]), places).tolist() == [2, 2, 0, 0, 2]


@pytest.mark.parametrize("rounds", [1, 2])
def test_an_update_that_ends_early_writes_its_page(tmp_path: Path, rounds: int) -> None:
    """After the first sum there are labels of the run before, and no sketch that says where their items lie."""
    table = drawn()
    first = fitted(table[:-60], tmp_path / "first")
    second = fitted(table, tmp_path / "second", first, **{"loop.rounds": rounds})
    assert server_of(second).labels.numel()
    assert (shown(second.loop) is None) == (rounds == 1)
    assert (tmp_path / "second" / "run" / "report.html").is_file()
