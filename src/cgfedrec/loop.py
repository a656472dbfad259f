"""FederatedLoop: the whole federation, round after round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.client import Client
from cgfedrec.data.module import FederatedDataModule, Stage
from cgfedrec.data.newcomers import Newcomers
from cgfedrec.data.own import Own
from cgfedrec.errors import check, no_count, not_positive
from cgfedrec.evaluation.ranking import Ranked, no_metric, ranked, summarise
from cgfedrec.history import Evaluations, Row, rows_of
from cgfedrec.kit.gather import GatherServer
from cgfedrec.kit.rows import dense_copies
from cgfedrec.method import Method
from cgfedrec.random import Stream, bits, private_seed, shared_seed
from cgfedrec.server import Server
from cgfedrec.simulation.capacity import Demand, Place, plan
from cgfedrec.simulation.store import ClientStore, DiskStore, Dtype, MemoryStore, OpenedStore
from cgfedrec.simulation.workers import Workers
from cgfedrec.train import Worker, train
from cgfedrec.wire.messages import Broadcast, NotFiniteError, Sum, Upload
from cgfedrec.wire.wire import Wire


class Trained(NamedTuple):
    """What comes of a cohort's part in a round."""

    part: Upload | Sum
    """What is left of its uploads for the server: their sum, or each of them where the server needs that."""
    bytes_up: int
    bytes_down: int
    means: Tensor
    """`[clients, 1 + reports]`: mean loss, and what else its clients report; `[clients, 0]` where nothing was trained.
    See `cgfedrec.train.train`."""


