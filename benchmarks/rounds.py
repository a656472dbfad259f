"""A round of ML-100K, cgfedrec's against the plain way, in one run on the same data, batches and labels.

The plain way is `examples/plain_cgfedrec.py`.

943 clients, 2 local epochs, K = 60, the published settings. A round is train (batches shuffled and cut), aggregate and
cluster; drawing negatives, evaluating 99 candidates a user and checkpointing are timed apart. The plain way trains all
clients without alignment, and an even sample of them with it, its seconds scaled up by local batches. What both train
must end with the same parameters.
"""

from __future__ import annotations

import copy
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import polars as pl
import torch
from examples import plain_cgfedrec as twin
from lightning import Fabric
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks import threads
from benchmarks.leak import ratings
from cgfedrec.data import FederatedDataModule
from cgfedrec.kit.means import MeanServer
from cgfedrec.kit.table import TableMethod
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedRec
from cgfedrec.protocol import Protocol
from cgfedrec.run.checkpoint import Header, write_checkpoint
from cgfedrec.server import Server
from cgfedrec.simulation.workers import on_one_thread
from cgfedrec.structure.contrast import loss_and_gradient
from cgfedrec.train import train
from cgfedrec.wire.values import Field

PUBLISHED = {"round, aligned": 178.0, "round, not aligned": 8.7, "draw negatives": 2.4, "evaluate": 0.6}
"""Seconds that the published code takes on 2 cores for all 943 clients."""
ASKED = {
    "round, aligned": 12,
    "round, not aligned": 50,
    "round, prototypes": 120,
    "draw negatives": 100,
    "evaluate": 50,
}
"""Times as fast as the plain way, at least."""
TOLERANCE = 1e-4
REPEATS = 5


class Unaligned(TableMethod):
    """PFedRec's client, and a server that averages."""

    def server(self, num_items: int, seed: int) -> Server:
        return MeanServer({"table": Field((num_items, self.dim))}, seed)


METHODS: dict[str, Callable[[], TableMethod]] = {
    "round, not aligned": Unaligned,
    "round, aligned": CGFedRec,
    "round, prototypes": lambda: CGFedRec(contrast="prototypes"),
}


class Clock:
    """Seconds by name, added up over threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed


def federation(data: FederatedDataModule, method: TableMethod) -> FederatedLoop:
    """A federation after one round; its cohorts size themselves."""
    loop = FederatedLoop(rounds=1)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method)
    loop.fit()
    return loop


def ours(loop: FederatedLoop, state: dict[str, Any]) -> float:
    """Train the second round once more from ``state``; its seconds, negatives drawn before."""
    data, store = loop.data, loop.clients.store
    store.load_state_dict(copy.deepcopy(state["store"]))
    loop.server.load_state_dict(state["server"])
    loop.round = 2
    everyone = torch.arange(data.num_users)
    store.write(everyone, store.read(everyone))  # in full, as a federation has it that has not just been resumed
    cohorts = list(data.cohorts(everyone, loop.clients.cohort_size))
    drawn = {int(users[0]): data.batches.samples(users.numpy(), 2, data.private_seed) for users in cohorts}
    drawn_before = patch.object(type(data.batches), "samples", lambda _, users, *__: drawn[int(users[0])])
    with drawn_before, on_one_thread():  # as `FederatedLoop.fit`
        started = time.perf_counter()
        for trained in loop.clients.train(torch.cat(cohorts), 2):
            loop.server.aggregate(trained.part)
        loop.server.update(torch.cat(cohorts), 2)
        return time.perf_counter() - started


def parts(loop: FederatedLoop, state: dict[str, Any]) -> dict[str, float]:
    """Where the threads' time goes in one round."""
    clock, server, data = Clock(), loop.server, loop.data
    with (
        patch("cgfedrec.structure.alignment.loss_and_gradient", clock.wrap("align", loss_and_gradient)),
        patch("cgfedrec.simulation.clients.train", clock.wrap("train", train)),
        patch.object(data, "draw", clock.wrap("shuffle and cut", data.draw)),
        patch.object(server, "reduce", clock.wrap("upload", server.reduce)),
        patch.object(server, "update", clock.wrap("cluster", server.update)),
    ):
        ours(loop, state)
    clock.seconds["train"] -= clock.seconds.get("align", 0.0)
    return dict(clock.seconds)


def plain_client(private: Mapping[str, Tensor]) -> twin.Client:
    """The plain way's client, with the private state that one of ours has: a row of each value of the store."""
    client = twin.Client(*private["table"].shape)
    with torch.no_grad():
        client.table.weight.copy_(private["table"])
        client.head.weight.copy_(private["head_weight"][None])
        client.head.bias.copy_(private["head_bias"][None])
    return client


def plain(
    data: FederatedDataModule, state: dict[str, Any], users: Sequence[int], labels: Tensor | None
) -> tuple[float, dict[str, Tensor]]:
    """The same round of some users the plain way: its seconds and their state after it."""
    clients, epochs = [], []
    for user in users:
        batches = data.draw(torch.tensor([user]), 2, 2)
        # what has no weight is padding
        items, targets = ([batch[index][0][batch.weights[0] > 0] for batch in batches] for index in (0, 1))
        half = len(batches) // 2
        epochs.append(
            [
                TensorDataset(torch.cat(items[part]), torch.cat(targets[part]))
                for part in (slice(half), slice(half, None))
            ]
        )
        clients.append(plain_client({name: rows[user] for name, rows in state["rows"].items()}))
    started = time.perf_counter()
    for client, samples in zip(clients, epochs, strict=True):
        twin.train(client, samples, labels, batch_size=data.batch_size)
    twin.mean([client.table.weight for client in clients])
    seconds = time.perf_counter() - started
    return seconds, {
        "table": torch.stack([client.table.weight.detach() for client in clients]),
        "head_weight": torch.stack([client.head.weight.detach() for client in clients]),
        "head_bias": torch.stack([client.head.bias.detach() for client in clients]),
    }


