"""Export: what recommends for anybody's history, taken out of a run, with no client in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cgfedrec.client import Client
from cgfedrec.errors import check
from cgfedrec.files import locked, no_folder, remove_leftovers
from cgfedrec.loop import FederatedLoop
from cgfedrec.run.checkpoint import Header
from cgfedrec.run.reference import ReferenceFit
from cgfedrec.serving.neighbours import NeighbourReader
from cgfedrec.serving.readers import Reader
from cgfedrec.serving.recommender import Recommender
from cgfedrec.wire.messages import Broadcast

Titles = Mapping[Any, str | None]
"""Of items, by their ids or by these as text."""


def recommender_of(loop: FederatedLoop, header: Header, titles: Titles | None = None) -> Recommender:
    """What recommends as clients do who never took part, without the federation.

    Args:
        loop: A federation whose clients can score by a history (`Clients.no_newcomers`).
        header: Which run it is of.
        titles: Of its items; by default those of the data.

    Raises:
        InputError: where clients need what they have trained themselves, and where nothing has come down to them yet.
    """
    check(loop.clients.no_newcomers())
    data, known = loop.data, loop.data.titles if titles is None else titles
    named = {str(item): title for item, title in known.items()}
    ids, told, reader = data.item_ids.to_list(), about(header, loop.round), reader_of(loop)
    if len(data.people.left):  # then it is an update, and those are of methods whose clients read so
        assert isinstance(reader, NeighbourReader)
        kept = np.setdiff1d(np.arange(len(ids)), data.people.left)
        ids, reader = [ids[item] for item in kept], reader.only(kept)
    return Recommender(ids, [named.get(str(one)) for one in ids], reader, data.has_times, told)


def export(loop: FederatedLoop, header: Header, folder: Path, titles: Titles | None = None) -> Recommender:
    """Write what `recommender_of` makes into a folder, in one atomic step, in place of what was exported before.

    Raises:
        InputError: as `recommender_of`; where nothing can be written; and while another export is written there.
    """
    check(no_folder("output", folder))
    found = recommender_of(loop, header, titles)
    write(found, folder)
    return found


def write(recommender: Recommender, folder: Path) -> None:
    """Write it into a folder, in one atomic step. Raises as `export`."""
    check(no_folder("output", folder))
    with locked(folder, f"output: an export is being written into {folder}; wait for it"):
        remove_leftovers(folder)
        recommender.save(folder)


def reader_of(loop: FederatedLoop) -> Reader:
    """What a client at its start reads by, once it has what comes down to all.

    Raises:
        InputError: where nothing to read by has come down yet.
    """
    with _somebody(loop) as client:
        return _reader(client)


def reader_by(client: Client, broadcast: Broadcast | None, round: int) -> Reader:
    """As `reader_of`, of a client that is sent this before a round."""
    _take(client, broadcast, round)
    return _reader(client)


def nothing_yet(training: FederatedLoop | ReferenceFit) -> str | None:
    """Why nothing can be recommended yet, if that is so: clients would all score by popularity, or by nothing."""
    if isinstance(training, ReferenceFit):
        return None
    with _somebody(training) as client:
        return _nothing_in(client)


@contextmanager
def _somebody(loop: FederatedLoop) -> Iterator[Client]:
    """A client at its start, with what comes down to all, if it scores by that."""
    with loop.clients.workers.one() as worker:
        broadcast = None
        if worker.client.scores_after == "aggregation":
            broadcast, _ = loop.clients.sent(torch.arange(1), loop.round + 1)
        _take(worker.client, broadcast, loop.round + 1)
        yield worker.client


def _take(client: Client, broadcast: Broadcast | None, round: int) -> None:
    """Become somebody at the start, with what comes down before a round."""
    somebody = torch.arange(1)
    client.load(somebody, client.start(somebody))
    if client.scores_after == "aggregation":
        client.receive(broadcast, round)


def _reader(client: Client) -> Reader:
    check(_nothing_in(client))
    return client.reader()


def _nothing_in(client: Client) -> str | None:
    if client.structured:
        return None
    return "ckpt_path: its run was stopped before it had found what its clients recommend by; go on with it first"


def about(header: Header, round: int) -> dict[str, Any]:
    """What an export tells of the run that it comes from: its method and settings, and nothing of its data."""
    settings = yaml.safe_load(header.config)["method"].get("init_args") or {}
    return {"method": header.method, "settings": settings, "run": header.run, "round": round}
