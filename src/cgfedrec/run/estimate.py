"""What a run would need and how long it would take, found without training it: ``cgfedrec estimate``.

State, memory and disk are those that a run plans with. Bytes are those of messages: one cohort trains for two rounds on
a federation that is thrown away, so that what comes down after a first round is seen too. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cgfedrec.centralized.reference import Reference
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import check
from cgfedrec.evaluation.ranking import ranked
from cgfedrec.kit.sums import SumsInTurn
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.console import tracker
from cgfedrec.run.describe import show_data
from cgfedrec.run.engine import engine, no_crowd
from cgfedrec.run.folder import CLIENTS
from cgfedrec.run.rolling import is_rolling
from cgfedrec.settings.opening import refuse_of_fit
from cgfedrec.settings.parser import instantiate, parse
from cgfedrec.settings.sources import said
from cgfedrec.simulation.capacity import Capacity, gib
from cgfedrec.simulation.store import MemoryStore
from cgfedrec.structure.ahead import Phase, phases
from cgfedrec.units import duration, nbytes
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.sums import Sum


@dataclass(frozen=True)
class Estimate:
    """What a federation would need.

    Args:
        participants: How many clients take part in a round.
        rounds: How many rounds there are, at most.
        cohorts: How many cohorts they train in.
        workers: How many of these train at a time.
        once: Bytes that come down to each client when it first takes part.
        up: Bytes that a client sends in a round, the first and every later one, in the mean over a cohort.
        down: Bytes that come down to it, likewise.
        scoring: Bytes that come down to a client for each evaluation.
        varies: Whether ``up`` and ``down`` depend on who clients are: only the rows of their items travel, or some
            receive what is for them alone.
        training: Seconds of a round's training.
        evaluation: Seconds of an evaluation; 0 where nothing is held out.
        evaluations: How many there are.
        phases: Of a method whose rounds differ; then bytes and seconds are of the first of them alone.
        enrolled: How many clients will ever take part.
    """

    participants: int
    rounds: int
    cohorts: int
    workers: int
    once: int
    up: tuple[float, float]
    down: tuple[float, float]
    scoring: float
    varies: bool
    training: float
    evaluation: float
    evaluations: int
    phases: Sequence[Phase]
    enrolled: int

    @property
    def all_up(self) -> float:
        """Bytes that all clients send in all rounds."""
        return self.participants * (self.up[0] + (self.rounds - 1) * self.up[1])

    @property
    def all_down(self) -> float:
        """Bytes that come down to all of them in training, without what comes down once."""
        return self.participants * (self.down[0] + (self.rounds - 1) * self.down[1])

    @property
    def seconds(self) -> float:
        """Of all rounds."""
        return self.rounds * self.training + self.evaluations * self.evaluation


def estimate(options: Sequence[str], console: Console) -> Estimate:
    """Estimate what a run with these options would need, and show it.

    Raises:
        InputError: for options that a run would refuse, for a federation that does not fit the machine, and for what
            cannot be estimated.
    """
    given = said(options=options)
    refuse_of_fit(given, "estimate", but=("run_dir",))
    settings = parse(given)
    cuts = no_rounds = None
    parts = instantiate(settings)
    if is_rolling(settings):
        cuts = "data.split: a rolling evaluation trains at every cut; choose one to estimate with data.rolling.cut"
    if isinstance(parts.method, Reference):
        no_rounds = "method: a reference has no clients and sends nothing; there is nothing to estimate"
    check(no_crowd(settings, "estimate"), cuts, no_rounds)
    data: FederatedDataModule = parts.data
    data.attach(parts.protocol, settings.seed_everything, tracker(console))
    data.setup()
    fabric, _ = engine(vars(parts.fabric), [])
    loop: FederatedLoop = parts.loop
    folder = Path(settings.run_dir or "runs") / "checkpoints" / CLIENTS  # where room is looked for; nothing is written
    loop.setup(fabric, data, parts.method, folder, wire=parts.wire)
    found = tried_out(loop)
    show_data(console, data)
    show_estimate(console, found, loop)
    return found


def tried_out(loop: FederatedLoop) -> Estimate:
    """Let one cohort train, and see what it takes in the round after.

    Args:
        loop: Set up. It is of no use afterwards.
    """
    data, clients, server = loop.data, loop.clients, loop.server
    loop.round = 1
    participants = clients.in_order(loop.sample())
    ahead = list(phases(server, data, len(participants))) if isinstance(server, SumsInTurn) else []
    cohorts = list(data.cohorts(participants, loop.clients.cohort_size))
    users = cohorts[len(cohorts) // 2]  # the first ones have the longest histories, and the last ones the shortest
    with clients.workers.one() as worker:
        example = worker.client.private()
    clients.store = MemoryStore(data.order(), example, loop.state_dtype, Path())
    start = _trained(loop, users, 1)  # the first time of anything takes longer: it is not what is measured
    evaluation = scoring = 0.0
    if not ahead:
        server.aggregate(start.part)
        server.update(users, 1)
        if data.holds_out("val"):
            evaluation, scoring = _evaluated(loop, users)
    later = _trained(loop, users, 1 if ahead else 2)
    sent = server.broadcast(users, 2)
    own = sent is not None and sent.own is not None
    return Estimate(
        participants=len(participants),
        rounds=loop.rounds,
        cohorts=len(cohorts),
        workers=clients.workers.number,
        once=clients.held.welcome,
        up=(start.up, later.up),
        down=(start.down, later.down),
        scoring=scoring,
        varies=own or any(field.sparse for field in server.expects.values()),
        training=later.seconds * len(participants) / len(users) / min(clients.workers.number, len(cohorts)),
        evaluation=evaluation,
        evaluations=-(-loop.rounds // loop.evaluate_every),
        phases=ahead,
        enrolled=int(server.enrolled.sum()) if isinstance(server, SumsInTurn) else data.num_users,
    )


class _Trained(NamedTuple):
    part: Upload | Sum
    up: float
    down: float
    seconds: float


def _trained(loop: FederatedLoop, users: Tensor, round: int) -> _Trained:
    """A cohort's part in a round, `[clients]`, and the bytes of one client without what comes down once."""
    new = int((~loop.clients.held.masks["welcome"][users]).sum())
    started = time.perf_counter()
    (found,) = loop.clients.train(users, round)
    seconds = time.perf_counter() - started
    down = found.told.bytes_down - new * loop.clients.held.welcome
    return _Trained(found.part, found.told.bytes_up / len(users), down / len(users), seconds)


