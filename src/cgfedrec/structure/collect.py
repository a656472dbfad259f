"""The server of CGFedCo: discovers structure from sums that have been counted, and sends that down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cgfedrec.data.changes import Changes
from cgfedrec.kit.sums import check_enough
from cgfedrec.structure.columns import Columns, LabelColumns
from cgfedrec.structure.controls import Heads, PowerColumns, by_heads, directions, shuffled
from cgfedrec.structure.counting import CountingServer
from cgfedrec.structure.discover import Found, candidates, closed_form, spread
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.labelling import labels_by
from cgfedrec.structure.nystroem import coordinates, factor
from cgfedrec.structure.private import CHOOSE
from cgfedrec.structure.quality import quality, theta
from cgfedrec.structure.refusing import AIMED
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.structure import LEVELS, Structure
from cgfedrec.structure.tallies import SHARES, Known, PairCounts
from cgfedrec.structure.updating import with_new_labels
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.codec import decode, encode
from cgfedrec.wire.tensors import numbered
from cgfedrec.wire.values import Counts, IdLists, Labels, Value, Weights

LABELS, POWER, PAIRS = LabelColumns.name, PowerColumns.name, PairCounts.name

TABLES = 12
"""How many tables `[items, columns]` of 8 bytes there are at most: sums, columns, factors. Measured."""


class SumsServer(CountingServer):
    """Finds labels from the first sketch, candidates from all of them, and structure from everything.

    Arguments are those of `CountingServer`.
    """

    labels: Tensor
    directions: Tensor
    pairs: Tensor
    found: Tensor
    earlier: Tensor
    version: Tensor

    def __init__(self, discovery: Discovery, structure: Structure, num_items: int, seed: int) -> None:
        super().__init__(discovery, structure, num_items, seed)
        self.hold("labels", torch.empty(0, dtype=torch.int64))  # [rows]
        self.hold("directions", torch.empty(0, 0))  # [rows, columns], in place of labels
        self.hold("pairs", torch.empty(0, 0, dtype=torch.int64))  # [rows, most]
        self.hold("found", torch.empty(0, dtype=torch.uint8))  # the structure as it travels
        self.hold("earlier", torch.empty(0, dtype=torch.uint8))  # that of the run from which this one goes on
        self.register_buffer("version", torch.tensor(0))  # of the structure
        self.told: dict[str, float] = {}
        self.columns = [tally for tally in self.tallies if isinstance(tally, Columns)]
        self._sent: dict[str, Bulletin] = {}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._sent = {}
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def working(self) -> int:
        columns = self.discovery.num_columns(self.num_items) + self.discovery.num_clusters(self.num_items)
        return TABLES * 8 * columns * self.num_items

    @property
    def saved(self) -> int:
        """Two sketches, candidates and how often each was counted, and the first sum."""
        columns = self.discovery.num_columns(self.num_items) + self.discovery.num_clusters(self.num_items)
        return 8 * self.num_items * (columns + 2 * self.discovery.most(self.num_items) + self.counts.shape[1])

    def update_from(self, state: Mapping[str, Any], changes: Changes) -> None:
        super().update_from(state, changes)
        self.labels, self.directions, self.pairs = (state[name].clone() for name in ("labels", "directions", "pairs"))
        self.earlier = state["found"].clone()
        self.refresh()

    def opened(self, name: str, total: Tensor) -> dict[str, float]:
        """As of any counting server, with what a new structure is worth, and how clients have chosen to read it."""
        self.told = {}
        report = super().opened(name, total)
        if name == CHOOSE:
            report |= theta(self.structure, int(self.chosen))
        return report | self.told

    def find(self, name: str, following: str) -> None:
        self.known = self._known()
        self.check_rows(len(self.known.the_rows))
        if name == self.tallies[-1].name:
            self._find_structure()
        elif following == LABELS and len(self.labels) < len(self.known.the_rows):
            self.labels = self._find_labels()
        elif following == POWER and not self.directions.numel():
            self.directions = directions(self.total("sketch").double(), self.discovery.num_clusters(self.num_items))
        elif following == PAIRS and len(self.pairs) < len(self.known.the_rows):
            self.pairs = self._find_pairs()

    def check_rows(self, rows: int) -> None:
        """Refuse to go on where so few items have a row that there is nothing to find out. Raises `RunError`."""
        check_enough(rows, self.num_items, self.least)

    def _rows(self) -> Rows:
        """The rows with the clients of everybody who has been counted."""
        rows = self.known.the_rows
        if self.late_counts.numel():
            return rows.and_others(self.late_counts)
        return rows

    @property
    def least(self) -> int:
        """How many clients an item needs to have a row."""
        return self.discovery.least_clients

    @property
    def penalty(self) -> float:
        """EASE's lambda."""
        return self.discovery.penalty

    def counted_pairs(self) -> Tensor:
        """How many clients have an item and each of its candidates, `[rows, most]`, as much as that still counts."""
        return self.total(PAIRS) / self.known.the_rows.unit

    @property
    def sketched(self) -> list[Columns]:
        """The sketches that have been counted. In an update labels are there before any of them."""
        return [tally for tally in self.columns if self.total(tally.name).numel()]

    def factor(self) -> Tensor:
        """F from all sketches that have been counted, `[rows, rank]`, float64."""
        if self.discovery.sketch == "heads":
            return by_heads(self.total(Heads.name).double())
        columns = torch.cat([tally.columns(self.known).double() for tally in self.sketched], dim=1)
        sketch = torch.cat([self.total(tally.name).double() / tally.unit for tally in self.sketched], dim=1)
        return factor(columns, sketch)

    def coordinates(self) -> Tensor:
        """Where the items lie by all columns that have been counted, `[rows, at most 64]`, to be looked at."""
        return coordinates(self.factor())

    def _find_labels(self) -> Tensor:
        """The cluster of each row, `[rows]`, int64."""
        rows = self.known.the_rows
        if self.labels.numel():  # of an earlier time: they stay, and new rows join them
            return with_new_labels(self.labels.cpu(), coordinates(self.factor()))
        found = labels_by(self.factor(), rows, self.discovery, self.seed)
        if self.discovery.second == "random_labels":
            return shuffled(found, self.seed)
        return found

    def _find_pairs(self) -> Tensor:
        """The candidates of each row, `[rows, most]`, int64."""
        half, _ = closed_form(self.factor(), self.known.the_rows.diagonal, self.penalty)
        found = candidates(half, self.discovery.sizes(self.known.the_rows))
        if not self.pairs.numel():
            return spread(found, AIMED)
        # Of an earlier time: they stay, and those of new rows stand behind them.
        before = self.pairs.cpu()
        wider = max(before.shape[1], found.shape[1])
        parts = (before, found[len(before) :])
        together = torch.cat([torch.nn.functional.pad(one, (0, wider - one.shape[1]), value=-1) for one in parts])
        return spread(together, AIMED, len(before))

    def _find_structure(self) -> None:
        pairs = counts = None
        if self.structure.verifies and self.discovery.verify:
            pairs, counts = self.pairs, self.counted_pairs()
        elif self.structure.verifies:
            pairs = self.pairs = self._find_pairs()
        found = Found(self.factor(), self._rows(), pairs, counts, self.seed)
        sent = self.structure.find(found, replace(self.discovery, penalty=self.penalty))
        self.told = quality(found, sent, self._before())
        message = encode(sent)
        self.found = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        self.version += 1

    def _before(self) -> Weights | None:
        """The neighbours of the structure before this one, of this run or of the one from which it goes on."""
        message, pairs = self.found, self.pairs.cpu()
        if not message.numel():
            message, pairs = self.earlier, pairs[: int(self.rows_before)]
        if not message.numel() or not pairs.numel():
            return None
        fields = self.structure.fields(replace(self.known, pairs=pairs), self.discovery)
        weights = decode(message.cpu().numpy().tobytes(), fields).get("weights")
        return weights if isinstance(weights, Weights) else None

    def histograms(self) -> dict[str, Tensor]:
        """How many items each cluster has, `[clusters]`, once there are any."""
        if not self.labels.numel():
            return {}
        return {"clusters/sizes": torch.bincount(self.labels)}

    def _known(self) -> Known:
        """What clients know too, once they have the bulletins."""
        known = Known(self.num_items, int(self.enrolled.sum()), self.seed)
        if self.counts.numel():
            least, unit = self.least, self.tallies[0].unit
            rows = Rows.of(self.counts, least, unit)
            if self.order.numel():
                rows = Rows.at(self.counts, self.order.cpu(), least, unit)
            known = replace(known, rows=rows)
        if self.keys.numel():
            known = replace(known, keys=self.keys.cpu())
        number = 0 if known.rows is None else len(known.rows)  # what is of fewer rows is yet to be completed
        if self.labels.numel() and len(self.labels) == number:
            known = replace(known, labels=self.labels.cpu())
        if self.directions.numel():
            known = replace(known, directions=self.directions.cpu())
        if self.pairs.numel() and len(self.pairs) == number:
            known = replace(known, pairs=self.pairs.cpu())
        return known

    def needed(self) -> dict[str, Bulletin]:
        self.known = known = self._known()
        step = self.step
        sent: dict[str, Bulletin] = {}
        if known.rows is None:
            return sent
        sent["bounds"] = self._counts("bounds", self.counts)
        if self.past is not None:
            sent["rows"] = self._bulletin("rows", {name: self.get_buffer(name).int() for name in ("order", "keys")})
            if step is not None:
                sent["past"] = self._counts("past", self.past_counts)
                sent["before"] = self._bulletin("before", {"rows": self.rows_before.int()})
        if step is not None and step.late and self.late_counts.numel():
            sent["late"] = self._counts("late", self.late_counts)
        if self.recents.numel():
            sent["recent"] = self._bulletin("recent", {"levels": self.recents})
        if step is not None and step.phase == LABELS and known.labels is not None:
            labels = Labels(known.labels, int(known.labels.max()) + 1)
            sent["labels"] = self._bulletin("labels", {"labels": labels})
        if step is not None and step.phase == POWER and known.directions is not None:
            sent["power"] = self._bulletin("power", {"directions": known.directions})
        if known.pairs is not None:
            layout = self.discovery.pairs_layout(known.rows, (known.pairs >= 0).sum(1))
            pairs = IdLists(known.pairs, layout.sizes, layout.high, layout.coding)
            sent["verify"] = self._bulletin("verify", {"pairs": pairs})
        if self.found.numel():
            name = f"structure/{int(self.version)}"
            if name not in self._sent:
                message = self.found.cpu().numpy().tobytes()
                self._sent[name] = Bulletin(decode(message, self.structure.fields(known, self.discovery)), len(message))
            sent[name] = self._sent[name]
        if self.finished:
            reading: dict[str, Value] = {"chosen": numbered(self.chosen)}
            if self.average.numel():
                reading["average"] = self.average
            sent["reading"] = self._bulletin("reading", reading)
        return sent

    def _counts(self, name: str, counts: Tensor) -> Bulletin:
        """The first sum, `[items, ...]`, as it is sent down; popularities of late travel by themselves."""
        bounds = self.tallies[0].bounds(self.known)
        columns = counts.shape[1] - len(self.structure.recently)
        within = Bounds(bounds.largest[:, :columns], bounds.signed, bounds.bits)
        return self._bulletin(name, {"counts": Counts(counts[:, :columns].cpu(), within)})

    @property
    def recents(self) -> Tensor:
        """Popularities of late as they are sent down, `[items, half-lives]`, uint8.

        Each is log(1 + sum) in parts of the largest. Empty before the first sum has been opened, and where none is
        read.
        """
        number = len(self.structure.recently)
        if not number or not self.counts.numel():
            return torch.empty(0, dtype=torch.uint8)
        counts = self.counts[:, -number:]
        if self.late_counts.numel():
            counts = counts + self.late_counts[:, -number:]
        logs = (counts.double() / SHARES).log1p()
        return (LEVELS * logs / logs.amax(0).clamp_min(1e-12)).round().to(torch.uint8)

    def _bulletin(self, name: str, values: Mapping[str, Value]) -> Bulletin:
        """The bulletin of this name, encoded when it is first needed."""
        if name not in self._sent:
            self._sent[name] = Bulletin.of(values)
        return self._sent[name]
