"""The server and the wire as the clients of a node see them: what has come, and what waits to be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from cgfedrec.server import Server
from cgfedrec.wire.frames import Frames
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire


class Remote(Server):
    """The server as its clients see it: what has come from it, and uploads that wait to be sent."""

    def __init__(self, welcome: Broadcast | None, broadcast: Broadcast | None) -> None:
        super().__init__()
        self._welcome, self._broadcast = welcome, broadcast

    def welcome(self) -> Broadcast | None:
        return self._welcome

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        """What has come, `[clients]`, with what is for those users alone."""
        sent = self._broadcast
        if sent is None or sent.own is None:
            return sent
        own = sent.own
        rows = torch.isin(own.clients, users)
        if not rows.any():
            return replace(sent, own=None)
        values = {name: value[rows] for name, value in own.values.items()}
        return replace(sent, own=replace(own, clients=own.clients[rows], values=values))

    def reduce(self, upload: Upload) -> Upload:
        """A copy `[clients, ...]`: what clients send lies in memory where they go on to train."""
        return replace(upload, values={name: value.clone() for name, value in upload.values.items()})


class Sending(Wire):
    """The clients' half of a wire: what is sent up is not read yet, and what comes down has travelled."""

    def down(
        self, broadcast: Broadcast | None, clients: int, round: int = 0, seed: int = 0
    ) -> tuple[Broadcast | None, int]:
        """What clients make of what has come."""
        return self.received(broadcast, clients)

    def up(self, upload: Upload, expected: Mapping[str, Field], round: int, seed: int) -> tuple[Upload, int]:
        """What travels, `[clients, ...]`, and its bytes."""
        sent = self.sent(upload, round, seed)
        return sent, Frames.of(sent).nbytes
