"""A federation over a network in which something is wrong: nodes that never come, or answer what cannot be used."""

# ruff: noqa: E402

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch

for name in ("flwr", "cryptography", "tomli"):
    pytest.importorskip(name, reason="pip install 'cgfedrec[flower]'")

from flwr.app import Message

from cgfedrec.deploy.network import federate
from cgfedrec.deploy.node import Node
from cgfedrec.deploy.parcels import DONE, FAILED, MISSING, REFUSED, Parcel, declined, pack_uploads, unpack_uploads
from cgfedrec.errors import InputError
from cgfedrec.files import locked
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.values import Field
from tests.here import CGFEDCO, PFEDREC, Here, deployed, ended

COLR = {"class_path": "cgfedrec.methods.CoLR", "init_args": {"dim": 8}}


class Killed(BaseException):
    """Ends a run at once."""


def unwritable(folder: Path, problem: str, wait: float) -> None:
    raise InputError(f"{folder}: cannot be written")


def trains(asked: Parcel, round: int) -> bool:
    return asked.text("what") == "train" and asked.whole("round") == round


def changed(
    grid: Here, change: Callable[[Parcel, Callable[[Parcel], Parcel]], Parcel], nodes: tuple[int, ...] = (1,)
) -> None:
    """Let nodes answer otherwise: ``change`` is given what was asked, and who answers it as it should be."""
    for node in nodes:
        honest = grid.nodes[node]
        grid.nodes[node] = lambda asked, honest=honest: change(asked, honest)  # type: ignore[misc]


@pytest.mark.parametrize("resumed", [False, True])
def test_sums_do_not_wait_for_a_node_that_does_not_come(resumed: bool) -> None:
    terms = deployed(CGFEDCO, {"rounds": 30})
    if resumed:
        grid = Here(terms)

        def kill(node: int, asked: Parcel) -> None:
            if trains(asked, 2):
                raise Killed

        grid.before = kill
        with pytest.raises(Killed):
            federate(terms, "r", grid.exchange())
        terms = replace(terms, resume="r")
    said: list[str] = []
    summary = federate(terms, "r", Here(terms, number=1).exchange(said))
    assert ended()["server"]["found"].numel()  # a structure has come of it
    assert summary["round"] < 30
    assert sum("20 clients alone who have not come: the run goes on without them" in line for line in said) == 1


def test_a_node_that_cannot_take_part_does_not_end_a_run_that_has_begun() -> None:
    terms = deployed(PFEDREC, {"rounds": 5, "participants": 30})
    grid, said = Here(terms), list[str]()
    late = grid.nodes.pop(1)

    def before(node: int, asked: Parcel) -> None:
        if trains(asked, 1):
            grid.nodes[1] = lambda asked: declined(FAILED, "its items are not those of the run")
        if trains(asked, 3):  # it is stopped, to be mended
            grid.nodes.pop(1, None)
        if trains(asked, 4):
            grid.nodes[1] = late

    grid.before = before
    summary = federate(terms, "r", grid.exchange(said))
    assert summary["round"] == 5
    told = [line for line in said if "its items are not those of the run" in line]
    assert told == ["node 1: its items are not those of the run; the run goes on without it, until it is started anew"]
    assert sum(node == 1 and asked.text("what") == "who" for node, asked in grid.asked) == 2
    assert "node 1 is here, with 20 clients" in said
    fewer = "loop.participants: 30 are to take part, and only 20 clients are there: all of them do"
    assert [line for line in said if "participants" in line] == [f"round {round}: {fewer}" for round in range(1, 5)]


def test_a_node_that_does_not_answer_is_waited_for_as_long_as_is_said() -> None:
    terms = replace(deployed(PFEDREC), start=60.0)
    grid, said = Here(terms), list[str]()
    push, begun = grid.push_messages, grid.clock

    def pushed(messages: list[Message]) -> list[str]:
        """Node 1 is silent."""
        ids: list[str] = []
        for message in messages:
            ids += push([message])
            if message.metadata.dst_node_id == 1:
                grid._replies.pop(ids[-1], None)
        return ids

    grid.push_messages = pushed  # type: ignore[method-assign, assignment]
    exchange = grid.exchange(said)
    asked_first: list[float] = []
    grid.before = lambda node, asked: asked_first.append(grid.clock) if trains(asked, 1) else None
    federate(terms, "r", exchange)
    assert "1 of 2 nodes have come; the run begins without others" in said
    assert asked_first[0] - begun < 65
    assert sum(node == 1 for node, _ in grid.asked) == 1


