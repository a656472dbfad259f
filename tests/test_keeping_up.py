"""The nightly job of docs/serving.md: its script, night after night, with a server that answers all the while."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

import cgfedrec
from cgfedrec.serving import Recommender
from tests.commands import Command
from tests.conftest import ROOT
from tests.test_updating import drawn

DOCUMENT = (ROOT / "docs" / "serving.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"```(\w*)(?: title=[^\n]*)?\n(.*?)```", DOCUMENT, re.DOTALL)
SHIM = """#!{python} -S
import sys
from multiprocessing.connection import Client
with Client({address!r}) as asking:
    asking.send(sys.argv[1:])
    code, out, err = asking.recv()
print(out, end="")
print(err, end="", file=sys.stderr)
sys.exit(code)
"""
"""In place of ``cgfedrec`` in a shell: `Commands` runs it, at once."""


def block(start: str) -> str:
    """The document's block for a shell that begins so."""
    (found,) = (text for kind, text in BLOCKS if kind == "sh" and text.startswith(start))
    return found


class Commands:
    """Runs the commands of scripts, by `tests.commands`.

    Attributes:
        kill: A verb, and before which of its operations on files it is to end, as by SIGKILL.
    """

    def __init__(self, folder: Path) -> None:
        self.kill: dict[str, int] = {}
        self.listener = Listener(str(folder / "socket"))
        self.folder = folder
        shim = folder / "cgfedrec"
        shim.write_text(SHIM.format(python=sys.executable, address=self.listener.address))
        shim.chmod(0o755)
        threading.Thread(target=self.answer, daemon=True).start()

    def answer(self) -> None:
        while True:
            with self.listener.accept() as asked:
                words = asked.recv()
                if not words:
                    return
                done = Command(*words, stop_at=self.kill.pop(words[0], 0))
                asked.send((done.wait(), done.stdout, done.stderr))

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """A script of bash, to its end."""
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    commands = Commands(tmp_path_factory.mktemp("shell"))
    yield commands
    with Client(str(commands.folder / "socket")) as asking:
        asking.send([])


def today(table: pl.DataFrame, item: str = "brand new") -> pl.DataFrame:
    """The same, with what a day brings: somebody new, something new that five people have, and something taken back."""
    end = int(table["timestamp"].max()) + 86_400  # type: ignore[arg-type]
    fans = [f"u{one}" for one in range(1, 6)]
    more = [(fan, item, end + place) for place, fan in enumerate(fans)]
    more += [("somebody new", one, end + 100) for one in (item, table["item"][0], table["item"][1])]
    return pl.concat([table[:-3], pl.DataFrame(more, table.schema, orient="row")])


