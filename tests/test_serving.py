"""Recommending from an export: what clients would recommend, without anything of theirs."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import cgfedrec
from cgfedrec import files
from cgfedrec.cli import main
from cgfedrec.data import Synthetic
from cgfedrec.data.newcomers import Newcomers
from cgfedrec.errors import InputError
from cgfedrec.evaluation.ranking import best
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import CGFedCo, FedGF, PFedRec
from cgfedrec.run.checkpoint import Header
from cgfedrec.run.export import export, recommender_of
from cgfedrec.run.recommend import recommend_for
from cgfedrec.serving import Recommender
from cgfedrec.serving.container import packed_texts, read_container, write_container
from cgfedrec.serving.filters import FilterReader
from cgfedrec.serving.neighbours import NeighbourReader
from cgfedrec.serving.readers import Entries, Ordered
from cgfedrec.serving.recommender import FILE, KIND
from cgfedrec.serving.top import keys_of, parts_of
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.labelsets import LabelSets
from cgfedrec.structure.neighbours import Neighbours
from cgfedrec.testing import prepared, trained
from tests.commands import cgfedrec as command
from tests.conftest import ROOT

HEADER = Header("a run", "method: {class_path: some, init_args: {columns: 8}}", "some", "fingerprint")
DATA: dict[str, Any] = {"synthetic": Synthetic(users=60, items=150, groups=6, interactions=14)}
SERVING: dict[str, Method] = {
    "chosen": CGFedCo(columns=16, penalty=5),
    "newest first": CGFedCo(columns=16, penalty=5, read_by="rho 0.5, beta 0.3"),
    "popularity alone beside": CGFedCo(columns=16, penalty=5, read_by="rho 1, beta 3"),
    "flat": CGFedCo(columns=16, penalty=5, structure=Neighbours(reading="flat")),
    "half-life": CGFedCo(columns=16, penalty=5, half_life=9.0, read_by="rho 0.25, beta 0.1"),
    "of late": CGFedCo(
        columns=16, penalty=5, structure=Neighbours(recents=(3.0,)), read_by="rho 0.5, beta 1 of 3 days"
    ),
    "trained": CGFedCo(columns=16, penalty=5, structure=Neighbours(reading="trained")),
    "FedGF": FedGF(rank=12, alphas=(0.3,)),
}
Lists = dict[str, list[int]]


def ended(method: Method, **data: Any) -> FederatedLoop:
    loop = trained(method, prepared(**{**DATA, **data}), 16, rounds=30)
    assert loop.server.finished
    if isinstance(loop.server, SumsServer) and loop.server.structure.train_rounds:
        loop.server.chosen.fill_(len(loop.server.structure.readings) - 1)  # the trained reading, whatever serves best
        loop.server._sent.pop("reading")
        loop.server.refresh()
    return loop


@pytest.fixture(scope="module")
def loops() -> dict[str, FederatedLoop]:
    return {name: ended(method) for name, method in SERVING.items()}


def histories_of(loop: FederatedLoop) -> Lists:
    """What each client has, the oldest first; one of nothing, one of almost everything, and one that repeats itself."""
    data = loop.data
    items = data.histories(torch.arange(data.num_users)).items
    lists = {f"u{user:02}": data.item_ids[row[row >= 0].flip(0).numpy()].to_list() for user, row in enumerate(items)}
    every = data.item_ids.to_list()
    return lists | {"nothing": [], "all but some": every[3:-2], "twice": [every[5], every[9], every[5], every[2]]}


def expected_of(loop: FederatedLoop, given: Any, top_k: int) -> dict[str, pl.DataFrame]:
    newcomers = Newcomers(loop.data, given)
    newcomers.setup()
    table = recommend_for(loop, newcomers, top_k=top_k)
    return {str(user): rows for (user,), rows in table.partition_by("user", as_dict=True).items()}


@pytest.mark.parametrize("name", SERVING)
@pytest.mark.parametrize("top_k", [1, 10, 1000])
def test_it_recommends_what_clients_would(loops: dict[str, FederatedLoop], name: str, top_k: int) -> None:
    """The same items in the same order, ties too, with the same scores; one by one and all at once."""
    loop = loops[name]
    recommender, lists = recommender_of(loop, HEADER), histories_of(loop)
    expected, together = expected_of(loop, lists, top_k), recommender.recommend_all(lists, top_k)
    assert together.users == list(lists)
    for place, (user, history) in enumerate(lists.items()):
        alone = recommender.recommend(history, top_k)
        assert alone.items == expected[user]["item"].to_list(), user
        assert np.array(alone.scores) == pytest.approx(expected[user]["score"].to_numpy(), rel=1e-6, abs=1e-6)
        if name != "FedGF":  # which is computed in float64 and rounded at its end
            assert np.array_equal(np.array(alone.scores, np.float32), expected[user]["score"].to_numpy())
        assert set(expected[user]["source"]) == {alone.source} == {together.sources[place]}
        found = together.items[place]
        assert [recommender.ids[item] for item in found[found >= 0]] == alone.items
        assert together.scores[place][found >= 0].tolist() == alone.scores
        assert not set(alone.items) & set(history)
    if name not in ("chosen", "flat", "FedGF") and top_k > 1:  # the order of a history counts
        backwards = [recommender.recommend(history[::-1], top_k).items for history in lists.values()]
        assert backwards != [recommender.recommend(history, top_k).items for history in lists.values()]


def test_times_are_read_as_those_of_a_table(loops: dict[str, FederatedLoop]) -> None:
    """Equal ones by the rule of the split; an item that stands there twice by its earliest row."""
    loop = loops["newest first"]
    recommender, generator = recommender_of(loop, HEADER), random.Random(0)
    rows: list[tuple[str, int, int]] = []
    for number in range(40):
        items = [generator.choice(loop.data.item_ids.to_list()) for _ in range(generator.randint(1, 12))]
        rows += [(f"u{number:02}", item, generator.randint(1, 6)) for item in items]
    expected = expected_of(loop, pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row"), 10)
    ordered = 0
    for user in sorted({row[0] for row in rows}):
        items = [item for one, item, _ in rows if one == user]
        times = [time for one, _, time in rows if one == user]
        found = recommender.recommend(items, timestamps=times)
        assert found.items == expected[user]["item"].to_list()
        ordered += found != recommender.recommend(items)
    assert ordered > 20


def test_where_training_knew_no_times_the_order_does_not_count() -> None:
    frame = prepared(**DATA)
    rows = [(user, int(item)) for user in range(frame.num_users) for item in frame._train.items[:9] + user % 5]
    pl.DataFrame(rows, ["user", "item"], orient="row").unique().write_csv("untimed.csv")
    settings = {"data.path": "untimed.csv", "data.format.timestamp_column": None, "data.split": "none"}
    method = {"class_path": "CGFedCo", "columns": 4, "read_by": "rho 1, beta 0", "least_clients": 2}
    run = cgfedrec.fit({**settings, "method": method, "logger": None, "run_dir": "run"})
    recommender = recommender_of(run.loop, run.header)
    items = run.data.item_ids.to_list()[:5]
    assert recommender.recommend(items).scores == recommender.recommend(items[::-1]).scores
    assert recommender.recommend(items).items == run.recommend_for({"ann": items})["item"].to_list()


def test_what_is_excluded_or_unknown(loops: dict[str, FederatedLoop]) -> None:
    recommender = recommender_of(loops["newest first"], HEADER)
    some = list(recommender.ids[:4])
    plain = recommender.recommend(some, 6)
    without = recommender.recommend([str(one) for one in some], 4, exclude=[plain.items[0], str(plain.items[3]), "odd"])
    assert without.items == [plain.items[place] for place in (1, 2, 4, 5)]
    assert without.unknown == ["odd"]
    unknown = recommender.recommend(["x", *some, 10**30, "x", "007"], 6)
    assert (unknown.items, unknown.unknown) == (plain.items, ["x", 10**30, "007"])
    nothing = recommender.recommend(["x"], 5, exclude=recommender.recommend([], 2).items)
    assert nothing.source == "popularity"
    assert nothing.items == recommender.recommend([], 7).items[2:]
    everything = recommender.recommend(recommender.ids, 5)
    assert (everything.items, everything.scores, everything.source) == ([], [], "history")
    assert recommender.recommend_all({1: ["x", "y"], 2: []}).unknown == ["x", "y"]
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="top_k"):
            recommender.recommend(some, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"timestamps: are 1 for a history of 4 items"):
        recommender.recommend(some, timestamps=[1])
    with pytest.raises(InputError, match="finite"):
        recommender.recommend(some, timestamps=[1, 2, float("nan"), 3])


def test_what_is_no_list_of_ids_is_refused(loops: dict[str, FederatedLoop]) -> None:
    """A text would be a list of its letters, and what is missing an id that nobody knows."""
    recommender = recommender_of(loops["newest first"], HEADER)
    for wrong, message in (
        ("0007", r"'0007' is no list of ids; give \['0007'\]"),
        (7, r"7 is no list of ids; give \[7\]"),
        (None, "None is no list of ids$"),
        (b"0007", "b'0007' is no list of ids$"),
        ([3, None], "None is no id; ids are whole numbers or text"),
        ([3, True], "True is no id"),
        ([3, 4.0], "4.0 is no id"),
        ([3, [4]], r"\[4\] is no id"),
    ):
        with pytest.raises(InputError, match=f"^history: {message}"):
            recommender.recommend(wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"^exclude: {message}"):
            recommender.recommend([3], exclude=wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"^history of 'bob': {message}"):
            recommender.recommend_all({"ann": [3], "bob": wrong})  # type: ignore[dict-item]
    given = np.array(recommender.ids[:3])
    assert recommender.recommend(given) == recommender.recommend(iter(given.tolist()))


def test_few_of_many_items_are_enough_to_look_at() -> None:
    """The short way finds the same as the long one, ties and hidden items included, on any shape of neighbours.

    So does the compiled one, for many users at once.
    """
    generator = np.random.default_rng(0)
    for case in range(60):
        number, users = int(generator.integers(3, 400)), int(generator.integers(1, 30))
        lengths = generator.integers(0, min(number, 12), number)
        targets = np.concatenate([np.sort(generator.permutation(number)[:length]) for length in lengths])
        levels = (generator.integers(1, 4, len(targets)) / 4).astype(np.float32)  # many ties
        beside = (generator.integers(0, 5, number) / 4).astype(np.float32)
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        reader = NeighbourReader(starts, targets.astype(np.int32), levels, beside, beside, "any", 0.5 * (case % 2))
        own = [np.sort(generator.permutation(number)[: generator.integers(1, min(number, 20))]) for _ in range(users)]
        items = np.concatenate(own)
        whose = np.repeat(np.arange(users), [len(one) for one in own])
        history = Entries(whose, items, generator.integers(0, 9, len(items)))
        k = int(generator.integers(1, number + 1))
        scores = torch.from_numpy(reader.scores(history, users))
        open_ = torch.ones_like(scores, dtype=torch.bool)
        open_[whose, items] = False
        values, expected = best(scores, open_, k)
        for only_adds, sparse, many in (
            (True, 0, 10**9),
            (True, 10**9, 10**9),
            (False, 0, 10**9),
            (True, 0, 0),
            (False, 0, 0),
        ):
            reader.only_adds = only_adds
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("cgfedrec.serving.neighbours.SPARSE", sparse)
                patched.setattr("cgfedrec.serving.neighbours.MANY", many)
                patched.setattr("cgfedrec.serving.readers.CELLS", 1000)
                found, which = parts_of(reader.best(history, history, users, k))
            assert np.array_equal(found, values.numpy())
            there = np.isfinite(found)
            assert np.array_equal(which[there], expected.numpy()[there])


def test_what_is_popular_takes_the_memory_of_what_is_shown() -> None:
    """For any number of people: not that of the whole catalogue for each."""
    generator = np.random.default_rng(0)
    popular = Ordered.of(generator.integers(0, 50, 20_000).astype(np.float32))
    nothing, users = np.empty(0, np.int64), 10_000
    tracemalloc.start()
    try:
        keys = popular.best(Entries(nothing, nothing, nothing), users, 3)
        assert tracemalloc.get_traced_memory()[1] < 2**23  # 200 MB for the catalogue
    finally:
        tracemalloc.stop()
    assert (parts_of(keys)[1] == popular.items[:3]).all()
    # And without what each is not to be shown, popular or not.
    hidden = [np.union1d(popular.items[:one], generator.permutation(20_000)[:one]) for one in range(20)]
    whose = np.repeat(np.arange(20), [len(one) for one in hidden])
    entries = Entries(whose, np.concatenate(hidden), np.zeros(len(whose), np.int64))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cgfedrec.serving.readers.CELLS", 100)
        found = parts_of(popular.best(entries, 20, 3))[1]
    for one, items in zip(hidden, found, strict=True):
        assert items.tolist() == [item for item in popular.items.tolist() if item not in one][:3]


@pytest.mark.parametrize("many", [0, 10**9])
def test_weights_below_zero_are_not_looked_at_in_short(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something takes away from scores, all of them are compared."""
    starts, targets = np.array([0, 2, 2, 2, 2, 2, 2]), np.array([1, 2], np.int32)
    beside = np.array([6, 5, 4, 3, 2, 1], np.float32)
    buckets = np.array([-10, -10], np.float32)
    reader = NeighbourReader(starts, targets, np.ones(2, np.float32), beside, beside, "any", 0.0, buckets)
    one = Entries(*np.array([[0], [0], [0]]))
    monkeypatch.setattr("cgfedrec.serving.neighbours.SPARSE", 0)
    monkeypatch.setattr("cgfedrec.serving.neighbours.MANY", many)
    assert parts_of(reader.best(one, one, 1, 2))[1].tolist() == [[3, 4]]


