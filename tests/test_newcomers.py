"""People who were not in training: served, and measured, by what comes down to everybody and their own history."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import cgfedrec
from cgfedrec.data import Format
from cgfedrec.data.newcomers import Newcomers
from cgfedrec.errors import InputError, Notice
from cgfedrec.evaluation.metrics import MISS, NO_RANK, HitRate
from cgfedrec.evaluation.ranking import Ranked
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import CGFedCo, FedGF, PFedRec
from cgfedrec.protocol import Protocol
from cgfedrec.run.newcomers import tested_on as measured_on
from cgfedrec.run.newcomers import with_misses
from cgfedrec.run.run import Run
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.neighbours import Neighbours
from cgfedrec.testing import prepared, trained
from tests.commands import cgfedrec as command

TRAINED = Neighbours(reading="trained")
SERVING: dict[str, Method] = {
    "CGFedCo": CGFedCo(columns=8),
    "CGFedCo, trained": CGFedCo(columns=8, structure=TRAINED),
    "FedGF": FedGF(rank=8),
}
PLANTED = {"users": 40, "items": 60, "groups": 6, "interactions": 12}


def ended(method: Method) -> FederatedLoop:
    loop = trained(method, prepared(), 7, rounds=30)
    assert loop.server.finished
    return loop


def histories_of(loop: FederatedLoop) -> dict[str, list[int]]:
    """What each trained client has in training, the oldest first, under a name that nobody in training has."""
    data = loop.data
    items = data.histories(torch.arange(data.num_users)).items
    return {f"new {user:02}": data.item_ids[row[row >= 0].flip(0).numpy()].to_list() for user, row in enumerate(items)}


@pytest.mark.parametrize("name", ["CGFedCo", "FedGF"])
def test_a_newcomer_scores_as_a_trained_client_with_the_same_history(name: str) -> None:
    """To the last bit, whoever else is in the cohort."""
    loop = ended(SERVING[name])
    newcomers = Newcomers(loop.data, histories_of(loop))
    newcomers.setup()
    everybody = torch.arange(loop.data.num_users)
    expected = loop.score(everybody)
    assert loop.score_newcomers(newcomers, everybody).equal(expected)
    some = torch.tensor([11, 3])
    assert loop.score_newcomers(newcomers, some).equal(expected[some])


def test_of_what_clients_train_a_newcomer_has_the_shared_part() -> None:
    loop = ended(SERVING["CGFedCo, trained"])
    newcomers = Newcomers(loop.data, histories_of(loop))
    newcomers.setup()
    everybody = torch.arange(loop.data.num_users)
    assert isinstance(loop.server, SumsServer)
    loop.server.chosen.fill_(len(TRAINED.readings) - 1)
    loop.server._sent.pop("reading")
    loop.server.refresh()
    personal, shared = loop.score(everybody), loop.score_newcomers(newcomers, everybody)
    assert not shared.equal(personal)
    loop.clients.store.known.fill_(False)  # as if nobody had trained
    assert loop.score(everybody).equal(shared)


@pytest.mark.parametrize("name", SERVING)
def test_without_a_history_what_is_popular_is_shown(name: str) -> None:
    loop = ended(SERVING[name])
    newcomers = Newcomers(loop.data, {"ann": [1, 2, 3], "eve": [], "joe": ["nothing", "else"]})
    newcomers.setup()
    scores = loop.score_newcomers(newcomers, torch.arange(3))
    counts = loop.data.popularity
    assert scores[1].equal(scores[2])
    assert not scores[0].equal(scores[1])
    assert counts[scores[1].argsort()].diff().min() >= 0
    assert scores[1].unique().numel() == counts.unique().numel() > 3


@pytest.mark.parametrize(
    ("settings", "half_life"),
    [
        ({"half_life": 3.0}, 3.0),
        ({"half_life": None, "read_by": "rho 0, beta 1 of 2 days", "structure": Neighbours(recents=(2.0,))}, 2.0),
    ],
)
def test_what_is_popular_is_what_is_popular_now(settings: dict[str, Any], half_life: float) -> None:
    """Where interactions are forgotten, or a popularity of late is read, someone without a history sees that."""
    loop = ended(CGFedCo(columns=8, **settings))
    newcomers = Newcomers(loop.data, {"nobody": []})
    newcomers.setup()
    scores = loop.score_newcomers(newcomers, torch.arange(1))[0].double()
    data = loop.data
    assert data.days is not None
    items = data.training_matrix().indices
    now = torch.zeros(data.num_items, dtype=torch.float64)
    now.index_add_(0, torch.from_numpy(items).long(), torch.from_numpy(2 ** (-data.days / half_life)))
    expected = now.log1p() / now.log1p().max()
    assert (scores - expected).abs().max() < 0.02  # in 256ths, and of late in 8 bits
    ever = data.popularity.log1p() / data.popularity.log1p().max()
    assert (scores - ever).abs().max() > 0.1


@pytest.mark.parametrize("name", ["CGFedCo", "FedGF"])
def test_what_a_newcomer_downloads_is_counted_as_scoring(name: str) -> None:
    """All of it, for each of them: the welcome, every bulletin, and the message itself."""
    loop = ended(SERVING[name])
    newcomers = Newcomers(loop.data, histories_of(loop))
    newcomers.setup()
    before, training = loop.bytes_scoring, (loop.bytes_up, loop.bytes_down)
    users = torch.arange(5)
    loop.score_newcomers(newcomers, users)
    sent = loop.server.broadcast(users, loop.round + 1)
    assert sent is not None
    welcome = loop.server.welcome()
    each = (
        loop.clients.wire.down(sent, 1)[1]
        + loop.clients.wire.down(welcome, 1)[1]
        + sum(one.nbytes for one in sent.kept.values())
    )
    assert len(sent.kept) >= 3
    assert loop.bytes_scoring - before == 5 * each
    assert (loop.bytes_up, loop.bytes_down) == training


def test_methods_whose_clients_need_training_refuse_by_name() -> None:
    loop = trained(PFedRec(dim=4), prepared(), 30, rounds=1)
    newcomers = Newcomers(loop.data, {"ann": [1]})
    newcomers.setup()
    with pytest.raises(InputError, match="clients of PFedRec score with what they have trained themselves"):
        loop.score_newcomers(newcomers, torch.tensor([0]))


# The same in Python and on the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("newcomers")
    settings = {"data": {"synthetic": PLANTED}, "method": {"class_path": "CGFedCo", "columns": 8}, "logger": None}
    return cgfedrec.fit(settings, {"run_dir": str(folder / "run")})


@pytest.fixture
def checkpoint(run: Run) -> str:
    return str(run.checkpoints / "best.ckpt")


def table_of(path: str) -> list[tuple[object, ...]]:
    return pl.read_csv(path).sort("user", "rank").rows()


def test_lists_tables_and_files_give_the_same(run: Run, checkpoint: str) -> None:
    lists = {"ann": [5, 9, 40], "bob": [1, 2]}
    expected = run.recommend_for(lists, top_k=4)
    assert expected.columns == ["user", "rank", "item", "score", "source"]
    assert expected["source"].unique().to_list() == ["history"]
    assert expected["user"].to_list() == ["ann"] * 4 + ["bob"] * 4
    for user, items in lists.items():
        assert not set(expected.filter(user=user)["item"]) & set(items)
    # The newest stands first, and its time is the latest one.
    rows = [("bob", 2, 8), ("ann", 40, 7), ("ann", 9, 5), ("bob", 1, 3), ("ann", 5, 2)]
    frame = pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row")
    assert run.recommend_for(frame, top_k=4).equals(expected)
    frame.rename({"user": "who"}).write_csv("new.csv")
    assert run.recommend_for("new.csv", 4, format=Format(user_column="who")).equals(expected)
    assert run.recommend_for(lists, 4, users=["bob"]).equals(expected.filter(user="bob"))
    # Order counts: backwards they are others.
    backwards = run.recommend_for({user: items[::-1] for user, items in lists.items()}, top_k=4)
    assert isinstance(run.server, SumsServer)
    chosen = run.server.structure.readings[int(run.server.chosen)]
    assert backwards.equals(expected) == chosen.startswith("rho 0,")
    again = ("recommend", "--ckpt_path", checkpoint, "--top_k", 4, "--output", "out.csv")
    done = command(*again, "--histories", "new.csv", "--data.format.user_column", "who")
    assert done.returncode == 0, done.stderr
    expected.write_csv("expected.csv")
    assert table_of("out.csv") == table_of("expected.csv")
    done = command(*again, "--have", 5, 9, 40)
    assert done.returncode == 0, done.stderr
    assert [row[2] for row in table_of("out.csv")] == expected.filter(user="ann")["item"].to_list()
    assert {row[0] for row in table_of("out.csv")} == {"you"}
    done = command(*again, "--histories", "new.csv", "--data.format.user_column", "who", "--user", "bob")
    assert {row[0] for row in table_of("out.csv")} == {"bob"}


def test_what_is_unknown_is_named_and_who_was_in_training_is_too(run: Run, checkpoint: str) -> None:
    with pytest.warns(Notice) as told:
        table = run.recommend_for({"ann": [5, "x", "y"], "7": [9], "eve": []}, top_k=2)
    texts = [str(one.message) for one in told]
    assert texts == [
        "2 interactions are left out: 2 items are not in the data of this checkpoint: x, y",
        "1 user was in training too, and here is served by the history that is given, as anybody else: 7",
    ]
    assert dict(table.select("user", "source").iter_rows()) == {"ann": "history", "7": "history", "eve": "popularity"}
    with pytest.warns(Notice):
        same = run.recommend_for({"ann": [5], "zoe": [9, 9, "nothing"]}, top_k=2)
    assert same.filter(user="ann")["item"].equals(table.filter(user="ann")["item"])
    assert same.filter(user="zoe")["item"].equals(table.filter(user="7")["item"])
    with pytest.warns(Notice, match="2 users were in training too, and here are served by the history that is given"):
        run.recommend_for({"7": [9], "8": [9]}, top_k=2)
    done = command("recommend", "--ckpt_path", checkpoint, "--have", "-a", "-b")
    assert done.returncode == 0, done.stderr
    assert "warning: 2 interactions are left out: 2 items are not in the data of this checkpoint: -a, -b" in done.stderr
    assert "source popularity: this user has no history that could be read" in done.stdout
    assert "to score with, clients would download " in done.stderr


def test_ratings_below_the_threshold_are_no_history_and_are_not_recommended(run: Run) -> None:
    best = run.recommend_for({"ann": [5, 9]}, top_k=3)
    rows = [("ann", 5, 5, 1), ("ann", 9, 5, 2), ("ann", int(best["item"][0]), 1, 3), ("eve", 9, 1, 3)]
    pl.DataFrame(rows, ["user", "item", "rating", "timestamp"], orient="row").write_csv("rated.csv")
    layout = Format(rating_column="rating", threshold=3)
    found = run.recommend_for("rated.csv", top_k=3, format=layout)
    assert found.filter(user="ann")["item"].to_list()[:2] == best["item"].to_list()[1:]
    assert set(found.filter(user="eve")["source"]) == {"popularity"}
    assert 9 not in found.filter(user="eve")["item"]


def test_rows_that_are_left_out_are_counted(run: Run, checkpoint: str) -> None:
    rows = "user,item,timestamp\nann,5,1\nann,5,2\nann,,3\neve,9,4\n,9,5\n"
    Path("holes.csv").write_text(rows)
    again = "the same user and item again: the earliest counts, without times the first"
    told = f"holes.csv: left out: 2 unreadable rows, 1 duplicate ({again})"
    with pytest.warns(Notice) as notes:
        run.recommend_for("holes.csv", format=Format(bad_rows="drop"))
    assert [str(one.message) for one in notes] == [told]
    dropping = ("--data.format.bad_rows", "drop")
    done = command("recommend", "--ckpt_path", checkpoint, "--histories", "holes.csv", *dropping)
    assert done.returncode == 0, done.stderr
    assert f"warning: {told}" in done.stderr
    # In a test, users with too few interactions to hold any out.
    table = pl.concat([others(run), pl.DataFrame({"user": ["short"], "item": ["5"], "timestamp": [1]})])
    table.write_csv("short.csv")
    done = command("test", "--ckpt_path", checkpoint, "--data.path", "short.csv")
    assert done.returncode == 0, done.stderr
    assert "warning: short.csv: left out: 1 user with too few interactions" in done.stderr


def test_bad_histories_are_refused(run: Run, checkpoint: str) -> None:
    with pytest.raises(InputError, match="histories: name nobody"):
        run.recommend_for({})
    with pytest.raises(InputError, match="'zoe' is not in the histories that are given"):
        run.recommend_for({"ann": [1]}, users=["zoe"])
    with pytest.raises(InputError, match="no column 'user'"):
        run.recommend_for(pl.DataFrame({"who": [1], "item": [2]}))
    for empty in ({"ann": [1, ""]}, {" ": [1]}):
        with pytest.raises(InputError, match="histories: an id of a user or an item is empty"):
            run.recommend_for(empty)
    with pytest.raises(InputError, match="top_k"):
        run.recommend_for({"ann": [1]}, top_k=0)
    for wrong, message in (
        (["--have", 5, "--user", 7], "--have: is the history of one person"),
        (["--histories", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--histories", ""], "--histories: is empty"),
        (["--have", "0007", ""], "--have: one of the ids is empty"),
    ):
        done = command("recommend", "--ckpt_path", checkpoint, *wrong)
        assert done.returncode == 2
        assert message in done.stderr
    settings = {"data": {"synthetic": PLANTED}, "method": "Local", "loop": {"rounds": 1}, "logger": None}
    local = cgfedrec.fit(settings, {"run_dir": "local"})
    with pytest.raises(InputError, match="clients of Local score with what they have trained"):
        local.recommend_for({"ann": [1]})
    assert Path("local").exists()


# Measured


def others(run: Run, **changed: str) -> pl.DataFrame:
    """The interactions of the run's own data under other names, with some items renamed."""
    drawn = run.data.synthetic.draw(run.data.seed)
    users = [f"new {user:02}" for user in drawn.users]
    items = [changed.get(f"item{item}", str(item)) for item in drawn.item_ids[drawn.items]]
    return pl.DataFrame({"user": users, "item": items, "timestamp": drawn.times})


