"""The HTTP interface: answers, refusals, limits, and another export that comes while it answers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from cgfedrec.cli import main
from cgfedrec.serving import Recommender
from cgfedrec.serving import serve as serving
from cgfedrec.serving.app import app_of
from cgfedrec.serving.limits import Buckets, Limits
from cgfedrec.serving.neighbours import NeighbourReader
from cgfedrec.serving.recommender import FILE
from cgfedrec.serving.watch import Watched
from tests.commands import Command
from tests.conftest import ROOT

FOLDER = Path("out")
JSON = {"content-type": "application/json"}
HEALTH = list(HealthCheck)


class Clock:
    """A time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(items: int = 50, first: int = 0) -> Recommender:
    """Every item has the next two as neighbours, and earlier ones are more popular."""
    targets = np.sort((np.arange(items)[:, None] + [1, 2]) % items, axis=1).astype(np.int32)
    popular = np.linspace(1, 0, items, dtype=np.float32)
    starts = 2 * np.arange(items + 1)
    reader = NeighbourReader(starts, targets.ravel(), np.ones(2 * items, np.float32), popular, popular, "newest", 0.5)
    titles = [f"No. {item}" if item % 2 else None for item in range(items)]
    return Recommender(range(first, first + items), titles, reader, True, {"method": "some", "round": 3})