def asked(address: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer, which must be one."""
    found = httpx.post(f"{address}/recommend", json=body, timeout=60)
    found.raise_for_status()
    answer: dict[str, Any] = found.json()
    return answer


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGFEDREC_FIT_LOGGER", "null")


NIGHTLY = block("set -euo pipefail")


def begun(shell: Commands) -> None:
    """What is done once, but for the server."""
    first, serve = block("# once").rsplit("\n", 2)[:2]
    assert serve == "cgfedrec serve served"
    done = shell.run(f"set -e\n{first}")
    assert done.returncode == 0, done.stderr


def latest() -> str:
    """The night in use."""
    return Path("nightly/latest").read_text().strip()


def nights() -> set[str]:
    """The nights of which anything is there."""
    return {path.name for path in Path("nightly").iterdir() if path.is_dir()}


@pytest.mark.usefixtures("_quiet")
def test_the_nightly_job_from_its_first_night_to_its_second(shell: Commands) -> None:
    table = drawn()
    table.write_csv("ratings.csv")
    today(table).write_csv("today.csv")
    pl.DataFrame({"item": ["brand new"], "title": ["Brand new"]}).write_csv("items.csv")

    # 1. The first night, and a server.
    begun(shell)
    process = Command("serve", "served", "--port", 0, "--rate", 0)
    while "/recommend" not in process.stderr:
        assert process.poll() is None, process.stderr
        time.sleep(0.02)
    address = process.stderr.split("\n")[1].split("/recommend")[0]
    before = Recommender.load("served")
    history = table["item"].unique(maintain_order=True).to_list()[:4]
    body: dict[str, Any] = {"history": [*history, "brand new"], "top_k": 20}
    assert asked(address, body)["unknown"] == ["brand new"]

    # The examples of the document, on these data.
    curl = next(text for _, text in BLOCKS if text.startswith("curl"))
    (given,) = re.findall(r"-d '(.*?)'", curl)
    shown = json.loads(next(text for kind, text in BLOCKS if kind == "json"))
    found = asked(address, json.loads(given))
    assert {**found, "version": "3f0c...", "items": [{**one, "score": 0.1} for one in found["items"]]} == shown
    done = shell.run(f"set -e\n{block('# devices')}")
    assert done.returncode == 0, done.stderr
    for source in (text for kind, text in BLOCKS if kind == "python"):
        names: dict[str, Any] = {}
        exec(source, names)
        if "recommender" in names:
            assert names["found"].unknown == ["odd"]
            assert names["found"] == before.recommend(["i7", "i12", "odd"], 3, ["i30"])
        else:
            assert names["client"].popular_now.shape == (before.num_items,)
            assert names["server"].finished

    # 2. Somebody asks all the time, and new interactions arrive.
    versions, failures, stop = set[str](), list[BaseException](), threading.Event()

    def asking() -> None:
        while not stop.is_set():
            try:
                versions.add(asked(address, body)["version"])
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=asking)
    thread.start()
    done = shell.run(NIGHTLY)
    assert done.returncode == 0, done.stderr
    told = done.stdout
    after = Recommender.load("served")
    until = time.monotonic() + 60
    while after.version not in versions and time.monotonic() < until:
        time.sleep(0.02)
    stop.set()
    thread.join()

    # 3. What changed was said; no request failed; answers are those of the new run.
    assert re.search(r"changed since: 1 new user, 1 new item, 8 interactions added, 3 interactions taken back", told)
    assert not failures
    assert versions == {before.version, after.version}
    assert set(after.ids) - set(before.ids) == {"brand new"}
    answer = asked(address, body)
    run = cgfedrec.load(f"nightly/{latest()}/run/checkpoints/best.ckpt")
    expected = run.recommend_for({"you": body["history"]}, 20)
    assert [one["item"] for one in answer["items"]] == expected["item"].to_list()
    assert answer["unknown"] == []
    everything = asked(address, {"history": [], "top_k": 100})["items"]
    assert [one["title"] for one in everything if one["item"] == "brand new"] == ["Brand new"]
    assert httpx.get(f"{address}/health").json()["version"] == after.version
    process.kill()
    process.wait()


@pytest.mark.usefixtures("_quiet")
def test_the_nightly_job_over_nights_that_are_killed_that_are_quiet_and_that_fail(shell: Commands) -> None:
    table = drawn()
    table.write_csv("ratings.csv")
    table.select("item", title="item").unique().write_csv("items.csv")
    begun(shell)
    first = Recommender.load("served")

    # The first night: its update is killed on its way, then its export.
    one = today(table)
    one.write_csv("today.csv")
    shell.kill["fit"] = 22
    assert shell.run(NIGHTLY).returncode not in (0, 3)
    assert not shell.kill
    (killed,) = nights() - {"first"}
    assert Path("nightly", killed, "run", "checkpoints", "last.ckpt").is_file(), "it had begun"
    assert not Path("nightly", killed, "run", "summary.json").exists(), "and not ended"
    assert latest() == "first"
    time.sleep(1)  # a night has a second
    shell.kill["export"] = 1
    assert shell.run(NIGHTLY).returncode not in (0, 3)
    assert not shell.kill
    assert latest() not in ("first", killed)
    assert Recommender.load("served").version == first.version

    # The second night is quiet: two people have something new. What the first one has found is served by now.
    end = int(one["timestamp"].max())  # type: ignore[arg-type]
    few = pl.DataFrame([("u7", "brand new", end + 9), ("u8", "brand new", end + 9)], table.schema, orient="row")
    pl.concat([one, few]).write_csv("today.csv")
    before = latest()
    done = shell.run(NIGHTLY)
    assert done.returncode == 0, done.stderr
    assert "only 2 clients have changes" in done.stderr
    assert latest() == before
    assert nights() == {before}
    assert "brand new" in Recommender.load("served").ids

    # So is the third, with a table that cannot be read; nothing changes.
    Path("today.csv").write_text("user;item\n")
    assert shell.run(NIGHTLY).returncode == 2
    assert latest() == before

    # The fourth has more, and what came on the second.
    today(pl.concat([one, few])[3:], "newer").write_csv("today.csv")
    time.sleep(1)
    done = shell.run(NIGHTLY)
    assert done.returncode == 0, done.stderr
    assert nights() == {latest()} != {before}
    again = {"method": "CGFedCo", "data.path": "today.csv", "data.split": "none", "logger": None}
    served, scratch = Recommender.load("served"), cgfedrec.fit({**again, "method.read_by": "rho 0.5, beta 0.1"})
    assert served.ids == scratch.data.item_ids.to_list()
    history = [*table["item"].unique(maintain_order=True).to_list()[:4], "newer"]
    assert served.recommend(history, 20).items != first.recommend(history, 20).items
    assert not [path for path in Path("nightly").iterdir() if path.name not in {latest(), "latest", "lock"}]