def test_newcomers_with_the_histories_of_trained_clients_measure_as_they_do(run: Run, checkpoint: str) -> None:
    others(run).write_csv("others.csv")
    before = run.loop.bytes_scoring
    found = measured_on(run.loop, run.newcomers("others.csv", tested=True))
    expected = run.test()
    assert found["bytes/scoring"] == run.loop.bytes_scoring - before > 0
    assert found.pop("bytes/scoring") != expected.pop("bytes/scoring")
    assert found == pytest.approx(expected, rel=1e-12)  # users are added up in another order
    done = command("test", "--ckpt_path", checkpoint, "--data.path", "others.csv")
    assert done.returncode == 0, done.stderr
    assert "newcomers, test" in done.stdout
    assert "newcomers, from others.csv: 40 users" in done.stdout
    assert done.stdout.count(f"{expected['test/ndcg@10']:.4f}") >= 3  # in the table twice, and against popularity
    # Where the very data lie elsewhere, they are no others.
    drawn = others(run).with_columns(pl.col("user").str.slice(4).cast(pl.Int64) + 1, pl.col("item").cast(pl.Int64))
    drawn.write_csv("moved.csv")
    moved = command("test", "--ckpt_path", checkpoint, "--data.path", "moved.csv")
    assert moved.returncode == 0, moved.stderr
    assert "newcomers" not in moved.stdout


