"""The server of CGFedCo under differential privacy: it knows how large the noise in its sums is, and reads them so.

All that it decides, it decides from sums with noise: which items have rows, how many candidates, the penalty. So that
costs nothing more. Who has what it never asks twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cgfedrec.errors import RunError, check
from cgfedrec.privacy.accountant import delta_of_drawing, epsilon_of, rho_of_sum
from cgfedrec.privacy.budget import FRACTION, LEAST_SIGMA, MOST_DELTA, MOST_SIGMA
from cgfedrec.server import SPENT
from cgfedrec.structure.collect import LABELS, PAIRS, SumsServer
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.judging import told_of
from cgfedrec.structure.nystroem import factor
from cgfedrec.structure.private import CHOOSE, JUDGED_NORM, NoisyTally, both_ways, once
from cgfedrec.structure.structure import Structure
from cgfedrec.structure.tallies import SHARES as PARTS
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.values import Counts

ROWS = 1.5
"""An item has a row if its weight is above so many standard deviations of noise."""
REACH = 6.0
"""Standard deviations by which an item's weight may be larger than what the sum with noise says."""
TIMES = 4.0
"""The penalty is so many times what it would be without noise, in units of weighted pairs,"""
PER_SIGMA = 5.0
"""and so many standard deviations of the noise in a pair more."""


