"""A node: answers what the server asks of the clients who live on it, with the same `Clients` as a simulation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from cgfedrec import __version__
from cgfedrec.deploy.owndata import NodeData, NodeFolder
from cgfedrec.deploy.parcels import (
    DONE,
    FAILED,
    MISSING,
    REFUSED,
    Parcel,
    declined,
    pack_uploads,
    unpack_broadcast,
    unpack_bulletin,
)
from cgfedrec.deploy.remote import Remote, Sending
from cgfedrec.deploy.settings import Terms
from cgfedrec.deploy.state import NodeState
from cgfedrec.errors import BusyError, InputError, RunError
from cgfedrec.evaluation.metrics import METRICS
from cgfedrec.files import locked
from cgfedrec.processes import Processes
from cgfedrec.run.checkpoint import Header
from cgfedrec.run.engine import alone, engine
from cgfedrec.simulation.clients import Clients
from cgfedrec.simulation.demand import Plans
from cgfedrec.simulation.together import Trained, told
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.secure.step import masking
from cgfedrec.wire.sums import GRID
from cgfedrec.wire.wire import Wire

if TYPE_CHECKING:
    from cgfedrec.deploy.members import Members

PATIENCE = 600.0
"""Seconds that a message waits for another process of its node: Flower starts one where it takes the first for dead."""
STATE = "state"
"""The folder of private state, below that of the node: a file for each run."""


class Node:
    """Answers parcels.

    Args:
        folder: Of the node.
        terms: Of the run.
        run: Which run it is.
        trusted: Modules or classes that settings from the server may name, beside cgfedrec's and torch's.
        clock: Tells the time in seconds.

    Raises:
        InputError: for a folder or settings that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        terms: Terms,
        run: str,
        trusted: tuple[str, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.terms, self.run, self.clock = NodeFolder(folder), terms, run, clock
        self._parts: Namespace = terms.components(trusted)
        if self.folder.catalogue != terms.catalogue or len(self.folder.items) != terms.items:
            raise InputError(f"{folder}: its items are not those of the run: the catalogue must be the same everywhere")

    @cached_property
    def data(self) -> NodeData:
        """Of the clients who live here."""
        # Noise is drawn of it: that of another run, or of the same name with other settings, is other noise.
        made = json.dumps([__version__, self.run, self.terms.settings])
        return NodeData.ready(self.folder, self._parts.data, self.terms.clients, self._parts.protocol, made)

    @property
    def file(self) -> Path:
        """Of private state."""
        return self.folder.path / STATE / f"{self.run}.ckpt"

    @property
    def secrets(self) -> Path:
        """Of a round whose sum is masked."""
        return self.file.with_suffix(".secrets")

    def answer(self, asked: Parcel) -> Parcel:
        """Do what is asked; an answer in any case."""
        try:
            if asked.text("run") != self.run:
                raise ValueError(f"is of run {asked.text('run')!r}, and this is run {self.run!r}")
            what = {
                "who": self.who,
                "keys": self.masks,
                "shares": self.masks,
                "train": self.train,
                "unmask": self.masks,
                "evaluate": self.evaluate,
            }[asked.text("what")]
            wait = min(PATIENCE, asked.number("deadline") - self.clock())
            with locked(self.folder.path, f"{self.folder.path}: another process of this node is at work", wait):
                return what(asked)
        except BusyError as error:
            return declined(REFUSED, str(error))
        except (InputError, RunError) as error:
            return declined(FAILED, str(error))
        except (ValueError, KeyError) as error:
            return declined(FAILED, f"the message of the server cannot be read: {error}")

    def who(self, asked: Parcel) -> Parcel:
        """Who lives here, by their numbers, and what has come already."""
        self._parts.method.check(self.data)
        self._members()  # which says what is missing
        if not self.file.exists():  # the run begins here, and runs before it need their keys no more
            for left in self.file.parent.glob("*.secrets*"):
                if left != self.secrets:
                    left.unlink()
        state = self._state()
        head = {"status": DONE, "clients": self.data.here.tolist(), "kept": list(state.kept), "version": __version__}
        head |= {name: self.data.holds_out(name) for name in ("val", "test")}
        return Parcel(head | {"round": state.round}, {})

    def masks(self, asked: Parcel) -> Parcel:
        """The part of clients in one of the exchanges by which a sum is masked and opened, unless it is too late."""
        if closed := self._closed(asked):
            return declined(REFUSED, closed)
        members = self._members()
        if members is None:
            raise ValueError("nothing is masked in this run")
        clients, trained = asked.wholes("clients", self.terms.clients).tolist(), 0
        if asked.text("what") == "unmask":
            trained = self._state().round
        return members.answer(asked, clients, asked.whole("round"), trained)

    def train(self, asked: Parcel) -> Parcel:
        """Train those who are asked in a round, once, unless the round is closed; private state moves with it alone."""
        round, taken = asked.whole("round"), asked.whole("taken")
        if closed := self._closed(asked):
            return declined(REFUSED, closed)
        state = self._state()
        if state.round > round:
            return declined(REFUSED, f"round {round} is closed: round {state.round} has been trained since")
        if state.round == round and state.reply is not None:
            members = self._members()
            if members is not None and "senders" in asked.head and not members.has_masked(round):
                return declined(REFUSED, f"round {round}: the keys of what was sent are gone")
            return state.reply  # the same message once more
        kept = self._kept(asked, state)
        if missing := [name for name in asked.texts("broadcast/kept") if name not in kept]:
            return Parcel({"status": MISSING, "kept": missing}, {})
        users, note = asked.wholes("clients", self.terms.clients), ""
        try:
            before = state.after(taken)
        except LookupError as error:
            before, note = None, f"{error}: its clients begin anew"
        members = self._members()
        if members is not None and (late := members.take(users.tolist(), round, asked)):
            return declined(REFUSED, late)
        clients = self._clients(asked, kept, before)
        trained = list(clients.train(clients.in_order(users), round))
        uploads = [one.part for one in trained if isinstance(one.part, Upload)]
        if members is not None:
            uploads = members.masked(uploads, round)
        reply = self._reply(trained, uploads, note)
        after = clients.state_dict()
        if closed := self._closed(asked):
            return declined(REFUSED, closed)
        NodeState(round, after, taken, before, reply, kept).write(self.file, self._header())
        return reply

    def evaluate(self, asked: Parcel) -> Parcel:
        """Where clients rank what they hold out: sums of metrics over all who live here, in units of 1 / `GRID`."""
        state = self._state()
        kept = self._kept(asked, state)
        if missing := [name for name in asked.texts("broadcast/kept") if name not in kept]:
            return Parcel({"status": MISSING, "kept": missing}, {})
        stage = asked.text("stage")
        if stage not in ("val", "test"):
            raise ValueError(f"there is no stage {stage!r}")
        if not self.data.holds_out(stage):  # type: ignore[arg-type]
            return Parcel({"status": DONE, "users": 0, "bytes_scoring": 0}, {})
        try:
            private = state.after(asked.whole("taken"))
        except LookupError:
            private = None
        clients = self._clients(asked, kept, private)
        before = clients.bytes_scoring
        ranks = clients.ranked(stage, asked.whole("round")).ranks  # type: ignore[arg-type]
        sums, users = {}, 0
        for kind in METRICS.values():
            metric = kind(self.data.protocol.cutoffs)
            metric.update(ranks)
            sums[metric.name] = (metric.total * GRID).round().long().tolist()
            users = int(metric.users)
        after = clients.state_dict()
        if private is state.now and _told_more(private, after):  # what came down to score with need not come again
            replace(state, now=after, kept=kept).write(self.file, self._header())
        return Parcel(
            {"status": DONE, "users": users, "sums": sums, "bytes_scoring": clients.bytes_scoring - before}, {}
        )

    def _closed(self, asked: Parcel) -> str:
        """Why it is too late for what is asked, if it is."""
        late = self.clock() - asked.number("deadline")
        return f"round {asked.whole('round')} was closed {late:.0f} s ago" if late > 0 else ""

    def _state(self) -> NodeState:
        header, state = NodeState.read(self.file)
        if header is not None and header != self._header():
            what = "settings of the run" if header.config != self.terms.settings else "data of this node"
            raise InputError(f"{self.file}: the {what} have changed since the run began; begin another")
        return state

    def _header(self) -> Header:
        kind = type(self._parts.method)
        method = f"{kind.__module__}.{kind.__qualname__}"
        return Header(self.run, self.terms.settings, method, self.data.fingerprint())

    def _kept(self, asked: Parcel, state: NodeState) -> dict[str, tuple[bytes, bytes]]:
        """All bulletins that have come, those in the parcel included."""
        kept = dict(state.kept)
        for place, name in enumerate(asked.texts("bulletins")):
            kept[name] = asked.body[f"bulletin/{place}"], asked.body[f"bulletin/{place} layout"]
        return kept

    def _clients(
        self, asked: Parcel, kept: Mapping[str, tuple[bytes, bytes]], state: Mapping[str, Any] | None
    ) -> Clients:
        """The clients who live here, in a state, or at their start."""
        bulletins: dict[str, Bulletin] = {name: unpack_bulletin(*kept[name]) for name in asked.texts("broadcast/kept")}
        server = Remote(unpack_broadcast("welcome", asked, {}), unpack_broadcast("broadcast", asked, bulletins))
        fabric, _ = engine(alone(vars(self._parts.fabric)), [])
        wire = Sending(self._parts.wire.steps)
        clients = Clients(fabric, self.data, self._parts.method, server, wire, Processes())
        loop = self._parts.loop
        here = len(self.data.here)
        plans = Plans(here, loop.rounds, True, loop.rounds, 1)
        clients.settle(plans, "memory", "auto", loop.state_dtype, self.file.parent, True)
        if state is not None:
            clients.load_state_dict(state, 0)
        return clients

    def _members(self) -> Members | None:
        """Its clients as members of masked sums, where sums are masked."""
        step = masking(self._parts.wire)
        if step is None:
            return None
        from cgfedrec.deploy.members import Members  # which needs what not every node has

        return Members(self.secrets, self.run, step)

    def _reply(self, trained: list[Trained], uploads: list[Upload], note: str) -> Parcel:
        """What a round's participants send."""
        sent = pack_uploads(uploads)
        all_told = told(Processes(), [one.told for one in trained], Wire())
        head = {
            "status": DONE,
            "users": all_told.users.tolist(),
            "bytes": [all_told.bytes_up, all_told.bytes_down],
            "means": all_told.means.double().mean(0).tolist(),
            "note": note,
        }
        return Parcel(head | dict(sent.head), sent.body)


def _told_more(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> bool:
    """Whether clients have had something that they had not had before."""
    if before is None:
        return True
    held = before["held"]
    return any(name not in held or not mask.equal(held[name]) for name, mask in after["held"].items())
