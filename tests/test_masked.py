"""Masked sums over a network: the same bits as in a simulation, whoever drops out, and no single upload to be read."""

# ruff: noqa: E402

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

for name in ("flwr", "cryptography", "tomli", "Crypto"):
    pytest.importorskip(name, reason="pip install 'cgfedrec[flower,secure]'")

from cgfedrec.deploy.network import federate
from cgfedrec.deploy.node import Node
from cgfedrec.deploy.parcels import DONE, FAILED, REFUSED, Parcel, declined
from cgfedrec.errors import InputError, RunError
from tests.here import CGFEDCO, PFEDREC, Here, check_same, deployed, ended, simulated
from tests.test_masks import fixed_bytes, told_apart

STEP: dict[str, Any] = {
    "class_path": "cgfedrec.wire.secure.SecureSums",
    "init_args": {"least_clients": 5, "neighbours": 6},
}
SECRETS = Path("fed/nodes/node-0/state/r.secrets")


@pytest.mark.parametrize(
    ("method", "loop"), [(PFEDREC, {}), (CGFEDCO, {"rounds": 20, "participants": 18})], ids=["PFedRec", "CGFedCo"]
)
def test_masked_sums_end_where_the_simulator_ends(method: Mapping[str, Any], loop: Mapping[str, Any]) -> None:
    """A sum that spans rounds is opened round by round; 18, 18 and 4 would leave too few for the last one."""
    terms, said = deployed(method, loop, steps=[STEP]), list[str]()
    federate(terms, "r", Here(terms).exchange(said))
    found, wanted = ended(), simulated()
    check_same(found, wanted)
    assert "clients mask what they send" in said[0]
    assert "unsigned" in said[0]
    assert SECRETS.stat().st_mode & 0o077 == 0
    if not loop:
        assert found["bytes"][:2] == wanted["bytes"][:2]


def test_masks_of_nodes_that_are_killed_are_taken_off_by_the_shares_of_others() -> None:
    def ended_without(steps: list[object], last: Mapping[int, tuple[str, int]]) -> dict[str, Any]:
        """Where the server ends if some of six nodes are gone from an exchange of a round on."""
        terms = deployed(CGFEDCO, {"rounds": 4}, nodes=6, steps=steps)
        grid = Here(terms, number=6)

        def dies(node: int, asked: Parcel) -> None:
            if last.get(node) == (asked.text("what"), asked.whole("round")):
                grid.nodes.pop(node, None)

        grid.before = dies
        assert federate(terms, "r", grid.exchange())["nodes/gone"] == 2
        found = ended()
        for folder in ("fed", "runs"):
            shutil.rmtree(folder)
        return found

    step = STEP | {"init_args": {"least_clients": 5, "neighbours": 20}}  # of whom a third is not too many
    masked = ended_without([step], {1: ("train", 2), 3: ("unmask", 2)})
    # What node 3 has sent is in the sum: as if it had died in the next round.
    check_same(masked, ended_without([], {1: ("train", 2), 3: ("train", 3)}))


def test_a_sum_without_shares_enough_stays_closed_and_the_run_goes_on_with_the_next_round() -> None:
    terms, said = deployed(PFEDREC, steps=[STEP]), list[str]()
    grid = Here(terms)

    def dies(node: int, asked: Parcel) -> None:
        if asked.text("what") == "train" and asked.whole("round") == 2:
            grid.nodes.pop(1, None)

    grid.before = dies
    summary = federate(terms, "r", grid.exchange(said))
    assert any(line.startswith("round 2: the sum stays closed: of client ") for line in said)
    assert summary["round"] == 3
    column = ended()["history"]["columns"].index("round")
    assert ended()["history"]["values"][:, column].tolist() == [1, 3]
    last = [asked for _, asked in grid.asked if asked.text("what") == "train"][-1]
    assert (last.whole("round"), last.whole("taken")) == (3, 1), "what was trained in vain is undone"


def test_a_node_that_goes_once_it_has_sent_goes_on_from_what_was_added_up() -> None:
    """Were the round undone on it, its clients would have trained otherwise than the sum says."""
    step = STEP | {"init_args": {"least_clients": 5, "neighbours": 20}}  # of whom a third is not too many
    terms = deployed(PFEDREC, {"rounds": 3}, 3, [step])
    grid, away = Here(terms, 3), dict[int, Any]()

    def goes(node: int, asked: Parcel) -> None:
        if asked.text("what") == "unmask" and asked.whole("round") == 1 and node == 2:
            away[2] = grid.nodes.pop(2)
        if asked.text("what") == "evaluate" and away:
            grid.nodes[2] = away.pop(2)

    grid.before = goes
    said = list[str]()
    federate(terms, "r", grid.exchange(said))
    assert "node 2, with 13 clients, has gone: the run goes on without it" in said
    found = [
        (asked.whole("round"), asked.whole("taken"))
        for node, asked in grid.asked
        if node == 2 and asked.text("what") == "train"
    ]
    assert found == [(1, 0), (2, 1), (3, 2)]
    check_same(ended(), simulated())


