"""Sums under differential privacy: each client clips what it adds, and adds a part of the noise itself.

A client with m items weighs each by 1 / sqrt(m), so that its whole history has norm 1 whatever its length. What it adds
to a sum then has a norm that everybody knows beforehand. It is rounded towards 0 into whole numbers, which makes no
norm larger, and discrete noise is added to every number that is sent, zeros too. The noise of all clients together is
what the budget asks for. So whoever sees the sum alone sees it with all of the noise, and nobody knows that.
docs/privacy.md derives the norms, and tests/test_private.py looks for larger ones.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cgfedrec.data.histories import History
from cgfedrec.privacy.budget import FRACTION, SHARES, Privacy
from cgfedrec.privacy.clipping import clipped
from cgfedrec.privacy.discrete import of_each
from cgfedrec.random import Stream, keys, mark
from cgfedrec.structure.columns import Columns, LabelColumns, SignColumns
from cgfedrec.structure.tallies import SHARES as PARTS
from cgfedrec.structure.tallies import ItemCounts, Known, PairCounts, Tally
from cgfedrec.wire.bounds import Bounds

BEYOND = 9
"""Standard deviations of noise that bounds leave room for."""
SIGNS_NORM = 1.3
"""A profile over k columns of signs is clipped at so many times sqrt(k): hardly ever."""
LABELS_NORM = 2.0
"""A profile over clusters is clipped here."""
JUDGED_NORM = 1.0
"""What a client says of all readings together is clipped here."""
CHOOSE = "choose"
"""The phase in which clients choose a reading."""


@dataclass(frozen=True, kw_only=True)
class NoisyTally(Tally):
    """A sum with noise: what a subclass says is clipped, rounded, and noise is added.

    Args:
        privacy: The budget.
    """

    privacy: Privacy

    @property
    def unit(self) -> int:
        return FRACTION

    @abstractmethod
    def norm(self, known: Known) -> float:
        """The largest Euclidean norm of what a client adds, before it is rounded."""

    @abstractmethod
    def exact(self, history: History, known: Known) -> Tensor:
        """What clients would add without noise, `[clients, rows, columns]`, float64, of whatever norm."""

    def sigma(self, known: Known) -> float:
        """Standard deviation of the noise in each number of the sum, in its own units."""
        return self.privacy.sigma(self.name, self.norm(known), known.num_clients)

    def reaching(self, largest: Tensor, known: Known) -> Bounds:
        """Bounds of a sum whose numbers reach ``largest`` `[...]` without noise, float64; 0 for what is not sent."""
        with_noise = (FRACTION * (largest + BEYOND * self.sigma(known))).ceil().long()
        return self.packed(with_noise * (largest > 0), signed=True)

    def without_noise(self, history: History, known: Known) -> Tensor:
        """What clients add before noise, `[clients, rows, columns]`, int64: no norm is above `FRACTION` x `norm`."""
        return (FRACTION * clipped(self.exact(history, known), self.norm(known))).trunc().long()

    def of(self, history: History, users: Tensor, known: Known, seed: int) -> Tensor:
        """As of any tally, `[clients, rows, columns]`, int64, laid out in full: no number tells whether it is noise."""
        added = self.without_noise(history, known)
        own = self.privacy.own_sigma(self.name, self.norm(known), known.num_clients)
        sent = self.bounds(known).largest > 0
        return (added + noise(added.shape, own, self.name, users, seed, known.mark)) * sent


def noise(shape: Sequence[int], sigma: float, name: str, users: Tensor, seed: int, of: bytes) -> Tensor:
    """Discrete noise of each client's own, `[clients, ...]` as ``shape`` says, int64.

    Args:
        shape: As said.
        sigma: Of each client's.
        name: Of the sum: each has noise of its own.
        users: `[clients]`: who they are.
        seed: Their private one.
        of: The mark of what they are asked, in which run and on which data (`Known.mark`). Two sums of different things
            with the same noise would differ by these alone, and there would be no noise.
    """
    own = keys(seed, Stream.PRIVACY, list(SHARES).index(name), users.numpy(), of=mark(of, sigma.hex()))
    return torch.from_numpy(of_each(sigma, own, math.prod(shape[1:]))).view(*shape)


def own_items(history: History, known: Known) -> Tensor:
    """1 where a client has an item, `[clients, items]`, float64."""
    clients, items, _ = history.entries()
    found = torch.zeros(len(history.items), known.num_items, dtype=torch.float64)
    found[clients, items] = 1
    return found


def weight(history: History) -> Tensor:
    """1 / sqrt(m) of each client, `[clients]`, float64, with m items: of so many weights the norm is 1."""
    return history.lengths.clamp_min(1).double().rsqrt()


@dataclass(frozen=True, kw_only=True)
class PrivateCounts(NoisyTally, ItemCounts):
    """The first sum: each item's weight, added up over clients. A client's whole history has norm 1."""

    @property
    def unit(self) -> int:
        return PARTS  # of what the server makes of it: the first sum as it would be without privacy

    def norm(self, known: Known) -> float:
        return 1.0

    def bounds(self, known: Known) -> Bounds:
        most = torch.tensor(float(known.num_clients), dtype=torch.float64)
        return self.reaching(most.expand(known.num_items, 1), known)

    def exact(self, history: History, known: Known) -> Tensor:
        return (own_items(history, known) * weight(history)[:, None])[..., None]


class _PrivateColumns(NoisyTally, Columns):
    """G C with weighted histories: the row of an own item is its weight times the client's profile."""

    def bounds(self, known: Known) -> Bounds:
        # A weight times a profile that is no longer than the norm; the weights add up to the row's reach.
        most = self.norm(known) * known.the_rows.reach / PARTS
        return self.reaching(most[:, None].expand(-1, self.width(known)), known)

    def exact(self, history: History, known: Known) -> Tensor:
        own, one = own_items(history, known)[:, known.the_rows.items], weight(history)
        # Whole numbers: the same to the bit whoever is in the cohort.
        profiles = own @ self.columns(known).double()  # [clients, columns]
        lengths = profiles.square().sum(1).sqrt() * one  # [clients]
        profiles = clipped(profiles * one[:, None], self.norm(known), lengths) * one[:, None]
        return own[:, :, None] * profiles[:, None]


