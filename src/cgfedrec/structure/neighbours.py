"""Neighbours: for each item a few others with few-bit weights, which a client reads by its own history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import ClassVar

import torch
from scipy.sparse import csr_array
from torch import Tensor

from cgfedrec.errors import no_count
from cgfedrec.structure.discover import closed_form, pair_weights, verified
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.structure import Found, Structure, SumsClient
from cgfedrec.structure.tallies import Known
from cgfedrec.wire.values import Field, Value, WeightLayout, Weights

DECAYS = (0.0, 0.25, 0.5, 1.0)
"""rho: an item of age a, in items, counts (1 + a)^-rho. 0 reads all of a history alike."""
POPULARITIES = (0.0, 0.1, 0.3, 1.0, 3.0)
"""beta: how much an item's popularity counts beside its neighbours."""
NUDGE = 1e-6
"""Weight of the popularity that only decides between items with equal scores, such as those without neighbours."""


@dataclass(frozen=True, kw_only=True)
class Neighbours(Structure):
    """Each item's nearest items, with weights of a few bits. A client scores by its own history, the newest first.

    An item scores the sum over its neighbours in the history of weight times (1 + age)^-rho, plus beta times
    log(1 + n) / max.
    """

    weight_bits: int = 4
    """Bits of a weight, in units of a scale that each item has for itself."""
    keep: float = 0.5
    """Share of an item's candidates that stay as neighbours: those with the largest weights, if above 0."""
    reading: str = "chosen"
    """``chosen``: rho and beta are chosen by all clients together, on what they hold out for validation. ``flat``: the
    whole history counts alike, and popularity not at all."""

    verifies: ClassVar[bool] = True

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.structure.weight_bits", self.weight_bits, most=16)

    @property
    def options(self) -> list[tuple[float, float]]:
        """The pairs of rho and beta to choose among."""
        if self.reading == "flat":
            return [(0.0, 0.0)]
        return [(decay, popularity) for decay in DECAYS for popularity in POPULARITIES]

    @property
    def readings(self) -> Sequence[str]:
        return [f"rho {decay:g}, beta {popularity:g}" for decay, popularity in self.options]

    def find(self, found: Found, discovery: Discovery) -> dict[str, Value]:
        """Weigh the candidates by their counts, keep the best, and round their weights."""
        assert found.pairs is not None
        clients = found.rows.clients
        if found.counts is None:
            weights = pair_weights(*closed_form(found.factor, clients, discovery.penalty), found.pairs)
        else:
            weights = verified(found.factor, clients, found.pairs, found.counts, discovery.penalty)
        sizes = (found.pairs >= 0).sum(1)  # as they were when the candidates were found
        return {"weights": quantised(weights, sizes, self.keep, self.weight_bits)}

    def fields(self, known: Known, discovery: Discovery) -> dict[str, Field]:
        sizes = discovery.sizes(known.the_rows)
        shape = (len(sizes), int(sizes.max()))
        return {"weights": Field(shape, torch.float16, lists=WeightLayout(sizes, self.weight_bits))}

    def client(self, discovery: Discovery, num_items: int, seed: int) -> NeighboursClient:
        return NeighboursClient(self, discovery, num_items, seed)


def quantised(weights: Tensor, sizes: Tensor, keep: float, bits: int) -> Weights:
    """The largest weights of each row, in few bits.

    Args:
        weights: `[rows, most]`, float64; 0 where nothing is.
        sizes: `[rows]`, int64: how many each row has.
        keep: The share of a row's entries that may stay; of these only positive ones do.
        bits: Of a weight.
    """
    order = weights.argsort(dim=1, descending=True)
    places = torch.empty_like(order).scatter_(1, order, torch.arange(weights.shape[1]).expand_as(order))
    kept = (places < (sizes * keep).ceil()[:, None]) & (weights > 0)
    # Rounded up to what a half can hold, so that the largest weight never needs a level too many.
    scales = (weights * kept).amax(1) / (2**bits - 1)
    halves = scales.half()
    halves = (halves.view(torch.int16) + (halves.double() < scales)).view(torch.float16)  # the next one above
    levels = (weights / halves.double().clamp_min(1e-12)[:, None]).round().clamp(0, 2**bits - 1).long() * kept
    return Weights(kept & (levels > 0), levels, halves, sizes, bits)


class NeighboursClient(SumsClient):
    """Reads neighbours by its own history. Nothing is trained."""

    structure: Neighbours

    def changed(self) -> None:
        if not self.structured:
            return
        weights, rows = self.kept["structure"]["weights"], self.known.the_rows
        assert isinstance(weights, Weights)
        assert self.known.pairs is not None
        values = weights.levels * weights.scales.double()[:, None]  # [rows, most]
        targets, places = weights.kept.nonzero(as_tuple=True)
        sources = self.known.pairs[targets, places]
        # [items, items]: row j holds the weights of an owned item j for each target
        self.weights = csr_array(
            (
                values[targets, places].float().numpy(),
                (rows.items[sources].numpy(), rows.items[targets].numpy()),
            ),
            shape=(self.num_items, self.num_items),
        )

    def read(self, reading: int) -> Tensor:
        decay, beta = self.structure.options[reading]
        return self._by_neighbours(decay) + (beta + NUDGE) * self.popularity

    def read_all(self) -> Iterator[Tensor]:
        # Readings that differ in beta alone follow one another, and share what takes the time.
        for decay, options in groupby(self.structure.options, key=itemgetter(0)):
            near = self._by_neighbours(decay)
            for _, beta in options:
                yield near + (beta + NUDGE) * self.popularity

    def _by_neighbours(self, decay: float) -> Tensor:
        """The sums over neighbours in each client's history, `[clients, items]`."""
        clients, items, ages = self.own.history.entries()
        counts = (1 + ages.double()).pow(-decay).float()
        history = csr_array((counts.numpy(), (clients.numpy(), items.numpy())), shape=(len(self.users), self.num_items))
        return torch.from_numpy((history @ self.weights).toarray()).to(self.added.device)