def test_too_few_for_a_sum_end_a_run_of_tables() -> None:
    terms, said = deployed(PFEDREC, steps=[STEP | {"init_args": {"least_clients": 25}}]), list[str]()
    grid = Here(terms)

    def dies(node: int, asked: Parcel) -> None:
        if asked.text("what") == "keys":
            grid.nodes.pop(1, None)

    grid.before = dies
    with pytest.raises(RunError, match="20 clients are left, and no sum of fewer than 25 is opened"):
        federate(terms, "r", grid.exchange(said))
    assert "round 1: the sum stays closed: 20 clients have told their keys" in "".join(said)


def test_too_few_for_the_last_part_of_a_sum_are_left_out() -> None:
    step = STEP | {"init_args": {"least_clients": 15, "neighbours": 6}}
    terms, said = deployed(CGFEDCO, {"rounds": 3}, nodes=3, steps=[step]), list[str]()
    grid = Here(terms, number=3)
    honest = grid.nodes[1]

    def busy(asked: Parcel) -> Parcel:
        """Node 1, with 13 clients, is there and takes no part in the first round."""
        if asked.text("what") == "keys" and asked.whole("round") == 1:
            return declined(REFUSED, "is busy")
        return honest(asked)

    grid.nodes[1] = busy
    federate(terms, "r", grid.exchange(said))
    assert "round 2: 13 clients are left, and no sum of fewer than 15 is opened: the run goes on without them" in said
    assert int(ended()["server"]["at"]) == 3, "no sum waits for them"


def test_single_clients_that_cannot_be_read_are_dropouts_like_others() -> None:
    terms = deployed(PFEDREC, {"failures": {"refused": 0.1}, "rounds": 1}, steps=[STEP])
    grid = Here(terms)
    honest = grid.nodes[1]

    def lies(asked: Parcel) -> Parcel:
        reply = honest(asked)
        if asked.text("what") != "train":
            return reply
        body = bytearray(reply.body["uploads/own"])
        body[0] ^= 1
        return Parcel(reply.head, {**reply.body, "uploads/own": bytes(body)})

    grid.nodes[1] = lies
    with pytest.warns(Warning, match="round 1: 1 of 40 uploads are refused"):
        federate(terms, "r", grid.exchange())
    table = ended()["server"]["means.table"]
    assert (table.abs() < 10).all(), "a mask is left in it"


# What nodes do.


def last_round(terms: Any) -> dict[str, Parcel]:
    """What node 0 was asked in the last round of a run."""
    grid = Here(terms)
    federate(terms, "r", grid.exchange())
    return {asked.text("what"): asked for node, asked in grid.asked if node == 0}


def node_of(terms: Any) -> Node:
    """As of another process, which knows what is in the folder alone."""
    return Node(Path("fed/nodes/node-0"), terms, "r", clock=lambda: 1e9)


def spread(reply: Parcel) -> float:
    """How likely bytes by chance are spread as unevenly as those of the first client's 400 numbers."""
    message = reply.body["uploads/own"][: reply.wholes("uploads/sizes")[0]]
    return told_apart(torch.frombuffer(bytearray(message[-4 * 400 :]), dtype=torch.uint8).long(), 8)


