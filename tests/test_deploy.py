"""A federation over a network: what nodes answer, what they keep, who is missed; and one on Flower, from end to end."""

# ruff: noqa: E402

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

for name in ("flwr", "cryptography", "tomli"):
    pytest.importorskip(name, reason="pip install 'cgfedrec[flower]'")

from flwr.app import Context, Message, RecordDict

from cgfedrec.deploy.client import answer
from cgfedrec.deploy.layouts import pack_layout, unpack_layout
from cgfedrec.deploy.network import federate
from cgfedrec.deploy.node import Node
from cgfedrec.deploy.opened import ServerOfNetwork
from cgfedrec.deploy.parcels import (
    DONE,
    FAILED,
    MISSING,
    REFUSED,
    Parcel,
    pack_broadcast,
    pack_uploads,
    unpack_broadcast,
    unpack_uploads,
)
from cgfedrec.deploy.server import RunEndedError
from cgfedrec.deploy.server import app as server_app
from cgfedrec.deploy.settings import Terms
from cgfedrec.errors import BusyError, InputError, Notice, RunError
from cgfedrec.files import file_digest, locked
from cgfedrec.run.checkpoint import Header, read_checkpoint, write_checkpoint
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Counts, Field, IdLists, Labels, Value
from tests.commands import cgfedrec
from tests.federation import Loopback
from tests.here import CGFEDCO, PFEDREC, SEED, Here, check_same, deployed, ended, simulated

# What is sent.


def everything() -> Broadcast:
    sizes = torch.tensor([2, 1, 0])
    values: dict[str, Value] = {
        "table": torch.randn(3, 4),
        "labels": Labels(torch.arange(9) % 3, 3),
        "counts": Counts(torch.tensor([[0, 1], [2, 3], [4, 5]]), Bounds(torch.tensor([[5], [9], [9]]).expand(3, 2))),
        "ids": IdLists(torch.tensor([[0, 2], [1, -1], [-1, -1]]), sizes, high=3),
    }
    return Broadcast(values, Upload(torch.tensor([2, 5]), {"own": torch.randn(2, 3)}))


def test_a_broadcast_arrives_as_it_was_sent() -> None:
    sent = everything()
    parcel = Parcel.of(pack_broadcast("broadcast", sent).records())
    found = unpack_broadcast("broadcast", parcel, {})
    assert found is not None
    assert found.own is not None
    assert found.fields == sent.fields
    assert found.pack() == sent.pack()
    assert found.own.clients.tolist() == [2, 5]
    assert found.own.pack() == sent.own.pack()  # type: ignore[union-attr]
    assert unpack_broadcast("broadcast", pack_broadcast("broadcast", None), {}) is None


def test_uploads_arrive_as_they_were_sent_and_others_are_refused() -> None:
    upload = Upload(torch.tensor([2, 5]), {"table": torch.randn(2, 3, 4)}, sparse=frozenset({"table"}))
    sent = pack_uploads([upload])
    found = unpack_uploads(Parcel.of(sent.records()), "uploads", upload.fields)
    assert found.values["table"].equal(upload.values["table"])
    for wrong in (
        Parcel(sent.head, {"uploads/own": sent.body["uploads/own"][:-1]}),
        Parcel({**sent.head, "uploads/clients": [2, 2]}, sent.body),
        Parcel({**sent.head, "uploads/sizes": [1, 2]}, sent.body),
        Parcel({**sent.head, "uploads/clients": [2, -5]}, sent.body),
    ):
        with pytest.raises(ValueError, match=r"sends twice|not as long|cut off|no message|no list of numbers"):
            unpack_uploads(wrong, "uploads", upload.fields)
    with pytest.raises(ValueError, match="nothing is expected"):
        unpack_uploads(sent, "uploads", {})


@pytest.mark.parametrize("length", range(0, 200, 7))
def test_what_is_no_layout_is_refused(length: int) -> None:
    whole = pack_layout(everything().fields)
    if length < len(whole):
        with pytest.raises(ValueError, match="no layout"):
            unpack_layout(whole[:length])
    damaged = bytearray(whole)
    damaged[length % len(whole)] ^= 0x55
    with suppress(ValueError):  # and nothing else
        unpack_layout(bytes(damaged))


