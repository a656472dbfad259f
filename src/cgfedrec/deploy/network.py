"""The server's side of a federation over a network: the same loop, with nodes in place of simulated clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.data.module import Stage
from cgfedrec.deploy.exchange import Exchange
from cgfedrec.deploy.nodes import Nodes
from cgfedrec.deploy.promises import no_privacy
from cgfedrec.deploy.settings import Terms
from cgfedrec.errors import InputError, RunError, check
from cgfedrec.evaluation.ranking import no_metric
from cgfedrec.files import write_atomically, write_json
from cgfedrec.history import Row
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.processes import Processes
from cgfedrec.protocol import Protocol
from cgfedrec.random import shared_seed
from cgfedrec.run.callbacks import EarlyStopping
from cgfedrec.run.checkpoint import BEST, LAST, NO_STATE, Header, State, link_or_copy, read_checkpoint, write_checkpoint
from cgfedrec.run.engine import alone, engine
from cgfedrec.run.folder import CONFIG, METRICS, server_folder
from cgfedrec.run.records import Forgiving, History
from cgfedrec.settings.own import changed_files, code_of, gone_on
from cgfedrec.wire.secure.step import masking
from cgfedrec.wire.wire import Wire


@dataclass(frozen=True)
class Catalogue:
    """What a server knows in place of data: how many clients and items there are. It never has interactions.

    Args:
        num_users: How many clients there are.
        num_items: Of the catalogue.
        seed: Of the run; the server draws from the shared seed alone, which follows from it.
        protocol: How results are measured.
        held_out: The stages for which some node holds something out.
    """

    num_users: int
    num_items: int
    seed: int
    protocol: Protocol
    held_out: tuple[Stage, ...] = ()
    changes: None = None

    def holds_out(self, stage: Stage) -> bool:
        """Whether there is anything to rank for this stage."""
        return stage in self.held_out


class NetworkLoop(FederatedLoop):
    """The rounds of a federation whose clients are on nodes. Arguments are those of `FederatedLoop`."""

    clients: Nodes  # type: ignore[assignment]

    def join(
        self, fabric: Fabric, catalogue: Catalogue, method: Method, wire: Wire, terms: Terms, exchange: Exchange
    ) -> None:
        """Build the server, and wait for the nodes.

        Args:
            fabric: Owns device and precision.
            catalogue: In place of data.
            method: Makes the server.
            wire: Carries the messages.
            terms: Of the run.
            exchange: By which nodes are asked.

        Raises:
            InputError: for settings that do not fit, or nodes that do not.
            RunError: where no node comes.
        """
        self.fabric, self.processes = fabric, Processes()
        self.data = catalogue  # type: ignore[assignment]
        simulated = None
        if self.failures.simulated:
            simulated = (
                "loop.failures: nodes fail by themselves; only loop.failures.refused has a meaning over a network"
            )
        too_many = self.sampling.too_many(terms.clients, "clients")
        promised = no_privacy(method, wire, self.sampling.number(terms.clients), terms.clients)
        check(no_metric("loop.monitor", self.monitor, self.data), too_many, simulated, promised)
        self.server = method.server(terms.items, shared_seed(catalogue.seed)).to(fabric.device)
        self.server.enrol(self._ever_there())
        self.server.wire = wire
        check(*self.server.no_sum(self.num_participants))
        step = masking(wire)
        cutoffs, seed, refusing = catalogue.protocol.cutoffs, shared_seed(catalogue.seed), self.failures.refused > 0
        arguments = (exchange, terms, method, self.server, wire, cutoffs, seed, refusing)
        if step is None:
            self.clients = Nodes(*arguments)
        else:
            from cgfedrec.deploy.masked import MaskedNodes  # which needs what not every server has

            check(*step.problems({}, self.num_participants))  # each round's sum is opened by itself
            self.clients = MaskedNodes(step, *arguments)
            exchange.say(
                "wire.steps: SecureSums: clients mask what they send, and this server learns sums. It passes on their "
                "public keys, unsigned: one that made up its own could read everything"
            )
            if self.server.wanted() is not None and self.num_participants < terms.clients:
                exchange.say(
                    "sums that span rounds are opened round by round: this server learns the part of each round"
                )
        self.clients.meet()
        stages: tuple[Stage, ...] = ("val", "test")
        held_out = tuple(stage for stage in stages if self.clients.holds_out(stage))
        self.data = replace(catalogue, held_out=held_out)  # type: ignore[assignment]
        self._left = torch.empty(0, dtype=torch.int64)

    def fit(self) -> None:
        """Train as `FederatedLoop` does; and evaluate at the end, where the last round had nobody."""
        super().fit()
        if not self.history or self.history[-1]["round"] != self.round:
            self.record(torch.empty(0, 0), {}, 0.0)
            self.fabric.call("on_round_end", self)

    def nobody_came(self) -> None:
        """Go on with the next round: nodes have closed this one, and nothing of it is added up."""
        self.server.sum = None

    def sample(self) -> Tensor:
        """This round's participants, `[participants]`: drawn among the clients who are there.

        Raises:
            RunError: where nobody is there who is wanted.
        """
        self.clients.refresh()
        gone = self.clients.gone()
        if len(new := gone[~torch.isin(gone, self._left)]):
            self.server.leave(new)
        self._left = gone
        if self.server.finished:
            return gone[:0]
        wanted = self.server.wanted()
        if wanted is None:
            wanted = self._ever_there()
        pool = wanted[torch.isin(wanted, self.clients.present())]
        if not len(pool):
            if self.server.wanted() is None or not len(wanted) or not len(self.clients.present()):
                told = f"none of the {len(wanted)} clients who are needed is there any more"
                raise RunError(f"round {self.round}: {told}")
            told = f"the sum waits for {len(wanted)} clients alone who have not come"
            self.clients.exchange.say(f"round {self.round}: {told}: the run goes on without them")
            self.server.leave(wanted)
            return self.sample()
        return self._enough(pool, self.server.wanted() is not None)

    def _enough(self, pool: Tensor, to_end: bool) -> Tensor:
        """Participants `[participants]` from a pool `[clients]`, so many that what they send can be opened.

        Args:
            pool: Who is there and wanted.
            to_end: Whether all of them are to take part once, in this round or a later one.
        """
        least = self.clients.least
        drawn = self._drawn(pool)
        if to_end and 0 < len(pool) - len(drawn) < least:  # those who are left would be too few in the next round
            return pool
        if len(drawn) >= least:
            self._tell_fewer(len(drawn), to_end)
            return drawn
        told = f"round {self.round}: {len(pool)} clients are left, and no sum of fewer than {least} is opened"
        if not to_end:
            raise RunError(told)
        self.clients.exchange.say(f"{told}: the run goes on without them")
        self.server.leave(pool)
        return self.sample()

    def _tell_fewer(self, drawn: int, to_end: bool) -> None:
        """Say it where fewer take part than were asked for; at the end of a sum it is whoever is left."""
        asked = self.sampling.participants
        if asked and drawn < asked and not to_end:
            told = f"loop.participants: {asked} are to take part, and only {drawn} clients are there"
            self.clients.exchange.say(f"round {self.round}: {told}: all of them do")

    def evaluate(self, stage: Stage) -> Row:
        """Metrics of all clients' present state, from the nodes' sums."""
        return self.clients.metrics(stage, self.round)


class Saved:
    """Writes the server's state after each round.

    Args:
        folder: Of checkpoints.
        header: Of the run.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder, self.header = folder, header

    def on_round_end(self, loop: NetworkLoop) -> None:
        """Write it; and keep the best, of which only the server's half can be gone back to."""
        write_checkpoint(self.folder / LAST, self.header, loop.state_dict())
        if loop.best is not None and loop.best["round"] == loop.round:
            link_or_copy(self.folder / LAST, self.folder / BEST)


