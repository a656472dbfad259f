"""A run's checkpoints: when they are written, and how a run goes on from them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from cgfedrec import __version__
from cgfedrec.data.arguments import is_embedded, origin
from cgfedrec.errors import InputError, RunError, check
from cgfedrec.failures import NONE
from cgfedrec.loop import FederatedLoop
from cgfedrec.protocol import Protocol
from cgfedrec.run.checkpoint import (
    BEST,
    LAST,
    NO_STATE,
    Header,
    State,
    copy,
    flat,
    link_or_copy,
    read_checkpoint,
    write_checkpoint,
)
from cgfedrec.run.folder import CLIENTS
from cgfedrec.run.reference import ReferenceFit
from cgfedrec.settings.own import gone_on, tell_of_changes


class Checkpoints:
    """Writes ``last.ckpt`` every so many rounds and ``best.ckpt`` at every best round, each in one atomic step.

    As long as nothing has judged any round, the last one is the best: while a server prepares, or where nothing is held
    out. Then both are written together.

    Args:
        directory: Where they lie, with the files of clients' state beside them.
        header: What a checkpoint says beside the state of the loop.
    """

    def __init__(self, directory: Path, header: Header) -> None:
        self.directory = directory
        self.header = header

    def on_round_end(self, loop: FederatedLoop) -> None:
        """Write what is due after this round.

        Raises:
            RunError: where there is no room for a checkpoint, the one before being still there, or where the best
                round's is no longer there.
        """
        best_round, judged = _best_round(loop), loop.best is not None and loop.monitor in loop.best
        best = best_round == loop.round
        ended = loop.should_stop or loop.round == loop.rounds or loop.server.finished
        last = ended or loop.round % loop.checkpoint_every == 0
        with loop.processes.agreed():
            if loop.processes.first and judged and not best:
                self._check_there(cast(int, best_round))
        if not (last or (judged and best)):
            return
        # The store writes clients' state in place: what a checkpoint refers to must not be overwritten.
        loop.clients.store.pin("last")
        if best:
            loop.clients.store.pin("best")
        state = loop.state_dict()
        with loop.processes.agreed():
            if loop.processes.first:
                write_checkpoint(self.directory / LAST, self.header, state, loop.compress)
                if best:  # second, so that the best round is never ahead of the last, from which a run goes on
                    link_or_copy(self.directory / LAST, self.directory / BEST)

    def _check_there(self, best: int) -> None:
        """Raise `RunError` where the checkpoint of the best round so far has been taken away."""
        if not (self.directory / BEST).is_file():
            raise RunError(
                f"{self.directory / BEST} was removed while this run was at work; without it the best round, {best}, "
                f"cannot be reported. Put it back and go on from {LAST}, or start again"
            )

    def belong_to(self, directory: Path, run: str) -> None:
        """Be of the run of another process, which writes its checkpoints to ``directory``."""
        self.directory = directory
        self.header = self.header._replace(run=run)

    def keep(self, fit: ReferenceFit) -> None:
        """Write what a reference has learned, which is its last state and its best. Raises `RunError` without room."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_checkpoint(self.directory / LAST, self.header, fit.state_dict())
        link_or_copy(self.directory / LAST, self.directory / BEST)

    def restore(self, loop: FederatedLoop | ReferenceFit, state: State, resumed: Path | None = None) -> None:
        """Go to where a checkpoint was written.

        Args:
            loop: Set up, with data that are its own; or what fits a reference.
            state: Of `read_checkpoint`.
            resumed: The checkpoint, if training is to go on from it; nothing may differ then on which its result
                depends.

        Raises:
            InputError: where it does not belong to this run.
        """
        other_method = other_data = None
        if state["method"] != self.header.method:
            other_method = f"ckpt_path: was trained with {state['method']}, this run uses {self.header.method}"
        if state["fingerprint"] != self.header.fingerprint:
            other_data = f"ckpt_path: {_other_data(loop, state['config'], self.header.config)}"
        check(other_method, other_data, _fewer(loop, state) if resumed else None)
        check(*changed(yaml.safe_load(state["config"]), yaml.safe_load(self.header.config), resumed is not None))
        tell_of_changes("ckpt_path", state["code"], self.header.code)
        self.header = self.header._replace(run=state["run"], code=gone_on(state["code"], self.header.code))
        if resumed and isinstance(loop, FederatedLoop) and loop.processes.first:
            self._adopt_clients(resumed)
        try:
            loop.load_state_dict(state["loop"])
        except FileNotFoundError as error:
            raise InputError(f"ckpt_path: the clients' state is not beside it: no file {error.filename}") from error
        except NO_STATE as error:
            raise InputError(f"ckpt_path: holds no state of this run ({error})") from error

    def _adopt_clients(self, checkpoint: Path) -> None:
        """Copy the files of clients' state that a checkpoint in another folder refers to, if there are any."""
        theirs, ours = checkpoint.with_name(CLIENTS), self.directory / CLIENTS
        if theirs.is_dir() and not (ours.exists() and ours.samefile(theirs)):
            for path in theirs.iterdir():
                copy(path, ours / path.name)

    def adopt(self, loop: FederatedLoop, checkpoint: Path) -> None:
        """Make the checkpoint that was restored, and that of the best round so far, this run's own.

        The best round comes first: a folder is a run's once it holds ``last.ckpt``, and can then be continued.

        Raises:
            InputError: if the best round's is nowhere.
        """
        best = _best_round(loop)
        adopted = {LAST: checkpoint}
        if best is not None:
            source = checkpoint
            if best != loop.round:
                source = checkpoint.with_name(BEST)
            self._read_best(source, best)
            adopted = {BEST: source, LAST: checkpoint}
        for name, source in adopted.items():
            target = self.directory / name
            if not target.exists() or not source.samefile(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, target)

    def go_to_best(self, loop: FederatedLoop) -> None:
        """Go back to the best round, to use what was trained; the whole history stays.

        Raises:
            InputError: if its checkpoint is gone, or is another run's.
        """
        best, history = _best_round(loop), loop.history
        if best is None:
            return
        if best == loop.round:
            self._tell_last(loop)
            return
        loop.open_state_dict(self._read_best(self.directory / BEST, best)["loop"])
        loop.history = history

    def _tell_last(self, loop: FederatedLoop) -> None:
        """Have a row of the last round too, where that is the best one because nothing has judged any."""
        if loop.history[-1]["round"] != loop.round:
            loop.rounds = loop.round  # a callback has made it the last
            loop.record(torch.empty(0, 0), {}, 0.0)
            loop.fabric.call("on_round_end", loop)

    def _read_best(self, path: Path, round: int) -> State:
        """The checkpoint of the best round. Raises `InputError` if it is another, or another run's."""
        state = read_checkpoint(path)
        ours = (self.header.run, self.header.fingerprint, round)
        if (state["run"], state["fingerprint"], state["loop"].get("round")) != ours:
            raise InputError(f"ckpt_path: {path} is not round {round} of this run, the best so far")
        return state