def test_a_layout_of_too_much_is_refused_before_it_is_made() -> None:
    with pytest.raises(ValueError, match="no value may be"):
        unpack_layout(pack_layout({"table": Field((2**20, 2**20))}))


# What nodes do.


def ask(terms: Terms, what: str, round: Any = 1, taken: Any = 0, **head: Any) -> Parcel:
    """What a server of PFedRec asks of node 0."""
    welcome = pack_broadcast("welcome", Broadcast({"seed": torch.tensor(3)}))
    asked = {"what": what, "run": "r", "round": round, "taken": taken, "deadline": 2e9, "clients": [0, 3, 4]}
    return Parcel({**welcome.head, "broadcast": False, **asked, **head}, welcome.body)


def node_of(terms: Terms, clock: float = 1e9) -> Node:
    return Node(Path("fed/nodes/node-0"), terms, "r", clock=lambda: clock)


def state_file() -> Path:
    return Path("fed/nodes/node-0/state/r.ckpt")


def test_a_round_is_trained_once_and_answered_alike_also_by_a_node_that_comes_back() -> None:
    terms = deployed(PFEDREC)
    first = node_of(terms).answer(ask(terms, "train"))
    assert first.text("status") == DONE
    before = state_file().stat().st_ino  # another one, wherever it is written again
    again = node_of(terms).answer(ask(terms, "train"))  # another process, which knows what is in the folder alone
    assert again.body == first.body
    assert {**again.head} == {**first.head}
    assert state_file().stat().st_ino == before


def test_a_closed_round_is_refused_and_private_state_stays() -> None:
    terms = deployed(PFEDREC)
    node_of(terms).answer(ask(terms, "train", 1))
    node_of(terms).answer(ask(terms, "train", 2, taken=1))
    before = state_file().read_bytes()
    for late in (
        node_of(terms).answer(ask(terms, "train", 1)),  # a later one has been trained
        node_of(terms, clock=3e9).answer(ask(terms, "train", 3, taken=2)),  # its time is over
    ):
        assert late.text("status") == REFUSED
        assert "closed" in late.text("why")
    assert state_file().read_bytes() == before
    assert node_of(terms).answer(ask(terms, "train", 3, taken=2)).text("status") == DONE
    assert state_file().read_bytes() != before


def test_a_round_whose_time_is_over_while_it_is_trained_leaves_no_trace() -> None:
    terms = deployed(PFEDREC)
    times = iter([1e9, 3e9])
    node = Node(Path("fed/nodes/node-0"), terms, "r", clock=lambda: next(times))
    assert node.answer(ask(terms, "train")).text("status") == REFUSED
    assert not state_file().exists()


def test_a_round_that_the_server_closed_without_a_node_is_undone() -> None:
    """It was trained, but the answer came too late: the next round goes on from the one that was taken in."""
    terms = deployed(PFEDREC)
    node_of(terms).answer(ask(terms, "train", 1))
    expected = node_of(terms).answer(ask(terms, "train", 3, taken=1))
    state_file().unlink()
    node_of(terms).answer(ask(terms, "train", 1))
    node_of(terms).answer(ask(terms, "train", 2, taken=1))
    found = node_of(terms).answer(ask(terms, "train", 3, taken=1))
    assert found.body == expected.body
    lost = node_of(terms).answer(ask(terms, "train", 9, taken=7))
    assert "begin anew" in lost.text("note")


def test_nothing_of_another_run_or_of_no_run_is_done() -> None:
    terms = deployed(PFEDREC)
    for wrong, why in (
        (ask(terms, "train", run="s"), "is of run"),
        (ask(terms, "dance"), "cannot be read"),
        (ask(terms, "train", clients=[40]), "below 40"),
        (ask(terms, "train", round=-1), "no count"),
        (ask(terms, "evaluate", stage="train"), "no stage"),
    ):
        answer = node_of(terms).answer(wrong)
        assert answer.text("status") == FAILED
        assert why in answer.text("why")
    assert not state_file().exists()
    missing = node_of(terms).answer(ask(terms, "train", **{"broadcast/kept": ["structure/1"]}))
    assert missing.text("status") == MISSING
    assert missing.texts("kept") == ["structure/1"]