class Told:
    """Says how each round has ended.

    Args:
        say: Tells people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_round_end(self, loop: NetworkLoop) -> None:
        """One line."""
        found = ""
        if loop.history and loop.history[-1]["round"] == loop.round and loop.monitor in loop.history[-1]:
            found = f", {loop.monitor} {loop.history[-1][loop.monitor]:.4f}"
        phase = f", next: {loop.server.phase}" if loop.server.phase else ""
        self.say(f"round {loop.round} has ended{found}, {loop.bytes_up + loop.bytes_down:,} bytes so far{phase}")


def federate(terms: Terms, run: str, exchange: Exchange, trusted: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train over a network, from the first round to the last, and write what was found.

    Args:
        terms: Of the run.
        run: Which it is; its folder has this name, below `Terms.folder`.
        exchange: By which nodes are asked.
        trusted: Modules or classes that the settings may name, beside cgfedrec's and torch's.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError: for settings or nodes that cannot be used.
        RunError: where training fails.
    """
    settings, parts = terms.parsed(trusted), terms.components(trusted)
    if not isinstance(parts.method, Method):
        raise InputError(f"method: {type(parts.method).__name__} is a reference that sees everyone's data")
    folder = Path(terms.folder) / run
    method = f"{type(parts.method).__module__}.{type(parts.method).__qualname__}"
    header = Header(run, terms.settings, method, terms.catalogue, code_of(terms.settings))
    arguments = dict(vars(settings.loop)) | {"rounds": terms.rounds, "failures": parts.loop.failures}
    loop = NetworkLoop(**arguments)
    catalogue = Catalogue(terms.clients, terms.items, settings.seed_everything, parts.protocol)
    saved = Saved(folder / "checkpoints", header)
    hooks = [History(folder / METRICS, Forgiving(None)), EarlyStopping(), saved, Told(exchange.say)]
    fabric, _ = engine(alone(vars(parts.fabric)), hooks)
    with server_folder(folder):
        before = _before(folder / "checkpoints", header) if terms.resume else None
        loop.join(fabric, catalogue, parts.method, parts.wire, terms, exchange)
        if before is not None:
            for file in changed_files(before["code"], header.code):
                exchange.say(f"what {file} holds has changed since the run began")
            saved.header = header._replace(code=gone_on(before["code"], header.code))
            _go_on(loop, before["loop"], folder / "checkpoints" / LAST)
            exchange.say(f"the run goes on after round {loop.round}")
        write_atomically(folder / CONFIG, terms.settings)
        loop.fit()
        summary: dict[str, Any] = {"run": run, "method": method, "round": loop.round, "clients": terms.clients}
        summary |= {"nodes/gone": len(loop.clients.away), "clients/gone": len(loop.clients.gone())}
        summary |= {"bytes/up": loop.bytes_up, "bytes/down": loop.bytes_down}
        if loop.clients.holds_out("test"):
            summary |= loop.evaluate("test")
        summary |= {"bytes/scoring": loop.bytes_scoring, "messages": exchange.messages, "seconds": loop.seconds}
        summary |= {"code": saved.header.code} if saved.header.code else {}
        write_json(folder / "summary.json", summary)
    exchange.say(f"the run has ended after round {loop.round}; see {folder.absolute()}")
    return summary


def _go_on(loop: NetworkLoop, state: dict[str, Any], path: Path) -> None:
    """Go on with the state that was read from a path. Raises `InputError` where it is none of this run."""
    try:
        loop.load_state_dict(state)
    except NO_STATE as error:
        raise InputError(f"resume: {path.absolute()} holds no state of this run ({error!r})") from error


def _before(checkpoints: Path, header: Header) -> State:
    """The server's checkpoint, with which a run goes on. Raises `InputError` where there is none, or one of another."""
    path = checkpoints / LAST
    check(None if path.exists() else f"resume: there is no {path.absolute()} to go on from")
    state = read_checkpoint(path)
    found = Header.of(state)._replace(code=header.code)
    if found != header:
        other = ", ".join(name for name in header._fields if getattr(found, name) != getattr(header, name))
        check(f"resume: {path} is of a run of another {other}; a run goes on with its own settings and items")
    return state
