"""Rolling evaluation: nothing after a cut is seen, users are asked for their next item, earlier cuts choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

import cgfedrec
from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.data.rolling import Rolling
from cgfedrec.data.split import Part
from cgfedrec.errors import InputError
from cgfedrec.evaluation.intervals import paired_interval
from cgfedrec.evaluation.metrics import each_users
from cgfedrec.files import read_json
from cgfedrec.method import Recommender
from cgfedrec.protocol import Protocol
from cgfedrec.run.choosing import Judged, choose
from tests.commands import cgfedrec as command

DAY = 86_400
# Three users; (user, item, day). On day 10 user c has not begun, and b has two interactions before it.
TABLE = [
    ("a", "p", 1), ("a", "q", 3), ("a", "r", 5), ("a", "s", 12), ("a", "t", 11), ("a", "u", 12),
    ("b", "p", 2), ("b", "r", 9), ("b", "q", 10), ("b", "v", 14),
    ("c", "p", 13), ("c", "q", 15),
]  # fmt: skip


def written(path: Path, rows: list[tuple[str, str, int]] | None = None) -> Path:
    table = pl.DataFrame(rows or TABLE, ["user", "item", "timestamp"], orient="row")
    table.with_columns((pl.col("timestamp") * DAY).cast(pl.Int64) + 800_000_000).write_csv(path)
    return path


def at(days: list[int]) -> list[float]:
    return [day * DAY + 800_000_000 for day in days]


def opened(path: Path, seed: int = 0, **rolling: Any) -> FederatedDataModule:
    settings = Rolling(**{"at": at([10, 14]), "choosing": 0, "least": 2, **rolling})
    data = FederatedDataModule(str(path), split="rolling", rolling=settings, min_interactions=1, negatives=1)
    data.attach(Protocol(), seed)
    data.setup()
    return data


def asked(data: FederatedDataModule, part: Part = Part.TEST) -> dict[str, list[str]]:
    cohort = data.candidates.cohort(next(data.ranked("val" if part == Part.VAL else "test", 99)), part)
    items = [[str(data.item_ids[int(item)]) for item in row if item >= 0] for row in cohort.relevant]
    return dict(zip((str(data.user_ids[int(user)]) for user in cohort.users), items, strict=True))


def test_at_a_cut_all_before_it_is_training_and_each_user_is_asked_for_the_next_item(tmp_path: Path) -> None:
    data = opened(written(tmp_path / "t.csv"), cut=1)
    assert data.user_ids.to_list() == ["a", "b"]
    assert asked(data) == {"a": ["t"], "b": ["q"]}  # t is of day 11, s and u of day 12; q of the cut itself
    assert data.part_size(Part.TRAIN) == 5
    assert data.part_size(Part.VAL) == 0
    assert sorted(data.item_ids) == ["p", "q", "r", "t"]  # of s, u and v nobody can know
    assert data.report["interactions after the cut"] == 5
    assert data.days is not None
    assert data.days.tolist() == [9, 7, 5, 8, 1]
    history = data.histories(torch.arange(data.num_users))
    assert history.days[0].tolist() == [5, 7, 9]  # the newest first


def test_what_a_user_had_before_the_cut_is_no_next_item_wherever_its_rows_stand(tmp_path: Path) -> None:
    """As if the file ended at the cut: a later row of the same pair is not there then, though it stands first."""
    written(tmp_path / "once.csv")
    for later in (11, 13):
        written(tmp_path / "again.csv", [("a", "p", later), *TABLE])
        once, again = (opened(tmp_path / name, cut=1) for name in ("once.csv", "again.csv"))
        assert asked(again) == asked(once)
        assert again.fingerprint() == once.fingerprint()


def test_who_has_too_little_before_the_cut_trains_and_is_not_asked(tmp_path: Path) -> None:
    data = opened(written(tmp_path / "t.csv"), cut=1, least=3)
    assert data.user_ids.to_list() == ["a", "b"]
    assert asked(data) == {"a": ["t"]}


def test_of_equal_times_after_the_cut_the_next_goes_by_the_rule_of_the_split(tmp_path: Path) -> None:
    rows = [row for row in TABLE if row[1] != "t"]  # then s and u, at the same time, are a's next
    data = opened(written(tmp_path / "t.csv", rows), cut=1)
    assert asked(data)["a"] == ["u"]  # what stands first in the file is the later one


def test_at_a_cut_that_chooses_the_next_items_are_validation(tmp_path: Path) -> None:
    data = opened(written(tmp_path / "t.csv"), cut=1, choosing=1)
    assert not data.holds_out("test")
    assert asked(data, Part.VAL) == {"a": ["t"], "b": ["q"]}
    assert opened(tmp_path / "t.csv", cut=2, choosing=1).holds_out("test")


@pytest.mark.parametrize(("cuts", "choosing"), [(15, 5), (4, 1), (3, 1), (2, 1), (1, 0)])
def test_the_first_third_of_the_cuts_chooses(cuts: int, choosing: int) -> None:
    rolling = Rolling(cuts=cuts)
    assert rolling.num_choosing == choosing
    assert [rolling.chooses(cut) for cut in range(1, cuts + 1)] == [True] * choosing + [False] * (cuts - choosing)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cuts": 0}, "data.rolling.cuts"),
        ({"first": 0.9, "last": 0.3}, "must rise"),
        ({"at": [3.0, 1.0]}, "data.rolling.at"),
        ({"choosing": 15}, "leave none to report"),
        ({"cut": 16}, "no number 16"),
        ({"least": 0}, "data.rolling.least"),
    ],
)
def test_cuts_that_cannot_be_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Rolling(**settings)


def test_cuts_that_fall_together_or_lie_before_everything_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv")
    with pytest.raises(InputError, match="fall on the time of another"):
        opened(path, at=None, cuts=40)
    with pytest.raises(InputError, match="nothing comes before the first cut"):
        opened(path, at=at([1]))


BASE: dict[str, Any] = {
    "data.split": "rolling",
    "data.rolling.cuts": 4,
    "data.rolling.last": 0.8,
    "data.min_interactions": 1,
    "data.synthetic": {"users": 60, "items": 50, "groups": 5, "interactions": 12},
    "logger": None,
}


def rolled(folder: Path, **settings: Any) -> cgfedrec.Run:
    return cgfedrec.fit({**BASE, "run_dir": str(folder), **settings})


@pytest.mark.parametrize("method", ["CGFedCo", "EASE", "FedMF", "FedGF"])
def test_every_kind_of_method_runs_at_every_cut(tmp_path: Path, method: str) -> None:
    settings: dict[str, Any] = {"method": f"cgfedrec.{'centralized' if method == 'EASE' else 'methods'}.{method}"}
    if method == "FedMF":
        settings["loop.rounds"] = 3
    run = rolled(tmp_path / "run", **settings)
    cases = pl.read_parquet(tmp_path / "run" / "ranks.parquet")
    assert cases["cut"].unique().to_list() == [2, 3, 4]
    assert run.summary["cases"] == len(cases) > 50
    # The figures, once more from the cases.
    ranks = (cases[name].to_torch()[:, None] for name in ("rank", "popularity"))
    values = [each_users("ndcg@10", one).numpy() for one in ranks]
    assert run.summary["test/ndcg@10"] == pytest.approx(values[0].mean())
    assert run.summary["popularity/test/ndcg@10"] == pytest.approx(values[1].mean())
    assert run.summary["over_popularity/test/ndcg@10/low"] == pytest.approx(paired_interval(*values).low)
    assert read_json(tmp_path / "run" / "summary.json") == run.summary
    rows = pl.read_csv(tmp_path / "run" / "metrics.csv")
    assert rows["round"].to_list() == [2, 3, 4]
    assert rows["cases"].sum() == len(cases)


def test_what_is_planted_after_a_cut_changes_no_figure_before_it(tmp_path: Path) -> None:
    """Of a new user, of an old one who has a next item before, and of an item that nobody had."""
    drawn = Synthetic(**BASE["data.synthetic"]).draw(0)
    assert drawn.times is not None
    columns = {"user": drawn.user_ids[drawn.users], "item": drawn.item_ids[drawn.items], "timestamp": drawn.times}
    table = pl.DataFrame(columns)
    cuts = [float(np.quantile(drawn.times, share)) for share in (0.4, 0.6, 0.8)]
    last = int(drawn.times.max())

    def figures(name: str, more: list[tuple[int, int, int]]) -> pl.DataFrame:
        planted = pl.DataFrame(more, table.schema, orient="row")
        path = tmp_path / f"{name}.csv"
        pl.concat([table, planted]).write_csv(path)
        method = {"method": "CGFedCo", "method.half_life": 30.0, "method.structure.recents": [7.0]}
        given = {**BASE, "data.path": str(path), "data.rolling.at": cuts, "run_dir": str(tmp_path / name), **method}
        cgfedrec.fit(given)
        return pl.read_parquet(tmp_path / name / "ranks.parquet")

    latest = table.group_by("user").agg(pl.col("timestamp").max()).sort("timestamp")["user"]
    old, other = latest[-1], latest[-2]  # who have a next item after every cut
    more = [(old, 999, last + 1), (777, 1, last + 2), (777, 2, last + 3), (other, 999, last + 9)]
    without = figures("plain", [])
    assert len(without) > 30
    assert figures("planted", more).equals(without)
    early = [(900 + number, 1, int(cuts[0]) - 50) for number in range(30)]
    assert not figures("early", early).equals(without)


def test_earlier_cuts_choose_among_alternatives_readings_and_rounds() -> None:
    class Given(Recommender):
        readings = {"flat": {"reading": "flat"}, "steep": {"reading": "steep"}}

    def judged(*gains: tuple[int, float, float]) -> list[Judged]:
        rows = [{"round": 1, "readings/flat": flat, "readings/steep": steep} for _, flat, steep in gains]
        return [Judged(cases, [row]) for (cases, _, _), row in zip(gains, rows, strict=True)]

    # By cases: steep has 0.2 of 10 and 0.5 of 90, so 0.47; flat has 0.4. With a half-life steep has 0.45 of all.
    never, week = judged((10, 0.4, 0.2), (90, 0.4, 0.5)), judged((10, 0.1, 0.45), (90, 0.1, 0.45))
    found = choose(Given(), "val/ndcg@10", [({"half_life": None}, never), ({"half_life": 7.0}, week)])
    assert found.method == {"half_life": None, "reading": "steep"}
    assert found.value == pytest.approx(0.47)
    assert found.rounds is None
    assert found.named == "half_life never, steep"

    curve = [{"round": number, "val/ndcg@10": value} for number, value in ((1, 0.1), (2, 0.3), (3, 0.2))]
    other = [{"round": number, "val/ndcg@10": value} for number, value in ((1, 0.1), (2, 0.1))]
    by_round = choose(Recommender(), "val/ndcg@10", [({}, [Judged(5, curve), Judged(5, other), Judged(0, [])])])
    assert by_round.rounds == 2
    assert by_round.value == pytest.approx(0.2)


@pytest.mark.parametrize("method", ["Popularity", "EASE", "FedMF", "CGFedCo"])
def test_what_nobody_had_before_the_cut_is_a_miss_and_nobodys_candidate(tmp_path: Path, method: str) -> None:
    """Half of the users take a new item next, the others one that is known, of so few that everybody hits."""
    rows = [(user, (user + place) % 12, 86_400 * place) for user in range(30) for place in range(7)]
    rows += [(user, user if user % 2 else (user + 9) % 12, 86_400 * 9) for user in range(30)]
    table = pl.DataFrame([(u, i if u % 2 == 0 or t < 86_400 * 9 else 100 + i, t) for u, i, t in rows], orient="row")
    table.rename(dict(zip(table.columns, ("user", "item", "timestamp"), strict=True))).write_csv(tmp_path / "new.csv")
    settings = {"data.path": str(tmp_path / "new.csv"), "data.negatives": 1, "data.rolling.at": [86_400 * 8]}
    run = rolled(tmp_path / "run", method=method, **settings, **{"data.rolling.choosing": 0, "loop.rounds": 12})
    assert run.summary["cases"] == 30
    assert run.summary["test/hr@20"] == run.summary["popularity/test/hr@20"] == 0.5
    checkpoint = tmp_path / "run" / "cuts" / "01" / "checkpoints" / "last.ckpt"
    if method in ("FedMF", "CGFedCo"):  # a cut keeps no reference
        at_the_cut = cgfedrec.load(checkpoint)
        found = at_the_cut.ranked()
        assert found is not None
        items = found.shown[found.shown >= 0].unique().numpy()
        assert set(at_the_cut.data.item_ids[items]) == set(range(12))


def test_where_each_cut_ends_by_itself_no_rounds_are_chosen() -> None:
    """What counts is evaluated once, when all is counted: after more rounds where more users take turns."""
    cuts = [Judged(6, [{"round": 16, "val/ndcg@10": 0.2}]), Judged(2, [{"round": 20, "val/ndcg@10": 0.4}])]
    found = choose(Recommender(), "val/ndcg@10", [({}, cuts)])
    assert (found.rounds, found.named) == (None, "")
    assert found.value == pytest.approx(0.25)


def test_rounds_are_those_that_earlier_cuts_chose(tmp_path: Path) -> None:
    run = rolled(tmp_path / "run", method="FedMF", **{"loop.rounds": 4})
    rows = pl.read_csv(tmp_path / "run" / "metrics.csv")
    total = np.zeros(4)
    for cut in (1, 2, 3):
        folder = tmp_path / "run" / "choosing" / f"{cut:02}-0"
        total += (
            pl.read_csv(folder / "metrics.csv")["val/ndcg@10"].to_numpy() * read_json(folder / "summary.json")["cases"]
        )
        rounds = 1 + int(total.argmax())
        assert run.summary["chosen"][str(cut + 1)] == f"{rounds} rounds"
        assert rows["rounds"].to_list()[cut - 1] == rounds


def test_a_reading_that_was_chosen_is_that_of_the_reported_cuts(tmp_path: Path) -> None:
    rolled(tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "cuts" / "02" / "config.yaml").read_text())["method"]["init_args"]
    found = sorted((tmp_path / "run" / "choosing").glob("01-*/metrics.csv"))
    assert len(found) == 6
    rows = pl.concat([pl.read_csv(path) for path in found], how="diagonal_relaxed")
    readings = rows.select(pl.col("^readings/.*$").max())
    best = max(readings.columns, key=lambda name: readings[name][0])
    assert config["read_by"] == best.removeprefix("readings/")
    assert config["half_life"] in (None, 365.0, 90.0, 30.0, 7.0, 2.0)
    ended = pl.read_csv(tmp_path / "run" / "cuts" / "02" / "metrics.csv")
    assert not [name for name in ended.columns if name.startswith("readings/")]  # nobody chooses there


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    method = {"method": "EASE", "method.half_life": "chosen"}
    whole = rolled(tmp_path / "whole", **method)
    for name in ("choosing/01-0", "cuts/02"):
        (tmp_path / "half" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole" / name).rename(tmp_path / "half" / name)
    (tmp_path / "half" / "config.yaml").write_text((tmp_path / "whole" / "config.yaml").read_text())
    moved = [tmp_path / "half" / name / "summary.json" for name in ("choosing/01-0", "cuts/02")]
    before = moved[1].stat().st_mtime_ns
    again = rolled(tmp_path / "half", **method)
    assert moved[1].stat().st_mtime_ns == before
    assert again.summary["test/ndcg@10"] == whole.summary["test/ndcg@10"]
    of_before = [json.loads(path.read_text())["seconds"] for path in moved]
    assert again.training.seconds == pytest.approx(sum(of_before))  # they are told, too
    assert again.summary["seconds"] > again.training.seconds
    with pytest.raises(InputError, match="already holds a run"):
        rolled(tmp_path / "half", **method)
    (tmp_path / "half" / "summary.json").unlink()
    with pytest.raises(InputError, match="other settings"):
        rolled(tmp_path / "half", method="Popularity")


@pytest.mark.parametrize("method", ["CGFedCo", "EASE"])
def test_where_times_are_an_order_nothing_is_forgotten(tmp_path: Path, method: str) -> None:
    drawn = Synthetic(**BASE["data.synthetic"]).draw(0)
    assert drawn.times is not None
    columns = {"user": drawn.user_ids[drawn.users], "item": drawn.item_ids[drawn.items], "timestamp": drawn.times}
    table = pl.DataFrame(columns).sort("timestamp").with_columns(timestamp=pl.int_range(pl.len()))
    table.write_csv(tmp_path / "order.csv")
    settings: dict[str, Any] = {"data.path": str(tmp_path / "order.csv"), "method": method}
    if method == "EASE":
        settings |= {"method.half_life": "chosen", "method.recent": "chosen", "method.decay": "chosen"}
    run = rolled(tmp_path / "run", **settings)
    assert "its times are an order, so nothing is forgotten" in run._intent()
    config = yaml.safe_load((tmp_path / "run" / "cuts" / "04" / "config.yaml").read_text())["method"]["init_args"]
    assert config["half_life"] in (None, "chosen")
    assert "days" not in str(run.summary["chosen"])
    assert run.summary["chosen"]["4"].startswith("rho")


def test_the_command_line_shows_cases_and_what_was_chosen(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**BASE, "method": "CGFedCo"}))
    ended = command("fit", "--config", config, "--run_dir", tmp_path / "run")
    assert ended.returncode == 0
    assert "CGFedCo at 4 cuts, of which 3 are reported with the settings that did best at all" in ended.stdout
    assert "by earlier cuts: half_life" in ended.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["over_popularity/test/ndcg@10/low"] > 0
    of_late = "This popularity forgets nothing; what is to be beaten is that of late"
    assert of_late in (tmp_path / "run" / "report.html").read_text()
    assert of_late.lower() in ended.stdout.lower()
    last = tmp_path / "run" / "cuts" / "02" / "checkpoints" / "last.ckpt"
    refused = command("fit", "--ckpt_path", last, "--data.rolling.cut", "null")
    assert refused.returncode == 2
    assert "ckpt_path: a rolling evaluation has none" in refused.stderr
    assert command("test", "--ckpt_path", last).returncode == 0
