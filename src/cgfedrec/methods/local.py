"""Local: CGFedRec's client with no server at all. Whatever it scores, collaboration did not do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cgfedrec.kit.table import TableClient, TableMethod
from cgfedrec.server import Server
from cgfedrec.wire.messages import Upload


class LocalClient(TableClient):
    """A `TableClient` that sends nothing."""

    def upload(self) -> Upload:
        # Without values there is no message at all, not even an empty one.
        return Upload(self.users)


@dataclass(frozen=True, kw_only=True)
class Local(TableMethod):
    """The control: every client trains alone."""

    client_class: ClassVar[type[TableClient]] = LocalClient

    def server(self, num_items: int, seed: int) -> Server:
        return Server()