def test_equals_stand_in_the_order_of_their_numbers() -> None:
    scores = torch.tensor([[1.0, 3, 3, -0.0, 0.0, 3, torch.nan], [1.0, 2, 3, 4, 5, 6, 7], [0.0] * 7])
    open_ = torch.ones_like(scores, dtype=torch.bool)
    open_[0, 1] = False
    for k, expected in ((1, [[2], [6], [0]]), (4, [[2, 5, 0, 3], [6, 5, 4, 3], [0, 1, 2, 3]])):
        for kind in (torch.float32, torch.float64):
            values, items = best(scores.to(kind), open_, k)
            assert items.tolist() == expected
            assert values.equal(scores.to(kind).gather(1, items))
    zeros = np.array([0.0, -0.0], np.float32)
    assert keys_of(zeros, np.array([3, 3])).tolist() == keys_of(zeros[:1], np.array([3])).tolist() * 2
    many = torch.zeros(3, 5000)
    assert best(many, many == 0, 7)[1].tolist() == [list(range(7))] * 3


def test_methods_whose_clients_need_training_are_refused_by_name() -> None:
    for method, name in ((PFedRec(dim=4), "PFedRec"), (CGFedCo(columns=8, structure=LabelSets(rounds=1)), "CGFedCo")):
        loop = trained(method, prepared(**DATA), 30, rounds=12)
        with pytest.raises(InputError, match=f"clients of {name} score with what they have trained themselves"):
            export(loop, HEADER, Path("out"))
    assert not Path("out").exists()
    unfinished = trained(CGFedCo(columns=8), prepared(**DATA), 30, rounds=2)
    with pytest.raises(InputError, match="stopped before it had found what its clients recommend by"):
        export(unfinished, HEADER, Path("out"))
    with pytest.raises(InputError, match="stopped before it had found what its clients recommend by"):
        export(trained(FedGF(rank=4), prepared(**DATA), 30, rounds=1), HEADER, Path("out"))
    run = cgfedrec.fit({"data": {"synthetic": {"users": 30, "items": 40}}, "method": "EASE", "logger": None})
    with pytest.raises(InputError, match="is a reference"):
        run.export("out")