def test_a_node_says_what_its_folder_lacks() -> None:
    terms = deployed(PFEDREC)
    folder = Path("fed/nodes/node-0")
    users = (folder / "users.csv").read_text()
    for text, why in (("user,number\n1,0\n", "has no number"), (users.replace(",1\n", ",40\n"), "from 0 to 39")):
        (folder / "users.csv").write_text(text)
        assert why in node_of(terms).answer(ask(terms, "who")).text("why")
    (folder / "users.csv").write_text(users)
    items = (folder / "items.csv").read_text()
    (folder / "items.csv").write_text(items + "51\n")
    with pytest.raises(InputError, match="the same everywhere"):
        node_of(terms)
    (folder / "items.csv").unlink()
    (folder / "interactions.csv").unlink()
    with pytest.raises(InputError, match=r"(?s)is missing.*expected one"):
        node_of(terms)


def test_a_node_without_its_folder_ends_the_run_and_both_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    terms = deployed(PFEDREC)
    config = {name.replace("_", "-"): value for name, value in vars(terms).items()}
    grid = Here(terms)

    def on_flower(parcel: Parcel) -> Parcel:
        node = Context(1, 1, {"folder": "node-0"}, RecordDict(), dict(config))
        return Parcel.of(answer(Message(parcel.records(), 1, "query.who"), node).content)

    grid.nodes[0] = on_flower
    with pytest.raises(RunEndedError) as ended:
        server_app(grid, Context(1, 1, {}, RecordDict(), dict(config)))  # type: ignore[arg-type]
    why = f"{Path('node-0').absolute()}: there is no such folder on this machine; flower-supernode is told by"
    assert f"node 0: {why}" in str(ended.value)
    assert f"error: {why}" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:  # as Flower logs it
        shown = StringIO()
        log = logging.getLogger("flwr of this test")
        patch.setattr(log, "handlers", [logging.StreamHandler(shown)])
        log.error("ServerApp raised an exception", exc_info=ended.value)
    assert why in shown.getvalue()
    assert "Traceback" not in shown.getvalue()


def test_data_that_change_in_a_run_are_noticed() -> None:
    terms = deployed(PFEDREC)
    node_of(terms).answer(ask(terms, "train"))
    file = Path("fed/nodes/node-0/interactions.csv")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert "have changed" in node_of(terms).answer(ask(terms, "train", 2, taken=1)).text("why")


def test_a_secret_is_drawn_once_and_is_for_its_owner_alone() -> None:
    terms = deployed(PFEDREC)
    path = Path("fed/nodes/node-0/secret")
    path.unlink()
    drawn = node_of(terms).folder.secret()
    assert node_of(terms).folder.secret() == drawn != SEED
    assert path.stat().st_mode & 0o077 == 0


# The loop, with nodes in this process.


@pytest.mark.parametrize(
    ("method", "loop"),
    [
        (PFEDREC, {}),
        (PFEDREC, {"participation": 0.6}),
        (CGFEDCO, {"rounds": 20}),
        # Servers that look at single uploads have them in the same order, whichever node answers first.
        ({"class_path": "cgfedrec.methods.GPFedRec", "init_args": {"dim": 8}}, {}),
        ({"class_path": "cgfedrec.methods.CoFedRec", "init_args": {"dim": 8}}, {}),
        ({"class_path": "cgfedrec.methods.FedCA", "init_args": {"dim": 8}}, {}),
        ({"class_path": "cgfedrec.methods.PFedRec", "init_args": {"dim": 8, "aggregation": "multi_krum"}}, {}),
    ],
    ids=["PFedRec", "PFedRec, some", "CGFedCo", "GPFedRec", "CoFedRec", "FedCA", "PFedRec, Krum"],
)
def test_a_network_ends_where_the_simulator_ends(method: Mapping[str, Any], loop: Mapping[str, Any]) -> None:
    terms = deployed(method, loop)
    summary = federate(terms, "r", Here(terms).exchange())
    wanted, found = simulated(), ended()
    check_same(found, wanted)
    assert found["bytes"] == wanted["bytes"]
    assert found["round"] == wanted["round"]
    values, others = found["history"], wanted["history"]
    column = values["columns"].index("val/ndcg@10")
    other = others["columns"].index("val/ndcg@10")
    torch.testing.assert_close(values["values"][-1, column], others["values"][-1, other], rtol=0, atol=1e-9)
    assert summary["clients/gone"] == 0