def test_a_held_out_item_outside_the_catalogue_is_a_miss(run: Run) -> None:
    """However long the list is: no list can hold it."""
    found = with_misses(
        Ranked(
            torch.tensor([2, 0]), torch.tensor([[3, NO_RANK], [1, 7]]), torch.tensor([[5, -1], [6, 8]]), torch.zeros(0)
        ),
        torch.tensor([1, 0, 2, 1, 0]),
    )
    assert found.users.tolist() == [0, 2, 3]
    assert found.ranks.tolist() == [[1, 7, MISS, NO_RANK], [3, MISS, MISS, NO_RANK], [MISS, NO_RANK, NO_RANK, NO_RANK]]
    assert found.items.tolist() == [[6, 8, -1, -1], [5, -1, -1, -1], [-1, -1, -1, -1]]
    assert HitRate.gain(found.ranks, 10**6).tolist() == [True, True, False]

    table = others(run)
    latest = table.sort("timestamp").group_by("user", maintain_order=True).last().sort("user").head(10)
    lost = table.with_columns(
        pl.when(pl.struct("user", "item").is_in(latest.select("user", "item").to_struct().implode()))
        .then(pl.lit("lost"))
        .otherwise("item")
        .alias("item")
    )
    lost.write_csv("lost.csv")
    with pytest.warns(Notice, match="10 interactions are left out: 1 item is not in the data"):
        newcomers = run.newcomers("lost.csv", tested=True)
    assert newcomers.misses.sum() == 10
    assert newcomers.num_items == run.data.num_items
    found_ = measured_on(run.loop, newcomers)
    full = run.loop.ranked("test")
    others_ = full.ranks[full.users >= 10]
    assert found_["test/hr@10"] == pytest.approx((others_ <= 10).sum().item() / 40)
    assert found_["over_popularity/users"] == 40


