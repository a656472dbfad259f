"""What is asked of a run that has trained: its parts, a test, recommendations, an export."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from cgfedrec.centralized.reference import Reference
from cgfedrec.data import FederatedDataModule, Format
from cgfedrec.data.newcomers import Given, Newcomers
from cgfedrec.errors import InputError, Notice, check
from cgfedrec.evaluation.ranking import Ranked, summarise
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.run.because import why
from cgfedrec.run.checkpoint import Header
from cgfedrec.run.export import Titles, export, nothing_yet
from cgfedrec.run.recommend import recommend, recommend_for
from cgfedrec.run.reference import ReferenceFit
from cgfedrec.run.summary import popular_ranks, tested
from cgfedrec.run.training import Training
from cgfedrec.server import Server
from cgfedrec.serving import Recommender
from cgfedrec.simulation.store import ClientStore


class Trained:
    """A run in use.

    Attributes:
        training: The rounds of the federation, or the fit of the reference.
        data: What it is trained on.
        method: What the settings name.
    """

    training: Training
    data: FederatedDataModule
    method: Method | Reference

    @property
    def header(self) -> Header:
        """Which run of which method on which data this is."""
        raise NotImplementedError

    @property
    def loop(self) -> FederatedLoop:
        """The federation. Raises `InputError` for a reference, which has none."""
        if not isinstance(self.training, FederatedLoop):
            raise InputError(
                f"method: {self.header.method} is a reference and no federation: it recommends for those to whom it "
                "was fitted"
            )
        return self.training

    @property
    def scorer(self) -> FederatedLoop | ReferenceFit:
        """What recommends: the federation, or the fit of the reference."""
        return self.training if isinstance(self.training, ReferenceFit) else self.loop

    @property
    def spends(self) -> bool:
        """Whether a training spends a budget of differential privacy; those of several add up on the same people."""
        return bool(getattr(self.method, "privacy", None) or getattr(self.training, "spending", None))

    @property
    def server(self) -> Server:
        """The server, as it is after the round that is loaded: the best one, once training has ended."""
        return self.loop.server

    @property
    def clients(self) -> ClientStore:
        """Every client's private state, after the same round."""
        return self.loop.clients.store

    def ranked(self) -> Ranked | None:
        """Where the state that is loaded ranks the test items, if there are any."""
        if not self.data.holds_out("test"):
            return None
        return self.training.ranked("test")

    def test(self) -> dict[str, float]:
        """Test metrics of the state that is loaded and, as ``popularity/...``, of showing everybody what is popular.

        With how the two compare (`cgfedrec.run.summary.over_popularity`), and ``bytes/scoring``, what clients had to
        download for it, where anything is held out. A `Notice` where nothing has been found yet to rank by.
        """
        self._tell_if_early()
        before = self.training.bytes_scoring
        found = tested(self.data, self.ranked(), popular_ranks(self.data), self.method, self.training.monitor)
        if found:
            found["bytes/scoring"] = self.training.bytes_scoring - before
        return found

    def validate(self) -> dict[str, float]:
        """Validation metrics of the state that is loaded, and ``bytes/scoring``; nothing where nothing is held out.

        The best round was chosen by them, so they flatter it: `test` is the result.
        """
        if not self.data.holds_out("val"):
            return {}
        self._tell_if_early()
        before = self.training.bytes_scoring
        found: dict[str, float] = summarise(self.data, "val", self.training.ranked("val"))
        return found | {"bytes/scoring": self.training.bytes_scoring - before}

    def _tell_if_early(self) -> None:
        """Say it where clients rank by popularity, or by nothing, since nothing else has come down to them."""
        if early := nothing_yet(self.scorer):
            warnings.warn(f"{early}. Till then this measures popularity, or a ranking of nothing", Notice, stacklevel=3)

    def recommend(self, users: Sequence[object] | None = None, top_k: int = 10, explain: bool = False) -> pl.DataFrame:
        """The best items for users, without those that they have; if asked for, with own items that speak for each.

        See `cgfedrec.run.recommend.recommend`, which says what is returned.

        Raises:
            InputError: if none of the users is in the data.
        """
        return recommend(self.scorer, users, top_k, why(self.scorer) if explain else None)

    def recommend_for(
        self, histories: Given, top_k: int = 10, users: Sequence[object] | None = None, format: Format | None = None
    ) -> pl.DataFrame:
        """The best items for people who were not in training, by what comes down to every client and their history.

        What they should know of these histories, such as unknown items that are left out, is a `Notice` (a warning).

        Args:
            histories: A mapping of users to their items, the oldest first; a table with the columns ``user``, ``item``
                and, where order is to count, ``timestamp``; or the path of a file.
            top_k: How many items for each; fewer where the catalogue ends.
            users: Whom of them; by default all.
            format: How the file is laid out; by default as the data of this run.

        Returns:
            Columns as of `recommend`; ``source`` is ``history``, or ``popularity`` for somebody without any.

        Raises:
            InputError: for histories that cannot be used, and for methods whose clients need more than a history.
        """
        return recommend_for(self.loop, self.newcomers(histories, format), users, top_k)

    def export(self, folder: str | Path, titles: Titles | None = None) -> Recommender:
        """Write a folder that recommends for anybody's history, without this run: see `cgfedrec.run.export.export`.

        Titles are those of the data, unless they are given.
        Raises `InputError` for methods whose clients need more than a history, and for a reference.
        """
        return export(self.loop, self.header, Path(folder), titles)

    def newcomers(self, given: Given, format: Format | None = None, tested: bool = False) -> Newcomers:
        """People who were not in training, set up; arguments as of `Newcomers`. Raises `InputError` as it does."""
        check(self.loop.clients.no_newcomers())
        newcomers = Newcomers(self.data, given, format, tested)
        newcomers.setup()
        for note in newcomers.notes():
            warnings.warn(note, Notice, stacklevel=3)
        return newcomers
