"""Checkpoints: written in one atomic step, read without executing anything, refused where they do not belong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop
from cgfedrec.protocol import Protocol

FORMAT = 1
"""Of checkpoints; one of another format is refused."""


class Checkpoint:
    """Writes ``last.ckpt`` every so many rounds and ``best.ckpt`` at every best round, each in one atomic step.

    Args:
        directory: Where to.
        header: What a checkpoint says beside the state of the loop.
    """

    def __init__(self, directory: Path, header: dict[str, Any]) -> None:
        self.directory = directory
        self.header = header

    def on_round_end(self, loop: FederatedLoop) -> None:
        best = loop.best is not None and loop.best["round"] == loop.round
        last = loop.should_stop or loop.round == loop.rounds or loop.round % loop.checkpoint_every == 0
        if not (best or last):
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        partial, second = self.directory / "writing.ckpt", self.directory / "writing-best.ckpt"
        partial.unlink(missing_ok=True)  # what a killed run left may be another checkpoint under a second name
        for name in ("last", "best") if best else ("last",):
            loop.store.pin(name)
        loop.fabric.save(partial, self.header | {"loop": loop.state_dict()})
        if best:
            link_or_copy(partial, second)
        partial.replace(self.directory / "last.ckpt")
        if best:  # second, so that the best round is never ahead of the last, from which a run goes on
            second.replace(self.directory / "best.ckpt")


def link_or_copy(source: Path, target: Path) -> None:
    """One file under two names, or a copy where the file system knows no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `Checkpoint` wrote; nothing in the file is executed. Raises `InputError` if it is none."""
    if not path.is_file():
        raise InputError(f"ckpt_path: no file {path}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any content fails in any way
        raise InputError(f"ckpt_path: {path} is no checkpoint, or is cut off") from error
    keys = {"format", "config", "method", "fingerprint", "loop"}
    if not isinstance(state, dict) or not keys <= state.keys() or state["format"] != FORMAT:
        raise InputError(f"ckpt_path: {path} is no checkpoint of this version of cgfedrec")
    return state


def changed(before: dict[str, Any], now: dict[str, Any], resume: bool) -> list[str]:
    """What must not differ from when a checkpoint was written, but does.

    Args:
        before: The config in the checkpoint.
        now: The config of this run.
        resume: Whether training goes on, or the trained state is only used.
    """
    was, becomes = (dict(_flat(_identity(config, resume))) for config in (before, now))
    return [
        f"{key}: the checkpoint has {was.get(key)}, which cannot be changed to {becomes.get(key)}"
        for key in was | becomes
        if was.get(key) != becomes.get(key)
    ]


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(settings, dict):
        yield prefix, settings
        return
    for key, value in settings.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else key)


def _identity(config: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The settings on which a trained state depends and, to ``resume``, those on which the next round does."""
    protocol = config["protocol"]
    protocol = Protocol(**({"name": protocol} if isinstance(protocol, str) else protocol))
    trained = {"protocol": {"name": protocol.name}, "method": config["method"]["init_args"]}
    if not resume:
        return trained
    loop = ("participation", "participants", "resample", "evaluate_every", "monitor", "state_dtype")
    data = {k: v for k, v in config["data"]["init_args"].items() if k not in ("path", "format")}
    precision = config["fabric"]["precision"]
    return trained | {
        "fabric": {"precision": "32-true" if precision in (None, 32, "32") else precision},
        "seed_everything": config["seed_everything"],
        "protocol": protocol.to_dict(),
        "data": data,
        "loop": {name: config["loop"][name] for name in loop},
    }
