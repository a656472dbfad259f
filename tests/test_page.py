"""The page of a run: one file with what the summary says, for every kind of run, in which nothing is code but ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.errors import InputError, Notice
from cgfedrec.pages.plot import Line, chart
from cgfedrec.pages.render import alone
from tests.conftest import TINY

VOID = {"meta", "br", "path", "circle", "rect"}


class Page(HTMLParser):
    """Its text and its tags; refuses a tag that nobody closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(*settings: Any) -> tuple[Page, dict[str, Any]]:
    run = cgfedrec.fit(*settings, {"run_dir": "run", "logger": None})
    return Page(Path("run/report.html").read_text()), run.summary


@pytest.mark.parametrize(
    "method", [TINY["method"], "CGFedCo", "EASE", {"class_path": "PFedRec", "init_args": {"dim": 8}}], ids=str
)
def test_it_says_what_the_summary_says(method: Any) -> None:
    small = {name: value for name, value in TINY.items() if name != "method"}
    page, summary = page_of(small, {"method": method, "loop.rounds": 12})
    for prefix in ("val/", "test/", "popularity/test/"):
        assert f"{summary[f'{prefix}ndcg@10']:.4f}" in page.text
    assert f"{summary['test/diversity@10']:.4f}" in page.text
    assert f"{summary['groups/users/few']} /" in page.text
    assert summary["run"] in page.text
    assert "cgfedrec recommend --ckpt_path run/checkpoints/best.ckpt" in page.text
    named = summary["method"].rpartition(".")[2]
    assert named in page.text
    points = [
        attributes for tag, attributes in page.tags if tag == "circle" and "point" in str(attributes.get("class"))
    ]
    assert len(points) == {"CGFedRec": 50, "CGFedCo": 50}.get(named, 0)
    assert ("Communication" in page.text) == (named != "EASE")
    assert ("is shown above all" in page.text) == (named == "CGFedCo")
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert all(one["aria-label"] for one in charts)
    drawn = {path.name: ElementTree.fromstring(path.read_text()) for path in Path("run").glob("*.svg")}
    curves = {"bytes.svg", "rounds.svg"}  # of more than one evaluated round
    pictures = {"CGFedRec": curves | {"items.svg"}, "PFedRec": curves, "CGFedCo": {"items.svg", "ages.svg"}}
    assert drawn.keys() == pictures.get(named, set())
    assert all("validation NDCG@10" in "".join(drawn[name].itertext()) for name in curves & drawn.keys())
    assert len(charts) == len(drawn)


def test_the_bytes_of_all_sums_are_those_of_the_run() -> None:
    page, summary = page_of(TINY, {"method": "CGFedCo", "loop.rounds": 12})
    phases = cgfedrec.run.page._phases(cgfedrec.load("run/checkpoints/best.ckpt").training.history)
    assert [name for name, *_ in phases] == ["bounds", "sketch", "labels", "verify", "choose"]
    assert sum(up for _, _, up, _, _ in phases) == summary["bytes/up"]
    assert sum(down for _, _, _, down, _ in phases) == summary["bytes/down"]
    assert all(name in page.text for name, *_ in phases)


def test_nothing_comes_from_elsewhere_and_ids_are_text() -> None:
    """No address is fetched, there is no script, and an id that looks like HTML is shown as it is."""
    evil = "<img src=x onerror=alert(1)>"
    rows = [
        (user, f"{evil}{item}", day)
        for user in range(30)
        for day, item in enumerate(sorted((user * 7 + step * step) % 20 for step in range(9)))
    ]
    table = pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row").unique(["user", "item"])
    table.write_csv("a b<i>.csv")
    page, _ = page_of({"data.path": "a b<i>.csv", "method": "CGFedCo", "data.min_interactions": 3})
    assert evil in page.text
    assert "a b<i>.csv" in page.text
    assert {tag for tag, _ in page.tags} & {"img", "script", "link", "iframe", "i"} == set()
    text = Path("run/report.html").read_text()
    assert not re.search(r"(src|href|url)\s*[=(]", text.replace("src=x", ""))
    assert "http" not in text


