"""How histories are read where nobody can choose, and where there is too little to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cgfedrec.data.own import Own
from cgfedrec.methods import CGFedCo
from cgfedrec.run.checkpoint import read_checkpoint
from cgfedrec.structure import Neighbours
from cgfedrec.structure.structure import SumsClient
from cgfedrec.testing import trained
from tests.commands import cgfedrec
from tests.sums import server_of, small_data


def written(path: str, shared: int, users: int = 6) -> str:
    """A file in which all users have some items together, and four of their own each."""
    lines = ["user,item,timestamp"]
    for user in range(users):
        items = [f"s{item}" for item in range(shared)] + [f"own{user}-{item}" for item in range(4)]
        lines += [f"u{user},{item},{100 * user + time}" for time, item in enumerate(items)]
    Path(path).write_text("\n".join(lines) + "\n")
    return path


def fit(*options: object) -> Any:
    return cgfedrec("fit", "--logger", "null", "--fabric.accelerator", "cpu", *options)


@pytest.mark.parametrize("shared", [0, 1])
def test_items_that_hardly_anybody_shares_are_said_to_be_too_few(shared: int) -> None:
    path = written("few.csv", shared)
    for command in ("fit", "estimate"):
        done = cgfedrec(command, "--data.path", path, "--logger", "null")
        assert done.returncode == 1
        assert f"{shared} of {24 + shared} items have 3 clients (method.least_clients)" in done.stderr
    assert fit("--data.path", path, "--method.least_clients", 1, "--run_dir", "run").returncode == 0


def test_two_items_that_are_shared_are_enough() -> None:
    assert fit("--data.path", written("two.csv", 2), "--run_dir", "run").returncode == 0


def test_where_nobody_can_choose_a_reading_that_is_said() -> None:
    synthetic = ("--data.synthetic.users", 60, "--data.synthetic.items", 50)
    measured = fit(*synthetic, "--run_dir", "measured")
    chosen = int(read_checkpoint(Path("measured/checkpoints/best.ckpt"))["loop"]["server"]["chosen"])
    (told,) = [line for line in measured.stdout.splitlines() if "--method.read_by" in line]
    reading = told.partition("--method.read_by ")[2].strip("'")
    assert told.startswith("to train on everything")

    done = fit(*synthetic, "--data.split", "none", "--run_dir", "flat")
    assert "nobody holds anything out for validation, so nothing is chosen" in done.stderr
    given = fit(*synthetic, "--data.split", "none", "--method.read_by", reading, "--run_dir", "given")
    assert "nothing is chosen" not in given.stderr
    assert int(read_checkpoint(Path("given/checkpoints/best.ckpt"))["loop"]["server"]["chosen"]) == chosen
    assert yaml.safe_load(Path("given/config.yaml").read_text())["method"]["init_args"]["read_by"] == reading


def test_noise_does_not_choose_for_people_who_hold_nothing_out() -> None:
    done = fit("--data.synthetic.users", 60, "--data.split", "none", "--method.privacy.epsilon", 8, "--run_dir", "run")
    assert done.returncode == 2
    assert "method.read_by: nobody holds anything out" in done.stderr


def test_a_reading_stays_where_columns_are_found_anew_and_nobody_can_choose() -> None:
    """Everybody goes along a chain of items, so the newest ones tell what comes next: rho is not 0."""
    for name, steps in (("old", 12), ("new", 16)):
        lines = ["user,item,timestamp"]
        lines += [f"u{user},i{(user + 2 * step) % 60},{step}" for user in range(120) for step in range(steps)]
        Path(f"{name}.csv").write_text("\n".join(lines) + "\n")
    assert fit("--data.path", "old.csv", "--run_dir", "old").returncode == 0
    chosen = int(read_checkpoint(Path("old/checkpoints/last.ckpt"))["loop"]["server"]["chosen"])
    assert chosen > 0
    going_on = ("--update_from", "old/checkpoints/last.ckpt", "--data.path", "new.csv", "--data.split", "none")
    done = fit(*going_on, "--run_dir", "new")
    assert "found anew" in done.stdout
    assert int(read_checkpoint(Path("new/checkpoints/best.ckpt"))["loop"]["server"]["chosen"]) == chosen


@pytest.mark.parametrize(
    ("reading", "kind"), [("rho 1, beta 10 of 14 days", torch.int32), ("rho 0, beta 0", torch.uint8)]
)
def test_clients_read_as_was_chosen_among_more_readings_than_a_byte_tells(reading: str, kind: torch.dtype) -> None:
    structure = Neighbours(recents=tuple(float(days) for days in range(1, 15)))
    loop = trained(CGFedCo(columns=8, structure=structure, read_by=reading), small_data(), 100, rounds=9)
    chosen = int(server_of(loop).chosen)
    assert structure.readings[chosen] == reading
    assert (chosen >= 256) == (kind == torch.int32)
    users = torch.arange(4)
    broadcast = loop.server.broadcast(users, 10)
    assert broadcast is not None
    told = broadcast.kept["reading"].values["chosen"]
    assert isinstance(told, torch.Tensor)
    assert told.dtype == kind, "no byte more than it takes"
    with loop.clients.workers.one() as worker:
        client = worker.client
    assert isinstance(client, SumsClient)
    client.load(users, loop.clients.store.read(users))
    client.own = Own(loop.data, users, 10, 1)
    client.receive(broadcast, 10)
    assert client.chosen == chosen