# The file


@pytest.fixture
def exported(loops: dict[str, FederatedLoop]) -> Path:
    export(loops["newest first"], HEADER, Path("out"), {1: "One", "2": "Zwei ü", 3: None})
    return Path("out") / FILE


def test_an_export_comes_back_as_it_was(loops: dict[str, FederatedLoop], exported: Path) -> None:
    for name, loop in loops.items():
        before = export(loop, HEADER, Path("out"), {1: "One", "2": "Zwei ü", 3: None})
        after = Recommender.load("out")
        assert (after.version, after.ids, after.about) == (before.version, before.ids, before.about), name
        assert after.about == {"method": "some", "settings": {"columns": 8}, "run": "a run", "round": loop.round}
        lists = histories_of(loop)
        assert [after.recommend(one) for one in lists.values()] == [before.recommend(one) for one in lists.values()]
        titles = dict(zip(after.ids, after.titles, strict=True))
        assert [titles[one] for one in (1, 2, 3, 4)] == ["One", "Zwei ü", None, None]
    assert {one.name for one in Path("out").iterdir()} == {FILE, files.LOCK}


def test_ids_of_any_kind() -> None:
    ids: list[int | str] = ["", "ä", "7", "x\ny"]
    vector = np.arange(4, dtype=np.float32)
    reader = NeighbourReader(np.zeros(5, np.int64), np.empty(0, np.int32), vector[:0], vector, vector, "none")
    for given in (ids, [2**62, -1, 0, 7]):
        Recommender(given, [None] * 4, reader, True, {}).save(Path("out"))
        found = Recommender.load("out").recommend([given[2], str(given[3])], 9)
        assert (found.items, found.source) == ([given[1], given[0]], "history")