def check_equal(loop: FederatedLoop, users: Sequence[int], expected: dict[str, Tensor], what: str) -> None:
    """Raise ``AssertionError`` unless both ways ended alike."""
    mine = loop.clients.store.read(torch.tensor(users))
    for names in ("table",), ("head_weight", "head_bias"):  # a head is one vector: its bias alone may be nearly 0
        ours, theirs = (
            torch.cat([rows[name].reshape(len(users), -1) for name in names], dim=1) for rows in (mine, expected)
        )
        distance = ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max().item()
        if not distance < TOLERANCE:
            raise AssertionError(f"{what}: {names[0]} differs by {distance:.1e} of its norm")


@contextmanager
def stopwatch(into: list[float]) -> Iterator[None]:
    """Append the seconds of a block."""
    started = time.perf_counter()
    yield
    into.append(time.perf_counter() - started)


def apart(loop: FederatedLoop) -> dict[str, tuple[float | None, float]]:
    """Drawing, evaluating, checkpointing: seconds of the plain way and of ours."""
    data, lists = loop.data, loop.data._train
    everyone = torch.arange(data.num_users)
    histories = [lists.items[a:b].tolist() for a, b in zip(lists.starts[:-1], lists.starts[1:], strict=True)]
    times: dict[str, list[float]] = defaultdict(list)
    with threads.on(1), stopwatch(times["plain draw"]):
        chance = random.Random(0)
        for history in histories:
            twin.draw(history, data.num_items, chance)
    cohorts = list(data.cohorts(everyone, loop.clients.cohort_size))
    for _ in range(REPEATS):
        with stopwatch(times["draw"]):
            list(
                loop.clients.workers.map(
                    lambda users: data.batches.samples(users.numpy(), 3, data.private_seed), cohorts
                )
            )
    loop.evaluate("test")  # draws the candidates, once for all rounds
    for _ in range(REPEATS):
        with stopwatch(times["evaluate"]):
            mine = loop.evaluate("test")
    ranking = data.ranking(everyone, "test")
    assert ranking.sampled is not None
    rows = loop.clients.store.read(everyone)
    clients = [plain_client({name: one[user] for name, one in rows.items()}) for user in everyone.tolist()]
    asked = zip(clients, ranking.relevant[:, 0].tolist(), ranking.sampled.tolist(), strict=True)
    with threads.on(1), stopwatch(times["plain evaluate"]):
        hits = [twin.rank(client, target, sampled) < 10 for client, target, sampled in asked]
    theirs = sum(hits) / len(hits)
    if abs(theirs - mine["test/hr@10"]) > 0.002:  # the plain way is indifferent to ties
        raise AssertionError(f"HR@10 differs: {theirs} and {mine['test/hr@10']}")
    loop.rounds = loop.round
    with tempfile.TemporaryDirectory() as directory, stopwatch(times["checkpoint"]):
        write_checkpoint(Path(directory) / "last.ckpt", Header("", "", "", ""), loop.state_dict())
    found: dict[str, tuple[float | None, float]] = {
        "draw negatives": (times["plain draw"][0], median(times["draw"])),
        "evaluate": (times["plain evaluate"][0], median(times["evaluate"])),
        "checkpoint": (None, times["checkpoint"][0]),
    }
    return found


def compare(path: Path, aligned: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All of it.

    Args:
        path: Of ML-100K's ratings.
        aligned: How many clients the plain way trains with alignment.

    Returns:
        A row for each thing timed, and a row for each part of each round.
    """
    data = ratings(path, Protocol(candidates="sampled"), 0)
    everyone = list(range(data.num_users))
    some = sorted(data.order().tolist()[:: max(1, data.num_users // aligned)])
    batches = -(-data._train.lengths * (1 + data.negatives) // data.batch_size)
    rows: list[tuple[str, float | None, float, int | None]] = []
    split = []
    plain_aligned = 0.0
    for what, method in METHODS.items():
        loop = federation(data, method())
        state = copy.deepcopy(loop.state_dict())
        state["rows"] = loop.clients.store.read(torch.tensor(everyone))
        labels = state["server"].get("labels")
        seconds = median(ours(loop, state) for _ in range(REPEATS if what != "round, aligned" else 1))
        if what == "round, prototypes":
            theirs = plain_aligned
        else:
            users = everyone if labels is None else some
            chosen = threads.faster(lambda: plain(data, state, some[:2], labels))  # noqa: B023, called at once
            with threads.on(chosen):
                theirs, expected = plain(data, state, users, labels)
            theirs *= batches.sum() / batches[users].sum()
            check_equal(loop, users, expected, what)
            plain_aligned = theirs
        rows.append((what, theirs, seconds, chosen))
        total = parts(loop, state)
        split += [(what, part, value, value / sum(total.values())) for part, value in total.items()]
    rows += [(what, theirs, mine, None if theirs is None else 1) for what, (theirs, mine) in apart(loop).items()]
    columns = ["what", "plain_s", "ours_s", "plain_threads"]
    table = pl.DataFrame(rows, schema=columns, orient="row").with_columns(
        ratio=pl.col("plain_s") / pl.col("ours_s"),
        clients_per_s=data.num_users / pl.col("ours_s"),
        published_s=pl.col("what").replace_strict(PUBLISHED, default=None, return_dtype=pl.Float64),
        asked=pl.col("what").replace_strict(ASKED, default=None, return_dtype=pl.Float64),
    )
    return table, pl.DataFrame(split, schema=["what", "part", "thread_s", "share"], orient="row")