def _evaluated(loop: FederatedLoop, users: Tensor) -> tuple[float, float]:
    """The seconds of an evaluation of everybody, by that of a cohort `[clients]`, and the bytes that one downloads."""
    clients, before, among = (
        loop.clients,
        loop.clients.bytes_scoring,
        torch.zeros(loop.data.num_users, dtype=torch.bool),
    )
    among[users] = True
    started = time.perf_counter()
    ranked(loop.data, "val", partial(clients.score, round=1), loop.clients.cohort_size, clients.workers.map, among)
    seconds = time.perf_counter() - started
    downloaded = (clients.bytes_scoring - before) / len(users)
    return seconds * loop.data.num_users / len(users) / clients.workers.number, downloaded


def show_estimate(console: Console, found: Estimate, loop: FederatedLoop) -> None:
    """An estimate as a table, and of which rounds it is."""
    capacity = loop.clients.capacity
    table = Table("", "", show_header=False, title="estimate, nothing was trained", title_justify="left")
    for name, told in _lines(found, capacity):
        table.add_row(name, told)
    console.print(table)
    if not found.phases:
        return
    needed = sum(phase.rounds for phase in found.phases)
    table = Table("phase", "rounds", "a client sends", title="phases", title_justify="left")
    for number, phase in enumerate(found.phases):
        table.add_row(phase.name, f"{phase.rounds:,}", f"{'at most ' if number else ''}{nbytes(phase.up)}")
    console.print(table)
    told = (
        "what comes down after the first sum, and how long later ones take, follows from what is found: fit tells it, "
        "round by round"
    )
    if needed > found.rounds:
        told = f"warning: it needs {needed:,} rounds, and loop.rounds is {found.rounds:,}\n{told}"
    console.print(told, highlight=False, soft_wrap=True)


def _lines(found: Estimate, capacity: Capacity) -> Iterator[tuple[str, str]]:
    """What is told of an estimate, by what it is."""
    about = "about " if found.varies else ""
    yield (
        "a round",
        f"{found.participants:,} clients in {found.cohorts:,} cohorts of {capacity.cohort_size:,} or fewer, "
        f"{found.workers} at a time",
    )
    yield "clients' state", f"at most {gib(capacity.state)} {capacity.place}"
    yield "memory", f"about {gib(capacity.memory)}"
    yield "disk", f"up to {gib(capacity.disk)}, checkpoints included"
    if found.phases:
        in_all = sum(phase.up for phase in found.phases)
        yield f"a client, in a round of {found.phases[0].name}", _both(found.up[0], found.down[0])
        yield "a client, once", f"{nbytes(found.once)} down"
        yield "a client, in all phases", f"at most {nbytes(in_all)} up"
        yield "all clients, in all phases", f"at most {nbytes(in_all * found.enrolled)} up"
        yield f"a round of {found.phases[0].name}", f"about {duration(found.training)}"
        return
    yield "a client, in the first round", about + _both(found.up[0], found.down[0])
    yield "a client, in a later round", about + _both(found.up[1], found.down[1])
    yield "a client, once", f"{nbytes(found.once)} down"
    if found.scoring:
        yield "a client, in an evaluation", f"{nbytes(found.scoring)} down"
    yield f"all clients, {found.rounds:,} rounds", about + _both(found.all_up, found.all_down)
    yield "time of a round", f"about {duration(found.training)}; an evaluation about {duration(found.evaluation)}"
    yield (
        "time in all",
        f"about {duration(found.seconds)}, if all {found.rounds:,} rounds are needed (loop.patience)",
    )


def _both(up: float, down: float) -> str:
    return f"{nbytes(up)} up, {nbytes(down)} down"
