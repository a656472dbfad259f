"""What a run says last, and what whoever uses its checkpoint is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.files import read_json, write_json
from cgfedrec.run.advice import advice, below_popularity, warning_of
from tests.conftest import TINY

OVER: dict[str, Any] = {"over_popularity/users": 9, "over_popularity/test/ndcg@10": 0.1}
LOW = "over_popularity/test/ndcg@10/low"


@pytest.mark.parametrize(
    ("told", "below"), [({}, False), (OVER, True), (OVER | {LOW: 0.0}, True), (OVER | {LOW: 0.01}, False)]
)
def test_only_a_clear_difference_is_better_than_popularity(told: dict[str, Any], below: bool) -> None:
    assert below_popularity(told) == below


def fit(name: str, **settings: Any) -> list[str]:
    return list(advice(cgfedrec.fit(TINY, {"run_dir": f"runs/{name}", **settings})))


def test_a_run_stands_among_those_on_the_same_data_by_validation() -> None:
    """What others reached in their tests chooses nothing, and other data, seeds and protocols do not count."""
    assert not any("runs on these data" in line for line in fit("one"))
    fit("seed", seed_everything=3)
    fit("protocol", protocol={"candidates": "sampled", "num_candidates": 9})
    path = Path("runs/one/summary.json")
    told = read_json(path)
    for value, said in (
        (0.999, "the best of 2 runs on these data is CGFedRec in runs/one: 0.9990"),
        (0.0, "this is the best of 2"),
        (told["val/ndcg@10"], "this run and CGFedRec in runs/one are equal, and the best of 2 runs"),
    ):
        write_json(path, told | {"val/ndcg@10": value, "test/ndcg@10": 1 - value})
        assert any(said in line for line in fit(f"other{value}" if value else "other")), value
        for other in Path("runs").glob("other*/summary.json"):
            other.unlink()
    path.write_text("{}")
    assert not any("runs on these data" in line for line in fit("damaged"))


def test_a_best_round_that_is_the_last_may_be_followed_by_better_ones() -> None:
    for rounds in (1, 12):
        run = cgfedrec.fit(TINY, {"run_dir": f"runs/{rounds}", "loop": {"rounds": rounds, "patience": None}})
        told = any(f"--loop.rounds {2 * rounds}" in line for line in advice(run))
        assert told == (run.summary["best_round"] == rounds)
    assert not any("more may help" in line for line in fit("phases", method={"class_path": "CGFedCo", "columns": 8}))


@pytest.mark.parametrize(
    ("given", "rounds"),
    [({"epsilon": 6.0}, 2), ({"noise": 3.0, "epsilon": 6.0}, 4), ({"noise": 3.0, "epsilon": 1.3}, 3)],
)
def test_more_rounds_are_advised_as_far_as_the_budget_bears_them(given: dict[str, float], rounds: int) -> None:
    noised = {"class_path": "cgfedrec.wire.noised.Noised", "init_args": {"norm": 1.0, **given}}
    settings = {"method": {"class_path": "PFedRec"}, "wire": {"steps": [noised]}, "loop": {"rounds": 2}}
    run = cgfedrec.fit(TINY, {"run_dir": "run", **settings})
    run.summary["best_round"] = 2
    (told,) = [line for line in advice(run) if "the best round is the last one" in line]
    if rounds == 2:  # noise was such that all was spent in these
        assert "need a larger Noised.epsilon" in told
        return
    assert f"--loop.rounds {rounds} (epsilon " in told
    assert f" of {given['epsilon']:g} is spent so far)" in told
    more = cgfedrec.fit({"ckpt_path": "run/checkpoints/last.ckpt", "loop": {"rounds": rounds}})
    assert (more.summary["rounds"], more.loop.cut_short) == (rounds, "")


@pytest.mark.parametrize("privacy", [None, {"epsilon": 8.0}])
def test_a_run_on_everything_after_a_private_one_spends_a_budget_too(privacy: dict[str, float] | None) -> None:
    method = {"class_path": "CGFedCo", "columns": 8, "privacy": privacy}
    data = {"init_args": {"synthetic": {"users": 300, "items": 40, "groups": 4}}}
    run = cgfedrec.fit({"method": method, "data": data, "logger": None, "loop": {"rounds": 6}, "run_dir": "run"})
    (told,) = [line for line in advice(run) if "--data.split none --method.read_by" in line]
    assert told.endswith("; that run spends a budget of its own, and on the same people these add up") == bool(privacy)


@pytest.mark.parametrize("spends", [False, True])
def test_nothing_that_spends_a_budget_is_told_to_be_tried_many_times(spends: bool) -> None:
    noised = {"class_path": "cgfedrec.wire.noised.Noised", "init_args": {"norm": 1.0, "epsilon": 1.0}}
    settings = {"method": {"class_path": "PFedRec"}, "wire": {"steps": [noised] if spends else []}}
    run = cgfedrec.fit(TINY, {"run_dir": "run", **settings})
    run.summary |= OVER | {"best_round": 0}  # below popularity, and not by too few rounds
    (told,) = [line for line in advice(run) if line.startswith("next: ")]
    assert ("cgfedrec tune" in told) != spends


def test_whoever_recommends_is_warned_of_a_model_below_popularity(capsys: pytest.CaptureFixture[str]) -> None:
    run = cgfedrec.fit(TINY, {"run_dir": "run"})
    path = Path("run/summary.json")
    told = read_json(path)
    line = ["recommend", "--ckpt_path", "run/checkpoints/best.ckpt", "--user", "1"]
    for low, warned in ((-0.1, True), (0.1, False)):
        write_json(path, told | {"over_popularity/users": 40, LOW: low})
        assert main(line) == 0
        assert ("did not show that this model is better" in capsys.readouterr().err) == warned
        assert (warning_of(run.checkpoints / "best.ckpt") is not None) == warned
    path.unlink()
    assert main(line) == 0
    assert "did not show" not in capsys.readouterr().err
