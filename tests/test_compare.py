"""cgfedrec compare: through the command line, and its statistics against scipy and torchmetrics."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from scipy import stats

from cgfedrec.cli import main
from cgfedrec.errors import InputError
from cgfedrec.evaluation.intervals import interval
from cgfedrec.evaluation.metrics import MRR, NDCG, NO_RANK, HitRate
from cgfedrec.experiments.compare import read_plan
from cgfedrec.experiments.compare.curve import Curve
from cgfedrec.experiments.compare.epsilon import at_ticks, budgeted
from cgfedrec.experiments.compare.page import _line
from cgfedrec.experiments.compare.plan import KEYS
from cgfedrec.experiments.compare.results import over_seeds
from cgfedrec.experiments.compare.statistics import holm, paired_test, pareto, per_user
from cgfedrec.pages.plot import linear_ticks, log_ticks
from tests.commands import Command
from tests.conftest import ROOT, TINY
from tests.documents import PAGES

RATES = {"dim": 4, "lr_eta": 0.1, "init_scale": 0.01}
SMALL: dict[str, Any] = {
    "base": {"data": TINY["data"], "loop": {"rounds": 2, "cohort_size": 16}},
    "data": {"one": {}, "two": {"protocol": {"name": "reference", "num_candidates": 20}}},
    "methods": {
        "Local": {"method": {"class_path": "cgfedrec.methods.Local", "init_args": RATES}},
        "PFedRec": {"method": {"class_path": "cgfedrec.methods.PFedRec", "init_args": RATES}},
    },
    "seeds": [0, 1],
}


def write(path: Path, **sections: Any) -> Path:
    """A comparison, small but for the sections that are given."""
    path.write_text(yaml.safe_dump(SMALL | sections))
    return path


def compare(config: Path, *options: str) -> int:
    return main(["compare", "--config", str(config), "--output", "out", *options])


def changed_at(pattern: str = "*/*/*/summary.json") -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path("out").glob(pattern)}


class Page(HTMLParser):
    """Reads a page, and fails where an element is closed that is not the open one."""

    empty = {"meta", "br", "path", "circle", "rect"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.empty:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_comparison_is_on_the_page(key: str) -> None:
    assert f"\n| `{key}` | " in PAGES["docs/tutorials/research.md"]


def test_compare_leaves_everything_behind_and_goes_past_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """One method diverges; the others are reported, and a second call runs nothing but the one that failed."""
    wild = {"dim": 4, "lr_eta": 1.0e38, "init_scale": 1.0e18}
    broken = {"method": {"class_path": "cgfedrec.methods.PFedRec", "init_args": wild}}
    config = write(
        tmp_path / "small.yaml",
        methods=SMALL["methods"] | {"Wild_& 100%": broken},
        data={"two": SMALL["data"]["two"]},
        published={"two": {"PFedRec": {"hr@10": 0.711}}},
        title="A <small> comparison",
    )
    assert compare(config, "--processes", "2") == 1
    printed = capsys.readouterr()
    assert "2 runs failed" in printed.err
    assert "two/Wild_& 100%/0" in printed.err
    assert "not finite" in printed.err
    assert "done already" not in printed.out
    assert re.search(r"two/Local/\d: done in [\d.]+ s; [1-5] left, about ", printed.out)

    runs = pl.read_parquet("out/results.parquet")
    assert len(runs) == 3 * 2
    assert runs.select("data", "method", "seed", "status").equals(
        pl.read_csv("out/results.csv").select("data", "method", "seed", "status")
    )
    done = runs.filter(pl.col("status") == "finished")
    assert set(done["method"]) == {"Local", "PFedRec"}
    assert set(runs.filter(pl.col("status") == "failed")["method"]) == {"Wild_& 100%"}
    for row in done.iter_rows(named=True):
        summary = json.loads(Path(f"out/{row['data']}/{row['method']}/{row['seed']}/summary.json").read_text())
        assert {name: row[name] for name in row if name.startswith(("test/", "bytes/"))} == {
            name: value for name, value in summary.items() if name.startswith(("test/", "bytes/"))
        }
        assert (row["seconds"], row["best_round"]) == (summary["seconds"], summary["best_round"])

    ranks = pl.read_parquet("out/ranks.parquet")
    assert ranks.columns == ["data", "method", "seed", "user", "item", "rank"]
    for metric in ("ndcg@10", "hr@5", "mrr@20"):  # anything can be computed again from the ranks
        again = per_user(ranks, metric, ("data", "method", "seed")).group_by("data", "method", "seed")
        both = again.agg(pl.col("value").mean()).join(done, ["data", "method", "seed"])
        assert len(both) == len(done)
        np.testing.assert_allclose(both["value"], both[f"test/{metric}"], rtol=1e-12)

    page = Path("out/report.html").read_text()
    reader = Page()
    reader.feed(page)
    assert not reader.open
    assert reader.seen.count("svg") == 2
    assert not reader.links
    assert "http" not in page.replace("http-equiv", "")
    assert "<small>" not in page.split("</head>")[0]
    assert "Wild_&amp; 100%" in page
    assert "reference protocol leaks" in page
    assert page.count("†") > 8
    mean = interval(done.filter(pl.col("method") == "PFedRec")["test/ndcg@10"].to_list())
    assert f"{mean.mean:.4f}" in page
    assert f"±{mean.half:.4f}" not in page  # of two seeds it is worth nothing
    assert "Mean of two seeds; an interval over seeds needs three." in page
    assert "0.711" in page
    markdown, tex = Path("out/table.md").read_text(), Path("out/table.tex").read_text()
    assert "Each seed draws the embedded data anew" in markdown
    assert f"| {mean.mean:.4f} |" in markdown.replace("*", "")
    assert "mean of 2 seeds, and an interval needs 3" in " ".join(markdown.split())
    assert f"& {mean.mean:.4f} &" in re.sub(r"\\textbf\{(.*?)\}", r"\1", tex)
    for name in ("two-rounds.svg", "two-bytes.svg"):
        picture = Path("out", name).read_text()
        assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in picture
        assert ".line.c0" in picture
    assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") == 1
    body = [line for line in tex.splitlines() if line.endswith("\\\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {9}

    before = changed_at()
    request.getfixturevalue("quick_start")
    assert compare(config) == 1
    assert "of these 4 are done already" in capsys.readouterr().out
    assert changed_at() == before


def test_an_interval_over_seeds_needs_three() -> None:
    two = over_seeds(np.array([0.1, 0.2]))
    assert two.mean == pytest.approx(0.15)
    assert two.half is None
    assert over_seeds(np.array([0.1, 0.2, 0.4])).half == interval([0.1, 0.2, 0.4]).half


def test_a_mark_is_where_the_table_says() -> None:
    """Seeds whose best rounds are 4 and 8: the table tells 6, whatever round has the highest mean."""
    curve = Curve([2, 4, 6, 8], [1, 2, 3, 4], [0.1, 0.3, 0.25, 0.2], [0.1] * 4, [0.4] * 4)
    assert _line("some", 0, curve, curve.rounds, 6.0).mark == 2
    assert _line("some", 0, curve, curve.rounds, None).mark == 1


BUDGETS = """
method: {class_path: cgfedrec.methods.CGFedCo, init_args: {columns: 8, privacy: %s}}
loop: {rounds: 9}
"""


def runs_of(*methods: tuple[str, float | None, list[float]]) -> pl.DataFrame:
    rows = [
        {"method": name, "kind": "federated", "privacy/epsilon": epsilon, "test/ndcg@10": value}
        for name, epsilon, values in methods
        for value in values
    ]
    return pl.DataFrame(rows, schema_overrides={"privacy/epsilon": pl.Float64})


def test_methods_that_differ_in_their_budget_alone_are_one_line() -> None:
    runs = runs_of(
        ("noisy", 7.99999, [0.3, 0.5]), ("plain", None, [0.5]), ("noisier", 0.99999, [0.1]), ("other", 1.0, [0.2])
    )
    settings = {name: BUDGETS % budget for name, budget in (("noisy", "{epsilon: 8}"), ("noisier", "{epsilon: 1}"))}
    settings |= {"plain": BUDGETS % "null", "other": (BUDGETS % "{epsilon: 1}").replace("columns: 8", "columns: 9")}
    one, other = budgeted(runs, settings, "test/ndcg@10")
    assert one[:2] == ("plain", [1, 8, None])
    assert one.values == pytest.approx([0.1, 0.4, 0.5])
    assert one.low + one.high == [0.1, 0.3, 0.5, 0.1, 0.5, 0.5]
    assert [epsilon for epsilon, _ in one.kept] == [8, 1]
    assert [share for _, share in one.kept] == pytest.approx([0.8, 0.2])
    assert other.epsilons == [1]
    assert other.kept == []
    # The same settings twice: they differ in what is not shown, and are two lines.
    twice = budgeted(runs, settings | {"other": settings["noisier"]}, "test/ndcg@10")
    assert [group.epsilons for group in twice] == [[1, 8, None], [1]]
    assert budgeted(runs_of(("plain", None, [0.5])), settings, "test/ndcg@10") == []


def noised(norm: float, **settings: float) -> Any:
    step = {"class_path": "Noised", "init_args": {"norm": norm, **settings}}
    return SMALL["methods"]["PFedRec"] | {"wire": {"steps": [step, "Quantised"]}}


def test_noise_within_another_norm_or_place_is_another_line(tmp_path: Path) -> None:
    methods = {
        "8": noised(30, epsilon=8),
        "100": noised(100, epsilon=4),
        "local": noised(30, epsilon=2, local=True),
        "1": noised(30, epsilon=1, delta=0.001, noise=9.0),
        "none": SMALL["methods"]["PFedRec"] | {"wire": {"steps": ["Quantised"]}},
        "plain": SMALL["methods"]["PFedRec"],
    }
    plan = read_plan(write(tmp_path / "small.yaml", methods=methods, data={"one": {}}), tmp_path / "out")
    settings = {method: shown for (_, method), shown in plan.settings.items()}
    assert "noised.Noised" in settings["local"]
    assert "wire" not in settings["plain"]
    budgets: dict[str, float | None] = {"8": 8.0, "100": 4.0, "local": 2.0, "1": 1.0, "none": None, "plain": None}

    def lines(*without: str) -> dict[str, list[float | None]]:
        runs = runs_of(*((name, epsilon, [0.5]) for name, epsilon in budgets.items() if name not in without))
        found = budgeted(runs, settings, "test/ndcg@10")
        assert all(bool(line.kept) == (line.epsilons[-1] is None and len(line.epsilons) > 1) for line in found)
        return {line.name: line.epsilons for line in found}

    assert lines() == {"8": [1, 8, None], "100": [4, None], "local": [2, None], "plain": [None]}
    assert lines("none") == {"8": [1, 8], "100": [4], "local": [2], "plain": [None]}
    assert lines("100", "local", "plain") == {"none": [1, 8, None]}


def test_an_axis_of_epsilons_ends_where_there_is_no_noise() -> None:
    ticks, none = at_ticks([8.0, 1.0, 4.0, 4.0])
    assert ticks == pytest.approx([1, 4, 8, 16])
    assert none == pytest.approx(16)
    assert at_ticks([2.0]) == ([2, 4], 4)
    ticks, _ = at_ticks([1.0, 1.01, 100.0])
    assert ticks[:2] == [1, 100]


@pytest.mark.parametrize(
    ("private", "seeds", "runs"),
    [
        ({"method": {"class_path": "CGFedCo", "init_args": {"privacy": {"epsilon": 8.0}}}}, [0, 1], 2),
        (
            {
                "method": {"class_path": "PFedRec"},
                "wire": {"steps": [{"class_path": "Noised", "init_args": {"norm": 1.0, "epsilon": 8.0}}]},
            },
            [0, 1, 2],
            3,
        ),
        ({"method": {"class_path": "CGFedCo"}}, [0, 1], 0),
    ],
)
def test_a_comparison_says_that_budgets_add_up(
    private: dict[str, Any], seeds: list[int], runs: int, tmp_path: Path
) -> None:
    small = {"data": {"init_args": {"synthetic": {"users": 100, "items": 40, "groups": 4}}}}
    path = write(tmp_path / "small.yaml", base=small, data={"one": {}}, methods={"private": private}, seeds=seeds)
    notes = [note for note in read_plan(path, tmp_path / "out").notes if "privacy" in note]
    told = f"warning: privacy: each of {runs} runs spends a budget of its own, and on the same people these add up"
    assert notes == ([told] if runs else [])


@pytest.mark.usefixtures("quick_start")
def test_a_comparison_of_budgets_shows_accuracy_privacy_and_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = {"class_path": "cgfedrec.methods.CGFedCo", "init_args": {"columns": 8, "privacy": {"epsilon": 8.0}}}
    config = write(
        tmp_path / "small.yaml",
        base={"data": {"init_args": {"synthetic": {"users": 300, "items": 40, "groups": 4}}}, "loop": {"rounds": 6}},
        data={"one": {}},
        methods={
            "Local": {"method": SMALL["methods"]["Local"]["method"], "loop": {"rounds": 1}},
            "CGFedCo": {"method": private | {"init_args": {"columns": 8}}},
            "with noise": {"method": private},
        },
        seeds=[0],
    )
    assert compare(config) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "epsilon: what a run has spent" in out
    assert "spends a budget of its own" not in out  # there is one such run alone
    epsilons = dict(pl.read_csv("out/results.csv").select("method", "privacy/epsilon").iter_rows())
    assert epsilons == {"Local": None, "CGFedCo": None, "with noise": pytest.approx(8)}
    head, _, *rows = [line.split(" | ") for line in Path("out/table.md").read_text().splitlines() if line[:1] == "|"]
    place = head.index("epsilon")
    assert {row[0].strip("| ").split(" ◆")[0].split(" (")[0]: row[place] for row in rows[:4]} == {
        "CGFedCo": "none",
        "with noise": "8",
        "Local": "",
        "Popularity": "",
    }
    page = Path("out/report.html").read_text()
    reader = Page()
    reader.feed(page)
    assert not reader.open
    assert "<th>epsilon</th>" in page
    assert re.search(r"CGFedCo keeps \d+% at 8\.", page)
    for name, labels in (("bytes", {"CGFedCo", "with noise, ε 8"}), ("epsilon", {"CGFedCo", "Local", "8", "none"})):
        picture = ElementTree.fromstring(Path(f"out/one-{name}.svg").read_text())
        assert labels <= {"".join(text.itertext()) for text in picture.iter() if text.tag.endswith("text")}


@pytest.mark.usefixtures("quick_start")
def test_what_was_run_with_other_settings_is_never_reused_or_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = {"EASE": {"method": "EASE"}}
    config = write(tmp_path / "small.yaml", data={"one": {}}, seeds=[0], methods=SMALL["methods"] | references)
    assert compare(config) == 0
    assert not list(Path("out").glob("*/*/*/checkpoints"))
    page, chart = (Path("out", name).read_text() for name in ("report.html", "one-rounds.svg"))
    assert "†" not in page
    assert "dotted: EASE, of everyone&#39;s data" in page  # which has no rounds
    assert chart.count('class="line level muted"') == chart.count(">EASE<") == 1
    before = changed_at()
    methods = SMALL["methods"] | {"PFedRec": {"method": {"class_path": "cgfedrec.methods.PFedRec", "init_args": RATES}}}
    methods["PFedRec"]["method"]["init_args"] = RATES | {"dim": 6}
    write(config, data={"one": {}}, seeds=[0], methods=methods)
    capsys.readouterr()
    assert compare(config) == 2
    assert "out/one/PFedRec/0: holds a run with other settings (method.init_args.dim)" in capsys.readouterr().err
    assert changed_at() == before
    assert compare(config, "--replace", "--keep_checkpoints") == 0
    assert [str(path) for path in Path("out").glob("*/*/*/checkpoints")] == ["out/one/PFedRec/0/checkpoints"]
    after = changed_at()
    assert {path for path in after if after[path] != before[path]} == {"out/one/PFedRec/0/summary.json"}
    assert yaml.safe_load(Path("out/one/PFedRec/0/config.yaml").read_text())["method"]["init_args"]["dim"] == 6


@pytest.mark.usefixtures("quick_start")
def test_a_stopped_comparison_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Stopped politely, a run is saved at the end of its round; killed, it ends alone, and nobody starts it twice."""
    base = {"data": TINY["data"], "loop": {"rounds": 40, "cohort_size": 16, "patience": None}}
    config = write(tmp_path / "small.yaml", base=base, data={"one": {}}, seeds=[0])

    def stop(number: int, once_there_is: str) -> tuple[int, str]:
        process = Command("compare", "--config", config, "--output", "out")
        while not Path(once_there_is).exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, number)
        return process.wait(), process.stdout

    code, output = stop(signal.SIGTERM, "out/one/Local/0/metrics.csv")
    assert code == 128 + signal.SIGTERM, output
    assert "the same command goes on" in output
    assert Path("out/one/Local/0/checkpoints/last.ckpt").exists()
    assert not Path("out/one/Local/0/summary.json").exists()
    stop(signal.SIGKILL, "out/one/PFedRec/0/metrics.csv")
    assert json.loads(Path("out/one/Local/0/summary.json").read_text())["rounds"] == 40
    assert compare(config) == 2  # the run that was left behind is still at work
    while not Path("out/one/PFedRec/0/summary.json").exists():
        time.sleep(0.05)
    deadline = time.monotonic() + 60
    while compare(config) == 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert main(["compare", "--config", str(config), "--output", "whole"]) == 0
    ends = [pl.read_parquet(f"{folder}/results.parquet").drop("seconds") for folder in ("out", "whole")]
    assert ends[0].equals(ends[1])


