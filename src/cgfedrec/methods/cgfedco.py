"""CGFedCo: labels down, sums up (this project's own; what CGFedRec's idea becomes when labels carry something).

Clients add to one sum after another: how many have each item; the items' co-occurrence times columns of random signs;
the same with the labels of clusters as columns, which the server has found from the first; and exact counts of
candidate pairs, found from both. The server sends down labels, candidates, and at last a structure, from which each
client scores all items by its own history. Nothing looks at a single upload, and no embedding ever travels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cgfedrec.method import Method
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.neighbours import Neighbours
from cgfedrec.structure.structure import Structure, SumsClient


@dataclass(frozen=True, kw_only=True)
class CGFedCo(Discovery, Method):
    """CGFedCo: structure from sums."""

    structure: Structure = Neighbours()  # noqa: RUF009, frozen
    """What is discovered: ``Neighbours``, or another `Structure`."""
    local_epochs: int = 1

    def problems(self) -> Iterator[str | None]:
        yield from Discovery.problems(self)
        yield from self.structure.problems()
        yield from Method.problems(self)

    def client(self, num_items: int, seed: int) -> SumsClient:
        return self.structure.client(self, num_items, seed)

    def server(self, num_items: int, seed: int) -> SumsServer:
        return SumsServer(self, self.structure, num_items, seed)
