"""A rehearsal of a run, in a federation that is thrown away: what is measured for an estimate.

Where rounds are alike, one cohort trains for two of them, so that what comes down after a first round is seen too.
Where each round adds to another sum, a sample of clients goes through all of them: what comes down after a sum, and how
long the next one takes, follows from what was counted. So the sample's sum is scaled to all clients, and the server
goes on from that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgfedrec.evaluation.ranking import at_once, ranked
from cgfedrec.failures import NONE
from cgfedrec.kit.sums import SumsInTurn
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.estimates import Alike, InTurn, Rehearsed
from cgfedrec.simulation.store import STORES
from cgfedrec.simulation.workers import on_one_thread
from cgfedrec.structure.ahead import Phase, first_of, phases
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.discovery import TRAIN
from cgfedrec.structure.structure import SumsClient
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire

SAMPLE = 512
"""Clients of the sample, or as many as one cohort for each worker has where these are more."""


@on_one_thread()  # as in a run
def tried_out(loop: FederatedLoop) -> Alike | InTurn:
    """Let one cohort train, and see what it takes in the round after; or a sample go through all phases.

    Args:
        loop: Set up. It is of no use afterwards.
    """
    data, clients, server = loop.data, loop.clients, loop.server
    loop.round, clients.failures = 1, NONE  # what is measured is a client that does its part
    participants = clients.in_order(loop.sample())
    cohorts = list(data.cohorts(participants, clients.cohort_size))
    users = cohorts[len(cohorts) // 2]  # the first ones have the longest histories, and the last ones the shortest
    with clients.workers.one() as worker:
        example = worker.client.private()
    # Nothing is laid on disk for an estimate.
    in_memory = STORES["whole" if clients.capacity.store == "whole" else "memory"]
    clients.store = in_memory(data.order(), example, loop.state_dtype, Path())
    common: dict[str, Any] = {
        "participants": len(participants),
        "rounds": loop.rounds,
        "cohorts": len(cohorts),
        "workers": clients.workers.number,
        "once": clients.held.welcome,
    }
    if isinstance(server, SumsInTurn):
        enrolled = int(server.enrolled.sum())
        sample = _sample(loop, server)
        first = first_of(server, data)
        played = list(_rehearsed(loop, server, sample, list(phases(server, first, len(participants))), first))
        evaluation, scoring = _evaluated(loop, sample)
        common |= {"evaluation": evaluation, "evaluations": 1, "scoring": scoring}
        return InTurn(**common, phases=played, enrolled=enrolled)

    start = _trained(loop, users, 1)  # the first time of anything takes longer: it is not what is measured
    part = start.part
    if isinstance(part, Sum):  # one of fewer clients may not be opened
        part = _scaled(part, len(participants), {})
    server.aggregate(part)
    server.update(users, 1)
    evaluation, scoring = _evaluated(loop, users)
    second = max(2, server.alike_from)  # or the first one that is like those after it
    later = _trained(loop, users, second)
    sent = server.broadcast(users, second)
    own = sent is not None and sent.own is not None
    up, down = _besides(server.wire, len(participants))
    return Alike(
        **common,
        up=(start.up + up, later.up + up),
        down=(start.down + down, later.down + down),
        varies=own or any(field.sparse for field in server.expects.values()),
        training=later.seconds * len(participants) / len(users) / min(clients.workers.number, len(cohorts)),
        scoring=scoring,
        evaluation=evaluation,
        evaluations=-(-loop.rounds // loop.evaluate_every),
    )


def _besides(wire: Wire, clients: int) -> tuple[float, float]:
    """Bytes up and down of one client that steps of the wire send besides, in a round of so many clients."""
    up, down = wire.traffic(clients)
    return up / clients, down / clients


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
    """The seconds of an evaluation of everybody, by that of a cohort `[clients]`, and the bytes that one downloads.

    Nothing of either where nothing is held out.
    """
    if not loop.data.holds_out("val"):
        return 0.0, 0.0
    clients, before = loop.clients, loop.clients.bytes_scoring
    among = torch.zeros(loop.data.num_users, dtype=torch.bool)
    among[users] = True

    def evaluate() -> None:
        ranked(loop.data, "val", partial(clients.score, round=1), clients.cohort_size, clients.workers.map, among)

    evaluate()  # the first time each worker takes in what has come down
    downloaded = (clients.bytes_scoring - before) / len(users)
    started = time.perf_counter()
    evaluate()
    seconds = time.perf_counter() - started
    cohorts, workers = -(-len(users) // at_once(clients.cohort_size, loop.data.num_items)), clients.workers.number
    busy = min(workers, cohorts)  # of the workers, where all will be
    return seconds * loop.data.num_users / len(users) * busy / workers, downloaded


def _rehearsed(
    loop: FederatedLoop, server: SumsInTurn, sample: Tensor, ahead: Sequence[Phase], first: Tensor | None
) -> Iterator[Rehearsed]:
    """Go through the phases ``ahead`` with a sample `[clients]`.

    Where the first sum is known, `[items, columns]`, it takes the place of the sample's: that would have no rows for
    items that nobody of the sample has, and all later sums would be smaller than they will be.
    """
    for _ in range(loop.clients.workers.number):  # which are lent in turn
        with loop.clients.workers.one() as worker:
            if isinstance(worker.client, SumsClient):
                worker.client.wary = False
    # In each phase every worker takes in once what has come down, however many clients follow. So others come first, a
    # cohort for each worker, and add nothing to any sum.
    others = loop.data.order()[~torch.isin(loop.data.order(), sample)]
    others = others[: loop.clients.workers.number * loop.clients.cohort_size]
    of_items = [tally.name for tally in server.tallies] if isinstance(server, SumsServer) else []
    measured: dict[str, _Counted] = {}
    round, carrying = 0, server.wire
    while not server.finished:
        round += 1
        phase, wanted = ahead[int(server.at)], server.wanted()
        there, once = sample[torch.isin(sample, wanted)], 0.0
        if not (phase.name == TRAIN and TRAIN in measured):  # rounds of training are alike: one is measured
            started = time.perf_counter()
            list(loop.clients.train(others, round))
            first_time = time.perf_counter() - started
            measured[phase.name] = counted = _counted(loop, server, there, round)
            once = max(0.0, first_time - counted.seconds * len(others) / len(there))
        counted = measured[phase.name]
        total = _scaled(counted.total, len(wanted), server.expects, of_items)
        if first is not None and round == 1:
            total = Sum({phase.name: first}, len(wanted))
        server.aggregate(total)
        server.wire = Wire()  # the sample's sum has been opened, and that is what was scaled
        started = time.perf_counter()
        server.update(wanted, round)
        seconds = time.perf_counter() - started
        server.wire = carrying
        # Whoever is wanted takes part, in however many rounds; a round of training has its participants.
        number = loop.num_participants if phase.name == TRAIN else len(wanted)
        up, down = _besides(carrying, loop.num_participants)  # a last round may have fewer
        phase = phase._replace(up=phase.up + math.ceil(up))
        yield Rehearsed(phase, counted.down + down, once + counted.seconds * number / len(there), seconds)


def _sample(loop: FederatedLoop, server: SumsInTurn) -> Tensor:
    """Whole cohorts, some with long histories and some with short ones, `[clients]`."""
    clients = loop.clients
    cohorts = list(loop.data.cohorts(clients.in_order(server.wanted()), clients.cohort_size))
    number = max(clients.workers.number, SAMPLE // clients.cohort_size)
    places = torch.linspace(0, len(cohorts) - 1, min(number, len(cohorts))).round().long()
    return torch.cat([cohorts[place] for place in places.tolist()])


class _Counted(NamedTuple):
    total: Sum
    down: float
    seconds: float


def _counted(loop: FederatedLoop, server: SumsInTurn, users: Tensor, round: int) -> _Counted:
    """The sum of what clients `[clients]` add, the bytes that come down to one of them, and the seconds they took."""
    held = loop.clients.held
    new = int((~held.masks["welcome"][users]).sum())
    started = time.perf_counter()
    down = -new * held.welcome
    for cohort in loop.clients.train(users, round):
        server.aggregate(cohort.part)
        down += cohort.told.bytes_down
    return _Counted(server.take_sum(), down / len(users), time.perf_counter() - started)


def _scaled(part: Sum, clients: int, fields: Mapping[str, Field], of_items: Collection[str] = ()) -> Sum:
    """The sum of a sample as if it were over so many clients, and within the bounds of one that is.

    Sums named ``of_items`` have a row for each item, `[rows, columns]`.
    """
    values = {}
    for name, value in part.values.items():
        scaled = value.double() * (clients / part.clients)
        if name in of_items:
            scaled = _filled(scaled)
        bounds = fields[name].bounds if name in fields else None
        if bounds is not None:
            largest = bounds.largest.to(scaled.device)
            scaled = scaled.round().minimum(largest).maximum(-largest if bounds.signed else torch.zeros_like(largest))
        values[name] = scaled if value.dtype.is_floating_point else scaled.round().long()
    return Sum(values, clients)


def _filled(total: Tensor) -> Tensor:
    """Rows of items that nobody of the sample has are taken to be like those of others, `[rows, columns]`.

    With nothing in them all of them would be alike, and have the same candidates.
    """
    seen = total.ne(0).any(1)
    if seen.any():
        total[~seen] = total[seen].repeat(-(-len(total) // int(seen.sum())), 1)[: int((~seen).sum())]
    return total