class PrivateServer(SumsServer):
    """Finds structure from sums with noise, and says what of the budget they have spent.

    Arguments are those of `CountingServer`.
    """

    root: Tensor
    rows_from: Tensor

    def __init__(self, discovery: Discovery, structure: Structure, num_items: int, seed: int) -> None:
        super().__init__(discovery, structure, num_items, seed)
        assert discovery.privacy is not None
        self.privacy = discovery.privacy
        self.register_buffer("root", torch.tensor(1.0, dtype=torch.float64))  # sqrt(m) of clients in the mean
        self.register_buffer("rows_from", torch.tensor(discovery.least_clients))

    def enrol(self, users: Tensor) -> None:
        """As of any server. Refuses a population that is too small for delta, or with too coarse or too loud noise."""
        super().enrol(users)
        own = [self.privacy.own_sigma(name, norm, self.clients) for name, norm in self._norms()]
        told = f"method.privacy.epsilon: with {self.clients} clients one client's noise has a standard deviation of"
        too_fine = too_coarse = no_delta = None
        if min(own) < LEAST_SIGMA:
            too_fine = f"{told} {min(own):.2g} parts of {FRACTION}, and needs {LEAST_SIGMA:g}; take a smaller epsilon"
        if max(own) > MOST_SIGMA:
            too_coarse = f"{told} {max(own):.2g} parts of {FRACTION}, and nothing can be heard; take a larger epsilon"
        delta = self.privacy.at(self.clients)
        if delta > MOST_DELTA:
            no_delta = (
                f"method.privacy.delta: {delta:.2g}, with {self.clients} clients, is no privacy; at most {MOST_DELTA}"
            )
        check(too_fine, too_coarse, no_delta)

    @property
    def clients(self) -> int:
        """How many take part, all of them in every sum."""
        return int(self.enrolled.sum())

    @property
    def noised(self) -> dict[str, NoisyTally]:
        """The sums with noise, by name."""
        return {tally.name: tally for tally in self.tallies if isinstance(tally, NoisyTally)}

    def sigma(self, name: str) -> float:
        """Standard deviation of the noise in each number of this sum, in its own units."""
        return self.noised[name].sigma(self.known)

    def leave(self, users: Tensor) -> dict[str, float]:
        """Refuse: without the noise of those who are missing, sums would have less than the budget asks for."""
        raise RunError(
            f"{len(users)} clients have left or were refused, and their part of the noise with them: no sum is opened "
            "that would spend more than method.privacy allows, whatever loop.failures.refused says"
        )

    def _cannot_update(self, state: Mapping[str, Any]) -> Iterator[str | None]:
        yield "update_from: clients would add to sums again, and spend more than method.privacy allows; start again"

    def opened(self, name: str, total: Tensor) -> dict[str, float]:
        if name == CHOOSE:
            # The sums of how much better each reading is than popularity alone, in parts of `FRACTION`.
            self.judged = total
            self.chosen.fill_(int(total.argmax()))
            return told_of(total, FRACTION, self.clients, list(self.structure.readings)) | self._spent(name)
        return super().opened(name, total) | self._spent(name)

    def implausible(self, upload: Upload) -> dict[int, str]:
        """Nothing: beside noise no single upload shows what its client has added. Bounds are checked all the same."""
        return {}

    def first_sum(self, total: Tensor) -> Tensor:
        """The first sum as it would be without privacy, as far as one with noise tells, `[items, 3]`.

        Args:
            total: `[items, 1]`: each item's weight, the sum of 1 / sqrt(m) over its clients.

        Raises:
            RunError: if noise is above every weight.
        """
        sigma = self.sigma("bounds")
        weights = total[:, 0].double() / FRACTION
        largest = float(weights.max())
        # A client's weights add up to sqrt(m). Noise as it is, below 0 too, nearly cancels over all items.
        root = min(max(1.0, float(weights.sum()) / self.clients), math.sqrt(self.num_items))
        weights = weights.clamp(0, self.clients)  # whatever noise says, a client adds at most 1
        self.root.fill_(root)
        self.rows_from.fill_(max(self.discovery.least_clients, math.ceil(ROWS * sigma * root)))
        clients = (weights * root).round().clamp(0, self.clients).long()
        if int((clients >= self.rows_from).sum()) < 2:
            raise RunError(
                f"method.privacy: with {self.clients} clients no two items stand out of the noise, whose standard "
                f"deviation is {sigma:.2f} where the largest weight is {largest:.2f}; more clients or a "
                "larger epsilon are needed"
            )
        reach = weights + REACH * sigma
        # The diagonal of G has the trace of all clients, 1 each, and is shared out by weight: all have root x clients.
        mass = weights / root
        return torch.stack((clients, (PARTS * reach).ceil().long(), (PARTS * mass).round().long()), dim=1)

    @property
    def least(self) -> int:
        return int(self.rows_from)

    @property
    def penalty(self) -> float:
        # In units of weighted pairs: of m^-1, as the mean of sqrt(m) tells it.
        return TIMES * self.discovery.penalty / float(self.root) ** 2 + PER_SIGMA * self.sigma(PAIRS)

    def factor(self) -> Tensor:
        """F from all sketches, each column by how little noise it has, without directions that noise explains."""
        parts = []
        for tally in self.columns:
            total = self.total(tally.name)
            if total.numel():
                sigma = self.sigma(tally.name)
                columns = tally.columns(self.known).double() / sigma
                parts.append((columns, total.double() / (FRACTION * sigma)))
        columns, sketch = (torch.cat(both, dim=1) for both in zip(*parts, strict=True))
        # Noise of variance 1 makes of C^T N, symmetrised, a random matrix whose eigenvalues end here.
        edge = 2 * float(columns.norm(dim=0).mean()) * math.sqrt(columns.shape[1] / 2)
        return factor(columns, sketch, edge)

    def counted_pairs(self) -> Tensor:
        """Weights of pairs, `[rows, most]`: what was counted and what the factor says, by how far each is off.

        Around what the factor says, pairs vary by as much as those that were counted do, less the noise in these.
        """
        pairs = self.pairs.cpu()
        counted = self.total(PAIRS).double() / FRACTION
        expected = torch.zeros_like(counted)
        found = self.factor()
        for start in range(0, len(pairs), 256):
            part = slice(start, start + 256)
            expected[part] = (found[pairs[part].clamp_min(0)] @ found[part, :, None]).squeeze(2)
        noise = self.sigma(PAIRS) ** 2
        apart = (counted - expected)[once(pairs)].square().mean()
        varies = float(apart - noise) if float(apart) > noise else 0.0
        blended = (noise * expected + varies * both_ways(pairs, counted)) / (noise + varies)
        return blended.clamp_min(0) * (pairs >= 0)

    def _norms(self) -> Iterator[tuple[str, float]]:
        """Every sum that will be counted, and the largest norm of what a client adds."""
        for name, tally in self.noised.items():
            yield name, tally.norm(self.known)
        if self.sums[-1] == CHOOSE:
            yield CHOOSE, JUDGED_NORM

    def _spent(self, name: str) -> dict[str, float]:
        """What all sums have spent up to this one."""
        rows = len(self.known.rows) if self.known.rows is not None else self.num_items
        numbers = {
            "bounds": self.num_items,
            LABELS: rows * self.discovery.num_clusters(self.num_items),
            PAIRS: self.pairs.numel(),
            CHOOSE: len(self.structure.readings),
        }
        rho, drawn = 0.0, 0
        for one, norm in self._norms():
            own = self.privacy.own_sigma(one, norm, self.clients)
            number = numbers.get(one, rows * self.discovery.num_columns(self.num_items))
            rho += rho_of_sum(FRACTION * norm, own, self.clients, number)
            drawn += number * self.clients
            if one == name:
                break
        delta = self.privacy.at(self.clients)
        epsilon = epsilon_of(rho, delta)
        return {f"{SPENT}epsilon": epsilon, f"{SPENT}delta": delta + delta_of_drawing(epsilon, drawn)}

    def _counts(self, name: str, counts: Tensor) -> Bulletin:
        """What is known of items, `[items, 3]`, as it is sent down, and from how many clients on there is a row."""
        most = (self.clients, PARTS * (self.clients + math.ceil(REACH * self.sigma("bounds"))), PARTS * self.clients)
        within = Bounds(torch.tensor(most).expand(len(counts), -1))
        return self._bulletin(name, {"counts": Counts(counts.cpu(), within), "least": self.rows_from.int()})