def test_a_test_on_others_is_refused_where_it_cannot_be(run: Run, checkpoint: str) -> None:
    others(run).write_csv("others.csv")

    def refused(*options: object) -> str:
        done = command("test", "--ckpt_path", *options)
        assert done.returncode == 2, done.stdout
        return done.stderr

    assert "on other data" in refused(checkpoint, "--data.split", "random")
    assert "no such file" in refused(checkpoint, "--data.path", "nowhere.csv")
    pl.DataFrame({"user": ["a"] * 3, "item": ["x", "y", "z"], "timestamp": [1, 2, 3]}).write_csv("strange.csv")
    assert "nothing to hold out for a test that is in the catalogue" in refused(
        checkpoint, "--data.path", "strange.csv"
    )
    settings = {"method": "Local", "loop": {"rounds": 1}, "logger": None}
    cgfedrec.fit(settings, {"data": {"path": "others.csv"}, "run_dir": "local"})
    others(run).head(200).write_csv("fewer.csv")
    assert "clients of Local score with what they" in refused("local/checkpoints/last.ckpt", "--data.path", "fewer.csv")
    Path("others.csv").unlink()
    told = refused("local/checkpoints/last.ckpt", "--data.path", "fewer.csv")
    assert "was trained on other data than fewer.csv; its own are needed too" in told
    assert "others.csv: no such file" in told


