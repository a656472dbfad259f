"""What is said of the data: whether their times are true, and what leave one out makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from cgfedrec.cli import main
from cgfedrec.data import FederatedDataModule, Format, Synthetic
from cgfedrec.data.days import days_ago, is_order, per_day
from cgfedrec.data.recognising import unread_ratings
from cgfedrec.data.times import as_times
from cgfedrec.protocol import Protocol
from cgfedrec.run.describe import show_data


def told(data: FederatedDataModule, details: bool = False) -> str:
    data.attach(Protocol(), 0)
    data.setup()
    console = Console(record=True, width=200)
    show_data(console, data, details)
    return console.export_text()


def written(path: Path, times: str) -> FederatedDataModule:
    """The embedded data with times of some kind, in a file."""
    drawn = Synthetic(users=30, items=40, groups=4, interactions=8).draw(0)
    assert drawn.times is not None
    seconds = drawn.times + 900_000_000
    kinds = {
        "seconds": pl.Series(seconds),
        "order": pl.Series(np.arange(len(seconds))),
        "milliseconds": pl.Series(seconds * 1000),
        "dates": pl.from_epoch(pl.Series(seconds), "s").dt.strftime("%Y-%m-%dT%H:%M:%S"),
        "days": pl.from_epoch(pl.Series(seconds), "s").dt.date(),
    }
    columns = {"user": drawn.user_ids[drawn.users], "item": drawn.item_ids[drawn.items], "timestamp": kinds[times]}
    pl.DataFrame(columns).write_parquet(path)
    return FederatedDataModule(str(path), split="leave_one_out")


@pytest.mark.parametrize("times", ["seconds", "milliseconds", "dates", "days"])
def test_true_times_of_any_unit_are_days_and_flatter(tmp_path: Path, times: str) -> None:
    data = written(tmp_path / "t.parquet", times)
    assert "flatters recency; --data.split rolling does not" in told(data)
    plain = written(tmp_path / "s.parquet", "seconds")
    told(plain)
    assert data.days is not None
    assert plain.days is not None
    # Of the same day, other interactions may be held out.
    assert abs(np.median(data.days) - np.median(plain.days)) < (2 if times == "days" else 1e-6)
    assert "times: true; training spans" in told(data, details=True)


def test_an_order_is_no_time(tmp_path: Path) -> None:
    data = written(tmp_path / "t.parquet", "order")
    text = told(data, details=True)
    assert "flatters" not in text
    assert "times: an order" in text
    assert data.days is None


def test_other_splits_and_embedded_data_are_told_nothing(tmp_path: Path) -> None:
    data = written(tmp_path / "t.parquet", "seconds")
    assert "flatters" not in told(FederatedDataModule(data.path, split="none"))
    assert "flatters" not in told(FederatedDataModule())


def test_cuts_are_shown_with_how_many_they_ask() -> None:
    data = FederatedDataModule(split="rolling", min_interactions=1)
    text = told(data, details=True)
    assert "cuts in time" in text
    assert f"{data.asked[0]:,}" in text
    assert text.count("chooses settings") == 5


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ([881250949, 891717742, 878887116], False),
        ([1, 2, 3, 4, 1, 2, 3], True),
        (list(range(100_000, 300_000)), True),
        ([5.0, 5.5, 9.25], True),
        ([], True),
    ],
)
def test_which_times_are_an_order(times: list[float], order: bool) -> None:
    assert is_order(np.array(times)) is order


def test_a_day_of_each_unit() -> None:
    for unit, size in ((1, 86_400), (10**3, 86_400_000), (10**6, 86_400_000_000), (10**9, 86_400_000_000_000)):
        assert per_day(np.array([950_000_000 * unit])) == size
        assert days_ago(np.array([950_000_000 * unit]), 950_086_400 * unit).tolist() == [1.0]
    dates = pl.Series(["2001-02-03", "2001-02-05"]).str.to_date()
    assert days_ago(as_times(dates).to_numpy(), as_times(dates).to_numpy().max()).tolist() == [2.0, 0.0]


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """A file with ratings, as most have that come from elsewhere."""
    rows = [(f"u{user}", f"i{(user + item) % 9}", 5 - item % 3, item) for user in range(9) for item in range(5)]
    path = tmp_path / "rated.csv"
    pl.DataFrame(rows, ["user", "item", "rating", "timestamp"], orient="row").write_csv(path)
    return path


NOT_READ = "its column 'rating' is not read"


def test_ratings_that_are_not_read_are_told(rated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe = ["data", "describe", "--data.path", str(rated)]
    assert main(describe) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"{rated}: {NOT_READ}: every row counts as positive; ")
    # What it advises works, and ends it.
    with_threshold, without = line.split("; ")[1].split(", ")
    for advice in (with_threshold.split(" takes ")[0], without.split(" says ")[0]):
        assert main([*describe, *advice.split()]) == 0
        assert NOT_READ not in capsys.readouterr().out
    assert main(["estimate", "--data.path", str(rated)]) == 0
    assert capsys.readouterr().out.count(NOT_READ) == 1


def test_a_run_tells_of_ratings_once(rated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--data.path", str(rated), "--method", "FedMF", "--loop.rounds", "1", "--logger", "null"]
    assert main([*fit, "--run_dir", "a"]) == 0
    assert capsys.readouterr().out.count(NOT_READ) == 1
    assert main(["fit", "--ckpt_path", "a/checkpoints/last.ckpt", "--loop.rounds", "2"]) == 0
    assert NOT_READ not in capsys.readouterr().out
    config = rated.with_name("c.yaml")
    config.write_text("data.format.rating_column: null\n")
    assert main([*fit, "--run_dir", "b", "--config", str(config)]) == 0
    assert NOT_READ not in capsys.readouterr().out


def test_ratings_are_seen_in_every_kind_of_file(rated: Path) -> None:
    table, folder = pl.read_csv(rated), rated.with_name("parts")
    folder.mkdir()
    for path in (rated.with_suffix(".parquet"), folder / "0.parquet"):
        table.write_parquet(path)
    table.write_ndjson(rated.with_suffix(".jsonl"))
    table.write_csv(rated.with_suffix(".tsv"), separator="\t", quote_style="always")
    files = [rated, folder, *(rated.with_suffix(suffix) for suffix in (".parquet", ".jsonl", ".tsv"))]
    assert all(unread_ratings(path, Format()) for path in files)
    named = ({"rating_column": "rating"}, {"user_column": "item", "item_column": "user"}, {"layout": "movielens-csv"})
    assert not any(unread_ratings(rated, Format(**one)) for one in named)  # type: ignore[arg-type]
    table.drop("rating").write_csv(rated)
    assert unread_ratings(rated, Format()) is None


def test_ids_that_nobody_means_are_counted_and_read(tmp_path: Path) -> None:
    rows = [(user, f"i{item}", item) for user in ("u1", " u1", "u2 ", "NA", "null", "u3") for item in range(5)]
    pl.DataFrame([*rows, ("u3", "i7 ", 9)], ["user", "item", "timestamp"], orient="row").write_csv(tmp_path / "r.csv")
    data = FederatedDataModule(str(tmp_path / "r.csv"), negatives=1)
    line = told(data).splitlines()[0]
    assert line.endswith("; 3 ids with blanks at an end; 2 ids such as NA, null, None or nan")
    assert data.user_ids.to_list() == [" u1", "NA", "null", "u1", "u2 ", "u3"]
    pl.DataFrame(rows[:5], ["user", "item", "timestamp"], orient="row").write_csv(tmp_path / "r.csv")
    assert told(data).splitlines()[0].endswith("density 100.00%")
