"""CGFedCo: labels down, sums up (this project's own; what CGFedRec's idea becomes when labels carry something).

Clients add to one sum after another: how many have each item; the items' co-occurrence times columns of random signs;
the same with the labels of clusters as columns, which the server has found from the first; and exact counts of
candidate pairs, found from both. The server sends down labels, candidates, and at last a structure, from which each
client scores all items by its own history. Nothing looks at a single upload, and no embedding ever travels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import check
from cgfedrec.forgetting import days_untold, half_lives
from cgfedrec.method import Method
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.neighbours import Neighbours
from cgfedrec.structure.noisy import PrivateServer
from cgfedrec.structure.structure import Structure, SumsClient

SWAMPED = 2.0
"""Noise of so many times an item's weight in the mean is worth a warning."""


@dataclass(frozen=True, kw_only=True)
class CGFedCo(Discovery, Method):
    """CGFedCo: structure from sums."""

    structure: Structure = Neighbours()  # noqa: RUF009, frozen
    """What is discovered: ``Neighbours``, or another `Structure`."""
    local_epochs: int = 1

    def problems(self) -> Iterator[str | None]:
        yield from Discovery.problems(self)
        yield from self.structure.problems()
        if self.privacy is not None:
            neighbours = self.structure
            if not isinstance(neighbours, Neighbours) or neighbours.reading == "trained" or neighbours.recents:
                yield "method.structure: under privacy there are Neighbours alone, without training and recents"
        readings = self.read.readings
        if self.read_by is not None and self.read_by not in readings:
            yield f"method.read_by: no {self.read_by!r}; there are {', '.join(readings)}"
        yield from Method.problems(self)

    @property
    def read(self) -> Structure:
        """The structure with all that clients choose among: under privacy popularity alone is a reading too."""
        if self.privacy is None or not isinstance(self.structure, Neighbours):
            return self.structure
        return replace(self.structure, popular=True)

    @property
    def alternatives(self) -> Sequence[Mapping[str, Any]]:
        if self.privacy is not None:  # each training would spend a budget of its own
            return ({},)
        wider: dict[str, Any] = {}
        if self.structure.alternative and self.read_by is None:
            wider = {"structure": {"init_args": self.structure.alternative}}
        return [{**forgetting, **wider} for forgetting in half_lives("half_life", self.half_life)]

    @property
    def readings(self) -> Mapping[str, Mapping[str, Any]]:
        every = replace(self.structure, **self.structure.alternative)  # type: ignore[type-var]
        return {
            name: {"read_by": name, "structure": {"init_args": self.structure.fixed(name)}} for name in every.readings
        }

    def check(self, data: FederatedDataModule) -> None:
        recent = "method.structure.recents"
        rolling = None
        if self.privacy is not None and data.split == "rolling":
            rolling = "method.privacy: a rolling evaluation chooses by what it has seen, and no budget pays for that"
        unjudged = None
        if self.privacy is not None and self.read_by is None and data.split == "none":
            unjudged = (
                "method.read_by: nobody holds anything out (data.split none), so noise would choose how histories are "
                "read, for a part of the budget; give a reading, such as 'rho 0, beta 0'"
            )
        check(
            rolling,
            unjudged,
            days_untold("method.half_life", self.half_life, data.days),
            *(days_untold(recent, half_life, data.days) for half_life in self.structure.recently),
        )

        self._warn_of_noise(data)

    def _warn_of_noise(self, data: FederatedDataModule) -> None:
        """Say if noise is larger than what most items have to tell."""
        if self.privacy is None:
            return
        users, items = data.num_users, data.num_items
        # The weights of a client with m items add up to sqrt(m).
        weight = users * math.sqrt(data.training_matrix().nnz / users) / items
        noise = self.privacy.sigma("bounds", 1.0, users)
        if noise > SWAMPED * weight:
            warnings.warn(
                f"method.privacy: {users:,} clients give an item a weight of {weight:.2f} in the mean, and noise at "
                f"epsilon {self.privacy.epsilon:g} has a standard deviation of {noise:.2f}: little but the most "
                "popular items will stand out. More clients or a larger epsilon help",
                stacklevel=2,
            )

    def client(self, num_items: int, seed: int) -> SumsClient:
        return self.read.client(self, num_items, seed)

    def server(self, num_items: int, seed: int) -> SumsServer:
        kind = SumsServer if self.privacy is None else PrivateServer
        return kind(self, self.read, num_items, seed)
