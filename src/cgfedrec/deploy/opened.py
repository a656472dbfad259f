"""The server of a run over a network, opened to export what it has: it knows no client, and needs the ids of items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from cgfedrec.client import no_newcomers
from cgfedrec.data.ids import as_ids
from cgfedrec.deploy.owndata import catalogue_of, column
from cgfedrec.errors import InputError, check
from cgfedrec.method import Method
from cgfedrec.random import shared_seed
from cgfedrec.run.api import of_use
from cgfedrec.run.checkpoint import NO_STATE, Header, over_network, read_checkpoint
from cgfedrec.run.devices import write_server_alone
from cgfedrec.run.export import about, reader_by, write
from cgfedrec.run.resume import changed
from cgfedrec.serving.recommender import Recommender
from cgfedrec.settings.opening import settings_in
from cgfedrec.settings.own import code_of, tell_of_changes
from cgfedrec.settings.parser import dump, instantiate, parse
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.wire import Wire


class ServerOfNetwork:
    """What the server of a run over a network can write: what recommends for a history, and itself.

    Args:
        checkpoint: That the run has written.
        catalogue: ``items.csv`` of any node, which is the same everywhere.
        options: Overrides of the run's settings, as on the command line; of use are those of the table of titles.

    Raises:
        InputError: for a checkpoint of another kind, another catalogue, and settings that cannot be changed.
    """

    def __init__(self, checkpoint: Path, catalogue: Path, options: Sequence[str] = ()) -> None:
        state = read_checkpoint(checkpoint)
        other = "--catalogue: this run has its data, and names items by them; leave it out"
        missing = None if catalogue.is_file() else f"--catalogue: no file {catalogue}"
        check(None if over_network(state) else other, missing)
        given = of_use((), options)
        settings = parse(given, settings_in(state["config"], given))
        self.item_ids = as_ids(column(catalogue, "item"))
        if catalogue_of(self.item_ids) != state["fingerprint"]:
            check(f"--catalogue: {catalogue} has other items than the run, or in another order; give a node's own file")
        check(*changed(yaml.safe_load(state["config"]), yaml.safe_load(dump(settings)), False))
        parts = instantiate(settings)
        tell_of_changes("ckpt_path", state["code"], code_of(state["config"]))
        self.method: Method = parts.method
        self.items, self.round = parts.data.items, state["loop"].get("round", 0)
        self.wire: Wire = parts.wire
        self.has_times = parts.data.format.timestamp_column is not None
        self.about: dict[str, Any] = about(Header.of(state), self.round)
        self.seed = shared_seed(settings.seed_everything)
        try:
            self.clients = len(state["loop"]["taken"])
            self.server = self.method.server(len(self.item_ids), self.seed)
            self.server.enrol(torch.arange(self.clients))
            self.server.load_state_dict(state["loop"]["server"])
        except NO_STATE as error:
            raise InputError(f"ckpt_path: holds no state of this run ({error})") from error

    def export(self, folder: Path) -> Recommender:
        """Write what recommends, as `cgfedrec.run.export.export` does. Raises as it does."""
        client = self.method.client(len(self.item_ids), 0)  # that draws nothing
        check(no_newcomers(client, type(self.method).__name__))
        client.welcome(self._down(self.server.welcome(), 0) or Broadcast({"seed": torch.tensor(self.seed)}))
        sent = self.server.broadcast(torch.arange(1), self.round + 1)
        reader = reader_by(client, self._down(sent, self.round + 1), self.round + 1)
        ids, titles = self.item_ids.to_list(), self.items.titles(self.item_ids)
        found = Recommender(ids, [titles.get(str(one)) for one in ids], reader, self.has_times, self.about)
        write(found, folder)
        return found

    def write(self, path: Path) -> None:
        """Write the server alone, as `cgfedrec.run.devices.write_server` does. Raises as it does."""
        write_server_alone(self.server, self.item_ids, self.clients, self.about, path)

    def _down(self, sent: Broadcast | None, round: int) -> Broadcast | None:
        """What a client makes of what is sent before a round."""
        return self.wire.down(sent, 1, round, self.seed)[0]