@pytest.mark.parametrize("candidates", ["full", "sampled"])
@pytest.mark.parametrize("split", ["random", "temporal", "leave_one_out"])
def test_others_are_split_and_measured_as_those_in_training(split: Any, candidates: Any) -> None:
    """Histories hold nothing of what is held out; candidates are the catalogue, and sampled ones too."""
    data = prepared(Protocol(candidates=candidates, num_candidates=20), split=split)
    drawn = data.synthetic.draw(7)
    pl.DataFrame({"user": drawn.users + 100, "item": drawn.item_ids[drawn.items], "timestamp": drawn.times}).write_csv(
        "o.csv"
    )
    newcomers = Newcomers(data, "o.csv", Format(), tested=True)
    newcomers.setup()
    everybody = torch.arange(newcomers.num_users)
    cohort, histories = newcomers.ranking(everybody, "test"), newcomers.histories(everybody)
    assert cohort.candidates.shape[1] == data.num_items
    assert (cohort.sampled is not None) == (candidates == "sampled")
    for user in everybody.tolist():
        had = set(histories.items[user].tolist()) - {-1}
        out = set(cohort.relevant[user].tolist()) - {-1}
        assert not had & out
        assert cohort.candidates[user].nonzero().squeeze(1).tolist() == sorted(
            set(range(data.num_items)) - had - (set(newcomers.ranking(everybody, "val").relevant[user].tolist()) - {-1})
        )


@pytest.mark.parametrize("method", ["CGFedCo", "FedGF", "labels"])
def test_before_anything_is_found_nothing_is_recommended_or_exported(method: str) -> None:
    """Everybody would be shown what is popular, or the first items, and be told that it comes of their history."""
    labels = {"class_path": "CGFedCo", "structure": {"class_path": "cgfedrec.structure.labelsets.LabelSets"}}
    settings = {"data.synthetic": PLANTED, "logger": None, "loop.rounds": 2 if method != "FedGF" else 1}
    run = cgfedrec.fit(settings, {"method": labels if method == "labels" else method, "run_dir": "run"})
    calls: list[Callable[[], object]] = [lambda: run.recommend([1]), lambda: run.recommend([1], explain=True)]
    if method != "labels":
        calls += [lambda: run.recommend_for({"ann": [1, 2]}), lambda: run.export("out")]
    for call in calls:
        with pytest.raises(InputError, match="stopped before it had found what its clients recommend by; go on"):
            call()
    for asked in (["--user", "1"], *([] if method == "labels" else [["--have", "1"]])):
        done = command("recommend", "--ckpt_path", "run/checkpoints/best.ckpt", *asked)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("stopped before it had found") == 1
    for measure in ("test", "validate"):
        done = command(measure, "--ckpt_path", "run/checkpoints/best.ckpt")
        assert (done.returncode, done.stderr.count("this measures popularity")) == (0, 1), done.stderr
    one = cgfedrec.fit({"data.synthetic": PLANTED, "logger": None, "loop.rounds": 1, "method": "PFedRec"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        one.test()
    assert set(one.recommend()["source"]) == {"model"}