def test_broadcasts_in_few_bits_travel_as_such() -> None:
    """The server rounds, and a node makes of it what a client in a simulation makes."""
    few = {"class_path": "cgfedrec.wire.quantised.Quantised", "init_args": {"bits": 8, "down": 4}}
    terms = deployed(PFEDREC, steps=[few])
    wanted, grid = simulated(), Here(terms)
    federate(terms, "r", grid.exchange())
    check_same(ended(), wanted)
    assert ended()["bytes"] == wanted["bytes"]
    down = [len(asked.body.get("broadcast/values", b"")) for _, asked in grid.asked if asked.text("what") == "train"]
    assert 50 * 8 / 2 < max(down) < 50 * 8 / 2 + 100, "4 bits a number"


def test_a_node_that_comes_back_in_time_changes_nothing() -> None:
    terms = deployed(PFEDREC)
    grid, stopped = Here(terms), list[int]()
    all_nodes, said = dict(grid.nodes), list[str]()

    def before(node: int, asked: Parcel) -> None:
        if asked.text("what") == "train" and asked.whole("round") == 2 and node == 1 and not stopped:
            stopped.append(node)
            grid.nodes.pop(node)  # it answers error 5, and is back some seconds later

    exchange = grid.exchange(said)
    sleep = exchange.sleep

    def sleeps(seconds: float) -> None:
        sleep(seconds)
        if grid.clock > 1e9 + 10:
            grid.nodes.update(all_nodes)

    grid.before, exchange.sleep = before, sleeps
    federate(terms, "r", exchange)
    assert stopped
    check_same(ended(), simulated())
    assert not [line for line in said if "goes on without" in line]


def test_without_a_node_that_stays_away_the_run_says_so_and_ends() -> None:
    terms = deployed(PFEDREC)
    grid, said = Here(terms), list[str]()

    def before(node: int, asked: Parcel) -> None:
        if asked.text("what") == "train" and asked.whole("round") == 2:
            grid.nodes.pop(1, None)

    grid.before = before
    summary = federate(terms, "r", grid.exchange(said))
    assert summary["round"] == 3
    assert (summary["nodes/gone"], summary["clients/gone"]) == (1, 20)
    assert sum("node 1, with 20 clients, has gone" in line for line in said) == 1
    assert len([node for node, asked in grid.asked if asked.text("what") == "train" and node == 1]) == 2


@pytest.mark.parametrize("gone_in", [1, 2, 3])
def test_sums_that_wait_for_a_node_that_is_gone_are_opened_without_it(gone_in: int) -> None:
    terms = deployed(CGFEDCO, {"rounds": 30})
    grid, said = Here(terms), list[str]()

    def before(node: int, asked: Parcel) -> None:
        if asked.text("what") == "train" and asked.whole("round") == gone_in:
            grid.nodes.pop(1, None)

    grid.before = before
    summary = federate(terms, "r", grid.exchange(said))
    assert summary["clients/gone"] == 20
    assert ended()["server"]["found"].numel()  # a structure has come of it
    assert summary["test/ndcg@10"] > 0
    assert summary["round"] < 30


def test_a_run_without_anybody_left_ends() -> None:
    terms = deployed(PFEDREC)
    grid = Here(terms)
    grid.before = lambda node, asked: grid.nodes.clear() if asked.text("what") == "train" else None
    with pytest.raises(RunError, match="none of the 40 clients"):
        federate(terms, "r", grid.exchange())
    grid = Here(terms, number=0)
    with pytest.raises(RunError, match="no node has come"):
        federate(terms, "r", grid.exchange())