class Asked:
    """What asks an application, in this process."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        made().save(FOLDER)
        self.told: list[str] = []
        self.watched = Watched(FOLDER, self.told.append)
        self.app = app_of(self.watched, limits, clock)

    def __call__(self, method: str, path: str, address: str = "10.0.0.1", **given: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, **given)

        return asyncio.run(ask())

    def post(self, body: Any, **given: Any) -> httpx.Response:
        if isinstance(body, bytes):
            return self("POST", "/recommend", content=body, headers=JSON, **given)
        return self("POST", "/recommend", json=body, **given)


LIMITS = Limits(max_body=2000, max_history=20, max_top_k=30, rate=0)


@pytest.fixture
def ask() -> Asked:
    return Asked(LIMITS, Clock())


def test_a_history_is_answered(ask: Asked) -> None:
    recommender = Recommender.load(FOLDER)
    found = ask.post({"history": [7, "8", 900], "top_k": 3, "exclude": [9, "none"]})
    assert found.status_code == 200
    expected = recommender.recommend([7, 8], 3, [9])
    items = [
        {"item": item, "score": score, "title": title}
        for item, score, title in zip(expected.items, expected.scores, expected.titles, strict=True)
    ]
    assert items[0]["item"] == 10
    assert found.json() == {
        "items": items,
        "source": "history",
        "unknown": [900, "none"],
        "version": recommender.version,
    }
    nothing = ask.post({"history": []}).json()
    assert nothing["source"] == "popularity"
    assert [one["item"] for one in nothing["items"]] == list(range(10))
    timed = ask.post({"history": [{"item": 9, "timestamp": 5}, {"item": 3, "timestamp": 4.5}]}).json()
    assert [one["item"] for one in timed["items"]] == recommender.recommend([9, 3], timestamps=[5, 4.5]).items
    assert timed["items"] == ask.post({"history": [3, 9]}).json()["items"] != ask.post({"history": [9, 3]}).json()
    assert ask.post({"history": [0], "top_k": 30}).json()["items"][29:] != []
    health = ask("GET", "/health").json()
    assert health == {
        "status": "ok",
        "version": recommender.version,
        "method": "some",
        "reading": "newest",
        "round": 3,
        "items": 50,
        "problem": None,
    }


WRONG: list[tuple[bytes, int, str]] = [
    (b"", 422, "body: Field required"),
    (b"{", 400, "body: is no JSON"),
    (b"\xff{}", 400, "body: is no JSON"),
    (b"[" * 1900, 400, "body: is no JSON"),
    (b"null", 422, "body: Field required"),
    (b"9" * 1900, 422, ""),
    (b'{"history": [7.5]}', 422, "history.0: Input should be an id: a whole number or a text"),
    (b"[]", 422, "body: "),
    (b"{}", 422, "history: Field required"),
    (b'{"history": null}', 422, "history: "),
    (b'{"history": [1.5]}', 422, "history.0: "),
    (b'{"history": [true]}', 422, "history.0: "),
    (b'{"history": [null]}', 422, "history.0: "),
    (b'{"history": [1e999]}', 422, "history.0: "),
    (b'{"history": [{"item": 1}]}', 422, "history.0.timestamp: Field required"),
    (b'{"history": [{"item": 1, "timestamp": NaN}]}', 422, "history.0.timestamp: "),
    (b'{"history": [{"item": 1, "timestamp": 1e999}]}', 422, "history.0.timestamp: "),
    (b'{"history": [{"item": 1, "timestamp": 1}, 7]}', 422, "history.1: "),
    (b'{"history": [], "top_k": 0}', 422, "top_k: Input should be greater than or equal to 1"),
    (b'{"history": [], "top_k": 31}', 422, "top_k: Input should be less than or equal to 30"),
    (b'{"history": [], "top_k": "5"}', 422, "top_k: "),
    (b'{"history": [], "exclude": 5}', 422, "exclude: "),
    (b'{"history": [], "topk": 5}', 422, "body: 'topk' is not known; the keys are history, top_k, exclude"),
    (json.dumps({"history": [1] * 21}).encode(), 422, "history: List should have at most 20 items"),
    (json.dumps({"history": [], "exclude": [1] * 21}).encode(), 422, "exclude: List should have at most 20 items"),
    (json.dumps({"history": ["x" * 2000]}).encode(), 413, "body: is longer than 2,000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "problem"), WRONG, ids=lambda one: str(one)[:40])
def test_bad_bodies_are_refused(ask: Asked, body: bytes, status: int, problem: str) -> None:
    found = ask.post(body)
    assert found.status_code == status, found.text
    assert list(found.json()) == ["problems"]
    assert any(one.startswith(problem) for one in found.json()["problems"]), found.text
    assert ask.post({"history": [1]}).status_code == 200


def test_all_problems_are_told_at_once_and_no_value_of_what_was_sent(ask: Asked) -> None:
    found = ask.post({"history": ["secret"] * 21, "top_k": 0, "private": "secret"})
    assert found.status_code == 422
    assert len(found.json()["problems"]) >= 3
    assert "secret" not in found.text
    found = ask.post({"history": [{"item": 1, "timestamp": 2}], "x" * 99: "secret"})
    (told,) = found.json()["problems"]
    assert (
        told == f"body: '{'x' * 40}' is not known; the keys are history, top_k, exclude"
    )  # of a key, what can be read


ALONE: list[tuple[Any, str]] = [
    ([{"item": 1, "timestamp": 2}, {"item": 3}], "history.1.timestamp: Field required"),
    ([{"item": 1, "timestamp": 2}, 3], "history.1: Input should have an item and a timestamp, as others of the"),
    ([3, {"item": 1, "timestamp": 2}], "history.0: Input should have an item and a timestamp, as others of the"),
    ([{"item": 1, "timestamp": "x"}], "history.0.timestamp: Input should be a finite number"),
    ([{"item": None, "timestamp": 1}], "history.0.item: Input should be an id: a whole number or a text"),
    ([{"item": 1, "timestamp": 1, "day": 3}], "history.0: 'day' is not known; the keys are item, timestamp"),
    ([1, None], "history.1: Input should be an id: a whole number or a text"),
    ([{"item": 1, "timestamp": 2}] * 21, "history: List should have at most 20 items"),
    ({"item": 1, "timestamp": 2}, "history: Input should be a valid list"),
]


@pytest.mark.parametrize(("history", "problem"), ALONE, ids=lambda one: str(one)[:40])
def test_one_fault_is_told_once(ask: Asked, history: Any, problem: str) -> None:
    """A history may be of two kinds. What is wrong is told of the kind that was sent."""
    (told,) = ask.post({"history": history}).json()["problems"]
    assert told.startswith(problem)


def test_a_header_that_is_missing_is_what_is_told(ask: Asked) -> None:
    """As `curl -d` sends another one by itself, and a program may send none."""
    for header in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        found = ask("POST", "/recommend", content=b'{"history": [7]}', headers=header)
        assert found.status_code == 422
        told = "content-type: is not application/json; send the header 'content-type: application/json'"
        assert found.json()["problems"] == [told]
    found = ask("POST", "/recommend", content=b"[7]", headers=JSON)
    assert found.json()["problems"] == ["body: Input should be an object with a history"]


def test_what_is_not_there(ask: Asked) -> None:
    for method, path, status in (
        ("GET", "/recommend", 405),
        ("POST", "/health", 405),
        ("GET", "/x", 404),
        ("POST", "/x", 404),
    ):
        found = ask(method, path)
        assert (found.status_code, list(found.json())) == (status, ["problems"])
        assert ("allow" in found.headers) == (status == 405)
    assert ask("POST", "/recommend", content=b'{"history": []}').status_code == 422  # of no type
    odd = ask.post(b'{"history": ["\\ud800", "\\u00e4\\u0000"]}')
    assert odd.json()["unknown"] == ["\ud800", "ä\0"]
    huge = b"9" * 1900
    assert ask.post(b'{"history": [' + huge + b", 7.0, 1e300]}").json()["unknown"] == [int(huge), int(1e300)]
    times = b'{"history": [{"item": 1, "timestamp": ' + huge + b'}, {"item": 3, "timestamp": -1e300}]}'
    assert ask.post(times).json()["items"] == ask.post({"history": [3, 1]}).json()["items"]


def test_a_body_in_pieces_is_not_read_further_than_is_allowed(ask: Asked) -> None:
    read = 0

    async def pieces() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 500
            yield b"x" * 500

    found = ask("POST", "/recommend", content=pieces(), headers=JSON)
    assert (found.status_code, found.headers["connection"]) == (413, "close")
    assert read <= 3000
    for length in ("-1", "1e3", "9" * 5000, "x"):
        assert ask("POST", "/recommend", content=b"{}", headers={**JSON, "content-length": length}).status_code == 413


def test_who_asks_too_often_must_wait() -> None:
    clock = Clock()
    ask = Asked(Limits(rate=2, burst=3), clock)
    statuses = [ask.post({"history": []}).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    refused = ask.post({"history": []})
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["problems"] == ["more than 2 requests a second; come again in 1 s"]
    assert ask.post({"history": []}, address="10.0.0.2").status_code == 200
    assert ask("GET", "/health").status_code == 200
    clock.now += 0.5
    assert [ask.post({"history": []}).status_code for _ in range(2)] == [200, 429]
    clock.now += 100
    assert [ask.post({"history": []}).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_buckets() -> None:
    clock = Clock()
    buckets = Buckets(0.1, 1, clock)
    assert [buckets.wait("a"), buckets.wait("a")] == [0, 10]
    clock.now += 4
    assert buckets.wait("a") == pytest.approx(6)
    for place in range(50):
        buckets.wait(str(place))
    assert len(buckets) == 51
    clock.now += 11
    for place in range(30):
        buckets.wait(f"new {place}")
    assert len(buckets) == 30 + 51 - 60 + 9 or len(buckets) <= 51  # those of before are forgotten, two a request
    assert "a" not in buckets._left
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cgfedrec.serving.limits.ADDRESSES", 40)
        for place in range(200):
            buckets.wait(f"many {place}")
        assert len(buckets) <= 40


def test_limits_are_checked_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["serve", "out", "--max_body", "0", "--max_history", "-1", "--max_top_k", "0", "--rate=-1", "--burst", "0"]
    assert main(line) == 2
    told = capsys.readouterr().err
    assert [
        name for name in ("max_body", "max_history", "max_top_k", "rate", "burst") if f"--{name}: " not in told
    ] == []
    assert main(["serve", "nowhere"]) == 2
    assert "nowhere: holds no recommender.safetensors" in capsys.readouterr().err
    made().save(FOLDER)
    assert main(["serve", "out", "--port", "70000"]) == 2
    assert main(["serve", "out", "--host", "no.such.host.invalid"]) == 2
    assert main(["serve", "out", "--unknown"]) == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "out", "--port", str(taken.getsockname()[1])]) == 2
    assert "--host, --port: cannot listen at 127.0.0.1" in capsys.readouterr().err


def test_without_fastapi_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made().save(FOLDER)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "out"]) == 2
    assert "pip install 'cgfedrec[serve]'" in capsys.readouterr().err


def test_serving_imports_nothing_of_training() -> None:
    heavy = ["torch", "lightning", "wandb", "polars", "scipy", "sklearn", "jsonargparse"]
    code = "import sys, cgfedrec.cli, cgfedrec.serving.app, cgfedrec.serving.serve\n"
    code += f"print([one for one in {heavy} if one in sys.modules])"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "src")})
    assert done.stdout == "[]\n"


# What it describes


def test_the_page_needs_nothing_from_elsewhere(ask: Asked) -> None:
    page = ask("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")
    assert "//" not in page.text.replace('"openapi.json"', "")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_everything_is_described(ask: Asked) -> None:
    described = ask("GET", "/openapi.json").json()
    assert set(described["paths"]) == {"/recommend", "/health"}
    post = described["paths"]["/recommend"]["post"]
    assert set(post["responses"]) == {"200", "400", "413", "422", "429"}
    asked = described["components"]["schemas"]["Asked"]
    assert asked["properties"]["top_k"]["maximum"] == LIMITS.max_top_k
    assert asked["properties"]["exclude"]["maxItems"] == LIMITS.max_history
    assert [one["maxItems"] for one in asked["properties"]["history"]["anyOf"]] == [LIMITS.max_history] * 2
    assert ask.post(asked["examples"][0]).status_code == 200


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_what_is_described_holds_for_anything_that_is_sent(mode: GenerationMode) -> None:
    """Requests of all kinds, good or bad, drawn from the description: they are answered as that says."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", Asked(Limits(max_history=20, rate=0), Clock()).app)
    statuses = Counter[int]()
    for found in schema.get_all_operations():
        one = found.ok()  # type: ignore[union-attr]
        if mode == GenerationMode.NEGATIVE and one.method == "get":
            continue  # of which nothing can be wrong
        drawn = one.as_strategy(generation_mode=mode)

        @settings(max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=HEALTH)
        @given(case=drawn)
        def fuzz(case: schemathesis.Case[Any]) -> None:
            statuses[case.call_and_validate().status_code] += 1

        fuzz()
    assert statuses[200 if mode == GenerationMode.POSITIVE else 422] > 30, statuses


