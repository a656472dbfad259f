"""What is compared with other frameworks is the same work: their plain clients end where ours do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from benchmarks import peers
from benchmarks.beside import plain
from benchmarks.work import METHODS, Name, Work, here, write

USERS, ITEMS, ROUNDS = 7, 160, 2


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """Laid out as ML-100K; the first user fills more than one batch of 256, the last hardly any."""
    path = tmp_path / "ratings.csv"
    rows = [
        f"{user},{(item * 7 + user) % ITEMS + 1},5,{item}\n"
        for user in range(1, USERS + 1)
        for item in range(84 - 11 * user)
    ]
    path.write_text("".join(rows))
    return path


def on_plain(folder: Path, name: str) -> None:
    """The rounds of a piece of work by plain clients and a mean, as any framework would have them."""
    work = plain.Work(str(folder), ROUNDS)
    table, private, tables = work.arrays["table"], [work.private(user) for user in range(work.settings.users)], []
    for round in range(1, ROUNDS + 1):
        trained = []
        for user in range(work.settings.users):
            net = work.net()
            net.put({"table": table, **private[user]})
            net.train_epoch(*work.samples(user, round))
            private[user] = net.private()
            trained.append(net.table.detach())
        table = torch.stack(trained).double().mean(0).float()
        tables.append(table)
    work.write(name, [plain.now() for _ in range(ROUNDS + 1)], tables)


@pytest.mark.parametrize("method", METHODS)
def test_plain_clients_do_the_same_work(method: Name, ratings: Path, tmp_path: Path) -> None:
    done = write(Work(method, str(ratings), ROUNDS, torch.get_num_threads(), str(tmp_path)))
    here(done, ROUNDS)
    on_plain(tmp_path, "plain")
    assert peers.apart(tmp_path, "plain") < 1e-6
    found = json.loads((tmp_path / "cgfedrec.json").read_text())
    assert len(found["seconds"]) == len(found["cpu"]) == ROUNDS
    assert found["peak"] > 0
    tables = np.load(tmp_path / "cgfedrec.npy")
    assert tables.shape == (ROUNDS, done.items, done.dim)
    assert np.linalg.norm(tables[1] - tables[0]) / np.linalg.norm(tables[0]) > 1e-3, "both rounds train"


def test_other_work_is_refused(tmp_path: Path) -> None:
    ours = np.ones((2, 3, 4), np.float32)
    np.save(tmp_path / "cgfedrec.npy", ours)
    theirs = ours.copy()
    theirs[1, 0, 0] += 1e-3
    np.save(tmp_path / "other.npy", theirs)
    with pytest.raises(AssertionError, match="other: the mean table differs"):
        peers.apart(tmp_path, "other")


def test_memory_of_all_that_was_started_counts() -> None:
    holds = "block = b'x' * 100 * 2**20; print('there', flush=True); input()"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {holds!r}], check=True)"
    command = [sys.executable, "-c", starts]
    process = psutil.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    assert peers.memory(process) > 100 * 2**20
    process.communicate("\n")
    assert process.returncode == 0


def test_a_framework_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no good"):
        peers.run([sys.executable, "-c", "raise SystemExit('no good')"], 1, "", tmp_path / "log")


def test_some_clients_alone(ratings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    kept = peers.some(ratings, 2, folder).read_text()
    assert {row.split(",")[0] for row in kept.splitlines()} == {"1", "2"}
    assert peers.some(ratings, None, folder) == ratings
