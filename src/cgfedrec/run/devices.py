"""What stays on a device: the state of one client, or of the server alone, in a file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from cgfedrec.client import Client
from cgfedrec.errors import InputError, check
from cgfedrec.files import DamagedError, no_folder
from cgfedrec.kit.sums import SumsInTurn
from cgfedrec.loop import FederatedLoop
from cgfedrec.random import shared_seed
from cgfedrec.run.checkpoint import Header
from cgfedrec.run.export import about
from cgfedrec.server import Server
from cgfedrec.serving.container import Contents, packed_texts, read_container, unpacked_texts, write_container
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.parts import put_together, taken_apart
from cgfedrec.wire.values import Value

CLIENT, SERVER = "client", "server"
"""Kinds of files."""
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RuntimeError,
    OverflowError,
    AssertionError,
)
"""What comes of parts that do not belong together."""


@dataclass(frozen=True)
class ClientState:
    """One client: its private state and what came down to it, and nothing else: no history, no seed, no id.

    Args:
        about: The method, its settings, the round.
        num_items: Of the catalogue.
        private: Its row of every private tensor, `[1, ...]`.
        welcome: What the server sent once.
        broadcast: What the server sends it now.
    """

    about: Mapping[str, Any]
    num_items: int
    private: Mapping[str, Tensor]
    welcome: Broadcast
    broadcast: Broadcast | None

    def give_to(self, client: Client) -> None:
        """Make a client of the same method and settings this one, as a cohort of one, ready to score.

        What came down is taken by clients that score with it (`Client.scores_after`); the others wait for their next
        round.

        Raises:
            InputError: for a client that cannot have this state.
        """
        wanted = {name: tuple(one.shape[1:]) for name, one in client.private().items()}
        found = {name: tuple(one.shape[1:]) for name, one in self.private.items()}
        if wanted != found:
            raise InputError(f"client: has {wanted}, and the file {found}; give it the method and settings of the file")
        try:
            client.welcome(self.welcome)
            client.load(torch.zeros(1, dtype=torch.int64), self.private)
            if client.scores_after == "aggregation":
                client.receive(self.broadcast, int(self.about["round"]) + 1)
        except _UNREADABLE as error:
            raise InputError(f"client: cannot have the state of the file: {error}") from error


@dataclass(frozen=True)
class ServerState:
    """A server alone: what it has found, how it is read, and the ids of the items; no user.

    Args:
        about: The method, its settings, the round.
        item_ids: Of all items, in the order of their numbers.
        clients: How many there are.
        state: Its buffers, `[...]` each by name.
    """

    about: Mapping[str, Any]
    item_ids: list[int | str]
    clients: int
    state: Mapping[str, Tensor]

    def give_to(self, server: Server) -> None:
        """Make a server of the same method and settings, and for as many items, this one.

        Raises:
            InputError: for a server that cannot have this state.
        """
        try:
            server.enrol(torch.arange(self.clients))
            server.load_state_dict({**server.state_dict(), **self.state})
        except _UNREADABLE as error:
            raise InputError(f"server: cannot have the state of the file: {error}") from error


def write_client(loop: FederatedLoop, header: Header, user: object, path: Path) -> None:
    """Write one client's state.

    Args:
        loop: A federation.
        header: Which run it is of.
        user: The original id.
        path: Where to, in one atomic step.

    Raises:
        InputError: for a user who is none of the clients.
    """
    data = loop.data
    clients = zip(data.people.ids, data.people.clients.tolist(), strict=True)  # not of those who are gone
    number = {str(one): number for one, number in clients}.get(str(user), -1)
    if number < 0:
        raise InputError(f"client: {user!r} is none of the clients of this checkpoint")
    check(_no_file(path))
    one = torch.tensor([number])
    with loop.clients.workers.one() as worker:
        loop.clients.store.load(worker.client, one)  # as to train, with tables in full
        private = {name: value.detach().cpu().clone() for name, value in worker.client.private().items()}
    welcome, _ = loop.clients.wire.down(loop.server.welcome(), 1)
    if welcome is None:  # as the loop does where nobody greets
        welcome = Broadcast({"seed": torch.tensor(shared_seed(data.seed))})
    sent, _ = loop.clients.sent(one, loop.round + 1)
    words: dict[str, Any] = {}
    tensors = {f"private/{name}": value for name, value in private.items()}
    _take_apart("welcome", welcome, words, tensors)
    if sent is not None:
        _take_apart("broadcast", sent, words, tensors, one)
    whole = {"about": about(header, loop.round), "num_items": data.num_items, "values": words, "sent": sent is not None}
    write_container(path, CLIENT, whole, {name: one.cpu().numpy() for name, one in tensors.items()})


def write_server(loop: FederatedLoop, header: Header, path: Path) -> None:
    """Write the server alone; arguments as of `write_client`.

    Raises:
        InputError: for a server that has to look at single uploads, and so holds what single clients have sent.
    """
    write_server_alone(loop.server, loop.data.item_ids, loop.data.num_users, about(header, loop.round), path)


def write_server_alone(server: Server, item_ids: pl.Series, clients: int, about: Mapping[str, Any], path: Path) -> None:
    """Write a server; errors as of `write_server`.

    Args:
        server: With the state that is written.
        item_ids: `[items]`, in the order of their numbers.
        clients: How many there are.
        about: Of its run (`cgfedrec.run.export.about`).
        path: Where to.
    """
    problem = None
    if server.sees_single_uploads:
        problem = f"server: that of {about['method']} looks at single uploads and keeps what it has made of them"
    check(problem, _no_file(path))
    state = {name: one.cpu() for name, one in server.state_dict().items() if name not in server.of_clients}
    arrays: dict[str, Any] = {f"state/{name}": one.numpy() for name, one in state.items()}
    if item_ids.dtype.is_integer():
        arrays["ids"] = item_ids.to_numpy()
    else:
        arrays |= packed_texts("ids", item_ids.to_list())
    if isinstance(server, SumsInTurn):
        clients = int(server.enrolled.sum())
    write_container(path, SERVER, {"about": about, "clients": clients}, arrays)


def _no_file(path: Path) -> str | None:
    """The problem with a path that is to become a file."""
    if path.is_dir():
        return f"output: {path} is a folder; name a file in it"
    return no_folder("output", path.parent)


def read_client(path: str | Path) -> ClientState:
    """Read what `write_client` wrote; nothing in it is executed.

    Raises:
        InputError: if it is anything else, or damaged.
    """
    contents = read_container(Path(path), CLIENT)
    header = contents.header
    try:
        tensors = _tensors(contents)
        private = {name.removeprefix("private/"): one for name, one in tensors.items() if name.startswith("private/")}
        if any(one.shape[:1] != (1,) for one in private.values()):
            raise ValueError("its private state is not that of one client")
        welcome = _put_together("welcome", header["values"], tensors)
        broadcast = None
        if header["sent"]:
            broadcast = _put_together("broadcast", header["values"], tensors)
        int(header["about"]["round"])
        return ClientState(header["about"], int(header["num_items"]), private, welcome, broadcast)
    except _UNREADABLE as error:
        raise DamagedError(f"{path}: is no client's state that can be used: {error}") from error


def read_server(path: str | Path) -> ServerState:
    """Read what `write_server` wrote; nothing in it is executed.

    Raises:
        InputError: if it is anything else, or damaged.
    """
    contents = read_container(Path(path), SERVER)
    header, arrays = contents.header, contents.arrays
    try:
        ids: list[Any] = arrays["ids"].tolist() if "ids" in arrays else unpacked_texts("ids", arrays)
        tensors = _tensors(contents)
        state = {name.removeprefix("state/"): one for name, one in tensors.items() if name.startswith("state/")}
        return ServerState(header["about"], ids, int(header["clients"]), state)
    except _UNREADABLE as error:
        raise DamagedError(f"{path}: is no server's state that can be used: {error}") from error


def _tensors(contents: Contents) -> dict[str, Tensor]:
    """The arrays of a file as tensors with memory of their own."""
    return {name: torch.from_numpy(np.array(one)) for name, one in contents.arrays.items()}


def _take_apart(
    name: str, sent: Broadcast, words: dict[str, Any], tensors: dict[str, Tensor], client: Tensor | None = None
) -> None:
    """Add the parts of a message to the words and tensors of a file, under a name.

    Args:
        name: Of the message.
        sent: The message.
        words: To add to.
        tensors: To add to.
        client: Who it is for, `[1]`: of rows for single clients it gets its own.
    """
    values: dict[str, Value] = {f"values/{key}": value for key, value in sent.values.items()}
    for bulletin, held in sent.kept.items():
        values |= {f"kept/{bulletin}//{key}": value for key, value in held.values.items()}
    if sent.own is not None and client is not None:
        for key in sent.own.values:
            places, rows = sent.own.of(client, key)
            if len(places):
                values[f"own/{key}"] = rows
    for key, value in values.items():
        said, parts = taken_apart(value)
        words[f"{name}/{key}"] = said
        tensors |= {f"{name}/{key}//{part}": one.contiguous() for part, one in parts.items()}


def _put_together(name: str, words: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Broadcast:
    """The message of a name, from the words and tensors of a file."""
    values: dict[str, Value] = {}
    own: dict[str, Tensor] = {}
    kept: dict[str, dict[str, Value]] = {}
    for whole, said in words.items():
        if not whole.startswith(f"{name}/"):
            continue
        prefix = f"{whole}//"
        parts = {part.removeprefix(prefix): one for part, one in tensors.items() if part.startswith(prefix)}
        value = put_together(said, parts)
        kind, key = whole.removeprefix(f"{name}/").split("/", 1)
        if kind == "kept":
            bulletin, key = key.rsplit("//", 1)
            kept.setdefault(bulletin, {})[key] = value
        elif kind == "own" and isinstance(value, Tensor):
            own[key] = value
        else:
            values[key] = value
    bulletins = {bulletin: Bulletin.of(held) for bulletin, held in kept.items()}
    mine = Upload(torch.zeros(1, dtype=torch.int64), own) if own else None
    return Broadcast(values, mine, bulletins)
