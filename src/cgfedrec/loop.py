"""FederatedLoop: the whole federation, round after round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.data.module import FederatedDataModule, Stage
from cgfedrec.data.newcomers import Newcomers
from cgfedrec.errors import check, no_count
from cgfedrec.evaluation.ranking import Ranked, no_metric, summarise
from cgfedrec.failures import NONE, Failures, check_attempt
from cgfedrec.history import Evaluations, Row, rows_of
from cgfedrec.method import Method
from cgfedrec.processes import Processes
from cgfedrec.random import shared_seed
from cgfedrec.sampling import Sampling
from cgfedrec.server import Server
from cgfedrec.simulation.capacity import Place
from cgfedrec.simulation.demand import Plans
from cgfedrec.simulation.masked import clients_of
from cgfedrec.simulation.store import Dtype
from cgfedrec.simulation.workers import on_one_thread
from cgfedrec.spends import Spends
from cgfedrec.wire.wire import Wire


class FederatedLoop(Spends, Evaluations):
    """Federated training: rounds of local training, aggregation and evaluation.

    Args:
        rounds: How many rounds to train, at most.
        participation: Share of the clients that take part in a round.
        participants: Number of clients that take part in a round, in place of a share; at most as many as there are.
        resample: Whether participants are drawn anew in every round, or once for all.
        cohort_size: How many clients are trained together; ``auto`` for what fits the cache of a CPU or the memory of
            a GPU. Changes speed and memory, and no result.
        store: Where clients' state lies: in ``memory``, in files on ``disk``, or ``auto``, by its size.
        state_dtype: How it is kept between rounds: ``bfloat16`` takes half the room, and rounds.
        evaluate_every: Rounds between two evaluations; the last round is always evaluated.
        checkpoint_every: Rounds between two writings of ``checkpoints/last.ckpt``.
        compress: Whether whole numbers of the server, such as CGFedCo's sums, are compressed in checkpoints.
        monitor: The validation metric that chooses the best round.
        patience: Stop after this many evaluations without a better one; ``null`` for never.
        failures: Clients that fail, and how many uploads may be refused.
    """

    def __init__(
        self,
        rounds: int = 100,
        participation: float = 1.0,
        participants: int | None = None,
        resample: bool = True,
        cohort_size: int | Literal["auto"] = "auto",
        store: Place = "auto",
        state_dtype: Dtype = "float32",
        evaluate_every: int = 1,
        checkpoint_every: int = 1,
        compress: bool = True,
        monitor: str = "val/ndcg@10",
        patience: int | None = 10,
        failures: Failures = NONE,
    ) -> None:
        self.sampling = Sampling(participation, participants, resample)
        check(
            no_count("loop.rounds", rounds),
            *self.sampling.problems(),
            None if cohort_size == "auto" else no_count("loop.cohort_size", cohort_size),
            no_count("loop.evaluate_every", evaluate_every),
            no_count("loop.checkpoint_every", checkpoint_every),
            no_count("loop.patience", patience, or_none=True),
        )
        super().__init__(monitor)
        self.rounds = rounds
        self._cohort_size: int | Literal["auto"] = cohort_size
        self._place: Place = store
        self.state_dtype: Dtype = state_dtype
        self.evaluate_every, self.checkpoint_every, self.compress = evaluate_every, checkpoint_every, compress
        self.patience, self.failures = patience, failures
        self.round, self.attempt, self.seconds = 0, 0, 0.0
        self.should_stop = False

    def setup(
        self,
        fabric: Fabric,
        data: FederatedDataModule,
        method: Method,
        folder: Path = Path("clients"),
        to_train: bool = True,
        wire: Wire | None = None,
        update_from: Mapping[str, Any] | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Build the server and the clients for this data.

        Args:
            fabric: Owns device and precision.
            data: Set up.
            method: Makes the clients and the server.
            folder: For clients' state that does not fit memory.
            to_train: Otherwise a state is loaded and used where it lies, which takes no room in memory or on disk.
            wire: Carries the messages; by default one without steps.
            update_from: `state_dict` of a federation on the data of before, to whose sums changes are added.
            processes: That train together; by default this one alone.

        Raises:
            InputError: for settings that do not fit the data, or a federation that does not fit the machine.
        """
        check(
            no_metric("loop.monitor", self.monitor, data), self.sampling.too_many(data.num_users, "users of the data")
        )
        self.fabric, self.data, self.processes = fabric, data, processes or Processes()
        method.check(data)

        # 1. The server.
        self.server: Server = method.server(data.num_items, shared_seed(data.seed)).to(fabric.device)
        self.server.enrol(self._ever_there())
        self.server.changes, self.server.wire = data.changes, self.with_noise(wire or Wire(), method, bool(update_from))
        if update_from is not None:
            assert data.changes is not None
            self.server.update_from(update_from["server"], data.changes)
        if to_train and self.processes.first and self.server.wanted() is None:
            self.sampling.tell_fewer(len(data.batches.able), data.num_users)

        # 2. The clients, and room for their state. For so many rounds the best one can stay the best, and needs its
        #    rows. Then training stops.
        self.clients = clients_of(fabric, data, method, self.server, self.processes, self.failures)
        at_most = self.rounds if self.patience is None else (self.patience + 1) * self.evaluate_every
        plans = Plans(
            self.num_participants, self.rounds, self.sampling.resample, min(self.rounds, at_most), self.checkpoint_every
        )
        self.clients.settle(plans, self._place, self._cohort_size, self.state_dtype, folder, to_train)

    @property
    def num_participants(self) -> int:
        """How many clients take part in a round."""
        return self.sampling.number(self.data.num_users)

    @on_one_thread()
    def fit(self) -> None:
        """Train until the last round, or until a callback sets ``should_stop`` at the end of one.

        Raises:
            NotFiniteError: if a client's loss or upload is not finite.
        """
        self.keep_to_budget()
        self.fabric.call("on_federation_start", self)
        try:
            while self.round < self.rounds and not self.should_stop and not self.server.finished:
                started, self.round = time.perf_counter(), self.round + 1

                # 1. Draw the participants, and train those who are at home in this process, cohort by cohort.
                participants = self.clients.in_order(self.sample())
                if not self.pays(participants):
                    break
                cohorts = []
                with self.processes.agreed():
                    for trained in self.clients.train(participants, self.round, self.attempt):
                        self.server.aggregate(trained.part)
                        cohorts.append(trained.told)
                        self.fabric.call("on_cohort_end", self, trained.told.users)

                # 2. Add up what all processes have. From here on they do the same.
                self.server.gather(self.processes)
                told = self.clients.together(cohorts)
                self.add(told, participants)
                self.failures.tell(
                    self.round, len(participants), self.clients.named(told.refused), self.processes.first
                )

                # 3. Let the server make of it what it sends next, on one thread like all else: a sum by several
                #    threads would depend on how many they are.
                with self.processes.agreed():
                    report = self.server.end(told.users, told.refused, self.round)
                self.processes.check_alike("servers", self.server.state_dict())
                if not (len(told.users) or report or self.server.finished):
                    self.nobody_came()
                    continue
                self.attempt = 0

                # 4. Evaluate; then callbacks log, write the checkpoint and may stop.
                self.record(told.means, report, time.perf_counter() - started)
                self.seconds += time.perf_counter() - started
                self.fabric.call("on_round_end", self)
        finally:
            self.fabric.call("on_federation_end", self)

    def sample(self) -> Tensor:
        """This round's participants, `[participants]`, int64, in ascending order."""
        wanted, able = self.server.wanted(), self.data.batches.able
        # By default whoever can train.
        return self._drawn(able, self.sampling.number(len(able))) if wanted is None else self._drawn(wanted)

    def _drawn(self, pool: Tensor, number: int | None = None) -> Tensor:
        """So many participants, or as many as usual, from a pool `[clients]` of those who are wanted."""
        number = number or self.num_participants
        return self.sampling.draw(pool, number, shared_seed(self.data.seed), self.round, self.attempt)

    def _ever_there(self) -> Tensor:
        """Who can take part in any round, `[clients]`: everybody, or those who are drawn once for all."""
        everyone = torch.arange(self.data.num_users)
        return everyone if self.sampling.resample else self._drawn(everyone)

    def nobody_came(self) -> None:
        """Try the same round again, with other draws: to server and clients a round without anybody is none."""
        self.attempt += 1
        check_attempt(self.round, self.attempt, self.processes.first)
        self.round -= 1

    def record(self, seen: Tensor, report: Row, seconds: float) -> None:
        """Evaluate if this round is to be, and add a row; ``seen`` is `Told.means`, `[clients, any]`."""
        last = self.round == self.rounds or self.server.finished
        if self.round % self.evaluate_every and not last and not self.server.preparing:
            return
        names = ("loss", *self.clients.reports)[: seen.shape[1]]  # where nothing was trained, there are no means
        row: Row = {"round": self.round}
        if len(seen):
            row |= {f"train/{name}": mean for name, mean in zip(names, seen.double().mean(0).tolist(), strict=True)}
        if self.server.preparing and not last:
            pass  # there is nothing new to rank with
        elif self.data.holds_out("val"):
            row |= self.evaluate("val")
        elif last:
            with self.processes.agreed():
                self.clients.check_scores(self.round)
        row |= self.row(self.bytes_scoring, self.failures != NONE)
        self.history.append(row | report | {"time/round": seconds})

    @on_one_thread()
    def evaluate(self, stage: Stage) -> Row:
        """Metrics of all clients' present state, named like ``val/ndcg@10``."""
        return summarise(self.data, stage, self.ranked(stage))

    def ranked(self, stage: Stage) -> Ranked:
        """Where all clients' present state ranks what is held out."""
        return self.clients.ranked(stage, self.round)

    def score(self, users: Tensor) -> Tensor:
        """Each user's scores by their own client after this round, `[users, items]`: `Clients.score`."""
        return self.clients.score(users, self.round)

    def score_newcomers(self, newcomers: Newcomers, users: Tensor) -> Tensor:
        """Scores after this round for people who never took part, `[users, items]`: `Clients.score_newcomers`."""
        return self.clients.score_newcomers(newcomers, users, self.round)

    @property
    def bytes_scoring(self) -> int:
        """That have come down so far to score with, beside what training took."""
        return self.clients.bytes_scoring

    def histograms(self) -> dict[str, Tensor]:
        """What the server has discovered and is worth a look: values `[any]` by name, such as the sizes of clusters."""
        return self.server.histograms()

    def state_dict(self) -> dict[str, Any]:
        """Everything on which the next round depends: a run that goes on from it ends as if it had never stopped.

        With several processes only the first one's is of use.
        """
        return {
            "round": self.round,
            "history": self.table(),
            "seconds": self.seconds,
            **self.counts(self.bytes_scoring),
            "server": self.server.state_dict(),
            **self.clients.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError, IndexError: if it was taken elsewhere.
            FileNotFoundError: if the clients' state lies in files that are not there.
        """
        if type(state["round"]) is not int or state["round"] < 0:
            raise ValueError("the round is no count")
        self.round, bytes_scoring = state["round"], self.load_counts(state)
        self.history = rows_of(state["history"])
        self.seconds = float(state["seconds"])
        self.server.load_state_dict(state["server"])
        if self.round < self.rounds and self.server.preparing:
            self.unrank()  # it was evaluated since it was the last round, which it no longer is
        if self.whose:
            self.server.leave(torch.tensor(sorted(self.whose)))
        self.clients.load_state_dict(state, bytes_scoring)

    def open_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken, to use what was trained without training on.

        Clients' state stays where it lies. The room that the store before had reserved is freed.
        """
        self.clients.open_stored()
        self.load_state_dict(state)