def _other_data(loop: FederatedLoop | ReferenceFit, before: str, now: str) -> str:
    """What is to be said of data that are not those of a checkpoint, by the settings of then and of now."""
    ours = origin(loop.data.path, type(loop.data).__name__)
    then, asked = (_source(yaml.safe_load(config)) for config in (before, now))
    if then != asked or is_embedded(loop.data.path, type(loop.data).__name__):
        named = then["data"]["path"]
        instead = f"; its own is {named}" if named and named != asked["data"]["path"] else ""
        return f"was trained on other data than {ours}, or on another split{instead}"
    what = "train anew"
    if isinstance(loop, FederatedLoop) and loop.server.updates != "never":
        what = "bring the run up to date with cgfedrec fit --update_from"
    if loop.data.path is None:  # a data module of one's own
        return f"was trained on other data than {ours} reads now; {what}"
    return (
        f"was trained on other data than {ours} holds now: it has changed since, or is another file of that name. Give "
        f"a copy of then as --data.path, or {what}"
    )


def _source(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that say which data there are and how they are split."""
    data = {name: value for name, value in config["data"]["init_args"].items() if name != "items"}
    return {"data": data, "class_path": config["data"]["class_path"], "seed": config["seed_everything"]}


def _fewer(loop: FederatedLoop | ReferenceFit, state: State) -> str | None:
    """Why a run cannot go on to fewer rounds than are behind it: its settings would tell of another run."""
    done = state["loop"].get("round")
    if isinstance(loop, FederatedLoop) and isinstance(done, int) and done > loop.rounds:
        return f"loop.rounds: the checkpoint is of round {done}, and {loop.rounds} are fewer; give {done} or more"
    return None


def _best_round(loop: FederatedLoop) -> int | None:
    """The round that is the best: by what judges rounds, or the last one where nothing has. None before any."""
    if loop.best is None:
        return None
    if loop.monitor not in loop.best:
        return loop.round
    return int(loop.best["round"])


def changed(before: dict[str, Any], now: dict[str, Any], resume: bool) -> list[str]:
    """What must not differ from when a checkpoint was written, but does.

    Args:
        before: The config in the checkpoint.
        now: The config of this run.
        resume: Whether training goes on, or the trained state is only used.
    """
    was, becomes = (dict(flat(_identity(config, resume))) for config in (before, now))
    return [
        f"{key}: the checkpoint has {was.get(key)}, which cannot be changed to {becomes.get(key)}"
        for key in was | becomes
        if was.get(key) != becomes.get(key)
    ]


def made_of(config: str) -> str:
    """What makes a run, as a text: its settings, but for those that may change as it goes on.

    Noise is drawn of it. So a run that goes on, to more rounds say, has the noise that it would have had, and a run
    with other settings has other noise. Another version may compute otherwise, and is another run too.

    Args:
        config: The settings, as YAML.
    """
    held = yaml.safe_load(config)
    classes = [held[name]["class_path"] for name in ("method", "data")]
    return json.dumps([__version__, classes, _whole(_identity(held, resume=True))], sort_keys=True, default=str)


def _whole(value: object) -> object:
    """The same settings with 2 for 2.0: nothing of a run depends on that."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _identity(config: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The settings on which a trained state depends and, to ``resume``, those on which the next round does."""
    protocol = config["protocol"]
    if isinstance(protocol, str):
        protocol = {"name": protocol}
    protocol = Protocol(**protocol)
    # Clients that never trained start as the seed says, so a state without its seed is another state.
    trained = {
        "seed_everything": config["seed_everything"],
        "protocol": {"name": protocol.name},
        "method": config["method"].get("init_args"),
    }
    if not resume:
        return trained
    loop = ("participation", "participants", "resample", "evaluate_every", "monitor", "state_dtype")
    data = {k: v for k, v in config["data"]["init_args"].items() if k not in ("path", "format", "items")}
    precision = config["fabric"]["precision"]
    if precision in (None, 32, "32"):  # other spellings of the same
        precision = "32-true"
    return trained | {
        "fabric": {"precision": precision},
        "protocol": protocol.to_dict(),
        "data": data,
        "wire": config["wire"],
        "loop": {name: config["loop"][name] for name in loop},
        "failures": asdict(NONE) | (config["loop"].get("failures") or {}),  # checkpoints of before know of none
    }