def test_an_export_holds_no_user_and_no_interaction() -> None:
    """Ids of users that occur in no other words, and a catalogue in which no two numbers are alike."""
    data = prepared(**DATA)
    items, users = data.people.items, data.people.clients
    whose = np.repeat(np.arange(len(users)), items.lengths)
    rows = {"user": [f"person-{one}" for one in whose], "item": items.items, "timestamp": np.arange(len(whose))}
    pl.DataFrame(rows).write_csv("people.csv")
    method = {"class_path": "CGFedCo", "columns": 8}
    settings = {"method": method, "logger": None, "run_dir": "run", "seed_everything": 918273645}
    run = cgfedrec.fit({**settings, "data.path": "people.csv"})
    found = run.export("out")
    written = (Path("out") / FILE).read_bytes()
    assert b"person" not in written
    assert b"918273645" not in written  # the seed, from which the clients' private one follows
    assert b"people.csv" not in written
    assert run.data.fingerprint().encode() not in written
    # Every array has a length of items or of neighbours, and none one of users.
    arrays = read_container(Path("out") / FILE, KIND).arrays
    lengths = {found.num_items, found.num_items + 1, len(arrays["weights"])}
    assert run.data.num_users not in lengths
    assert {len(one) for name, one in arrays.items() if not name.startswith("titles")} <= lengths


