"""What serving takes: `python -m benchmarks.serving`, a minute.

A made-up export of 32 neighbours an item, at 10,000 and 100,000 items: the time until it answers, from a new
interpreter; the latency of one history; histories a second, all at once, by the clock and by the processor's time; and
requests over loopback, by a server in a process of its own and clients in this one. On a machine with other work the
best of several rounds says most.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cgfedrec.serving import Recommender
from cgfedrec.serving.neighbours import NeighbourReader

NEAR, LENGTHS, ROUNDS = 32, (25, 100), 15
ALL_AT_ONCE = 5
"""Rounds of 20,000 histories."""
START = """
import sys, time
began = time.perf_counter()
from cgfedrec.serving import Recommender
Recommender.load(sys.argv[1]).recommend([1, 2, 3])
print(time.perf_counter() - began)
"""
Histories = list[list[int]]


def made(items: int) -> Recommender:
    """A recommender with neighbours drawn at random, which seldom coincide: more work than real ones."""
    generator = np.random.default_rng(items)
    targets = np.sort(generator.integers(0, items, (items, NEAR)), axis=1).astype(np.int32)
    popular = (generator.random(items) ** 4).astype(np.float32)
    starts = np.arange(items + 1, dtype=np.int64) * NEAR
    weights = generator.random(items * NEAR).astype(np.float32)
    reader = NeighbourReader(starts, targets.ravel(), weights, popular, popular, "rho 0.5", 0.5)
    return Recommender(range(items), [None] * items, reader, True, {"method": "made up", "round": 0})


def drawn(items: int, length: int, number: int) -> Histories:
    """Histories of a length."""
    generator = np.random.default_rng(length)
    return [generator.permutation(items)[:length].tolist() for _ in range(number)]


def latencies(recommender: Recommender, histories: Histories) -> list[float]:
    """Milliseconds of each: the least of several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        times = []
        for history in histories:
            began = time.perf_counter()
            recommender.recommend(history)
            times.append(1000 * (time.perf_counter() - began))
        rounds.append(times)
    return [min(each) for each in zip(*rounds, strict=True)]


def a_second(recommender: Recommender, histories: Histories) -> tuple[float, float]:
    """Histories a second, all at once, and a second of the processor: the most of several rounds each."""
    lists = dict(enumerate(histories))
    clock, processor = [], []
    for _ in range(ALL_AT_ONCE):
        began, used = time.perf_counter(), time.process_time()
        recommender.recommend_all(lists)
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return len(lists) / min(clock), len(lists) / min(processor)


def until_it_answers(folder: Path) -> tuple[float, float]:
    """Seconds until an export answers, in a new interpreter: of imports and loading, and of the whole process."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        line = [sys.executable, "-c", START, str(folder)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        found.append((float(done.stdout), time.perf_counter() - began))
    return min(one for one, _ in found), min(whole for _, whole in found)


async def load(port: int, bodies: list[bytes], clients: int) -> list[float]:
    """Milliseconds of each request, by so many clients that each keep a connection and ask again once answered."""
    times: list[float] = []
    waiting = iter(bodies)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in waiting:
            began = time.perf_counter()
            writer.write(b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            (length,) = (int(line[16:]) for line in answer.split(b"\r\n") if line.startswith(b"content-length: "))
            await reader.readexactly(length)
            times.append(1000 * (time.perf_counter() - began))
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return times


def over_loopback(folder: Path, histories: Histories) -> None:
    """Print what a server takes."""
    line = [sys.executable, "-m", "cgfedrec", "serve", str(folder), "--port", "0", "--rate", "0"]
    began = time.perf_counter()
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        server.stderr.readline()
        port = int(server.stderr.readline().split("/recommend")[0].rsplit(":", 1)[1])
        print(f"  serve listens after {time.perf_counter() - began:.2f} s")
        bodies = [json.dumps({"history": history}).encode() for history in histories]
        asyncio.run(load(port, bodies[:200], 4))
        for clients in (1, 16):
            rounds = []
            for _ in range(3):
                began = time.perf_counter()
                times = asyncio.run(load(port, bodies, clients))
                rounds.append((len(times) / (time.perf_counter() - began), times))
            rate, times = max(rounds)
            p50, p99 = np.percentile(times, (50, 99))
            print(f"  {clients:>2} clients: {rate:,.0f} requests a second; p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        server.terminate()


def main() -> None:
    """Measure and print."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for items in (10_000, 100_000):
        recommender = made(items)
        with tempfile.TemporaryDirectory() as named:
            folder = Path(named)
            recommender.save(folder)
            own, whole = until_it_answers(folder)
            size = sum(one.stat().st_size for one in folder.iterdir()) / 1e6
            print(f"{items:,} items, {size:.0f} MB: answers after {own:.2f} s, {whole:.2f} s with the interpreter")
            for length in LENGTHS:
                p50, p99 = np.percentile(latencies(recommender, drawn(items, length, 300)), (50, 99))
                clock, processor = a_second(recommender, drawn(items, length, 20_000))
                print(
                    f"  history of {length}: p50 {p50:.2f} ms, p99 {p99:.2f} ms; all at once {clock:,.0f} a second, "
                    f"{processor:,.0f} a second of the processor"
                )
            over_loopback(folder, drawn(items, 25, 3000))


if __name__ == "__main__":
    main()
