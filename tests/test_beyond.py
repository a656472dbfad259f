"""Beyond accuracy: novelty, diversity, exposure, accuracy by groups; against figures that were worked out apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.data import FederatedDataModule
from cgfedrec.evaluation.beyond import Asked, Diversity, Exposure, beyond_accuracy, group_sizes
from cgfedrec.evaluation.metrics import NO_RANK
from cgfedrec.evaluation.ranking import Ranked
from cgfedrec.files import read_json
from cgfedrec.protocol import Protocol
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.labelling import labels_of
from tests.conftest import TINY, MakeData

BEYOND = ("novelty@10", "diversity@10", "coverage@10", "gini@10")
GROUPS = ("users/few", "users/some", "users/many", "items/head", "items/tail")


def test_novelty_is_the_mean_surprise_of_what_is_shown() -> None:
    metric = Exposure(torch.tensor([7, 1, 0]), num_users=7, k=2)
    metric.update(torch.tensor([[0, 1], [0, 2]]))  # 0 bits, 2 bits; 0 bits, 3 bits
    metric.update(torch.tensor([[1, -1]]))  # 2 bits
    assert metric.compute()["novelty@2"].item() == pytest.approx((0 + 2 + 0 + 3 + 2) / 5)


@pytest.mark.parametrize(
    ("lists", "gini"), [([[0], [1], [2], [3]], 0.0), ([[2], [2]], 0.75), ([[0], [1], [1]], 7 / 12)]
)
def test_gini_is_the_mean_difference_between_items(lists: list[list[int]], gini: float) -> None:
    metric = Exposure(torch.ones(4, dtype=torch.int64), num_users=4, k=1)
    metric.update(torch.tensor(lists))
    shown = np.bincount(np.concatenate(lists), minlength=4)
    assert np.abs(shown[:, None] - shown).mean() / (2 * shown.mean()) == pytest.approx(gini)
    assert metric.compute()["gini@1"].item() == pytest.approx(gini)


def test_diversity_is_the_share_of_pairs_with_other_labels() -> None:
    metric = Diversity(torch.tensor([0, 0, 1, -1, -1]), k=4)
    metric.update(torch.tensor([[0, 1, 2, 3]]))  # of six pairs only 0 and 1 are alike
    metric.update(torch.tensor([[3, 4, -1, -1], [0, -1, -1, -1]]))  # without labels both are apart; one is no pair
    assert metric.compute()["diversity@4"].item() == pytest.approx((5 / 6 + 1) / 2)


def asked(lengths: list[int], holders: list[int], labels: list[int] | None = None) -> Asked:
    return Asked(torch.tensor(lengths), torch.tensor(holders), 9, torch.tensor(labels or [-1] * len(holders)))


def test_groups_are_thirds_of_users_and_the_head_and_tail_of_items() -> None:
    """Six users; of five items the first is the head. The last user holds out both kinds."""
    found = Ranked(
        torch.arange(6),
        torch.tensor([[1, NO_RANK]] * 3 + [[11, NO_RANK]] * 2 + [[2, 4]]),
        torch.tensor([[0, -1]] * 3 + [[3, -1]] * 2 + [[4, 0]]),
        torch.tensor([[0]] * 6),
    )
    known = asked([3, 3, 5, 5, 8, 9], [5, 2, 1, 1, 1])
    told = beyond_accuracy(found, known, "hr@3")
    assert {name: value for name, value in told.items() if "/" in name} == {
        "hr@3/users/few": 1.0,
        "hr@3/users/some": 0.5,
        "hr@3/users/many": 0.5,
        "hr@3/items/head": 0.75,  # ranks 1, 1, 1 and 4
        "hr@3/items/tail": pytest.approx(1 / 3),  # 11, 11 and 2
    }
    assert group_sizes(found, known) == {
        "groups/users/few": 2, "groups/users/few/most": 3, "groups/users/some": 2, "groups/users/some/most": 5,
        "groups/users/many": 2, "groups/items/head": 4, "groups/items/tail": 3,
    }  # fmt: skip
    assert "diversity@5" not in told
    alike = beyond_accuracy(found, asked([4] * 6, [5, 2, 1, 1, 1]), "hr@3")
    assert "hr@3/users/few" in alike
    assert not {"hr@3/users/some", "hr@3/users/many"} & set(alike)  # who has as many is in one group


@pytest.mark.parametrize("seed", [0, 5])
def test_labels_are_those_that_cgfedco_finds(seed: int) -> None:
    run = cgfedrec.fit(TINY, {"method": "CGFedCo", "seed_everything": seed, "run_dir": "run"})
    server, labels = run.server, labels_of(run.data)
    assert isinstance(server, SumsServer)
    expected = torch.full((run.data.num_items,), -1)
    expected[server.known.the_rows.items] = server.labels
    assert labels.equal(expected)
    assert len(labels.unique()) > 2


def test_where_no_item_has_enough_users_nothing_has_a_label(make_data: MakeData, tmp_path: Path) -> None:
    rows = [(user, 10 * user + place, place) for user in range(6) for place in range(8)]
    pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row").write_csv(tmp_path / "apart.csv")
    data = FederatedDataModule(str(tmp_path / "apart.csv"))
    data.attach(Protocol(), 0)
    data.setup()
    assert labels_of(data).tolist() == [-1] * 48


@pytest.mark.parametrize("method", ["CGFedCo", "CGFedRec", "Popularity"])
def test_a_run_tells_by_groups_what_its_ranks_say(method: str) -> None:
    """Worked out again from ``ranks.parquet`` and the training items, with polars."""
    own = TINY if method == "CGFedRec" else TINY | {"method": method}
    run = cgfedrec.fit(own, {"run_dir": "run"})
    matrix = run.data.training_matrix()
    users = pl.DataFrame({"user": run.data.user_ids, "length": np.diff(matrix.indptr)})
    items = pl.DataFrame({"item": run.data.item_ids, "users": matrix.sum(0)})
    ranks = pl.read_parquet("run/ranks.parquet").join(users, "user").join(items, "item")
    gained = ranks.with_columns(
        gain=pl.when(pl.col("rank") <= 10).then(1 / (1 + pl.col("rank")).log(2)).otherwise(0.0)
    ).sort("length")
    summary = run.summary
    few = gained.filter(pl.col("length") <= summary["groups/users/few/most"])
    assert len(few) == summary["groups/users/few"] > 0
    assert few["gain"].mean() == pytest.approx(summary["test/ndcg@10/users/few"])
    head = items.sort("users", descending=True, maintain_order=True).head(10)["item"]  # a fifth of the 50
    of_head = gained.filter(pl.col("item").is_in(head.implode()))
    assert len(of_head) == summary["groups/items/head"] > 0
    assert of_head["gain"].mean() == pytest.approx(summary["test/ndcg@10/items/head"])
    if method == "Popularity":
        for name in (*BEYOND, "ndcg@10/items/tail"):
            assert summary[f"test/{name}"] == summary[f"popularity/test/{name}"]


def test_test_shows_it_for_a_run_and_for_newcomers(capsys: pytest.CaptureFixture[str]) -> None:
    run = cgfedrec.fit(TINY, {"method": "CGFedCo", "run_dir": "run"})
    line = ["test", "--ckpt_path", "run/checkpoints/best.ckpt"]
    assert main(line) == 0
    shown = capsys.readouterr().out
    for title in ("novelty@10 (bits)", "diversity@10", "coverage@10", "Gini of exposure@10", "NDCG@10, tail items"):
        assert title in shown
    assert f"{run.summary['test/novelty@10']:.4f}" in shown
    assert f"groups: {run.summary['groups/users/few']} /" in shown
    entries = run.data.histories(torch.arange(run.data.num_users)).entries()
    pl.DataFrame(
        {"user": [f"new{int(one)}" for one in entries[0]], "item": run.data.item_ids[entries[1].numpy()]}
    ).with_row_index("timestamp").write_csv("others.csv")
    assert main([*line, "--data.path", "others.csv"]) == 0
    shown = capsys.readouterr().out
    assert "newcomers, test" in shown.split("beyond accuracy")[1]
    assert "newcomers: groups: " in shown


@pytest.mark.usefixtures("quick_start")
def test_compare_shows_it_for_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    base = {name: value for name, value in TINY.items() if name not in ("data", "method")}
    plan = {
        "base": base,
        "data": {"small": {"data": TINY["data"]}},
        "methods": {"CGFedRec": {"method": TINY["method"]}, "EASE": {"method": "EASE"}},
        "seeds": [0, 1],
    }
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    assert main(["compare", "--config", "plan.yaml", "--output", "out", "--processes", "1"]) == 0
    runs = pl.read_csv("out/results.csv")
    text, page = Path("out/table.md").read_text(), Path("out/report.html").read_text()
    for method in ("CGFedRec", "EASE"):
        novelty = np.mean(runs.filter(pl.col("method") == method)["test/novelty@10"].to_numpy())
        assert f"| {method} | {novelty:.4f} |" in text
        assert f"<td>{method}</td>\n<td>{novelty:.4f}</td>" in page
    popular = np.mean(runs.filter(pl.col("method") == "EASE")["popularity/test/novelty@10"].to_numpy())
    assert f"| Popularity | {popular:.4f} |" in text
    assert "Gini of exposure@10" in page
    assert "groups: " in text


def test_cases_of_all_cuts_count_alike(tmp_path: Path) -> None:
    """A group's figure at a cut weighs as much as the group has cases there."""
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item), 800_000_000 + 86_400 * int(day))
        for user in range(40)
        for item, day in zip(rng.permutation(30)[:12], rng.permutation(40)[:12], strict=True)
    ]
    pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row").write_csv("t.csv")
    settings: dict[str, Any] = {"data": {"path": "t.csv", "split": "rolling", "rolling": {"cuts": 4, "choosing": 0}}}
    run = cgfedrec.fit(settings, {"method": "EASE", "logger": None, "run_dir": "run"})
    cuts = [read_json(path) for path in sorted(Path("run").glob("cuts/*/summary.json"))]
    assert len(cuts) == 4
    sizes = [one["groups/items/tail"] for one in cuts]
    assert len(set(sizes)) > 1
    expected = np.average([one["test/ndcg@10/items/tail"] for one in cuts], weights=sizes)
    assert run.summary["test/ndcg@10/items/tail"] == pytest.approx(expected)
    assert run.summary["groups/items/tail"] == sum(sizes)
    assert run.summary["groups/items/tail"] + run.summary["groups/items/head"] == run.summary["cases"]
