"""What is different between two files: counted by hand, and as a run counts it that goes on from one with the other."""

from __future__ import annotations

import warnings
from pathlib import Path

import polars as pl
import pytest

from cgfedrec.cli import main
from cgfedrec.data import FederatedDataModule, Format, diff
from cgfedrec.errors import InputError, Notice
from cgfedrec.protocol import Protocol
from cgfedrec.structure.updating import ANEW
from tests.test_escapes import NASTY, clean
from tests.test_updating import drawn, fitted

DAY = 86_400
START = 800_000_000
Row = tuple[str, str, int, float]  # user, item, rating, day
# Ann and Ben stay, Cid leaves, Dot comes; low ratings are below 3.
OLD: list[Row] = [
    ("ann", "p", 5, 1), ("ann", "q", 4, 2), ("ann", "r", 1, 3),
    ("ben", "p", 5, 2), ("ben", "s", 5, 4),
    ("cid", "q", 3, 5), ("cid", "t", 3, 6),
]  # fmt: skip
NEW: list[Row] = [
    ("ann", "p", 5, 1), ("ann", "q", 4, 2.5), ("ann", "r", 5, 3),
    ("ben", "p", 2, 2), ("ben", "s", 5, 4), ("ben", "s", 5, 9),
    ("dot", "p", 4, 8), ("dot", "u", 4, 10.5), ("dot", "v", 1, 12),
]  # fmt: skip
RATED = Format(rating_column="rating", threshold=3)


def written(path: Path, rows: list[Row], separator: str = ",") -> Path:
    lines = [(user, item, rating, int(START + day * DAY)) for user, item, rating, day in rows]
    table = [("user", "item", "rating", "timestamp"), *lines]
    path.write_text("".join(separator.join(map(str, line)) + "\n" for line in table))
    return path


def both(folder: Path) -> tuple[Path, Path]:
    return written(folder / "old.csv", OLD), written(folder / "new.csv", NEW)


def run(*arguments: str | Path) -> int:
    return main(["data", "diff", *map(str, arguments)])


def test_what_was_changed_by_hand_is_what_is_counted(tmp_path: Path) -> None:
    found = diff(*both(tmp_path), RATED)
    assert found.counts == {
        "before": 6,
        "added": 3,  # ann has r, which she rated low before; dot has p and u
        "taken back": 3,  # ben has rated p low; cid's
        "at another time": 1,  # ann has q
        "unchanged": 2,
        "new users": 1,
        "users gone": 1,
        "new items": 2,  # v was only rated low, and is in the catalogue
        "items gone": 1,  # q is ann's, t is nobody's
        "changed users": 4,
    }
    assert found.examples() == {
        "new users": [("dot",)],
        "users gone": [("cid",)],
        "new items": [("u",), ("v",)],
        "items gone": [("t",)],
        "added": [("ann", "r"), ("dot", "p"), ("dot", "u")],
        "taken back": [("ben", "p"), ("cid", "q"), ("cid", "t")],
        "at another time": [("ann", "q")],
    }
    assert [len(some) for some in found.examples(1).values()] == [1] * 7
    assert found.share == pytest.approx(7 / 6)
    assert found.days == pytest.approx(4.5)  # from day 6 to day 10.5: what is rated low says nothing
    assert [report["duplicates"] for report in found.reports] == [0, 1]
    assert [report["below the threshold"] for report in found.reports] == [1, 2]


def test_without_a_threshold_all_ratings_count(tmp_path: Path) -> None:
    counts = diff(*both(tmp_path)).counts
    assert (counts["added"], counts["taken back"], counts["at another time"]) == (3, 2, 1)
    assert counts["unchanged"] == 4


@pytest.mark.parametrize("layout", [RATED, Format(), Format(timestamp_column=None)])
def test_a_run_that_goes_on_counts_the_same(tmp_path: Path, layout: Format) -> None:
    modules = list[FederatedDataModule]()
    for path in both(tmp_path):
        data = FederatedDataModule(str(path), layout, split="none", min_interactions=1, negatives=1)
        data.attach(Protocol(), 0, before=modules[0].to_keep() if modules else None)
        data.setup()
        modules.append(data)
    changes = modules[1].changes
    assert changes is not None
    found = diff(tmp_path / "old.csv", tmp_path / "new.csv", layout)
    assert found.counts == changes.counts
    assert found.share == changes.share > 0
    assert (found.days or 0.0) == changes.days