def test_damaged_foreign_and_newer_files_are_refused(exported: Path) -> None:
    whole = exported.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    generator, told = random.Random(0), set[str]()
    places = [*range(0, head), *generator.sample(range(head, len(whole)), 400), len(whole) - 1]
    meant = Recommender.load("out").version
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        exported.write_bytes(damaged)
        try:
            assert Recommender.load("out").version == meant, place  # JSON that says the same
        except InputError as error:
            told.add(str(error))
    assert len(told) > 1
    assert all(one.startswith(f"{exported}: ") for one in told)
    for length in [*range(0, head, 7), *range(head, len(whole), 997), len(whole) - 1]:
        exported.write_bytes(whole[:length])
        with pytest.raises(InputError, match=FILE):
            Recommender.load("out")
    for foreign in (b"", b"{}", b"\0" * 100, b"\xff" * 4096, (2**60).to_bytes(8, "little") + whole[8:], whole + b"x"):
        exported.write_bytes(foreign)
        with pytest.raises(InputError, match="damaged, or no file that cgfedrec export wrote"):
            Recommender.load("out")
    with pytest.raises(InputError, match=r"nowhere: holds no recommender\.safetensors; cgfedrec export"):
        Recommender.load("nowhere")


def rewritten(path: Path, changed: dict[str, Any], arrays: dict[str, Any]) -> None:
    """The same file with another header or other arrays, and a checksum that agrees."""
    header, had, _ = read_container(path, KIND)
    write_container(path, KIND, {**header, **changed}, {**had, **arrays})


def test_files_that_are_wrong_on_purpose_are_refused(exported: Path) -> None:
    """With a checksum that agrees, as anybody can write one."""
    whole = exported.read_bytes()
    arrays = read_container(exported, KIND).arrays
    far, backwards = arrays["targets"].copy(), arrays["starts"][::-1].copy()
    far[0] = 10**6
    nan = arrays["beside"].copy()
    nan[0] = np.nan
    headers: list[dict[str, Any]] = [
        {"reader": "other"},
        {"reader": None},
        {"parameters": {}},
        {"parameters": {"reading": "x", "decay": "y"}},
        {"parameters": []},
        {"ordered": None, "about": None, "reader": ["neighbours"]},
    ]
    wrong: list[dict[str, Any]] = [
        {"targets": far},
        {"targets": -far},
        {"targets": arrays["targets"].astype(np.int64)},
        {"starts": backwards},
        {"beside": nan},
        {"beside": arrays["beside"][:-1]},
        {"popular": arrays["popular"][:-1]},
        {"weights": arrays["weights"][:-1]},
        {"weights": arrays["weights"].astype(np.float64)},
        {"ids": arrays["ids"][:-1]},
        {"ids": np.zeros_like(arrays["ids"])},
        {"ids": arrays["ids"].astype(np.float32)},
        {"titles.ends": arrays["titles.ends"] + 1},
        {"titles.text": np.array([255], np.uint8), "titles.ends": np.ones_like(arrays["titles.ends"])},
        packed_texts("titles", ["x"]),
    ]
    for header, others in [*((one, {}) for one in headers), *(({}, one) for one in wrong)]:
        exported.write_bytes(whole)
        rewritten(exported, header, others)
        with pytest.raises(InputError, match="is no export that can be used"):
            Recommender.load("out")
    for changed, message in (
        ({"format": 2, "version": "9.9"}, r"is of cgfedrec 9\.9, in format 2; this is .* reads format 1 alone"),
        ({"kind": "client"}, "holds a client, and not a recommender"),
    ):
        exported.write_bytes(whole)
        rewritten(exported, changed, {})
        with pytest.raises(InputError, match=message):
            Recommender.load("out")


