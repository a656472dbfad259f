"""The pages of a run, of a comparison and of the documentation in a browser: at two widths, in light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cgfedrec.cli import main
from tests.commands import launch
from tests.test_compare import write

BROWSER = shutil.which("chromium")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
LOOKS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]

OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter(one => !one.closest(".scroll *") && !one.closest("pre *"))
  .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(one => one.outerHTML.slice(0, 80))"""
SMALLEST = """() => Math.min(99, ...[...document.querySelectorAll("svg.chart text")]
  .map(text => [parseFloat(getComputedStyle(text).fontSize), text.getScreenCTM()])
  .map(([size, on]) => size * Math.hypot(on.a, on.b)))"""
UNNAMED = """() => [...document.querySelectorAll("img, svg")].filter(one => !one.ariaHidden)
  .filter(one => !(one.getAttribute("alt") || one.getAttribute("aria-label"))).length"""
UNLABELLED = """() => [...document.querySelectorAll("svg.chart:not(.map)")]
  .filter(one => [...one.querySelectorAll(".label")].filter(text => text.textContent.trim()).length < 2)
  .map(one => one.ariaLabel)"""
OUT_OF_REACH = """() => [...document.querySelectorAll(".scroll")]
  .filter(one => one.scrollWidth > one.clientWidth)
  .filter(one => one.tabIndex < 0 || getComputedStyle(one).overflowX != "auto").length"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("cgfedrec.experiments.compare.runner.launch", launch)
        size = ["--data.synthetic.users", "80", "--data.synthetic.items", "120"]
        assert main(["fit", *size, "--run_dir", "run", "--logger", "null"]) == 0
        config = write(folder / "small.yaml")
        assert main(["compare", "--config", str(config), "--output", "out"]) == 0
    return [folder / "run" / "report.html", folder / "out" / "report.html"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_page_is_whole_and_readable(pages: list[Path], browser: Any, width: int, scheme: str) -> None:
    for path in pages:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        errors: list[str] = []
        page.on("console", lambda message, told=errors: told.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error, told=errors: told.append(str(error)))
        page.goto(path.as_uri())
        assert errors == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOWING) == []
        assert page.evaluate(SMALLEST) >= 9  # pixels
        assert page.evaluate(OUT_OF_REACH) == 0
        assert page.evaluate(UNNAMED) == 0
        assert page.evaluate(UNLABELLED) == []
        page.close()


def test_details_open_and_tables_scroll_by_keyboard(pages: list[Path], browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(pages[1].as_uri())
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")
    page.focus(".scroll")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.scroll').scrollLeft > 0")


def test_a_point_of_the_map_tells_its_name(pages: list[Path], browser: Any) -> None:
    page = browser.new_page()
    page.goto(pages[0].as_uri())
    names = page.evaluate("[...document.querySelectorAll('.map .point title')].map(one => one.textContent)")
    assert len(names) > 50
    assert all(names)


def test_no_page_of_the_documentation_is_cut_off(tmp_path: Path, browser: Any) -> None:
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    from tools.site import build

    page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme="dark")
    pages = list(build(tmp_path).rglob("index.html"))
    assert len(pages) > 20
    for path in pages:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
