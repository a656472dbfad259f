"""Discovery: the settings by which structure is found from sums, and the order in which these are counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from cgfedrec.errors import no_count, not_positive
from cgfedrec.forgetting import HalfLife, fixed, not_half_life
from cgfedrec.privacy.budget import Privacy
from cgfedrec.structure.columns import LabelColumns, SignColumns
from cgfedrec.structure.controls import Heads, MoreSigns, PowerColumns
from cgfedrec.structure.private import CHOOSE, PrivateCounts, PrivateLabels, PrivatePairs, PrivateSigns
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import ItemCounts, Known, PairCounts, Tally
from cgfedrec.wire.values import Counts, IdLayout, Value

Packing = Literal["tight", "plain"]
Sketch = Literal["profiles", "heads"]
Second = Literal["labels", "random_labels", "signs", "power"]
PLAIN_BITS = 20
"""Bits of every number where packing is ``plain``, or as many more as the largest needs."""
TRAIN = "train"
"""The phase after all sums in which clients train what they read the structure with. After it is `CHOOSE`."""
PRIVATE_COLUMNS = 32
"""Columns by default under privacy, at most: each one more takes noise that the others then lack."""


class Step(NamedTuple):
    """What one or more rounds are for, until all whom it wants have taken part."""

    phase: str
    """The name of a tally, `TRAIN` or `CHOOSE`."""
    tally: Tally | None = None
    """What is counted."""
    late: bool = False
    """Whether by those who were not there in the first pass."""


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """How structure is discovered from sums."""

    columns: int | None = None
    """Columns of random signs in the sketch; by default the power of two nearest to the square root of the number of
    items, from 16 to 64."""
    clusters: int | None = None
    """How many clusters items are put into, whose labels are the columns of the second sketch; by default as many as
    columns."""
    penalty: float = 50.0
    """Weight of the penalty on item-item weights (EASE's lambda)."""
    pairs_per_client: int = 8
    """Candidates of an item for each client that has it, from 16 to ``most_pairs``."""
    most_pairs: int | None = None
    """Candidates of an item, at most; by default twice as many as columns, from 32 to 64."""
    least_clients: int = 3
    """Clients that must have an item for it to take part in sums; the others are recommended by popularity alone. With
    1, the row of an item that one client has is that client's profile."""
    least_items: int = 3
    """Items that a cluster needs; smaller ones are merged with their nearest."""
    share: float = 1.0
    """Share of the clients after which the first sum ends. The others are late: they add to every sum afterwards, with
    the labels and candidates that were found without them."""
    sketch: Sketch = "profiles"
    """What a client adds to the sketch in the row of an own item. ``profiles``: its own profile over the columns, which
    adds up to co-occurrence. ``heads``, a control: its private random signs, a projection from the users' side, with as
    many columns as both sketches have together, and no second sketch."""
    second: Second = "labels"
    """The columns of the second sketch: the clusters' ``labels``, or a control. ``random_labels``: the same labels in
    an order drawn at random. ``signs``: new random signs. ``power``: the directions in which the first sketch is
    largest, in 32 bits a number."""
    verify: bool = True
    """Whether candidate pairs are counted. Without, a control, they are weighed by the sketch alone."""
    half_life: HalfLife = "chosen"
    """Days after which an interaction counts half in what goes with what; ``null`` for never. ``chosen``: one of
    several, by the earlier cuts of a rolling evaluation; never under other splits, which cannot judge it."""
    read_by: str | None = None
    """How clients read the structure, as a run reports it, such as ``rho 0.5, beta 0.3``; by default they choose
    together, by validation."""
    privacy: Privacy | None = None
    """Differential privacy: the budget by which clients add noise to all sums; ``null`` for none."""
    packing: Packing = "tight"
    """``tight``: each number in the bits of what it can reach, candidates by coded gaps. ``plain``: 20 bits a number
    and ids as they are; the same result in more bytes."""

    def problems(self) -> Iterator[str | None]:
        """What is wrong with these settings."""
        yield no_count("method.columns", self.columns, most=4096, or_none=True)
        yield no_count("method.clusters", self.clusters, 2, 4096, or_none=True)
        yield not_positive("method.penalty", self.penalty)
        yield no_count("method.pairs_per_client", self.pairs_per_client)
        yield no_count("method.most_pairs", self.most_pairs, most=1024, or_none=True)
        yield no_count("method.least_clients", self.least_clients)
        yield no_count("method.least_items", self.least_items)
        yield not_positive("method.share", self.share, 1)
        if self.sketch == "heads" and self.second != "labels":
            yield f"method.second: {self.second} has no effect with the sketch of heads, which has no second one"
        yield not_half_life("method.half_life", self.half_life)
        if fixed(self.half_life) is not None and (self.sketch == "heads" or self.second == "power"):
            yield "method.half_life: the controls with heads and power iteration forget nothing; give null"
        if self.privacy is not None:
            yield from self._not_private(self.privacy)

    def _not_private(self, privacy: Privacy) -> Iterator[str | None]:
        """What does not go together with a budget."""
        yield from privacy.problems()
        if self.share < 1:
            yield "method.share: under privacy all must add noise to every sum; give 1"
        if self.sketch == "heads" or self.second not in ("labels", "random_labels"):
            yield "method.sketch, method.second: under privacy there are profiles and labels alone"
        if not self.verify:
            yield "method.verify: under privacy pairs are counted; the budget for it would be lost"
        if fixed(self.half_life) is not None:
            yield "method.half_life: under privacy nothing is forgotten; give null"

    def num_columns(self, num_items: int) -> int:
        """How many columns of signs there are."""
        if self.columns is not None:
            return self.columns
        # From what everybody knows, the size of the catalogue, and the same for all data.
        nearest = 1 << round(math.log2(math.sqrt(num_items)))
        return min(max(nearest, 16), 64 if self.privacy is None else PRIVATE_COLUMNS)

    def num_clusters(self, num_items: int) -> int:
        """How many clusters are looked for."""
        return self.clusters or self.num_columns(num_items)

    def most(self, num_items: int) -> int:
        """How many candidates an item has at most."""
        if self.most_pairs is not None:
            return self.most_pairs
        return min(max(2 * self.num_columns(num_items), 32), 64)

    def tallies(self, num_items: int, verifies: bool, recents: tuple[float, ...] = ()) -> list[Tally]:
        """The sums, in order; the first with popularities of these half-lives."""
        bits = None
        if self.packing == "plain":
            bits = PLAIN_BITS
        columns, clusters = self.num_columns(num_items), self.num_clusters(num_items)
        if self.privacy is not None:
            signs = PrivateSigns(plain_bits=bits, number=columns, privacy=self.privacy)
            rest = [one(plain_bits=bits, privacy=self.privacy) for one in (PrivateLabels, PrivatePairs)]
            return [PrivateCounts(privacy=self.privacy), signs, *rest]
        half_life = fixed(self.half_life)
        found: list[Tally] = [ItemCounts(None, half_life, recents)]
        if self.sketch == "heads":
            found.append(Heads(bits, number=columns + clusters))
        else:
            found += [SignColumns(bits, half_life, columns), self._second(bits, columns, clusters)]
        if verifies and self.verify:
            found.append(PairCounts(bits, half_life))
        return found

    def _second(self, bits: int | None, columns: int, clusters: int) -> Tally:
        """The second sketch, of as many columns as there are clusters."""
        half_life = fixed(self.half_life)
        if self.second == "signs":
            return MoreSigns(bits, half_life, clusters, first=columns)
        if self.second == "power":
            return PowerColumns()
        return LabelColumns(bits, half_life)

    def timeline(self, tallies: Sequence[Tally], train_rounds: int, chooses: bool) -> list[Step]:
        """All steps, in order: these sums, and `TRAIN` once for each of its rounds."""
        steps = [Step(tally.name, tally) for tally in tallies]
        if self.share < 1:
            steps += [Step(tally.name, tally, late=True) for tally in tallies]
        steps += [Step(TRAIN)] * train_rounds
        if chooses and self.read_by is None:
            steps.append(Step(CHOOSE))
        return steps

    def sizes(self, rows: Rows) -> Tensor:
        """How many candidates each row has, `[rows]`: known to both ends, and never sent."""
        most = min(self.most(rows.num_items), len(rows) - 1)
        return (self.pairs_per_client * rows.clients).clamp(min(16, most), most)

    def pairs_layout(self, rows: Rows, sizes: Tensor | None = None) -> IdLayout:
        """How candidates travel, so many for each row, `[rows]`; by default as many as `sizes` says."""
        coding: Literal["rice", "plain"] = "rice"
        if self.packing == "plain":
            coding = "plain"
        return IdLayout(self.sizes(rows) if sizes is None else sizes, len(rows), coding)


def changes_of(tallies: Sequence[Tally]) -> list[Step]:
    """All steps where only what has changed is added to sums of before."""
    return [Step(tally.name, tally) for tally in tallies]


def known_from(known: Known, kept: Mapping[str, Mapping[str, Value]], least: int, unit: int) -> Known:
    """What is known once bulletins have come down.

    Args:
        known: What is known without any.
        kept: Values of the bulletins by name.
        least: How many clients an item needs to have a row.
        unit: Of the first sum: `Tally.unit`.
    """
    found: dict[str, Any] = {}
    if "bounds" in kept:
        counts = kept["bounds"]["counts"]
        assert isinstance(counts, Counts)
        if "least" in kept["bounds"]:  # with noise, the server finds it from the counts
            least = int(kept["bounds"]["least"])  # type: ignore[arg-type]
        found["rows"] = Rows.of(counts.values, least, unit)
        if "rows" in kept:
            items, keys = (kept["rows"][name].long() for name in ("order", "keys"))  # type: ignore[union-attr]
            found |= {"rows": Rows.at(counts.values, items, least, unit), "keys": keys}
    if "labels" in kept:
        found["labels"] = kept["labels"]["labels"].values  # type: ignore[union-attr]
    if "power" in kept:
        found["directions"] = kept["power"]["directions"]
    if "verify" in kept:
        found["pairs"] = kept["verify"]["pairs"].ids  # type: ignore[union-attr]
    return Known(known.num_items, known.num_clients, known.seed, **found)
