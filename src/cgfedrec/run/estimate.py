"""What a run would need and how long it would take, found without training it: ``cgfedrec estimate``.

State, memory and disk are those that a run plans with. All else is measured in a rehearsal. Nothing is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cgfedrec.centralized.reference import Reference
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import check
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.console import tracker
from cgfedrec.run.describe import show_data, tell_of_ratings
from cgfedrec.run.engine import engine, no_crowd
from cgfedrec.run.estimates import Alike, Estimate, InTurn
from cgfedrec.run.folder import CLIENTS
from cgfedrec.run.rehearsal import tried_out
from cgfedrec.run.rolling import is_rolling
from cgfedrec.settings.opening import refuse_of_fit
from cgfedrec.settings.parser import instantiate, parse
from cgfedrec.settings.sources import said
from cgfedrec.simulation.capacity import Capacity, gib
from cgfedrec.units import duration, nbytes


def estimate(options: Sequence[str], console: Console) -> Alike | InTurn:
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
    tell_of_ratings(console, data, given)
    show_data(console, data)
    show_estimate(console, found, loop)
    return found


def show_estimate(console: Console, found: Alike | InTurn, loop: FederatedLoop) -> None:
    """An estimate as a table, and of which rounds it is."""
    table = Table("", "", show_header=False, title="estimate, nothing was trained", title_justify="left")
    told = _of_phases(found) if isinstance(found, InTurn) else _of_rounds(found)
    for name, value in [*_of_both(found, loop.clients.capacity), *told]:
        table.add_row(name, value)
    console.print(table)
    if isinstance(found, InTurn):
        _show_phases(console, found)


def _show_phases(console: Console, found: InTurn) -> None:
    """A line for each phase. Rounds of one name that follow each other, such as those of training, are one."""
    titles = ("phase", "rounds", "a client sends", "receives", "clients take", "the server")
    table = Table(*titles, title="phases: bytes up at most, all else about", title_justify="left")
    for name, alike in itertools.groupby(found.phases, key=lambda one: one.phase.name):
        ones = list(alike)
        table.add_row(
            name,
            f"{sum(one.phase.rounds for one in ones):,}",
            nbytes(sum(one.phase.up for one in ones)),
            nbytes(sum(one.down for one in ones)),
            duration(sum(one.clients for one in ones)),
            duration(sum(one.server for one in ones)),
        )
    console.print(table)
    needed = sum(one.phase.rounds for one in found.phases)
    if needed > found.rounds:
        told = f"warning: it needs {needed:,} rounds, and loop.rounds is {found.rounds:,}"
        console.print(told, highlight=False, soft_wrap=True)


def _of_both(found: Estimate, capacity: Capacity) -> Iterator[tuple[str, str]]:
    """What is told of an estimate, by what it is, whatever rounds are like."""
    size = min(capacity.cohort_size, found.participants)
    yield (
        "a round",
        f"{found.participants:,} clients in {found.cohorts:,} cohorts of {size:,} or fewer, {found.workers} at a time",
    )
    yield "clients' state", f"at most {gib(capacity.state)} {capacity.place}"
    yield "memory", f"about {gib(capacity.memory)}"
    yield "disk", f"up to {gib(capacity.disk)}, checkpoints included"
    yield "a client, once", f"{nbytes(found.once)} down"
    if found.scoring:
        yield "a client, in an evaluation", f"{nbytes(found.scoring)} down"


def _of_phases(found: InTurn) -> Iterator[tuple[str, str]]:
    up, down = sum(one.phase.up for one in found.phases), sum(one.down for one in found.phases)
    yield "a client, in all phases", f"at most {nbytes(up)} up, about {nbytes(down)} down"
    yield "all clients, in all phases", f"at most {nbytes(up * found.enrolled)} up"
    yield "time in all", f"about {duration(found.seconds)}, by a sample of clients that went through all phases"


def _of_rounds(found: Alike) -> Iterator[tuple[str, str]]:
    about = "about " if found.varies else ""
    yield "a client, in the first round", about + _both(found.up[0], found.down[0])
    yield "a client, in a later round", about + _both(found.up[1], found.down[1])
    yield f"all clients, {found.rounds:,} rounds", about + _both(found.all_up, found.all_down)
    yield "time of a round", f"about {duration(found.training)}; an evaluation about {duration(found.evaluation)}"
    yield (
        "time in all",
        f"about {duration(found.seconds)}, if all {found.rounds:,} rounds are needed (loop.patience)",
    )


def _both(up: float, down: float) -> str:
    return f"{nbytes(up)} up, {nbytes(down)} down"