def test_titles_are_shown_and_go_with_the_run() -> None:
    """What `fit` was told of titles is not asked for again; another file, or none, wins."""
    known = range(1, 50)  # the last item has no title
    Path("items.csv").write_text("id,title\n" + "".join(f'{item},"Film {item}, The <b>"\n' for item in known))
    settings = {"method": "CGFedCo", "loop.rounds": 12, "data.items.path": "items.csv"}
    page, _ = page_of(TINY, settings)
    shown = re.findall(r"<title>(.*?): cluster", Path("run/report.html").read_text())
    assert sorted(shown) == sorted(["50", *(f"Film {item}, The &lt;b&gt;" for item in known)])
    assert len(re.findall(r"Film \d+, The <b> \(0\.\d\d\); ", page.text)) > 5
    run = cgfedrec.load("run/checkpoints/best.ckpt")
    found = run.recommend([1], 9)
    assert found["title"].to_list() == [f"Film {item}, The <b>" if item < 50 else None for item in found["item"]]
    assert run.export("served").titles[0] == "Film 1, The <b>"
    Path("others.tsv").write_text("\n".join(f"x\tNo. {item}\t{item}" for item in range(1, 51)))
    line = ["recommend", "--ckpt_path", "run/checkpoints/best.ckpt", "--user", "1", "--output", "out.csv"]
    other = ["--items", "others.tsv", "--data.items.header", "false", "--data.items.id", "2"]
    assert main([*line, *other]) == 0
    table = pl.read_csv("out.csv")
    assert table["title"].to_list() == [f"No. {item}" for item in table["item"]]
    Path("items.csv").unlink()
    with pytest.warns(Notice, match=r"no titles: items\.csv of the run is not there"):
        assert "title" not in cgfedrec.load("run/checkpoints/best.ckpt").recommend([1]).columns
    assert main([*line, "--items", "items.csv"]) == 2


def test_titles_that_are_empty_hide_no_id_and_control_characters_are_spelt_out() -> None:
    odd = {1: "", 2: "  \t ", 3: "\x1b[31mred\x00\x07\u202e", 4: "  Four "}
    text = "".join(f'{item},"{odd.get(item, f"Film {item}")}"\n' for item in range(1, 51))
    Path("items.csv").write_text(f'id,title\n{text}1,"One, again"\n2,\n')
    page_of(TINY, {"method": "CGFedCo", "loop.rounds": 12, "data.items.path": "items.csv"})
    page = Path("run/report.html").read_text()
    shown = set(re.findall(r"<title>(.*?): cluster", page))
    usual = {f"Film {item}" for item in range(5, 51)}
    assert shown - usual == {"One, again", "2", r"\x1b[31mred\x00\x07\u202e", "Four"}
    assert not set(page) & set("\x00\x07\x1b\u202e")
    found = cgfedrec.load("run/checkpoints/best.ckpt").export("served")
    assert dict(zip(found.ids, found.titles, strict=True))[2] is None


def test_a_chart_for_a_paper_is_xml_whatever_a_name_holds() -> None:
    drawn = alone(chart([Line("noisy\x1b[31m", 0, [1, 2], [0.1, 0.2])], "x", "y", "<title>"))
    assert r"noisy\x1b[31m" in "".join(ElementTree.fromstring(drawn).itertext())


@pytest.mark.parametrize(
    ("text", "problem"), [("id\n1\n", r"items\.csv: no column at position 1"), (None, r"data\.items\.path: no file")]
)
def test_titles_that_cannot_be_read_are_seen_before_training(text: str | None, problem: str) -> None:
    if text:
        Path("items.csv").write_text(text)
    with pytest.raises(InputError, match=problem):
        page_of(TINY, {"data.items.path": "items.csv"})
    assert not Path("run").exists()


def test_a_rolling_evaluation_has_one_page_with_its_cuts() -> None:
    rows = [(user, (user * 3 + day) % 25, 800_000_000 + 86_400 * day) for user in range(30) for day in range(0, 40, 3)]
    pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row").write_csv("t.csv")
    rolling = {"data": {"path": "t.csv", "split": "rolling", "rolling": {"cuts": 4, "choosing": 1}}}
    page, summary = page_of(rolling, {"method": "EASE"})
    assert "at each cut in time" in page.text
    assert f"{summary['test/ndcg@10']:.4f}" in page.text
    assert "cases" in page.text
    assert [path.name for path in Path("run").rglob("*.svg")] == ["cuts.svg"]
    assert not list(Path("run").glob("cuts/*/report.html"))


def test_where_nothing_is_held_out_it_says_so() -> None:
    page, _ = page_of(TINY, {"data.split": "none"})
    assert "nothing was held out" in page.text
    assert "Accuracy" not in page.text


@pytest.mark.skipif(shutil.which("rsvg-convert") is None, reason="no rsvg-convert here: apt-get install librsvg2-bin")
def test_a_chart_becomes_a_pdf_for_a_paper() -> None:
    """By the command of docs/tutorials/research.md: with its colours and what shines through, on a page of its size."""
    line = Line("PFedRec", 0, [1, 2], [0.1, 0.2], [0.1, 0.1], [0.2, 0.3])
    Path("a.svg").write_text(alone(chart([line], "round", "NDCG@10", "a chart")))
    subprocess.run(["rsvg-convert", "-f", "pdf", "-o", "a.pdf", "a.svg"], check=True)
    written = Path("a.pdf").read_bytes()
    assert b"/MediaBox [ 0 0 450 270 ]" in written
    parts = [zlib.decompress(one) for one in re.findall(rb"FlateDecode.*?stream\n(.*?)\nendstream", written, re.DOTALL)]
    assert any(b"0 0.447059 0.698039 RG" in part for part in parts)  # the first colour of light pages
    assert b"/ca 0.13" in b"".join([written, *parts])  # the band
