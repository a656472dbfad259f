"""How a run says that it stands against popularity."""

from __future__ import annotations

from io import StringIO
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from scipy import stats

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.evaluation.metrics import NO_RANK
from cgfedrec.evaluation.ranking import Ranked
from cgfedrec.experiments.compare.statistics import per_user
from cgfedrec.run.console import show_standing
from cgfedrec.run.summary import over_popularity
from tests.conftest import TINY

NOTHING = torch.zeros(0, dtype=torch.int64)
WARNING = "warning: not clearly better than showing everybody what is popular: "


def standing(ranks: list[list[int]], users: list[int] | None = None) -> Ranked:
    """Where users' held-out items stand; by default users 0, 1, ..."""
    return Ranked(torch.tensor(users or range(len(ranks))), torch.tensor(ranks), NOTHING, NOTHING)


@pytest.mark.parametrize("method", ["Local", "EASE"])
@pytest.mark.parametrize("candidates", ["full", "sampled"])
@pytest.mark.parametrize("monitor", ["val/ndcg@10", "val/hr@5"])
def test_the_summary_holds_what_two_runs_compare_to(method: str, candidates: str, monitor: str) -> None:
    """Against the ranks that a run and one of Popularity leave, joined by user, and scipy's interval."""
    metric = monitor.removeprefix("val/")
    settings: list[dict[str, Any]] = [
        TINY,
        {"protocol": {"candidates": candidates, "num_candidates": 20}, "loop": {"rounds": 1, "monitor": monitor}},
    ]
    summary = cgfedrec.fit(*settings, {"method": method, "run_dir": "mine"}).summary
    popular = cgfedrec.fit(*settings, {"method": "Popularity", "run_dir": "popular"}).summary
    mine, theirs = (per_user(pl.read_parquet(f"{run}/ranks.parquet"), metric) for run in ("mine", "popular"))
    both = mine.join(theirs, "user", suffix="_popular")
    expected = stats.ttest_rel(both["value"].to_numpy(), both["value_popular"].to_numpy())
    low, high = expected.confidence_interval(0.95)
    name = f"over_popularity/test/{metric}"
    assert {key for key in summary if key.startswith("over")} == {
        name,
        f"{name}/low",
        f"{name}/high",
        "over_popularity/users",
    }
    assert summary[name] == pytest.approx(summary[f"test/{metric}"] - summary[f"popularity/test/{metric}"], abs=1e-12)
    assert (summary[f"{name}/low"], summary[f"{name}/high"]) == pytest.approx((low, high), abs=1e-12)
    assert summary["over_popularity/users"] == 40
    assert low < high
    assert not [key for key in popular if key.startswith("over")]


def test_users_are_paired_in_whatever_order_they_come() -> None:
    """Each user is one place better than under popularity, all differ among themselves, and one has two items."""
    mine = standing([[1, 3], [2, NO_RANK], [3, NO_RANK], [4, NO_RANK]])
    popular = standing([[5, NO_RANK], [3, NO_RANK], [2, 4], [4, NO_RANK]], users=[3, 1, 0, 2])
    # MRR@10: 1 - 1/2, 1/2 - 1/3, 1/3 - 1/4, 1/4 - 1/5
    differences = np.array([1 / 2, 1 / 6, 1 / 12, 1 / 20])
    half = stats.t.ppf(0.975, 3) * stats.sem(differences)
    assert over_popularity(mine, popular, "mrr@10") == pytest.approx(
        {
            "over_popularity/test/mrr@10": differences.mean(),
            "over_popularity/users": 4,
            "over_popularity/test/mrr@10/low": differences.mean() - half,
            "over_popularity/test/mrr@10/high": differences.mean() + half,
        }
    )


def test_one_user_has_no_interval() -> None:
    found = over_popularity(standing([[1]]), standing([[2]]), "mrr@10")
    assert found == {"over_popularity/test/mrr@10": 0.5, "over_popularity/users": 1}
    told = shown(found | {"test/mrr@10": 1.0, "popularity/test/mrr@10": 0.5}, "val/mrr@10")
    assert told == [
        "MRR@10 1.0000 against popularity's 0.5000: +0.5000 (of one user, which is too few for an interval)",
        WARNING + "one user cannot show it",
    ]


def shown(metrics: dict[str, float], monitor: str) -> list[str]:
    """The lines that are printed."""
    console = Console(file=StringIO(), width=40)
    show_standing(console, metrics, monitor)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("low", "high", "warned"),
    [
        (0.0462, 0.0697, []),
        (0.0, 0.116, [WARNING + "the difference may be chance"]),
        (0.0, 0.0, [WARNING + "all users' held-out items stand where popularity has them"]),
        (-0.02, 0.136, [WARNING + "the difference may be chance"]),
        (-0.3, -0.01, [WARNING + "it is worse; these settings do not serve these data (yet)"]),
    ],
)
def test_the_interval_is_told_and_a_doubt_too(low: float, high: float, warned: list[str]) -> None:
    mean = (low + high) / 2
    metrics = {
        "test/hr@5": 0.04 + mean,
        "popularity/test/hr@5": 0.04,
        "over_popularity/users": 12_345,
        "over_popularity/test/hr@5": mean,
        "over_popularity/test/hr@5/low": low,
        "over_popularity/test/hr@5/high": high,
    }
    told = (
        f"HR@5 {0.04 + mean:.4f} against popularity's 0.0400: {mean:+.4f} "
        f"(95% interval {low:+.4f} to {high:+.4f}, paired over 12,345 users)"
    )
    assert shown(metrics, "val/hr@5") == [told, *warned]
    assert shown({"val/hr@5": 0.1}, "val/hr@5") == []


def test_fit_and_test_say_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Behind the table. A federation and a reference alike, but not Popularity of itself, nor without a test."""
    tiny = ["--data.synthetic.users", "40", "--data.synthetic.items", "50", "--loop.rounds", "1", "--logger", "null"]

    def said(*words: str) -> list[str]:
        assert main(list(words)) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if "against popularity" in line or line.startswith("warning")]

    fitted = said("fit", *tiny, "--run_dir", "local", "--method", "Local")
    assert fitted[0].startswith("NDCG@10 0.")
    assert "paired over 40 users" in fitted[0]
    assert fitted[1].startswith(WARNING)  # nobody learns anything of others' taste in one round alone
    assert said("test", "--ckpt_path", "local/checkpoints/best.ckpt") == fitted
    assert "paired over" in said("fit", *tiny, "--run_dir", "ease", "--method", "EASE")[0]
    assert said("fit", *tiny, "--run_dir", "popularity", "--method", "Popularity") == []
    assert said("fit", *tiny, "--run_dir", "none", "--method", "Local", "--data.split", "none") == []
