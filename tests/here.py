"""A federation over a network whose nodes are in this process, and the same one simulated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tomli
import yaml
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity
from jsonargparse import Namespace

from cgfedrec.deploy.exchange import Exchange
from cgfedrec.deploy.node import Node
from cgfedrec.deploy.parcels import Parcel
from cgfedrec.deploy.settings import Terms
from cgfedrec.run.api import fit
from cgfedrec.run.checkpoint import read_checkpoint
from tests.commands import cgfedrec

SEED = 7
SMALL: dict[str, Any] = {
    "data": {"init_args": {"synthetic": {"users": 40, "items": 50, "groups": 5, "interactions": 10}}},
    "loop": {"rounds": 3, "patience": None},
    "logger": None,
    "seed_everything": SEED,
}
PFEDREC = {"class_path": "cgfedrec.methods.PFedRec", "init_args": {"dim": 8}}
CGFEDCO = {"class_path": "cgfedrec.methods.CGFedCo"}


def deployed(
    method: Mapping[str, Any],
    loop: Mapping[str, Any] | None = None,
    nodes: int = 2,
    steps: Sequence[object] = (),
    split: str = "leave_one_out",
) -> Terms:
    """Write a deployment into ``fed``, whose nodes have the simulator's secret, so that results compare."""
    settings = SMALL | {"method": method, "loop": SMALL["loop"] | dict(loop or {}), "wire": {"steps": list(steps)}}
    settings["data"] = {"init_args": SMALL["data"]["init_args"] | {"split": split}}
    Path("config.yaml").write_text(yaml.safe_dump(settings))
    done = cgfedrec("deploy", "--config", "config.yaml", "--nodes", nodes, "--output", "fed")
    assert done.returncode == 0, done.stderr
    for number in range(nodes):
        Path(f"fed/nodes/node-{number}/secret").write_text(f"{SEED}\n")
    app = tomli.loads(Path("fed/app/pyproject.toml").read_text())
    return Terms.of(app["tool"]["flwr"]["app"]["config"])


def simulated() -> dict[str, Any]:
    """The last state of the same federation, simulated."""
    fit("config.yaml", {"run_dir": "simulated"})
    return dict(read_checkpoint(Path("simulated/checkpoints/last.ckpt"))["loop"])


def ended(run: str = "r") -> dict[str, Any]:
    """The last state of a federation over a network."""
    return dict(read_checkpoint(Path(f"runs/flower/{run}/checkpoints/last.ckpt"))["loop"])


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """The same bits in all that the server has."""
    assert found["server"].keys() == wanted["server"].keys()
    for name, value in wanted["server"].items():
        assert found["server"][name].equal(value), name


class Once(Terms):
    """Terms whose settings are read once, and not for each message anew: that would take longer than all else."""

    def components(self, trusted: Collection[str] = ()) -> Namespace:
        if self.settings not in _READ:
            _READ.clear()
            _READ[self.settings] = super().components(trusted)
        return _READ[self.settings]


_READ: dict[str, Namespace] = {}


def _answer(folder: Path, terms: Terms, run: str, trusted: tuple[str, ...], asked: Parcel) -> Parcel:
    """As each message does on Flower, which starts a process for it."""
    return Node(folder, terms, run, trusted).answer(asked)


class Here:
    """Flower's grid, with nodes in this process: they are in ``nodes`` while they are connected.

    Attributes:
        asked: What was asked of whom, in order.
        before: Called with the node and the parcel before each is answered.
    """

    def __init__(self, terms: Terms, number: int = 2, run: str = "r", trusted: tuple[str, ...] = ()) -> None:
        once = Once(**vars(terms))
        self.nodes: dict[int, Callable[[Parcel], Parcel]] = {
            one: partial(_answer, Path(f"fed/nodes/node-{one}"), once, run, trusted) for one in range(number)
        }
        self.clock = 1e9
        self.asked: list[tuple[int, Parcel]] = []
        self.before: Callable[[int, Parcel], None] = lambda node, asked: None
        self._replies: dict[str, Message] = {}
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            node, asked, id = message.metadata.dst_node_id, Parcel.of(message.content), str(len(self.asked))
            self.asked.append((node, asked))
            message.metadata.__dict__["_message_id"] = id
            self.before(node, asked)
            if node in self.nodes:
                self._replies[id] = Message(self.nodes[node](asked).records(), reply_to=message)
            else:
                self._replies[id] = Message(Error(5, "node unavailable"), reply_to=message)
            yield id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for id in message_ids:
            if id in self._replies:
                yield self._replies.pop(id)

    def exchange(self, said: list[str] | None = None, run: str = "r") -> Exchange:
        """One whose clock goes on as it sleeps."""

        def sleep(seconds: float) -> None:
            self.clock += seconds

        say = print if said is None else said.append
        return Exchange(self, run, 1e9, 30.0, say, lambda: self.clock, sleep)