Change = Callable[[Parcel], Parcel]
WRONG: Mapping[str, tuple[str, Change]] = {
    "no means": ("train", lambda reply: Parcel({**reply.head, "means": None}, reply.body)),
    "other means": ("train", lambda reply: Parcel({**reply.head, "means": [0.5] * 9}, reply.body)),
    "means that are no numbers": ("train", lambda reply: Parcel({**reply.head, "means": [float("nan")]}, reply.body)),
    "one number for the bytes": ("train", lambda reply: Parcel({**reply.head, "bytes": [1]}, reply.body)),
    "no sums": ("evaluate", lambda reply: Parcel({**reply.head, "sums": {}}, {})),
    "sums of no metric": ("evaluate", lambda reply: Parcel({**reply.head, "sums": []}, {})),
    "more users than live there": ("evaluate", lambda reply: Parcel({**reply.head, "users": 21}, {})),
    "always something missing": ("train", lambda reply: Parcel({"status": MISSING, "kept": ["x"]}, {})),
    "missing what is no name": ("train", lambda reply: Parcel({"status": MISSING, "kept": [1]}, {})),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_run_goes_on_without_an_answer_that_is_none(wrong: str) -> None:
    terms = deployed(PFEDREC)
    what, change = WRONG[wrong]
    grid, said = Here(terms), list[str]()
    changed(grid, lambda asked, honest: change(honest(asked)) if asked.text("what") == what else honest(asked))
    summary = federate(terms, "r", grid.exchange(said))
    assert summary["round"] == 3
    assert len([line for line in said if "goes on without node 1, whose answer cannot be read" in line]) >= 3
    assert sum(node == 1 for node, _ in grid.asked) <= 2 * sum(node == 0 for node, _ in grid.asked)


def test_uploads_of_others_are_refused_before_they_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes stand for a sparse table of any size: 300 clients nobody asked for took two gigabytes."""
    shape = (50, 4)
    sent = [
        Upload(torch.tensor([one]), {"factor": torch.zeros(1, *shape)}, sparse=frozenset({"factor"})) for one in (3, 4)
    ]
    fields = {"factor": Field(shape, sparse=True)}
    parcel = pack_uploads(sent)
    assert unpack_uploads(parcel, "uploads", fields, asked=torch.tensor([4, 3, 9])).clients.tolist() == [3, 4]

    def never(*_: Any) -> None:
        raise AssertionError("it has been laid out")

    monkeypatch.setattr(Upload, "unpack", never)
    with pytest.raises(ValueError, match="not asked"):
        unpack_uploads(parcel, "uploads", fields, asked=torch.tensor([3]))


def test_a_round_in_which_nobody_came_through_leaves_what_clients_made_of_the_last_one() -> None:
    """CoLR trains with a basis of each round; the change goes with the basis of the round in which it was trained."""
    terms, tables = deployed(COLR, {"rounds": 3}), {}

    def answer(asked: Parcel, honest: Callable[[Parcel], Parcel]) -> Parcel:
        return declined(REFUSED, "it is late") if trains(asked, 2) else honest(asked)

    for run, rounds in (("two", 2), ("three", 3)):
        grid = Here(terms, run=run)
        if run == "three":
            changed(grid, answer, (0, 1))
        federate(replace(terms, rounds=rounds), run, grid.exchange(run=run))
        tables[run] = ended(run)["server"]["table"]
    assert tables["three"].equal(tables["two"])  # W with the A of round 1


def test_a_message_waits_for_another_process_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower starts another one where it takes the first for dead: that one's answer is found, and not made again."""
    terms = deployed(PFEDREC)
    folder = Path("fed/nodes/node-0")
    asked = Parcel({"what": "who", "run": "r", "deadline": 4e9}, {})
    monkeypatch.setattr("cgfedrec.deploy.node.PATIENCE", 0.0)
    with locked(folder, "busy"):
        refused = Node(folder, terms, "r").answer(asked)
    assert (refused.text("status"), "at work" in refused.text("why")) == (REFUSED, True)
    monkeypatch.setattr("cgfedrec.deploy.node.PATIENCE", 60.0)
    with monkeypatch.context() as patched:  # a folder into which nothing can be written is not waited for
        patched.setattr("cgfedrec.deploy.node.locked", unwritable)
        failed = Node(folder, terms, "r").answer(asked)
    assert (failed.text("status"), "cannot be written" in failed.text("why")) == (FAILED, True)
    with ExitStack() as stack:
        stack.enter_context(locked(folder, "busy"))
        held = stack.pop_all()
        Timer(1.5, held.close).start()
        assert Node(folder, terms, "r").answer(asked).text("status") == DONE


def test_whoever_goes_on_with_a_run_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped still writes its round; what goes on before it has done so would miss that."""
    terms, path, said = deployed(PFEDREC), Path("runs/flower/r/checkpoints/last.ckpt"), list[str]()
    states = []
    for rounds in (1, 2):
        federate(replace(terms, rounds=rounds, resume="r" * (rounds > 1)), "r", Here(terms).exchange())
        states.append(path.read_bytes())
    path.write_bytes(states[0])
    on = replace(terms, rounds=3, resume="r")
    with ExitStack() as stack:
        stack.enter_context(locked(Path("runs/flower/r"), "busy"))
        with monkeypatch.context() as patched:
            patched.setattr("cgfedrec.run.folder.STOPPING", 0.0)
            with pytest.raises(InputError, match=r"resume: a run is at work in .*/r; stop it"):
                federate(on, "r", Here(terms).exchange())
        stack.callback(path.write_bytes, states[1])  # before the lock is given back
        Timer(1.0, stack.pop_all().close).start()
        federate(on, "r", Here(terms).exchange(said))
    assert "the run goes on after round 2" in said


def test_a_node_that_is_busy_when_it_is_met_is_asked_again() -> None:
    terms = deployed(PFEDREC)
    grid, said, busy = Here(terms), list[str](), [True]

    def answer(asked: Parcel, honest: Callable[[Parcel], Parcel]) -> Parcel:
        return declined(REFUSED, "another process is at work") if busy and busy.pop() else honest(asked)

    changed(grid, answer)
    federate(terms, "r", grid.exchange(said))
    assert "2 nodes with 40 of 40 clients" in said
