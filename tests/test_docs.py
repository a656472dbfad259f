"""Every command of the README and of the site does what it is there for; links and names lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cgfedrec.cli import COMMANDS, main
from tests.commands import cgfedrec
from tests.conftest import ROOT
from tests.documents import PAGES, blocks, fewer, lay_out, lines

ELSEWHERE = {
    "docs/serving.md": "tests/test_keeping_up.py runs this page, with a server that answers all the while",
}
"""Pages whose commands another test runs, and which."""
NOT_RUN = {
    "flower-superlink": "tests/test_deploy.py starts one",
    "flower-supernode": "tests/test_deploy.py starts them",
    "flwr": "tests/test_deploy.py starts the run",
    "for": "tests/test_deploy.py registers nodes",
    "mkdir": "tests/test_deploy.py writes Flower's settings",
}
"""Commands that are not run here, by their first word, and who runs them."""
TOOLS = ("rsvg-convert",)
"""Commands that are run where there is such a tool."""
EXTRAS: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a clone, which is the current one. Nothing is logged."""
    place = tmp_path / "clone"
    place.mkdir()
    lay_out(place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("CGFEDREC_FIT_LOGGER", "null")
    return place


@pytest.mark.usefixtures("quick_start")
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and lines(page)])
def test_every_command_of_a_page_runs(page: str, clone: Path) -> None:
    for block in blocks(page):
        if block.title:
            (clone / block.title).write_text(block.text)
    for first, *words in lines(page):
        if first == "cgfedrec":
            if ">" in words:
                words = words[: words.index(">")]
            words = fewer(words)
            if words[0] == "compare":  # in this process, so that its runs start at once
                assert main(words) == 0
                continue
            done = cgfedrec(*words)
            assert done.returncode == 0, f"cgfedrec {' '.join(words)}\n{done.stdout}{done.stderr}"
        elif first in TOOLS:
            if shutil.which(first):
                subprocess.run([first, *words], check=True)
        else:
            assert is_known([first, *words]), f"nobody runs {first} {' '.join(words)}"


def is_known(words: list[str]) -> bool:
    """Whether a command that is not ours is one that there is."""
    first, *others = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if first == "make":
        return others[0] in TARGETS
    if first.endswith("pip"):
        (extras,) = re.findall(r"\[([\w,]+)\]", others[-1])
        return all(extra in EXTRAS for extra in extras.split(","))
    if first == "python":
        return others[:2] == ["-m", "cgfedrec.deploy.certificates"]  # tests/test_deploy.py makes some
    return first in NOT_RUN


@pytest.mark.parametrize("page", ["docs/reference/python.md"])
def test_python_of_a_page_runs(page: str, clone: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and not block.title:
            exec(block.text, {})


def test_commands_stand_in_blocks_that_are_run() -> None:
    """A command in a block without a language would be taken for what a program prints."""
    for page in PAGES:
        for block in blocks(page):
            if block.language != "sh":
                assert not re.search(r"^(cgfedrec|make|pip|python) ", block.text, re.MULTILINE), page


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page: str) -> None:
    named = re.findall(r"(?:configs|benchmarks|notebooks|examples|tests)/[\w/.-]*\w", PAGES[page])
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    """Those within the site are looked at when it is built too, but for pictures."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", (ROOT / page).read_text())
    assert links or page.startswith("docs/")
    targets = [((ROOT / page).parent / path if path else ROOT / page, place) for path, place in links]
    assert not [path for path, _ in targets if not path.exists()]
    places = [(path, place) for path, place in targets if place]
    assert not [place for path, place in places if place not in map(anchor, path.read_text().splitlines())]


def anchor(line: str) -> str:
    """By which a heading is linked to."""
    return re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_pictures_say_what_they_show(page: str) -> None:
    assert not re.findall(r"!\[\s*\]", PAGES[page])


@pytest.mark.parametrize("page", PAGES)
def test_options_that_a_page_names_are_there(page: str) -> None:
    """In the text too, where nothing is run."""
    for option in re.findall(r"`(--(?:data|loop|protocol|wire|fabric)\.[a-z_.]+)", PAGES[page]):
        assert is_option(option), option


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_of_a_page_are_there(page: str) -> None:
    for told in re.findall(r"`cgfedrec ([^`]*)`", PAGES[page]):
        words = told.split()
        assert (words[0],) in COMMANDS or tuple(words[:2]) in COMMANDS, told
        assert all(is_option(word.partition("=")[0]) for word in words if word.startswith("--")), told


def is_option(name: str) -> bool:
    """Whether some command has this option, or some that begin with it."""
    known = (ROOT / "src" / "cgfedrec" / "texts" / "completion.zsh").read_text()
    return f"{name}[" in known or f"{name}." in known


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len(PAGES["README.md"].split()) < 500


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """A link that leads nowhere, or a name that is not there ends it; nothing on it comes from the web."""
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    from tools.site import build

    site = build(tmp_path)
    of_methods = (site / "reference" / "methods" / "index.html").read_text()
    assert not [name for name in methods() if f'id="{name.lower()}"' not in of_methods]
    commands = (site / "reference" / "cli" / "index.html").read_text()
    assert 'id="data-diff"' in commands
    assert "--loop.participation" in commands
    assert "FederatedDataModule" in (site / "reference" / "python" / "index.html").read_text()
    loaded = r"""<(?:link|script|img)[^>]+(?:href|src)="https?://(?!zensical\.org)"""
    pages: list[Any] = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    assert not [page for page in pages if re.search(loaded, page.read_text())]


def methods() -> list[str]:
    """Every name that ``--method`` takes."""
    import cgfedrec.centralized
    import cgfedrec.methods

    return [*cgfedrec.methods.__all__, *cgfedrec.centralized.__all__]
