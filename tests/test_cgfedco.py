"""CGFedCo as a whole: the conformance suite, and what a run promises whoever takes part when."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.data.own import Own
from cgfedrec.errors import InputError, RunError
from cgfedrec.evaluation.ranking import evaluate
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo
from cgfedrec.structure import Neighbours
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.columns import SignColumns
from cgfedrec.structure.judging import UNIT
from cgfedrec.testing import Conformance, StopAfter, prepared, trained
from cgfedrec.wire.codec import decode
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.values import Weights
from tests.sums import server_of, small_data

PHASES = ["bounds", "sketch", "labels", "verify", "choose"]
FOUND = ("counts", "labels", "pairs", "found", "chosen", "judged", "total_sketch", "total_labels", "total_verify")
"""What the sums have told the server in the end."""
ENOUGH = 300
"""More rounds than any of these runs needs: they end when all is done."""


def method(**settings: Any) -> CGFedCo:
    return CGFedCo(**{"columns": 8} | settings)


class TestCGFedCo(Conformance):
    uploads: ClassVar = set(PHASES)
    rounds: ClassVar = len(PHASES)
    optimizers: ClassVar = {}
    wrong: ClassVar = {"columns": 0}
    odd: ClassVar = {"columns": 7}
    good: ClassVar = {"columns": 16}

    def method(self, **settings: Any) -> CGFedCo:
        return method(**settings)


@pytest.fixture
def data() -> FederatedDataModule:
    return small_data()


def found(loop: FederatedLoop) -> dict[str, Tensor]:
    """What a run has found, of which some is there."""
    assert loop.server.finished
    values = {name: server_of(loop).get_buffer(name) for name in FOUND}
    assert all(value.numel() for value in values.values())
    return values


def assert_same(ours: FederatedLoop, theirs: FederatedLoop) -> None:
    """What two runs have found is the same to the bit, and so is how everybody ranks by it."""
    one, other = found(ours), found(theirs)
    for name in FOUND:
        assert one[name].equal(other[name]), f"{name} is another"
    everyone = torch.arange(theirs.data.num_users)
    assert ours.score(everyone).equal(theirs.score(everyone))


# The same structure whatever the participation


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ({"participation": 0.1}, 50),
        ({"participation": 0.02}, 200),
        ({"participants": 7, "cohort_size": 3}, 30),
        ({"participants": 7, "store": "disk"}, 30),
        ({"participation": 1.0, "cohort_size": 1}, 5),
    ],
)
def test_any_participation_ends_at_the_same_structure(
    options: dict[str, Any], rounds: int, data: FederatedDataModule
) -> None:
    """Once all have been in every phase, however few of them in a round."""
    whole = trained(method(), data, 100, rounds=ENOUGH)
    assert whole.round == 5
    loop = trained(method(), data, rounds=ENOUGH, **{"cohort_size": 100} | options)
    assert loop.round == rounds
    assert_same(loop, whole)


def goes_on(data: FederatedDataModule, stop: int, **options: Any) -> FederatedLoop:
    """A run that was killed one round after its checkpoint of round ``stop``, and goes on from that checkpoint."""
    folder = Path("clients")
    first = FederatedLoop(rounds=ENOUGH, participants=15, cohort_size=6, store="disk", **options)
    first.setup(Fabric(accelerator="cpu", devices=1, callbacks=[StopAfter(stop)]), data, method(), folder)
    first.fit()
    # As for a checkpoint, which is written to a file at once.
    first.clients.store.pin("last")
    state = deepcopy(first.state_dict())
    first.should_stop = False
    first.fit()
    second = FederatedLoop(rounds=ENOUGH, participants=15, cohort_size=6, store="disk", **options)
    second.setup(Fabric(accelerator="cpu", devices=1), data, method(), folder)
    second.load_state_dict(state)
    second.fit()
    return second


@pytest.mark.parametrize("stop", range(1, 15))
def test_a_run_killed_in_the_middle_of_any_phase_goes_on_to_the_same_bits(stop: int, data: FederatedDataModule) -> None:
    """15 of 40 clients in a round: each phase takes three, and the checkpoint is of every round once."""
    loop = goes_on(data, stop)
    assert loop.round == 15
    assert_same(loop, trained(method(), data, 100, rounds=ENOUGH))


def test_a_run_that_was_to_do_fewer_rounds_goes_on(data: FederatedDataModule) -> None:
    """Its last round was evaluated in the middle of a phase: clients that score have not added to anything."""
    first = trained(method(), data, 100, rounds=2)
    assert "val/ndcg@10" in first.history[-1]
    second = FederatedLoop(rounds=ENOUGH, cohort_size=100)
    second.setup(Fabric(accelerator="cpu", devices=1), data, method(), Path("others"))
    second.load_state_dict(first.state_dict())
    second.fit()
    assert_same(second, trained(method(), data, 100, rounds=ENOUGH))


# A client adds to a sum once


def ask(loop: FederatedLoop, users: Tensor) -> Upload:
    """What clients answer to what the server sends for the next round; they keep what they have done."""
    with loop.clients.workers.one() as worker:
        client = worker.client
        loop.clients.store.load(client, users)
        client.own = Own(loop.data, users, loop.round + 1, 1)
        client.receive(loop.server.broadcast(users, loop.round + 1), loop.round + 1)
        upload = client.upload()
        loop.clients.store.save(client)
    return upload


@pytest.mark.parametrize("before", range(5))
def test_a_client_adds_to_no_sum_twice(before: int, data: FederatedDataModule) -> None:
    """Whatever a server asks. One that asks twice is told so when the round ends."""
    loop = FederatedLoop(rounds=ENOUGH, cohort_size=100)
    callbacks = [StopAfter(before)] if before else []
    loop.setup(Fabric(accelerator="cpu", devices=1, callbacks=callbacks), data, method(), Path("clients"))
    everyone, some = torch.arange(data.num_users), torch.tensor([3, 1, 20])
    if before:
        loop.fit()
    loop.score(everyone)  # scoring adds nothing, and takes nobody's turn
    first, again = ask(loop, some), ask(loop, everyone)
    assert list(first.values) == list(again.values) == [PHASES[before]]
    assert first.clients.equal(some)
    assert again.clients.tolist() == [user for user in range(data.num_users) if user not in some]
    assert not len(ask(loop, everyone).clients)
    loop.server.aggregate(loop.server.reduce(again))
    with pytest.raises(RunError, match=f"37 clients have added to the sum '{PHASES[before]}', where 40 were asked"):
        loop.server.update(everyone, before + 1)


def test_a_server_that_begins_again_gets_nothing(data: FederatedDataModule) -> None:
    loop = trained(method(), data, 100, rounds=ENOUGH)
    for at in range(5):
        server_of(loop).at.fill_(at)
        server_of(loop).refresh()
        assert not len(ask(loop, torch.arange(data.num_users)).clients)


def test_the_run_says_from_how_many_clients_each_sum_came(data: FederatedDataModule) -> None:
    loop = trained(method(), data, 100, rounds=ENOUGH, participants=15)
    told = [(name, value) for row in loop.history for name, value in row.items() if name.startswith("clients/")]
    assert told == [(f"clients/{phase}", clients) for phase in PHASES for clients in (15, 30, 40)]


# Those who come late


def direct(data: FederatedDataModule, server: SumsServer) -> dict[str, Tensor]:
    """The later sums as dense products over the clients of both passes, each with the items that are its own."""
    known = server.known
    rows = known.the_rows
    ones = torch.from_numpy(data.training_matrix().toarray()).long()[server.enrolled.nonzero().squeeze(1)]
    late = server.late[server.enrolled]
    in_rows = ones[:, rows.items]
    counted = in_rows * ~late[:, None]
    if server.late_counts.numel():
        enough = in_rows[late].sum(0) >= rows.least
        counted = counted + in_rows * late[:, None] * enough
    together = counted.T @ counted
    assert known.labels is not None
    assert known.pairs is not None
    one_hot = torch.nn.functional.one_hot(known.labels)
    signs = SignColumns(number=server.discovery.num_columns(data.num_items)).columns(known)
    pairs = together.gather(1, known.pairs.clamp_min(0)).masked_fill(known.pairs < 0, 0)
    return {"total_sketch": together @ signs, "total_labels": together @ one_hot, "total_verify": pairs}


@pytest.mark.parametrize(
    ("share", "options", "late"),
    [
        (1.0, {}, 0),
        (0.5, {"participants": 10}, 20),
        (0.3, {"participants": 7}, 26),
        (0.95, {"participants": 1}, 2),  # too few to be let in
        (0.5, {"participants": 20, "resample": False}, 0),  # all who ever come are there at once
    ],
)
def test_late_clients_add_with_what_is_frozen(
    share: float, options: dict[str, Any], late: int, data: FederatedDataModule
) -> None:
    loop = trained(method(share=share), data, 100, rounds=ENOUGH, **options)
    server = server_of(loop)
    assert int(server.late.sum()) == late
    passes = 1 + (late >= 3)
    assert int(server.version) == passes
    ends = [row for row in loop.history if "clients/verify" in row]
    assert max(row["clients/verify"] for row in ends) == max(late, int(server.enrolled.sum()) - late)
    for name, total in direct(data, server).items():
        assert server.get_buffer(name).equal(total), name
    assert int(server.counts[:, 0].sum()) + int(server.late_counts[:, 0].sum()) == int(
        data.interactions_per_user()[(server.enrolled & (~server.late | (passes > 1))).nonzero().squeeze(1)].sum()
    ) - 2 * (int(server.enrolled.sum()) - late * (passes == 1))


def test_labels_and_candidates_freeze_at_the_end_of_the_first_pass(data: FederatedDataModule) -> None:
    at_the_share = trained(method(share=0.5), data, 100, rounds=8, participants=10)
    assert server_of(at_the_share).late_counts.numel() == 0
    assert int(server_of(at_the_share).version) == 1
    in_the_end = trained(method(share=0.5), data, 100, rounds=ENOUGH, participants=10)
    for name in ("counts", "labels", "pairs"):
        assert server_of(at_the_share).get_buffer(name).equal(server_of(in_the_end).get_buffer(name))
    assert not server_of(at_the_share).found.equal(server_of(in_the_end).found)
    # What both structures are worth is told in the round of each, and how much of the first is in the second.
    first, second = (row for row in in_the_end.history if "structure/neighbours" in row)
    before, after = (neighbours_of(server_of(loop)) for loop in (at_the_share, in_the_end))
    assert "structure/same" not in first
    assert second["structure/same"] == pytest.approx(float((before & after).sum() / after.sum()))
    assert 0.3 < second["structure/same"] < 1
    assert second["structure/neighbours"] == pytest.approx(float(after.sum() / len(after)))
    assert 0 < second["structure/explained"] <= 1


def neighbours_of(server: SumsServer) -> Tensor:
    """Which candidates have become neighbours, `[rows, most]`, as the structure that goes down says."""
    message = server.found.numpy().tobytes()
    weights = decode(message, server.structure.fields(server.known, server.discovery))["weights"]
    assert isinstance(weights, Weights)
    return weights.kept


# No opened sum shows one client


class Opened(SumsServer):
    """Keeps every sum that is opened, by name."""

    def __init__(self, discovery: CGFedCo, num_items: int, seed: int) -> None:
        super().__init__(discovery, discovery.structure, num_items, seed)
        self.seen: list[tuple[str, Tensor]] = []

    def opened(self, name: str, total: Tensor) -> dict[str, float]:
        self.seen.append((name, total.clone()))
        return super().opened(name, total)


class Keeping(CGFedCo):
    """CGFedCo with a server that keeps its sums."""

    def server(self, num_items: int, seed: int) -> Opened:
        return Opened(self, num_items, seed)


PLANTED = 7


def planted() -> FederatedDataModule:
    """40 clients, of whom client 7 has eight items of its own beside a few of others'."""
    rng = np.random.default_rng(0)
    rows = [(user, int(item), time) for user in range(40) for time, item in enumerate(rng.permutation(30)[:9])]
    rows = [row for row in rows if row[0] != PLANTED] + [(PLANTED, item, item) for item in [4, 9, 11, *range(100, 110)]]
    Path("planted.csv").write_text("user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return prepared(path="planted.csv")


def profiles(loop: FederatedLoop, user: int) -> list[Tensor]:
    """What one client's own items add up to over each kind of column, with any bulletin that has come down."""
    server = server_of(loop)
    (user_items,) = torch.from_numpy(loop.data.training_matrix()[[user]].toarray()[0]).nonzero(as_tuple=True)
    known = server.known
    if server.late[user] and server.late_counts.numel():
        known = known.for_others(server.late_counts)
    rows = known.the_rows.row_of[user_items]
    own = rows[rows >= 0]
    assert server.known.labels is not None
    signs = SignColumns(number=server.discovery.num_columns(server.num_items)).columns(server.known)
    return [signs[own].sum(0), torch.nn.functional.one_hot(server.known.labels)[own].sum(0)]


def shown(loop: FederatedLoop, user: int) -> list[str]:
    """Where a client's profile stands as it is: opened sums, what the server keeps, and what it sends."""
    assert isinstance(loop.server, Opened)
    tables = [*loop.server.seen, *loop.server.state_dict().items()]
    for name, bulletin in loop.server.bulletins.items():
        tables += [(f"{name}/{value}", it) for value, it in bulletin.values.items() if isinstance(it, Tensor)]
    return [
        name
        for name, table in tables
        for profile in profiles(loop, user)
        if table.ndim == 2 and table.shape[1] == len(profile) and (table == profile).all(1).any()
    ]


@pytest.mark.parametrize("settings", [{}, {"share": 0.5}])
def test_no_opened_sum_shows_the_profile_of_a_client(settings: dict[str, Any]) -> None:
    """Neither of one with items of its own, nor of any other, whoever comes late."""
    data = planted()
    loop = trained(Keeping(columns=24, clusters=6, **settings), data, 100, rounds=ENOUGH, participants=13)
    assert not [user for user in range(40) if shown(loop, user)]
    # The same search finds what is there to be found.
    least = trained(Keeping(columns=24, clusters=6, least_clients=1, **settings), data, 100, ENOUGH, participants=13)
    assert {"sketch", "labels"} <= {name for user in range(40) for name in shown(least, user)}
    if not settings:
        assert {"sketch", "labels", "total_sketch", "total_labels"} <= set(shown(least, PLANTED))


@pytest.mark.parametrize("least_items", [1, 4])
def test_clusters_of_few_items_are_merged(least_items: int, data: FederatedDataModule) -> None:
    loop = trained(method(clusters=16, least_items=least_items), data, 100, rounds=ENOUGH)
    sizes = loop.histograms()["clusters/sizes"]
    assert len(sizes) > 1
    assert (sizes.min() >= 4) == (least_items == 4)


# The choice


def test_the_chosen_reading_is_the_one_that_validates_best(data: FederatedDataModule) -> None:
    loop = trained(method(), data, 7, rounds=ENOUGH)
    server = server_of(loop)
    scored: list[float] = []
    for reading in range(len(server.structure.readings)):

        def read(users: Tensor, reading: int = reading) -> Tensor:
            loop.score(users)
            with loop.clients.workers.one() as worker:
                scores: Tensor = worker.client.read(reading)  # type: ignore[operator]
                return scores

        scored.append(evaluate(data, "val", read, 100)["val/ndcg@10"])
    told = server.judged.double() / UNIT / data.num_users
    torch.testing.assert_close(told, torch.tensor(scored).double(), atol=1e-5, rtol=0)
    assert len(set(scored)) > 3
    assert int(server.chosen) == int(np.argmax(scored))
    assert loop.history[-1]["val/ndcg@10"] == pytest.approx(max(scored))


def test_where_nobody_holds_out_the_first_reading_stays() -> None:
    data = prepared(synthetic=Synthetic(users=40, items=60, groups=6, interactions=10), split="none")
    loop = trained(method(), data, 7, rounds=ENOUGH)
    assert int(server_of(loop).chosen) == 0
    assert not server_of(loop).judged.any()
    flat = trained(method(structure=Neighbours(reading="flat")), data, 7, rounds=ENOUGH)
    assert flat.round == 4
    assert loop.score(torch.arange(40)).equal(flat.score(torch.arange(40)))


def test_packing_changes_bytes_and_no_bit(data: FederatedDataModule) -> None:
    tight, plain = (trained(method(packing=packing), data, 7, rounds=ENOUGH) for packing in ("tight", "plain"))
    assert_same(tight, plain)
    assert plain.bytes_up > 1.5 * tight.bytes_up
    assert plain.bytes_down > tight.bytes_down


def test_too_few_clients_are_refused(data: FederatedDataModule) -> None:
    with pytest.raises(InputError, match=r"method\.least_clients: 41 is more than the 40 clients"):
        trained(method(least_clients=41), data, 100)


@pytest.mark.parametrize(
    ("keep", "why"),
    [(-1.0, "is not positive"), (0.0, "is not positive"), (float("nan"), "is no number"), (2.0, "is more than 1")],
)
def test_a_share_of_candidates_that_is_none_is_refused(keep: float, why: str) -> None:
    """With it no item had any neighbour, and all were ranked by popularity."""
    with pytest.raises(InputError, match=rf"method\.structure\.keep: \S+ {why}"):
        CGFedCo(structure=Neighbours(keep=keep))
    assert CGFedCo(structure=Neighbours(keep=1)), "all of them may stay"
