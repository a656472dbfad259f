"""The nightly job of docs/serving.md: its commands, in order, with a server that answers all the while."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from typing import Any

import httpx
import polars as pl
import pytest

import cgfedrec
from cgfedrec.serving import Recommender
from tests.commands import Command
from tests.commands import cgfedrec as command
from tests.conftest import ROOT
from tests.test_updating import drawn

DOCUMENT = (ROOT / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", DOCUMENT, re.DOTALL)


def commands(mark: str) -> list[list[str]]:
    """The lines of the document's block that begins with a comment, each as its words."""
    (block,) = (text for kind, text in BLOCKS if kind == "sh" and text.startswith(f"# {mark}"))
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("cgfedrec")]


def today(table: pl.DataFrame) -> pl.DataFrame:
    """The same, with what a day brings: somebody new, something new that five people have, and something taken back."""
    end = int(table["timestamp"].max()) + 86_400  # type: ignore[arg-type]
    fans = [f"u{one}" for one in range(1, 6)]
    more = [(fan, "brand new", end + place) for place, fan in enumerate(fans)]
    more += [("somebody new", item, end + 100) for item in ("brand new", table["item"][0], table["item"][1])]
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


@pytest.mark.usefixtures("_quiet")
def test_the_nightly_job_from_its_first_night_to_its_second() -> None:
    table = drawn()
    table.write_csv("ratings.csv")
    today(table).write_csv("today.csv")
    pl.DataFrame({"item": ["brand new"], "title": ["Brand new"]}).write_csv("items.csv")

    # 1. The first night, and a server.
    *first, (_, *serve) = commands("once")
    for _, *words in first:
        done = command(*words)
        assert done.returncode == 0, done.stderr
    process = Command(*serve, "--port", 0, "--rate", 0)
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
    for _, *words in commands("devices"):
        assert command(*words).returncode == 0
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
    told = ""
    for _, *words in commands("every night"):
        done = command(*words)
        assert done.returncode == 0, done.stderr
        told += done.stdout
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
    run = cgfedrec.load("runs/today/checkpoints/best.ckpt")
    expected = run.recommend_for({"you": body["history"]}, 20)
    assert [one["item"] for one in answer["items"]] == expected["item"].to_list()
    assert answer["unknown"] == []
    everything = asked(address, {"history": [], "top_k": 100})["items"]
    assert [one["title"] for one in everything if one["item"] == "brand new"] == ["Brand new"]
    assert httpx.get(f"{address}/health").json()["version"] == after.version
    process.kill()
    process.wait()