# Another export


def test_another_export_is_taken_up(ask: Asked) -> None:
    assert ask.post({"history": [0]}).json()["items"][0]["item"] == 1
    again = made(60, 1000)
    version = again.save(FOLDER)
    assert ask("GET", "/health").json()["items"] == 50
    ask.watched.look()
    assert ask("GET", "/health").json()["version"] == version
    assert ask.post({"history": [1000]}).json()["items"][0]["item"] == 1001
    assert ask.told == [f"taken up: version {version}, 60 items"]
    # What cannot be used is told, and changes nothing.
    for damage in ("cut", "gone", "folder gone"):
        path = FOLDER / FILE
        if damage == "cut":
            other = path.with_name("other")
            other.write_bytes(path.read_bytes()[:-9])
            other.replace(path)
        elif damage == "gone":
            path.unlink()
        else:
            (FOLDER / ".lock").unlink(missing_ok=True)
            FOLDER.rmdir()
        ask.watched.look()
        assert ask.post({"history": [1000]}).json()["items"][0]["item"] == 1001
        assert ask("GET", "/health").json()["problem"] is not None, damage
    assert ask("GET", "/health").json()["version"] == version
    assert sum(one.startswith("not taken up: ") for one in ask.told) == 2
    assert made(70).save(FOLDER)
    ask.watched.look()
    health = ask("GET", "/health").json()
    assert (health["items"], health["problem"]) == (70, None)