def test_an_answer_that_cannot_be_read_or_is_for_others_is_left_out() -> None:
    terms = deployed(PFEDREC)
    grid, said = Here(terms), list[str]()
    honest = grid.nodes[1]

    def lies(asked: Parcel) -> Parcel:
        reply = honest(asked)
        if asked.text("what") != "train":
            return reply
        if asked.whole("round") == 1:
            return Parcel(reply.head, {**reply.body, "uploads/own": reply.body["uploads/own"][:-1]})
        return Parcel({**reply.head, "users": [0], "uploads/clients": [0], "uploads/sizes": [0]}, {})

    grid.nodes[1] = lies
    summary = federate(terms, "r", grid.exchange(said))
    assert len([line for line in said if "goes on without node 1, whose answer cannot be read" in line]) == 3
    assert summary["round"] == 3


def test_single_clients_are_refused_and_the_others_of_their_node_are_taken() -> None:
    """One sends what is no message, one what is not finite: a round is that of all others."""
    terms = deployed(PFEDREC, {"failures": {"refused": 0.1}})
    grid = Here(terms)
    honest = grid.nodes[1]

    def lies(asked: Parcel) -> Parcel:
        reply = honest(asked)
        if asked.text("what") != "train":
            return reply
        sizes, body = reply.wholes("uploads/sizes").tolist(), bytearray(reply.body["uploads/own"])
        body[0] ^= 1  # how many fields there are, in the first client's message
        body[sizes[0] + sizes[1] - 4 : sizes[0] + sizes[1]] = b"\xff\xff\xff\xff"  # NaN, in the second one's
        return Parcel(reply.head, {**reply.body, "uploads/own": bytes(body)})

    grid.nodes[1] = lies
    with pytest.warns(Notice, match=r"round 2: 2 of 40 uploads are refused; client \d+: .*; client \d+: .*not finite"):
        summary = federate(terms, "r", grid.exchange())
    assert summary["round"] == 3
    assert ended()["failures"] == [0, 6]


def test_failures_are_not_simulated_over_a_network() -> None:
    terms = deployed(PFEDREC, {"failures": {"before": 0.1}})
    with pytest.raises(InputError, match=r"loop.failures: nodes fail by themselves"):
        federate(terms, "r", Here(terms).exchange())


def test_two_nodes_with_one_client_are_refused() -> None:
    terms = deployed(PFEDREC)
    grid = Here(terms)
    grid.nodes[1] = grid.nodes[0]
    with pytest.raises(InputError, match="node 1: node 0 has client 0 too"):
        federate(terms, "r", grid.exchange())


# The command.


def test_deploy_writes_all_or_nothing() -> None:
    deployed(PFEDREC, nodes=3)
    assert sorted(path.name for path in Path("fed").rglob("*")) == sorted(
        ["app", "pyproject.toml", "nodes"]
        + [f"node-{number}" for number in range(3)]
        + 3 * ["interactions.csv", "items.csv", "users.csv", "secret"]
    )
    app = Path("fed/app/pyproject.toml").read_text()
    assert "interactions.csv" not in app
    private = ("--nodes", 2, "--output", "new", "--method", "CGFedCo", "--method.privacy.epsilon", 8)
    masked = ("--wire.steps", "[{class_path: SecureSums}]")
    for options, why in (
        (private, "see each client's message"),
        ((*private, *masked, "--loop.participants", 20), "that of 20 of 40 clients has only their part of the noise"),
        (("--nodes", 2, "--output", "fed"), "is not empty"),
        (("--nodes", 0, "--output", "new"), "--nodes"),
        (("--nodes", 41, "--output", "new"), "more than the 40 clients"),
        (("--nodes", 2, "--output", "new", "--data.split", "temporal"), "no node has"),
        (("--nodes", 2, "--output", "new", "--method", "EASE"), "reference"),
        (("--nodes", 2, "--output", "config.yaml/x"), "is a file"),
    ):
        done = cgfedrec("deploy", "--config", "config.yaml", *options)
        assert done.returncode == 2, done.stderr
        assert why in done.stderr
        assert not Path("new").exists()
    assert not list(Path().glob(".new*"))