@pytest.mark.parametrize(
    "wrong", [math.nan, math.inf, -math.inf, -0.5, 10**400, "0.5", True, None], ids=lambda one: str(one)[:5]
)
def test_an_export_is_not_read_with_numbers_that_cannot_be_computed_with(
    wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cgfedrec writes has none; JSON that others write may have any."""
    monkeypatch.setattr("cgfedrec.serving.container.json.dumps", lambda value, **_: json.JSONEncoder().encode(value))
    vector, path = np.ones(4, np.float32), Path("out") / FILE
    neighbours = NeighbourReader(np.zeros(5, np.int64), np.empty(0, np.int32), vector[:0], vector, vector, "none", 0.5)
    for reader in (neighbours, FilterReader(vector[:, None], vector[:1], vector, 0.3, 3)):
        Recommender(range(4), [None] * 4, reader, True, {}).save(Path("out"))
        good, whole = reader.parameters(), path.read_bytes()
        assert Recommender.load("out").reader.parameters() == good
        for name in good.keys() - {"reading"}:
            path.write_bytes(whole)
            rewritten(path, {"parameters": {**good, name: wrong}}, {})
            with pytest.raises(InputError, match=f"is no export that can be used: {name}: "):
                Recommender.load("out")


# Without torch


def test_nothing_heavy_is_imported(exported: Path) -> None:
    heavy = ["torch", "lightning", "wandb", "polars", "scipy", "sklearn", "jsonargparse", "fastapi", "yaml", "rich"]
    code = (
        "import sys, json\nfrom cgfedrec.serving import Recommender\n"
        "recommender = Recommender.load(sys.argv[1])\nfound = recommender.recommend([1, 2, 3])\n"
        "recommender.recommend_all({1: [1, 2], 2: []})\n"
        f"print(json.dumps([found.items, [name for name in {heavy} if name in sys.modules]]))"
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": ""}
    line = [sys.executable, "-c", code, str(exported.parent)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    items, imported = json.loads(done.stdout)
    assert imported == []
    assert items == Recommender.load("out").recommend([1, 2, 3]).items


# The command line


def test_export_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"data": {"synthetic": {"users": 40, "items": 60, "groups": 6}}, "method": "CGFedCo", "logger": None}
    run = cgfedrec.fit(settings, {"run_dir": "run"})
    checkpoint = "run/checkpoints/best.ckpt"
    Path("items.csv").write_text("id,name\n1,One\n2,Two\n")
    done = command("export", "--ckpt_path", checkpoint, "--output", "out", "--items", "items.csv")
    assert done.returncode == 0, done.stderr
    found = Recommender.load("out")
    assert f"out: {run.data.num_items} items, read by {found.reader.reading}; version {found.version}" in done.stdout
    assert [found.titles[found.ids.index(one)] for one in (1, 2, 3)] == ["One", "Two", None]
    history = run.data.item_ids.to_list()[:3]
    assert found.recommend(history, 7).items == run.recommend_for({"ann": history}, 7)["item"].to_list()
    assert found.about["method"] == "cgfedrec.methods.cgfedco.CGFedCo"
    for wrong, message in (
        (["--output", "items.csv"], "output: items.csv is a file"),
        (["--output", "x", "--server", "--client", "7"], "--client, --server: each is a file of its own"),
        (["--output", "x", "--server", "--items", "items.csv"], "--items: titles are for what recommends"),
        (["--output", "out", "--server"], "output: out is a folder"),
        (["--output", "x", "--client", "nobody"], "client: 'nobody' is none of the clients"),
    ):
        assert main(["export", "--ckpt_path", checkpoint, *wrong]) == 2
        told = capsys.readouterr()
        assert (told.out, message in told.err) == ("", True), told
    with files.locked(Path("out"), ""):
        assert main(["export", "--ckpt_path", checkpoint, "--output", "out"]) == 2
    assert "an export is being written into out" in capsys.readouterr().err
