"""The training of a reference: one fit in one place, told as a run of one round."""

from __future__ import annotations

import time

from lightning import Fabric
from torch import Tensor

from cgfedrec.centralized.factors import SCORED_AT_ONCE
from cgfedrec.centralized.reference import Reference
from cgfedrec.data.module import FederatedDataModule, Stage
from cgfedrec.errors import check
from cgfedrec.evaluation.ranking import Ranked, no_metric, ranked, summarise
from cgfedrec.history import Row


class ReferenceFit:
    """What stands in a run in place of a federation's loop where the method is a `Reference`.

    It ends with one row in ``metrics.csv``, sends nothing and leaves no checkpoint. Fabric calls ``on_round_end`` once
    it is fitted, and no other hook.

    Args:
        reference: What is fitted.
        data: Set up.
        fabric: Says on which device it computes.
        monitor: The validation metric by which it is compared; it chooses nothing here.

    Raises:
        InputError: for settings that do not fit the data.
    """

    rounds = 1

    def __init__(self, reference: Reference, data: FederatedDataModule, fabric: Fabric, monitor: str) -> None:
        check(no_metric("loop.monitor", monitor, data))
        reference.check(data)
        reference.device = fabric.device
        self.reference, self.data, self.fabric, self.monitor = reference, data, fabric, monitor
        self.round = 0
        self.seconds = 0.0
        self.history: list[Row] = []

    @property
    def best(self) -> Row | None:
        """The only row, once there is one."""
        if not self.history:
            return None
        return self.history[-1]

    def fit(self) -> None:
        """Fit the reference and rank what is held out for validation.

        Raises:
            RunError: if fitting fails.
        """
        started = time.perf_counter()
        self.reference.fit(self.data)
        self.seconds = time.perf_counter() - started
        found: Row = {}
        if self.data.holds_out("val"):
            found = summarise(self.data, "val", self.ranked("val"))
        self.round = 1
        self.history = [{"round": 1, **self.reference.report(), **found, "time/round": self.seconds}]
        self.fabric.call("on_round_end", self)

    def score(self, users: Tensor) -> Tensor:
        """Scores of all items, `[users, items]`, for users `[users]`."""
        return self.reference.score(users)

    def ranked(self, stage: Stage) -> Ranked:
        """Where the fitted reference ranks what is held out for ``stage``."""
        return ranked(self.data, stage, self.score, SCORED_AT_ONCE)

    def histograms(self) -> dict[str, Tensor]:
        """Values `[any]` by name: none, since nothing is discovered in rounds."""
        return {}