@pytest.mark.usefixtures("quick_start")
def test_a_stopped_rolling_evaluation_goes_on_with_the_cuts_that_are_left(tmp_path: Path) -> None:
    cuts = {"split": "rolling", "rolling": {"cuts": 3, "choosing": 0}}
    sections = {"base": {"data": TINY["data"] | cuts}, "methods": {"EASE": {"method": "EASE"}}, "data": {"one": {}}}
    config = write(tmp_path / "small.yaml", seeds=[0], **sections)
    assert compare(config) == 0
    run, whole = Path("out/one/EASE/0"), pl.read_parquet("out/results.parquet").drop("seconds")
    for left in ("summary.json", "ranks.parquet", "cuts/03"):  # as it would be if it had been killed at the last cut
        (shutil.rmtree if (run / left).is_dir() else os.unlink)(run / left)
    before = changed_at("one/EASE/0/cuts/*/summary.json")
    assert len(before) == 2
    assert compare(config) == 0
    after = changed_at("one/EASE/0/cuts/*/summary.json")
    assert len(after) == 3
    assert before.items() <= after.items()
    assert pl.read_parquet("out/results.parquet").drop("seconds").equals(whole)


@pytest.mark.usefixtures("quick_start")
def test_a_method_that_had_too_few_rounds_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures are those of popularity, and would stand there as its own."""
    config = write(tmp_path / "small.yaml", data={"one": {}}, seeds=[0], methods={"CGFedCo": {"method": "CGFedCo"}})
    assert compare(config) == 0
    told = "one/CGFedCo/0: its rounds were too few; the phase 'labels' has not ended"
    for text in (capsys.readouterr().out, Path("out/table.md").read_text(), Path("out/report.html").read_text()):
        plain = re.sub("</?code>", "", text.replace("&#39;", "'"))
        assert told in " ".join(plain.split())


def test_bad_settings_are_all_named_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = {
        "Local": SMALL["methods"]["Local"],
        "other": SMALL["methods"]["Local"] | {"protocol": {"ties": "random"}},
        "no such": {"method": {"class_path": "cgfedrec.methods.Nothing"}},
        "wrong": {"method": {"class_path": "cgfedrec.methods.PFedRec", "init_args": {"dim": -1}}},
        "file": {"config": "nowhere.yaml"},
        "many": {"loop": {"participants": 4000}},
    }
    data = {"one": {}, "gone": {"data": {"init_args": {"path": "gone.csv"}}}}
    assert compare(write(tmp_path / "small.yaml", methods=methods, data=data)) == 2
    said = capsys.readouterr().err
    for part in ("Nothing", "method.dim", "nowhere.yaml", "4000", "gone.csv", "measured alike"):
        assert part in said, part
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"methods": {}}, "methods: name one or more"),
        ({"mehtods": {}}, "no option 'mehtods'"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"metrics": ["precision@10"]}, "precision@10"),
        ({"metrics": ["ndcg@7"]}, "ndcg@7 is not measured"),
        ({"reference": "nobody"}, "no 'nobody' in the list"),
        ({"test": "z"}, "choose t or wilcoxon"),
        ({"base": {"seed_everything": 3}}, "base.seed_everything: is set by the comparison"),
        ({"data": {"a/b": {}}}, "'a/b': such a name cannot be that of a folder"),
        ({"data": {"results.csv": {}}}, "'results.csv': the comparison's own files end so"),
        ({"published": {"one": {"PFedRec": 0.7}}}, "published: must map"),
        ({"base": {"data": {"init_args": {"split": "none"}}}}, "holds nothing out"),
    ],
)
def test_each_kind_of_bad_setting(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        read_plan(write(tmp_path / "small.yaml", **sections), tmp_path / "out")


def test_the_control_is_added_and_a_method_may_stand_in_another_config(tmp_path: Path) -> None:
    tuned = {"method": {"class_path": "cgfedrec.methods.FedMF", "init_args": {"dim": 5}}, "loop": {"rounds": 7}}
    tuned |= {"protocol": "reference", "seed_everything": 9, "data": {"init_args": {"path": "x", "batch_size": 32}}}
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(tuned))
    methods = {
        "FedMF": str(tmp_path / "tuned.yaml"),
        "longer": {"config": str(tmp_path / "tuned.yaml"), "loop": {"rounds": 8}},
    }
    plan = read_plan(write(tmp_path / "small.yaml", methods=methods), tmp_path / "out")
    assert dict(plan.kinds) == {"FedMF": "federated", "longer": "federated", "Local": "control"}
    assert "Local is added" in plan.notes[0]
    configs = {(job.data, job.method, job.seed): yaml.safe_load(job.config) for job in plan.jobs}
    assert len(configs) == len(plan.jobs) == 2 * 3 * 2
    config = configs["one", "FedMF", 1]
    assert (config["method"]["init_args"]["dim"], config["loop"]["rounds"]) == (5, 2)
    assert (config["protocol"]["name"], config["seed_everything"]) == ("strict", 1)
    assert config["data"]["init_args"]["path"] is None
    assert config["data"]["init_args"]["batch_size"] == 32
    assert configs["two", "longer", 0]["loop"]["rounds"] == 8
    assert configs["two", "longer", 0]["protocol"]["name"] == "reference"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "compare").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_comparison_can_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load(path.read_text())
    files = [entry.get("data", {}).get("init_args", {}).get("path") for entry in given["data"].values()]
    for file in files:
        if file is not None and not Path(file).exists():
            pytest.skip(f"{file} is missing")
    plan = read_plan(path, tmp_path / "out")
    assert "control" in plan.kinds.values()
    assert not [note for note in plan.notes if "spends a budget" not in note]


def test_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(size=5)
    low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert interval([0.5]) == (0.5, None, 1)


def test_paired_tests_are_scipys_and_pair() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=40)
    second = first + rng.normal(0.2, 0.1, size=40)
    assert paired_test(first, second) == pytest.approx(stats.ttest_1samp(first - second, 0).pvalue, rel=1e-9)
    assert paired_test(first, second, "wilcoxon") == pytest.approx(stats.wilcoxon(first - second).pvalue)
    assert paired_test(first, second) < 1e-6 < stats.ttest_ind(first, second).pvalue
    assert paired_test(first, first) == paired_test(first, first, "wilcoxon") == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_pareto_by_hand() -> None:
    costs, gains = [3, 1, 2, 2, 4, 5], [0.5, 0.2, 0.1, 0.3, 0.5, 0.9]
    assert pareto(costs, gains) == [1, 3, 0, 5]
    assert pareto([1, 1], [0.1, 0.2]) == [1]


def test_per_user_metrics_are_those_of_a_run() -> None:
    """Against the torchmetrics, with one to three relevant items a user."""
    rng = np.random.default_rng(2)
    ranks = torch.from_numpy(np.sort(np.stack([rng.permutation(30)[:3] + 1 for _ in range(50)]), axis=1))
    ranks[:20, 1:] = NO_RANK
    ranks[20:30, 2:] = NO_RANK
    rows = [(user, rank) for user, own in enumerate(ranks.tolist()) for rank in own if rank != NO_RANK]
    table = pl.DataFrame(rows, schema=["user", "rank"], orient="row").sample(fraction=1, shuffle=True, seed=0)
    for k in (2, 10):
        for kind in (HitRate((k,)), NDCG((k,)), MRR((k,))):
            values = per_user(table, f"{kind.name}@{k}").sort("user")["value"].to_numpy()
            np.testing.assert_array_equal(values, kind.gain(ranks, k).double().numpy())


def test_ticks_are_round_and_hold_the_data() -> None:
    assert linear_ticks(0, 0.093, 5) == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1])
    assert linear_ticks(0, 100, 6) == [0, 20, 40, 60, 80, 100]
    assert log_ticks(3e3, 4e7) == pytest.approx([1e3, 1e4, 1e5, 1e6, 1e7, 1e8])
    assert log_ticks(3e6, 4e7) == pytest.approx([2e6, 5e6, 1e7, 2e7, 5e7])


@pytest.mark.usefixtures("quick_start")
def test_a_damaged_result_is_named_and_its_run_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path / "small.yaml", data={"one": {}}, seeds=[0])
    assert compare(config) == 0
    whole = pl.read_csv("out/results.csv").drop("seconds")
    run = Path("out/one/PFedRec/0")
    half = len((run / "summary.json").read_bytes()) // 2
    damages: dict[str, Callable[[bytes], bytes]] = {
        "summary.json": lambda data: data[:half],
        "ranks.parquet": lambda data: data[:-9] + b"!" + data[-8:],
        "metrics.csv": lambda data: data.replace(b"0.", b"1.", 1),
        "config.yaml": lambda data: b"\0" + data,
    }
    for name, damage in damages.items():
        (run / name).write_bytes(damage((run / name).read_bytes()))
        before = changed_at()
        capsys.readouterr()
        assert compare(config) == 0
        assert f"{run / name}: is damaged" in capsys.readouterr().out
        after = changed_at()
        assert {path for path in after if after[path] != before[path]} == {str(run / "summary.json")}
        assert pl.read_csv("out/results.csv").drop("seconds").equals(whole)


@pytest.mark.usefixtures("quick_start")
def test_a_damaged_checkpoint_of_a_stopped_run_is_named_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "small.yaml", data={"one": {}}, methods={"Local": SMALL["methods"]["Local"]}, seeds=[0])
    assert compare(config, "--keep_checkpoints") == 0
    whole = pl.read_csv("out/results.csv").drop("seconds")
    run = Path("out/one/Local/0")
    last = run / "checkpoints" / "last.ckpt"
    for name in (last, run / "config.yaml"):
        (run / "summary.json").unlink()
        content = name.read_bytes()
        name.write_bytes(content[: len(content) // 2] + b"\0" + content[len(content) // 2 + 1 :])
        capsys.readouterr()
        assert compare(config) == 0, name
        printed = capsys.readouterr().out
        assert (f"{last} is damaged" in printed) == (name == last)
        assert pl.read_csv("out/results.csv").drop("seconds").equals(whole)
        assert last.exists(), "checkpoints that were asked for stay"


@pytest.mark.usefixtures("quick_start")
def test_checkpoints_that_a_killed_comparison_left_go_and_those_that_were_asked_for_stay(tmp_path: Path) -> None:
    config = write(tmp_path / "small.yaml", data={"one": {}}, seeds=[0])
    assert compare(config) == 0
    left = Path("out/one/PFedRec/0/checkpoints/last.ckpt")
    left.parent.mkdir()
    left.touch()
    assert compare(config) == 0
    assert not left.parent.exists()
    assert main(["compare", "--config", str(config), "--output", "kept", "--keep_checkpoints"]) == 0
    assert main(["compare", "--config", str(config), "--output", "kept"]) == 0
    assert Path("kept/one/PFedRec/0/checkpoints/last.ckpt").exists()