class Killed(BaseException):
    """A server that is killed cannot say anything."""


def killed_at(terms: Terms, what: str, round: int, node: int) -> None:
    """Run ``r``, whose server is killed as it sends a message to a node."""
    here = Here(terms)

    def before(to: int, asked: Parcel) -> None:
        if (asked.text("what"), asked.whole("round"), to) == (what, round, node):
            raise Killed

    here.before = before
    with pytest.raises(Killed):
        federate(terms, "r", here.exchange())


@pytest.mark.parametrize(
    ("method", "what", "node"),
    [(PFEDREC, "train", 0), (PFEDREC, "evaluate", 0), (CGFEDCO, "train", 1), (CGFEDCO, "evaluate", 0)],
    ids=["PFedRec, train", "PFedRec, evaluate", "CGFedCo, train", "CGFedCo, evaluate"],
)
def test_a_server_that_is_killed_goes_on_to_the_same_end(method: Mapping[str, Any], what: str, node: int) -> None:
    terms = deployed(method, {"rounds": 12, "participation": 0.6})
    killed_at(terms, what, 10 if what == "evaluate" else 3, node)
    said: list[str] = []
    summary = federate(replace(terms, resume="r"), "r", Here(terms).exchange(said))
    wanted, found = simulated(), ended()
    check_same(found, wanted)
    assert found["bytes"] == wanted["bytes"]
    assert summary["round"] == wanted["round"]
    assert any("the run goes on after round" in line for line in said)
    assert not any("begin anew" in line for line in said)
    rounds = pl.read_csv("runs/flower/r/metrics.csv")["round"].to_list()
    assert rounds == sorted(set(rounds))


def test_a_server_whose_own_code_has_changed_goes_on_and_says_so() -> None:
    Path("mine.py").write_text("from cgfedrec.methods import PFedRec\n\n\nclass Mine(PFedRec):\n    pass\n")
    sys.path.append(str(Path.cwd()))
    terms = deployed(PFEDREC)
    terms = replace(terms, settings=terms.settings.replace("cgfedrec.methods.PFedRec", "mine.Mine"), rounds=1)
    before = federate(terms, "r", Here(terms, trusted=("mine",)).exchange(), ("mine",))["code"]
    assert before == {"mine": file_digest(Path("mine.py"))}
    with Path("mine.py").open("a") as file:
        file.write("# mended\n")
    said: list[str] = []
    terms = replace(terms, resume="r", rounds=2)
    after = federate(terms, "r", Here(terms, trusted=("mine",)).exchange(said), ("mine",))["code"]
    assert "what mine.py holds has changed since the run began" in said
    assert after == {"mine": f"{before['mine']}, {file_digest(Path('mine.py'))}"}
    last = Path("runs/flower/r/checkpoints/last.ckpt")
    assert read_checkpoint(last)["code"] == after
    with pytest.warns(Notice, match=r"ckpt_path: what mine.py holds has changed since its run began"):
        ServerOfNetwork(last, Path("fed/nodes/node-0/items.csv"), ["--trust", "mine"])


def test_a_checkpoint_that_holds_something_else_is_refused() -> None:
    terms = deployed(PFEDREC)
    killed_at(terms, "train", 3, 0)
    path = Path("runs/flower/r/checkpoints/last.ckpt")
    state = read_checkpoint(path)
    loop = state["loop"]
    for wrong in (
        {},
        loop | {"round": -1},
        loop | {"taken": [2] * 40},
        loop | {"history": {"columns": [], "whole": [], "values": []}},
        loop | {"taken": loop["taken"][:39]},
        loop | {"server": {}},
    ):
        write_checkpoint(path, Header.of(state), wrong)
        with pytest.raises(InputError, match=r"resume: .*last\.ckpt holds no state of"):
            federate(replace(terms, resume="r"), "r", Here(terms).exchange())