def test_a_file_and_itself_differ_in_nothing(tmp_path: Path) -> None:
    path, _ = both(tmp_path)
    found = diff(path, path, RATED)
    assert (found.share, found.days) == (0, 0)
    assert not any(found.examples().values())
    assert found.counts["unchanged"] == found.counts["before"] == 6


def test_an_order_in_place_of_times_tells_no_days(tmp_path: Path) -> None:
    """Then nothing can be at another time: the places of all shift with the first that is new."""
    path = tmp_path / "old.csv"
    path.write_text("user,item,timestamp\na,p,1\na,q,2\nb,p,3\nb,q,4\n")
    other = tmp_path / "new.csv"
    other.write_text("user,item,timestamp\na,r,1\na,p,2\na,q,3\nb,p,4\nb,q,5\n")
    found = diff(path, other)
    assert found.days is None
    assert (found.counts["added"], found.counts["at another time"], found.counts["unchanged"]) == (1, 0, 4)


def test_all_that_is_wrong_with_both_files_is_told(tmp_path: Path) -> None:
    old, new = both(tmp_path)
    with pytest.raises(InputError) as error:
        diff(tmp_path / "none.csv", written(tmp_path / "low.csv", [("ann", "p", 1, 1)]), RATED)
    told = error.value.problems
    assert len(told) == 2
    assert "none.csv: no such file" in told[0]
    assert "low.csv: no rating reaches data.format.threshold 3" in told[1]
    with pytest.raises(InputError, match="no column 'rated'"):
        diff(old, new, Format(rating_column="rated", threshold=3))


def test_the_command_line_says_what_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = both(tmp_path)
    assert run("--data.format.rating_column", "rating", "--data.format.threshold", "3", old, new) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert ["new users", "1", "dot"] in rows
    assert ["items gone", "1", "t"] in rows
    assert ["interactions taken back", "3", "ben has p, cid has q, cid has t"] in rows
    assert ["interactions unchanged", "2", ""] in rows
    assert ["read", "7", "9"] in rows
    assert ["duplicates", "0", "1"] in rows
    assert "4.5 days between the latest times" in out
    assert "117% of the interactions have changed, more than 10%: columns and candidates are found anew" in out
    semicolons = written(tmp_path / "old.txt", OLD, ";"), written(tmp_path / "new.txt", NEW, ";")
    assert run(*semicolons, "--data.format.separator", ";") == 0
    assert "day" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "anew"), [(3, False), (6, False), (7, True)])
def test_from_a_share_on_all_is_found_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: int, anew: bool
) -> None:
    rows: list[Row] = [(f"u{number % 5}", f"i{number // 5}", 5, float(number)) for number in range(60)]
    old = written(tmp_path / "old.csv", rows)
    new = written(tmp_path / "new.csv", [*rows, *[(f"u{number % 3}", f"j{number}", 5, 90.0) for number in range(more)]])
    assert run(old, new) == 0
    out = capsys.readouterr().out
    assert pytest.approx(0.1) == ANEW
    assert ("found anew" in out) == anew
    assert (f"{more / 60:.1%} of the interactions have changed, at most 10%: 3 clients add" in out) != anew
    assert "all users of both files are counted; a run has other numbers where it leaves some out (data.min" in out


@pytest.mark.parametrize("users", [0, 2, 3])
def test_a_night_of_too_few_changes_is_told_as_it_will_be_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], users: int
) -> None:
    """Both ways: `data diff` says that `fit` will refuse it, and `fit` ends as was said, and leaves nothing."""
    table = drawn()
    fitted(table, tmp_path / "first")
    old, new, later = tmp_path / "first" / "data.csv", tmp_path / "new.csv", tmp_path / "later"
    left = [f"u{one}" for one in range(1, users + 1)]
    table.filter(~pl.col("user").is_in(left)).write_csv(new)
    assert run(old, new) == 0
    out = capsys.readouterr().out
    told = f"fit --update_from: only {users} clients have changes, fewer than method.least_clients (3 by default): it "
    assert (f"{told}will be refused, with exit code 3, until there are more" in out) == (users < 3)
    checkpoint = tmp_path / "first" / "run" / "checkpoints" / "last.ckpt"
    options = ["--data.path", str(new), "--run_dir", str(later), "--logger", "null"]
    assert main(["fit", "--update_from", str(checkpoint), *options]) == (3 if users < 3 else 0)
    assert later.exists() == (users >= 3)