def test_it_is_looked_for_from_beginning_to_end_and_opened_once(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody asks for anything, and though nobody reads any more what is told."""
    monkeypatch.setattr("cgfedrec.serving.watch.EVERY", 0.01)
    lines = list[str]()

    def gone(line: str) -> None:
        lines.append(line)
        raise BrokenPipeError

    def until(number: int) -> bool:
        end = time.monotonic() + 30
        while len(lines) < number and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        return len(lines) == number

    ask.watched.tell = gone
    with ask.watched:
        for number, items in enumerate((60, 70), 1):
            made(items).save(FOLDER)
            assert until(number)
            assert ask.watched.now.num_items == items
    end = time.monotonic() + 30
    while any(one.name == "watch" for one in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)
    assert all(one.name != "watch" for one in threading.enumerate())


def test_whatever_fails_while_it_is_opened_the_one_before_goes_on(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path) -> Recommender:
        raise MemoryError

    made(60).save(FOLDER)
    monkeypatch.setattr(Recommender, "load", fails)
    ask.watched.look()
    health = ask("GET", "/health").json()
    assert (health["items"], health["problem"]) == (50, "out: cannot be opened: MemoryError")


@pytest.fixture
def serving_at() -> Iterator[tuple[Command, str]]:
    """A server in a process of its own, and where it answers."""
    made().save(FOLDER)
    process = Command("serve", "out", "--port", 0, "--rate", 0)
    while "/recommend" not in process.stderr:
        assert process.poll() is None, process.stderr
        time.sleep(0.02)
    yield process, process.stderr.split("\n")[1].split("/recommend")[0]
    if process.poll() is None:
        process.kill()
        process.wait()


def sent(address: str, history: list[int]) -> tuple[str, int]:
    """The version that answered, and its first item."""
    body = json.dumps({"history": history, "top_k": 1}).encode()
    with urlopen(Request(f"{address}/recommend", body, JSON), timeout=30) as answer:  # a connection of its own
        found = json.load(answer)
    return found["version"], found["items"][0]["item"]


def test_no_request_fails_while_exports_are_replaced(serving_at: tuple[Command, str]) -> None:
    """Every answer is wholly of one export: its version and its item belong together."""
    process, address = serving_at
    first = Recommender.load(FOLDER).version
    answers, failures, stop = set[tuple[str, int]](), list[BaseException](), threading.Event()

    def asking() -> None:
        while not stop.is_set():
            try:
                answers.add(sent(address, [5]))
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    expected = {(first, 6)}
    for number in (40, 30):  # item 5 stands elsewhere in each
        version = made(number, 5 - number // 10).save(FOLDER)
        expected.add((version, 6))
        until = time.monotonic() + 60
        while (version, 6) not in answers and time.monotonic() < until and not failures:
            time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert answers == expected
    assert process.stderr.count("taken up: version") == 2


def test_an_idle_server_takes_up_an_export_by_itself(serving_at: tuple[Command, str]) -> None:
    """So the first request after a nightly export is answered by it, and a damaged one is told without any request."""
    process, address = serving_at

    def until(line: str) -> None:
        end = time.monotonic() + 60
        while line not in process.stderr and time.monotonic() < end:
            time.sleep(0.02)
        assert line in process.stderr

    version = made(60).save(FOLDER)
    until(f"\ntaken up: version {version}, 60 items\n")
    assert httpx.get(f"{address}/health").json()["version"] == version
    other = FOLDER / "other"
    other.write_bytes((FOLDER / FILE).read_bytes()[:-9])
    other.replace(FOLDER / FILE)
    until("\nnot taken up: ")
    health = httpx.get(f"{address}/health").json()
    assert (health["version"], "damaged" in health["problem"]) == (version, True)


def test_nothing_of_a_request_is_logged(serving_at: tuple[Command, str]) -> None:
    process, address = serving_at
    for history in ([5], [123456789]):
        sent(address, history)
    for body, status in ((b'{"history": ["secretly"]}', 200), (b"secretly", 400), (b'{"secretly": 1}', 422)):
        found = httpx.post(f"{address}/recommend?secretly", content=body, headers=JSON)
        assert found.status_code == status
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stdout == ""
    assert len(process.stderr.splitlines()) == 2
    assert "secretly" not in process.stderr
    assert {one.name for one in FOLDER.iterdir()} == {FILE}


def test_a_fault_is_told_without_what_it_says(ask: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: Any) -> Any:
        raise KeyError("secret" + "ly")

    ask.watched.now.recommend = fails  # type: ignore[method-assign, assignment]
    ask.app = serving._quiet(ask.app)  # type: ignore[assignment]
    found = ask.post({"history": [1]})
    assert (found.status_code, found.json()) == (500, {"problems": ["the request could not be answered"]})
    told = capsys.readouterr().err
    assert "a request could not be answered: KeyError" in told
    assert "in fails" in told
    assert "secretly" not in told