def test_a_masked_run_goes_on_to_the_same_end() -> None:
    terms = deployed(PFEDREC, {"rounds": 2}, steps=[{"class_path": "cgfedrec.wire.secure.SecureSums"}])
    killed_at(terms, "unmask", 2, 1)
    federate(replace(terms, resume="r"), "r", Here(terms).exchange())
    check_same(ended(), simulated())


def test_a_run_goes_on_with_what_is_its_own_alone() -> None:
    terms = deployed(PFEDREC)
    with pytest.raises(InputError, match=r"there is no .*last\.ckpt to go on from"):
        federate(replace(terms, resume="r"), "r", Here(terms).exchange())
    assert not Path("runs").exists()
    killed_at(terms, "train", 2, 0)
    others = replace(terms, resume="r", settings=terms.settings.replace("seed_everything: 7", "seed_everything: 8"))
    assert others.settings != terms.settings
    with pytest.raises(InputError, match="of another config"):
        federate(others, "r", Here(terms).exchange())
    told = Node(Path("fed/nodes/node-0"), others, "r").answer(ask(others, "who"))
    assert "the settings of the run have changed" in told.text("why")
    with pytest.raises(InputError, match=r"resume: .* is no run"):
        replace(terms, resume="../r")


# On Flower.


def busy(run: Path) -> bool:
    """Whether a server is at work in the folder of a run."""
    try:
        with locked(run, "busy"):
            return False
    except BusyError:
        return True


def test_on_flower_with_tls_and_authentication(tmp_path: Path) -> None:
    """A node is stopped politely and comes back; the run is stopped and goes on; then the other node is killed."""
    method = {"class_path": "cgfedrec.methods.PFedRec", "init_args": {"dim": 256}}
    deployed(method, {"rounds": 2, "evaluate_every": 9})
    wanted = simulated()
    folders = [tmp_path / f"fed/nodes/node-{number}" for number in range(2)]
    with Loopback(tmp_path, folders) as flower:
        begun = flower.run(tmp_path / "fed/app", {"rounds": 9, "absent": 15.0})
        last: list[dict[str, Any]] = []

        def reached(round: int) -> bool:
            for path in tmp_path.glob("runs/flower/*/checkpoints/last.ckpt"):
                last[:] = [dict(read_checkpoint(path)["loop"])]
            return bool(last) and last[0]["round"] >= round

        flower.wait_for("the first round", lambda: reached(1), 240)
        flower.stop_node(0)
        flower.start_node(0)
        flower.wait_for("the second round", lambda: reached(2), 240)
        up, down = flower.proxy.up, flower.proxy.down
        flower.flwr("stop", begun, "here")
        assert last[0]["round"] == 2
        check_same(last[0], wanted)
        assert last[0]["bytes"] == wanted["bytes"]
        (run,) = tmp_path.glob("runs/flower/*")
        flower.wait_for("its end", lambda: not busy(run), 60)
        reached(0)  # it may have ended another round before it was stopped
        stopped = last[0]["round"]
        met = (run / "config.yaml").stat().st_mtime_ns  # written anew once all nodes have come
        # Two rounds, since a node may have answered in the first before it is killed.
        others = {"rounds": stopped + 2, "absent": 10.0, "start": 240.0, "resume": f'"{run.name}"'}
        flower.run(tmp_path / "fed/app", others)
        flower.wait_for("its nodes", lambda: (run / "config.yaml").stat().st_mtime_ns > met, 240)
        flower.kill_node(1)
        flower.wait_for("the end", (run / "summary.json").exists, 300)
    assert list(tmp_path.glob("runs/flower/*")) == [run]
    summary = yaml.safe_load((run / "summary.json").read_text())
    assert (summary["round"], summary["nodes/gone"], summary["clients/gone"]) == (stopped + 2, 1, 20)
    # Six messages went down to nodes in two rounds and were answered, and one came twice, to the node that was
    # stopped. A broadcast that is the same for all comes down once for a node, and not once for each of its clients.
    bytes_up, bytes_down, _ = wanted["bytes"]
    assert bytes_up <= up <= 1.05 * bytes_up + 7 * 20_000
    assert down <= 1.05 * bytes_down * 2 / 40 + 7 * 20_000