def test_a_node_that_comes_back_answers_alike_and_never_tells_both_kinds_of_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("secrets.token_bytes", fixed_bytes(5))
    terms = deployed(PFEDREC, {"rounds": 1}, steps=[STEP])
    asked = last_round(terms)
    first, before = {}, SECRETS.read_bytes()
    for what in ("keys", "shares", "train", "unmask"):
        first[what] = node_of(terms).answer(asked[what])
        assert first[what].text("status") == DONE
        assert node_of(terms).answer(asked[what]).body == first[what].body
    assert SECRETS.read_bytes() == before
    assert 0.001 < spread(first["train"]) < 0.999, "what travels is like chance"

    neighbours = asked["shares"].head["neighbours"]
    sent = [one for one in asked["unmask"].head["sent"] if one != neighbours[0]]
    other = dict(asked["unmask"].head) | {"sent": sent, "clients": [0]}
    answer = node_of(terms).answer(Parcel(other, {}))
    assert (answer.text("status"), answer.body) == (FAILED, {})
    assert "tells them for one list" in answer.text("why")
    answer = node_of(terms).answer(
        Parcel(dict(asked["shares"].head) | {"neighbours": neighbours[::-1]}, asked["shares"].body)
    )
    assert (answer.text("status"), answer.body) == (FAILED, {})

    # Private state is lost, and secrets are not: another message under the same masks would tell the difference.
    Path("fed/nodes/node-0/state/r.ckpt").unlink()
    for what, why in (("unmask", "nothing has been sent from here"), ("train", "has been masked already")):
        answer = node_of(terms).answer(asked[what])
        assert (answer.text("status"), answer.body) == (REFUSED, {})
        assert why in answer.text("why")

    # Secrets are lost, or of another round: it takes no part in this one.
    later = node_of(terms).answer(Parcel(dict(asked["keys"].head) | {"round": 2}, {}))
    assert later.body["keys"] != first["keys"].body["keys"]
    for what in ("keys", "shares", "train"):
        assert node_of(terms).answer(asked[what]).text("status") == REFUSED
    SECRETS.write_text(SECRETS.read_text()[:-1])
    assert "is damaged" in node_of(terms).answer(asked["keys"]).text("why")

    # Without any, and without what others have sealed, it sends nothing.
    SECRETS.unlink()
    plain = {name: value for name, value in asked["train"].head.items() if not name.startswith("senders")}
    for why in ("its secrets are not here", "masks nothing"):
        answer = node_of(terms).answer(Parcel(plain, asked["train"].body))
        assert (answer.text("status"), answer.body) == (FAILED, {})
        assert why in answer.text("why")
        node_of(terms).answer(Parcel(plain | {"what": "keys"}, {}))


def test_a_message_whose_keys_are_gone_is_not_sent_again_under_other_keys() -> None:
    """As where another run has begun on the node in between: new shares would take no mask off an old message."""
    terms = deployed(PFEDREC, {"rounds": 1}, steps=[STEP])
    asked = last_round(terms)
    assert node_of(terms).answer(asked["train"]).text("status") == DONE
    SECRETS.unlink()
    assert node_of(terms).answer(asked["keys"]).text("status") == DONE
    answer = node_of(terms).answer(asked["train"])
    assert (answer.text("status"), answer.body) == (REFUSED, {})
    assert "the keys of what was sent are gone" in answer.text("why")


def test_keys_of_a_run_are_gone_when_another_begins() -> None:
    terms = deployed(PFEDREC, {"rounds": 1}, steps=[STEP])
    federate(terms, "r", Here(terms).exchange())
    state = SECRETS.parent
    (state / ".r.secrets.part").write_text("of a killed process")
    who = Parcel({"what": "who", "run": "r", "deadline": 2e9}, {})
    assert node_of(terms).answer(who).text("status") == DONE
    assert SECRETS.exists(), "a node that comes back answers alike"
    other = Node(Path("fed/nodes/node-0"), terms, "other")
    (state / "other.secrets").write_text('{"round": 0, "members": {}}')
    assert other.answer(Parcel(dict(who.head) | {"run": "other"}, {})).text("status") == DONE
    assert sorted(path.name for path in state.iterdir()) == ["other.secrets", "r.ckpt"]


def test_what_travels_without_masks_is_not_like_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    for half in ("member", "collector"):
        monkeypatch.setattr(f"cgfedrec.wire.secure.{half}.mask", lambda seed, fields: {})
    terms, replies = deployed(PFEDREC, {"rounds": 1}, steps=[STEP]), list[Parcel]()
    grid = Here(terms)
    honest = grid.nodes[1]

    def listen(asked: Parcel) -> Parcel:
        replies.append(honest(asked))
        return replies[-1]

    grid.nodes[1] = listen
    federate(terms, "r", grid.exchange())
    (reply,) = [one for one in replies if "uploads/own" in one.body]
    assert spread(reply) < 1e-100


# What is refused before a run starts.


def test_what_cannot_be_masked_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = deployed(CGFEDCO, {"participants": 4}, steps=[STEP])
    with pytest.raises(InputError, match="no sum of fewer than 5 clients"):
        federate(terms, "r", Here(terms).exchange())
    shutil.rmtree("fed")
    with pytest.raises(AssertionError, match="there must be one, and it must be the last step"):
        deployed(PFEDREC, steps=[STEP, STEP])
    assert not Path("fed").exists()
    terms = deployed(PFEDREC, steps=[STEP])
    monkeypatch.setattr("cgfedrec.wire.secure.step.find_spec", lambda name: None if name == "Crypto" else name)
    with pytest.raises(InputError, match=r"need cryptography and pycryptodome: pip install 'cgfedrec\[secure\]'"):
        federate(terms, "r", Here(terms).exchange())
    assert not Path("runs").exists()
    assert "cgfedrec[secure]" in node_of(terms).answer(Parcel({"what": "who", "run": "r", "deadline": 2e9}, {})).text(
        "why"
    )