class FederatedLoop(Evaluations):
    """Federated training: rounds of local training, aggregation and evaluation.

    Args:
        rounds: How many rounds to train, at most.
        participation: Share of the clients that take part in a round.
        participants: Number of clients that take part in a round, in place of a share.
        resample: Whether participants are drawn anew in every round, or once for all.
        cohort_size: How many clients are trained together; ``auto`` for what fits the cache of a CPU or the memory of
            a GPU. Changes speed and memory, and no result.
        store: Where clients' state lies: in ``memory``, in files on ``disk``, or ``auto``, by its size.
        state_dtype: How it is kept between rounds: ``bfloat16`` takes half the room, and rounds.
        evaluate_every: Rounds between two evaluations; the last round is always evaluated.
        checkpoint_every: Rounds between two writings of ``checkpoints/last.ckpt``.
        monitor: The validation metric that chooses the best round.
        patience: Stop after this many evaluations without a better one; ``null`` for never.
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
        monitor: str = "val/ndcg@10",
        patience: int | None = 10,
    ) -> None:
        wrong_size = given_twice = None
        if cohort_size != "auto":
            wrong_size = no_count("loop.cohort_size", cohort_size)
        if participants is not None and participation != 1:
            given_twice = "loop.participants: give either this or loop.participation, not both"
        check(
            no_count("loop.rounds", rounds),
            no_count("loop.participants", participants, or_none=True),
            wrong_size,
            no_count("loop.evaluate_every", evaluate_every),
            no_count("loop.checkpoint_every", checkpoint_every),
            no_count("loop.patience", patience, or_none=True),
            not_positive("loop.participation", participation, 1),
            given_twice,
        )
        super().__init__(monitor)
        self.rounds = rounds
        self.participation = participation
        self.participants = participants
        self.resample = resample
        self._cohort_size: int | Literal["auto"] = cohort_size
        self._place: Place = store
        self.state_dtype: Dtype = state_dtype
        self.evaluate_every = evaluate_every
        self.checkpoint_every = checkpoint_every
        self.patience = patience
        self.round = 0
        self.bytes_up = self.bytes_down = self.bytes_scoring = 0
        self.seconds = 0.0
        self.should_stop = False
        self._counting = Lock()

    def setup(
        self,
        fabric: Fabric,
        data: FederatedDataModule,
        method: Method,
        folder: Path = Path("clients"),
        to_train: bool = True,
        wire: Wire | None = None,
        update_from: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the workers, the server and the store for this data.

        Args:
            fabric: Owns device and precision.
            data: Set up.
            method: Makes the clients and the server.
            folder: For clients' state that does not fit memory.
            to_train: Otherwise a state is loaded and used where it lies, which takes no room in memory or on disk.
            wire: Carries the messages; by default one without steps.
            update_from: `state_dict` of a federation on the data of before, to whose sums changes are added.

        Raises:
            InputError: for settings that do not fit the data, or a federation that does not fit the machine.
        """
        too_many = None
        if self.participants is not None and self.participants > data.num_users:
            too_many = f"loop.participants: {self.participants} is more than the {data.num_users} users of the data"
        check(no_metric("loop.monitor", self.monitor, data), too_many)
        self.fabric, self.data, self.epochs = fabric, data, method.local_epochs
        self.wire = wire or Wire()
        self._method = type(method).__name__

        method.check(data)

        # 1. The server, and what it says once to every client.
        self.server: Server = method.server(data.num_items, shared_seed(data.seed)).to(fabric.device)
        check(*self.wire.problems(self.server.sees_single_uploads, type(method).__name__))
        self.server.enrol(self._ever_there())
        self.server.changes = data.changes
        if update_from is not None:
            assert data.changes is not None
            self.server.update_from(update_from["server"], data.changes)
        welcome, self._welcome_nbytes = self.wire.down(self.server.welcome(), 1)
        if welcome is None:
            # Nobody greets (Local). Clients still start from the shared seed, as do those of the method that they
            # control.
            welcome = Broadcast({"seed": torch.tensor(shared_seed(data.seed))})

        # 2. The workers, each with a client of its own, which holds one cohort after another.
        self.workers = Workers(fabric, partial(self._new_client, method, welcome))

        # Who has had the welcome and each bulletin, `[users]` by name.
        self.held = {"welcome": torch.zeros(data.num_users, dtype=torch.bool)}

        # 3. How much the machine must hold, how large a cohort may be, and where clients' state lies.
        with self.workers.one() as worker:
            self.reports = worker.client.reports
            demand = self._demand(worker)
        self.capacity = plan(demand, self._place, self._cohort_size, fabric.device, folder, to_train)
        self.cohort_size = self.capacity.cohort_size
        self._store_of = (data.order(), demand.example, self.state_dtype, folder)
        self.store: ClientStore
        if self.capacity.store == "memory":
            self.store = MemoryStore(*self._store_of, expected=demand.most_clients)
        else:
            self.store = {"disk": DiskStore, "checkpoint": OpenedStore}[self.capacity.store](*self._store_of)

    def _new_client(self, method: Method, welcome: Broadcast) -> Client:
        """A worker's client. The welcome is the same for everyone, so it takes it once for all whom it will hold."""
        client = method.client(self.data.num_items, private_seed(self.data.seed))
        client.welcome(welcome)
        return client

    def _demand(self, worker: Worker) -> Demand:
        """What the federation asks of the machine. The worker's client holds nobody yet, but its shapes are right."""
        # For so many rounds the best one can stay the best, and needs its rows. Then training stops.
        kept_rounds = self.rounds
        if self.patience is not None:
            kept_rounds = min(self.rounds, (self.patience + 1) * self.evaluate_every)
        return Demand(
            self.data.num_users,
            self.num_participants,
            self.rounds,
            self.resample,
            self.data.num_items,
            int(self.data.interactions_per_user().sum()),
            worker.client.private(),
            worker.client.upload().values,
            self.state_dtype,
            # Fabric has wrapped the optimisers.
            max((dense_copies(wrapped.optimizer) for wrapped in worker.optimizers), default=0),
            self.workers.number,
            kept_rounds=kept_rounds,
            checkpoint_every=self.checkpoint_every,
            sees_single_uploads=isinstance(self.server, GatherServer),
            server=self.server.working,
        )

    @property
    def num_participants(self) -> int:
        """How many clients take part in a round."""
        return self.participants or max(1, round(self.participation * self.data.num_users))

    def fit(self) -> None:
        """Train until the last round, or until a callback sets ``should_stop`` at the end of one.

        Raises:
            NotFiniteError: if a client's loss or upload is not finite.
        """
        self.fabric.call("on_federation_start", self)
        try:
            while self.round < self.rounds and not self.should_stop and not self.server.finished:
                started, self.round = time.perf_counter(), self.round + 1

                # 1. Draw the participants, and put those into a cohort whose batches are alike in width and number.
                cohorts = list(self.data.cohorts(self.sample(), self.cohort_size))
                participants = torch.cat(cohorts)
                self.store.expect(participants)

                # 2. Train cohorts side by side. Whichever ends first, they are added up in one order.
                losses = []
                for users, trained in zip(cohorts, self.workers.map(self.train, cohorts), strict=True):
                    self.server.aggregate(trained.part)
                    self.bytes_up += trained.bytes_up
                    self.bytes_down += trained.bytes_down
                    losses.append(trained.means)
                    self.fabric.call("on_cohort_end", self, users)

                # 3. Let the server make of it what it sends next. A worker does it, on one thread like all else: a
                #    sum by several threads would depend on how many they are.
                if self.server.sum is not None:
                    self.server.sum = self.server.sum.over_processes(self.fabric)
                (report,) = self.workers.map(partial(self.server.update, participants), [self.round])

                # 4. Evaluate; then callbacks log, write the checkpoint and may stop.
                self._record(torch.cat(losses), report, time.perf_counter() - started)
                self.seconds += time.perf_counter() - started
                self.fabric.call("on_round_end", self)
        finally:
            self.fabric.call("on_federation_end", self)

    def sample(self) -> Tensor:
        """This round's participants, `[participants]`, int64, in ascending order."""
        wanted = self.server.wanted()
        if wanted is None:
            wanted = torch.arange(self.data.num_users)
        return self._drawn(wanted)

    def _drawn(self, pool: Tensor) -> Tensor:
        """Participants from a pool `[clients]` of those who are wanted."""
        drawn_in = 0  # a round that never is: drawn once, for all rounds
        if self.resample:
            drawn_in = self.round
        # A random number for everyone in the pool, of which the smallest win.
        users = pool.numpy()
        keys = bits(shared_seed(self.data.seed), Stream.PARTICIPANTS, drawn_in, users)
        return torch.from_numpy(np.sort(users[keys.argsort()[: self.num_participants]]))

    def _ever_there(self) -> Tensor:
        """Who can take part in any round, `[clients]`: everybody, or those who are drawn once for all."""
        everyone = torch.arange(self.data.num_users)
        if self.resample:
            return everyone
        return self._drawn(everyone)

    def train(self, users: Tensor) -> Trained:
        """One cohort's part in this round, `[clients]`."""
        with self.workers.one() as worker:
            client = worker.client
            broadcast, bytes_down = self.wire.down(self.server.broadcast(users, self.round), len(users))
            with self._counting:
                bytes_down += self._newly_held(users, broadcast)
            self.store.load(client, users)  # private state in
            client.own = Own(self.data, users, self.round, self.epochs)
            client.receive(broadcast, self.round)  # structure down
            means = train(self.fabric, worker, client.batches())
            with torch.no_grad():
                # updates up
                upload, bytes_up = self.wire.up(client.upload(), self.server.expects, self.round, client.seed)
            self.store.save(client)  # private state out
            return Trained(self.server.reduce(upload), bytes_up, bytes_down, means)

    def _newly_held(self, users: Tensor, broadcast: Broadcast | None) -> int:
        """The bytes of what each of ``users`` downloads once and has not had: the welcome, and bulletins.

        One thread at a time calls it.
        """
        sizes = {"welcome": self._welcome_nbytes}
        if broadcast is not None:
            sizes |= {name: bulletin.nbytes for name, bulletin in broadcast.kept.items()}
        nbytes = 0
        for name, size in sizes.items():
            held = self.held.setdefault(name, torch.zeros(self.data.num_users, dtype=torch.bool))
            nbytes += int((~held[users]).sum()) * size
            held[users] = True
        return nbytes

    def _record(self, seen: Tensor, report: Row, seconds: float) -> None:
        """Evaluate if this round is to be, and add a row to the history."""
        last = self.round == self.rounds or self.server.finished
        if self.round % self.evaluate_every and not last and not self.server.preparing:
            return
        # Where nothing was trained, there are no means.
        names = ("loss", *self.reports)[: seen.shape[1]]
        means = seen.double().mean(0).tolist()
        row: Row = {"round": self.round} | {f"train/{name}": mean for name, mean in zip(names, means, strict=True)}
        if self.server.preparing and not last:
            pass  # there is nothing new to rank with
        elif self.data.holds_out("val"):
            row |= self.evaluate("val")
        elif last:
            # Nothing is ranked, but a last step that diverged shows only in the scores.
            for _ in self.workers.map(self._score, self.store.known.nonzero().squeeze(1).split(self.cohort_size)):
                pass
        row |= {
            "bytes/up": self.bytes_up,
            "bytes/down": self.bytes_down,
            "bytes/total": self.bytes_up + self.bytes_down,
            "bytes/scoring": self.bytes_scoring,
        }
        self.history.append(row | report | {"time/round": seconds})

    def evaluate(self, stage: Stage) -> Row:
        """Metrics of all clients' present state, named like ``val/ndcg@10``."""
        return summarise(self.data, stage, self.ranked(stage))

    def ranked(self, stage: Stage) -> Ranked:
        """Where all clients' present state ranks what is held out."""
        return ranked(self.data, stage, self.score, self.cohort_size, self.workers.map)

    def score(self, users: Tensor) -> Tensor:
        """Each user's scores of all items by their own client, `[users, items]`.

        Some clients first need what comes down. Its bytes are counted apart from those of training (``bytes/scoring``).

        Raises:
            NotFiniteError: naming the clients with a score that is not finite. If a step has diverged, the loss of the
                next step shows it. After the last step only the scores do.
        """
        scores, broadcast, nbytes = self._score(users)
        with self._counting:  # several threads score at once
            self.bytes_scoring += nbytes + self._newly_held(users, broadcast)
        return scores

    def score_newcomers(self, newcomers: Newcomers, users: Tensor) -> Tensor:
        """Scores of all items, `[users, items]`, for people who never took part, each by a client at its start.

        It is told what all are told, and has its own history besides. Without any it shows what is popular. All that it
        downloads counts as ``bytes/scoring``, anew in every call.

        Args:
            newcomers: Set up, on this federation's catalogue.
            users: `[users]`: whom of them.

        Raises:
            InputError: where clients need what they have trained, or have been sent themselves.
        """
        check(self.no_newcomers())
        scores, broadcast, nbytes = self._score(users, newcomers)
        bulletins = () if broadcast is None else broadcast.kept.values()
        with self._counting:
            each = self._welcome_nbytes + sum(bulletin.nbytes for bulletin in bulletins)
            self.bytes_scoring += nbytes + len(users) * each
        return scores

    def no_newcomers(self) -> str | None:
        """Why nobody can be served who was not in training, if that is so."""
        with self.workers.one() as worker:
            if worker.client.serves_newcomers:
                return None
        return (
            f"method: clients of {self._method} score with what they have trained themselves, and not by a history: "
            "nobody can be served who was not in training"
        )

    def _score(self, users: Tensor, newcomers: Newcomers | None = None) -> tuple[Tensor, Broadcast | None, int]:
        """Their scores, what came down for them, and its bytes."""
        broadcast, nbytes = None, 0
        with self.workers.one() as worker:
            client = worker.client
            if newcomers is None:
                self.store.load(client, users, to_train=False)
            else:
                client.load(users, client.start(users))
            client.own = Own(newcomers or self.data, users, self.round + 1, self.epochs)
            if client.scores_after == "aggregation":
                sent = self.server.broadcast(users, self.round + 1)
                broadcast, nbytes = self.wire.down(sent, len(users))
                if broadcast is not None:
                    client.receive(broadcast, self.round + 1)
            with torch.no_grad():
                scores = client.score()
                if newcomers is not None:
                    without = client.own.history.lengths.eq(0).to(scores.device)
                    scores = torch.where(without[:, None], client.popular_now, scores)
        finite = scores.isfinite().all(1)
        if not finite.all():
            raise NotFiniteError("score", users[~finite.cpu()].tolist())
        return scores, broadcast, nbytes

    def histograms(self) -> dict[str, Tensor]:
        """What the server has discovered and is worth a look: values `[any]` by name, such as the sizes of clusters."""
        return self.server.histograms()

    def state_dict(self) -> dict[str, Any]:
        """Everything on which the next round depends: a run that goes on from it ends as if it had never stopped."""
        return {
            "round": self.round,
            "history": self.table(),
            "bytes": [self.bytes_up, self.bytes_down, self.bytes_scoring],
            "seconds": self.seconds,
            "held": {name: users.clone() for name, users in self.held.items()},
            "server": self.server.state_dict(),
            "store": self.store.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError, IndexError: if it was taken elsewhere.
            FileNotFoundError: if the clients' state lies in files that are not there.
        """
        bytes_up, bytes_down, bytes_scoring = state["bytes"]
        counts = (state["round"], bytes_up, bytes_down, bytes_scoring)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("the round and the bytes are no counts")
        self.round, self.bytes_up, self.bytes_down, self.bytes_scoring = counts
        self.history = rows_of(state["history"])
        self.seconds = float(state["seconds"])
        for name, users in state["held"].items():
            if type(name) is not str or users.dtype != torch.bool or users.shape != (self.data.num_users,):
                raise ValueError("who has had what came down is no mask of the users")
        self.held |= {name: users.clone() for name, users in state["held"].items()}
        self.server.load_state_dict(state["server"])
        self.store.load_state_dict(state["store"])

    def open_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken, to use what was trained without training on.

        Clients' state stays where it lies. The room that the store before had reserved is freed.
        """
        self.store = OpenedStore(*self._store_of)
        self.load_state_dict(state)