@dataclass(frozen=True, kw_only=True)
class PrivateSigns(_PrivateColumns, SignColumns):
    """The first sketch, with noise."""

    def norm(self, known: Known) -> float:
        return SIGNS_NORM * math.sqrt(self.number)


@dataclass(frozen=True, kw_only=True)
class PrivateLabels(_PrivateColumns, LabelColumns):
    """The second sketch, with noise."""

    def norm(self, known: Known) -> float:
        return LABELS_NORM


@dataclass(frozen=True, kw_only=True)
class PrivatePairs(NoisyTally, PairCounts):
    """Weights of candidate pairs, each pair once, whichever of its two items it is a candidate of.

    A client has at most m (m - 1) / 2 pairs, each with weight 1 / m: a norm below sqrt(1 / 2).
    """

    def norm(self, known: Known) -> float:
        return math.sqrt(0.5)

    def bounds(self, known: Known) -> Bounds:
        assert known.pairs is not None
        reach = known.the_rows.reach / PARTS
        most = torch.minimum(reach[:, None], reach[known.pairs.clamp_min(0)])
        return self.reaching(most * once(known.pairs), known)

    def exact(self, history: History, known: Known) -> Tensor:
        assert known.pairs is not None
        own = own_items(history, known)[:, known.the_rows.items]  # [clients, rows]
        both = own[:, :, None] * own[:, known.pairs.clamp_min(0)] * once(known.pairs)
        return both / history.lengths.clamp_min(1)[:, None, None]


def judged(gained: Tensor, privacy: Privacy, known: Known, users: Tensor, seed: int) -> Tensor:
    """What clients say of readings: how much better each is than the last one, popularity alone, clipped, with noise.

    Args:
        gained: `[clients, readings]`: the validation metric by each.
        privacy: The budget.
        known: Says how many clients there are, and what noise is drawn of.
        users: `[clients]`: who they are.
        seed: Their private one.

    Returns:
        `[clients, readings]`, int64, in parts of `FRACTION`.
    """
    better = clipped(gained.double() - gained[:, -1:].double(), JUDGED_NORM)
    own = privacy.own_sigma(CHOOSE, JUDGED_NORM, known.num_clients)
    return (FRACTION * better).trunc().long() + noise(better.shape, own, CHOOSE, users, seed, known.mark)


def judged_bounds(readings: int, privacy: Privacy, clients: int) -> Bounds:
    """What a sum of `judged` over so many clients can reach."""
    most = clients * JUDGED_NORM + BEYOND * privacy.sigma(CHOOSE, JUDGED_NORM, clients)
    return Bounds(torch.tensor(math.ceil(FRACTION * most)).expand(readings), signed=True)


def once(pairs: Tensor) -> Tensor:
    """Which candidates are counted, `[rows, most]`, bool: of a pair that stands in two rows, in the first of them.

    Args:
        pairs: `[rows, most]`, int64: rows of candidates, -1 where there is none.
    """
    rows = torch.arange(len(pairs))[:, None]
    there = torch.isin(pairs * len(pairs) + rows, (rows * len(pairs) + pairs)[pairs >= 0])  # j has i among its own too
    return (pairs >= 0) & ~((pairs < rows) & there)


def both_ways(pairs: Tensor, counts: Tensor) -> Tensor:
    """Counts of pairs that were counted `once`, where each stands, `[rows, most]`.

    Args:
        pairs: As of `once`.
        counts: `[rows, most]`.
    """
    counted, rows = once(pairs), torch.arange(len(pairs))[:, None].expand_as(pairs)
    keys, order = (rows * len(pairs) + pairs)[counted].sort()
    missing = (pairs >= 0) & ~counted
    found = counts.clone()
    mirrored = (pairs * len(pairs) + rows)[missing]
    found[missing] = counts[counted][order[torch.searchsorted(keys, mirrored)]]
    return found