@pytest.mark.parametrize(("kept", "warned"), [(10, False), (9, True), (0, True)])
def test_a_table_that_may_be_a_part_is_told(tmp_path: Path, kept: int, warned: bool) -> None:
    """Such as the new rows alone, by which all of before would be taken back."""
    rows: list[Row] = [(f"u{number % 5}", f"i{number // 5}", 5, float(number)) for number in range(20)]
    old = written(tmp_path / "old.csv", rows)
    new = written(tmp_path / "new.csv", [*rows[:kept], ("u0", "j", 5, 30.0)])
    with warnings.catch_warnings(record=True, action="always") as caught:
        assert run(old, new) == 0
    told = [str(one.message) for one in caught if issubclass(one.category, Notice)]
    share = f"{(20 - kept) / 20:.0%}"
    assert told == warned * [
        f"{share} of the interactions of before are not in this table any more: is it the whole table? "
        "The new rows alone are not enough"
    ]


def test_what_the_command_line_cannot_heed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = both(tmp_path)
    assert run(old, new, "--data.split", "none", "--loop.rounds", "3") == 2
    told = capsys.readouterr().err
    assert "data.split: data diff cannot heed it" in told
    assert "loop: data diff cannot heed it" in told
    assert run(old, new, "--run_dir", "here") == 2
    assert "run_dir: data diff cannot heed it" in capsys.readouterr().err
    assert run(old, new, "--config", "{run_dir: here}") == 2
    assert "run_dir: data diff cannot heed it (config)" in capsys.readouterr().err
    assert run(old, new, "--data.format.colour", "red") == 2
    assert "colour" in capsys.readouterr().err
    assert run(old, tmp_path / "none.csv") == 2
    assert "none.csv: no such file" in capsys.readouterr().err


def test_a_config_says_how_both_are_laid_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = both(tmp_path)
    config = tmp_path / "mine.yaml"
    config.write_text("data: {split: none, path: elsewhere.csv, format: {rating_column: rating, threshold: 3}}\n")
    assert run("--config", config, old, new) == 0
    assert "117% of the interactions" in capsys.readouterr().out


def test_ids_cannot_command_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = written(tmp_path / "old.csv", [(f"u{NASTY}", "p", 5, 1), ("v", "p", 5, 3)])
    new = written(tmp_path / "new.csv", [(f"w{NASTY}", f"i{NASTY}", 5, 1), ("v", "p", 5, 3)])
    assert run(old, new) == 0
    out = capsys.readouterr().out
    assert clean(out)
    assert r"w\x1b[31m" in out.replace("\n", "")


def test_ids_that_are_numbers_in_one_file_are_compared_as_text(tmp_path: Path) -> None:
    rows: list[Row] = [("9", "1", 5, 1), ("10", "2", 5, 2), ("10", "10", 5, 3)]
    numbers = written(tmp_path / "numbers.csv", rows)
    text = written(tmp_path / "text.csv", [*rows, ("nine", "1", 5, 4), ("009", "1", 5, 4)])
    with pytest.warns(Notice, match="user ids were numbers before, and are text now"):
        found = diff(numbers, text, RATED)
    assert (found.counts["unchanged"], found.counts["added"], found.counts["taken back"]) == (3, 2, 0)
    assert found.examples()["new users"] == [("009",), ("nine",)]
    with pytest.warns(Notice, match="user ids were text before, and are numbers now"):
        found = diff(text, numbers, RATED)
    assert (found.counts["unchanged"], found.counts["added"], found.counts["taken back"]) == (3, 0, 2)
