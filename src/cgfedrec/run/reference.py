"""A run of a reference: one fit in one place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from jsonargparse import Namespace

from cgfedrec.centralized.reference import Reference
from cgfedrec.data.module import Stage
from cgfedrec.errors import InputError, check
from cgfedrec.evaluation.ranking import Ranked, no_metric, ranked, summarise
from cgfedrec.files import write_atomically
from cgfedrec.run.engine import engine
from cgfedrec.run.folder import METRICS
from cgfedrec.run.run import SCORED_AT_ONCE, Run


class ReferenceRun(Run):
    """A run of a `Reference`: one fit in one place, so one row in ``metrics.csv``, nothing sent and no checkpoint.

    Of the loop's options it heeds ``monitor`` alone; callbacks are not called, since there are no rounds.
    """

    def _setup(self, parts: Namespace, callbacks: Sequence[Any], clients: Path | None, to_train: bool) -> None:
        self.reference: Reference = parts.method
        self.reference.device = engine(vars(parts.fabric), []).device
        self.loop.rounds = 1
        check(no_metric("loop.monitor", self.loop.monitor, self.data))
        self.reference.check(self.data)

    def _intent(self) -> str:
        return f"{type(self.method).__name__}, a reference that sees everyone's data, in {self.directory}"

    def train(self) -> None:
        started = time.perf_counter()
        self.reference.fit(self.data)
        seconds = time.perf_counter() - started
        found = summarise(self.data, "val", self.ranked("val")) if self.data.holds_out("val") else {}
        self.loop.round, self.loop.seconds = 1, seconds
        self.loop.history = [{"round": 1, **self.reference.report(), **found, "time/round": seconds}]
        write_atomically(self.directory / METRICS, self.history.write_csv())
        self.log.do(lambda logger: logger.log_metrics(self.loop.history[-1], step=1))

    def ranked(self, stage: Stage) -> Ranked:
        return ranked(self.data, stage, self.reference.score, SCORED_AT_ONCE)

    def restore(self, state: dict[str, Any], resumed: Path | None = None) -> None:
        raise InputError(f"ckpt_path: was trained with {state['method']}; {self.header.method} has no checkpoints")

    def recommend(self, users: Sequence[Any] | None = None, top_k: int = 10) -> pl.DataFrame:
        raise InputError(f"method: {self.header.method} is a reference, which is to be measured and not used")
