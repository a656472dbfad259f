"""The clients of a federation, all of them simulated here: they train, score, and keep their private state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.client import no_newcomers
from cgfedrec.data.module import FederatedDataModule, Stage
from cgfedrec.data.newcomers import Newcomers
from cgfedrec.data.own import Own
from cgfedrec.errors import check
from cgfedrec.evaluation.ranking import Ranked, ranked
from cgfedrec.failures import NONE, Failures, Fate
from cgfedrec.method import Method
from cgfedrec.processes import Processes
from cgfedrec.random import shared_seed
from cgfedrec.server import Server
from cgfedrec.simulation import together
from cgfedrec.simulation.capacity import Capacity, Place, plan
from cgfedrec.simulation.demand import Plans
from cgfedrec.simulation.example import Example
from cgfedrec.simulation.held import Held
from cgfedrec.simulation.store import STORES, ClientStore, Dtype, OpenedStore
from cgfedrec.simulation.together import Told, Trained
from cgfedrec.simulation.workers import Workers, welcomed
from cgfedrec.train import train
from cgfedrec.wire.messages import Broadcast, NotFiniteError
from cgfedrec.wire.refusals import carried
from cgfedrec.wire.wire import Wire


class Clients:
    """The clients of a federation that are at home in this process; as many train at a time as there are workers.

    With several processes, each has every so many-th of all clients, by where they stand in the order of the data. What
    a client does depends on nothing that is elsewhere.

    Args:
        fabric: Owns device and precision.
        data: Set up, with the data of all.
        method: Makes the clients.
        server: Whose broadcasts come down, and to whom uploads go.
        wire: Carries both.
        processes: That train together.
        failures: Who of them fails in a round.

    Attributes:
        workers: Each with a client of its own, which holds one cohort after another.
        reports: What clients report of their training beside the loss.
        store: Where private state lies; there is one after `settle`.
        held: Which of them have had what comes down once.
        bytes_scoring: That have come down so far to score with, to all clients of all processes.
    """

    store: ClientStore
    capacity: Capacity

    def __init__(
        self,
        fabric: Fabric,
        data: FederatedDataModule,
        method: Method,
        server: Server,
        wire: Wire,
        processes: Processes,
        failures: Failures = NONE,
    ) -> None:
        self.fabric, self.data, self.server, self.epochs = fabric, data, server, method.local_epochs
        self.wire, self.processes, self.failures = wire, processes, failures
        # [users], int64: where each stands in the order in which cohorts come; and [users], bool: who is at home here.
        self._place = data.batches.place
        self.at_home = self._place % self.processes.number == self.processes.rank
        self.bytes_scoring = 0
        self._method = type(method).__name__
        self._counting = Lock()
        check(*self.wire.problems(server.sees_single_uploads, self._method))
        welcome, nbytes = self.wire.down(server.welcome(), 1)
        if welcome is None:
            # Nobody greets (Local). Clients still start where those of the method do that they control.
            welcome = Broadcast({"seed": torch.tensor(shared_seed(data.seed))})
        self.workers = Workers(fabric, partial(welcomed, method, data, welcome))
        self.held = Held(data.num_users, nbytes)
        with self.workers.one() as worker:  # its client holds nobody yet, but its shapes are right
            self.reports = worker.client.reports
            self._example = Example.of(worker)

    def settle(
        self, plans: Plans, place: Place, size: int | Literal["auto"], dtype: Dtype, folder: Path, to_train: bool
    ) -> None:
        """Find out how much the machine must hold, and make room for private state.

        Args:
            plans: How long training is, and for how many.
            place: Where state is to lie.
            size: How many clients are to train together.
            dtype: How state is kept between rounds.
            folder: For files of it.
            to_train: Otherwise it is used where it lies, and no room is made.

        Raises:
            InputError: for a federation that does not fit the machine, or its wire.
        """
        check(*self.server.no_sum(plans.participants))
        many = self.workers.number, self.processes.number
        demand = self._example.demand(self.data, self.server, plans, dtype, *many, fails=self.failures != NONE)
        self.capacity = plan(demand, place, size, self.fabric.device, folder, to_train)
        self._store_of = (self.data.order(), self._example.private, dtype, folder)
        self.store = STORES[self.capacity.store](*self._store_of)
        self.cohort_size = self.capacity.cohort_size

    def named(self, told: Mapping[int, str]) -> dict[str, str]:
        """What is told of clients, by what they are called in the data."""
        return {str(self.data.user_ids[client]): what for client, what in told.items()}

    def in_order(self, users: Tensor) -> Tensor:
        """The same users `[users]`, in the order in which their uploads come."""
        return users[self._place[users].argsort()]

    def train(self, participants: Tensor, round: int, attempt: int = 0) -> Iterator[Trained]:
        """Let those of the participants who are at home here train, cohort by cohort, in one order.

        Args:
            participants: `[participants]`, of all processes.
            round: From 1.
            attempt: At the round, from 0.

        Raises:
            NotFiniteError: if a client's loss or upload is not finite.
        """
        cohorts = list(self.data.cohorts(participants[self.at_home[participants]], self.cohort_size))
        # Side by side. Whichever ends first, they come in one order.
        return self.workers.map(partial(self._train, round, attempt), cohorts)

    def _train(self, round: int, attempt: int, users: Tensor) -> Trained:
        """One cohort's part in a round, `[clients]`. Of those who fail nothing is taken in, and nothing kept."""
        fates = self.failures.fates(shared_seed(self.data.seed), users, round, attempt)
        lost = users[fates == Fate.LOST]
        _, bytes_down = self._down(users[fates == Fate.STOPPED], round)
        users = users[(fates == Fate.WELL) | (fates == Fate.LOST)]
        if not len(users):
            return Trained(self.server.of_nobody(), Told(users, 0, bytes_down, torch.empty(0, 0)))
        with self.workers.one() as worker:
            client = worker.client
            broadcast, nbytes = self._down(users, round)
            overwritten = client.follows & (broadcast.values if broadcast else {}).keys()
            self.store.load(client, users, without=overwritten)  # private state in
            client.own = Own(self.data, users, round, self.epochs)
            client.receive(broadcast, round)  # structure down
            alike = client.alike(broadcast)
            means = train(self.fabric, worker, client.batches())
            expects, refusing = self.server.expects, self.failures.refused > 0
            take = partial(self.wire.up, expected=expects, round=round, seed=client.seed)
            with torch.no_grad():
                sent, check = client.upload().beside(partial(client.public, broadcast)), self.server.doubted
                upload, bytes_up, refused = carried(sent, take, expects, refusing, check)  # updates up
            only = None
            if len(lost) or refused:
                only = ~torch.isin(users, torch.tensor([*lost.tolist(), *refused]))
                users, means, upload = users[only], means[only], upload.only(users[only])
                refused = {one: why for one, why in refused.items() if one not in lost}  # what was lost nobody read
            self.store.save(client, alike, only)  # private state out
            return Trained(self.server.reduced(upload), Told(users, bytes_up, bytes_down + nbytes, means, refused))

    def _down(self, users: Tensor, round: int) -> tuple[Broadcast | None, int]:
        """What comes down to ``users`` `[clients]` before they train, and its bytes with those of what is new."""
        if not len(users):
            return None, 0
        broadcast, nbytes = self.sent(users, round)
        return broadcast, nbytes + self.held.newly(users, broadcast)

    def sent(self, users: Tensor, round: int) -> tuple[Broadcast | None, int]:
        """What is sent down to ``users`` `[clients]` before a round, as it arrives, and its bytes without bulletins."""
        return self.wire.down(self.server.broadcast(users, round), len(users), round, shared_seed(self.data.seed))

    def together(self, cohorts: Sequence[Told]) -> Told:
        """What the cohorts of all processes have to tell, clients in ascending order."""
        return together.told(self.processes, cohorts, self.wire)

    def ranked(self, stage: Stage, round: int) -> Ranked:
        """Where all clients' state after a round ranks what is held out."""
        before = self.bytes_scoring
        with self.processes.agreed():
            found = ranked(
                self.data, stage, partial(self.score, round=round), self.cohort_size, self.workers.map, self.at_home
            )
        self.bytes_scoring = before + int(self.processes.sum(torch.tensor(self.bytes_scoring - before)))
        return together.ranks(self.processes, found, self._place)

    def score(self, users: Tensor, round: int) -> Tensor:
        """Each user's scores of all items by their own client, `[users, items]`.

        They do so with what they had after ``round``. Some first need what comes down. Its bytes are counted apart from
        those of training (``bytes/scoring``).

        Raises:
            NotFiniteError: naming the clients with a score that is not finite. If a step has diverged, the loss of the
                next step shows it. After the last step only the scores do.
        """
        scores, broadcast, nbytes = self._score(users, round)
        nbytes += self.held.newly(users, broadcast)
        with self._counting:  # several threads score at once
            self.bytes_scoring += nbytes
        return scores

    def score_newcomers(self, newcomers: Newcomers, users: Tensor, round: int) -> Tensor:
        """Scores of all items, `[users, items]`, for people who never took part, each by a client at its start.

        It is told what all are told, and has its own history besides. Without any it shows what is popular. All that it
        downloads counts as ``bytes/scoring``, anew in every call.

        Args:
            newcomers: Set up, on this federation's catalogue.
            users: `[users]`: whom of them.
            round: After which.

        Raises:
            InputError: where clients need what they have trained, or have been sent themselves.
        """
        check(self.no_newcomers())
        scores, broadcast, nbytes = self._score(users, round, newcomers)
        with self._counting:
            self.bytes_scoring += nbytes + len(users) * self.held.all_of(broadcast)
        return scores

    def no_newcomers(self) -> str | None:
        """Why nobody can be served who was not in training, if that is so."""
        with self.workers.one() as worker:
            return no_newcomers(worker.client, self._method)

    def _score(
        self, users: Tensor, round: int, newcomers: Newcomers | None = None
    ) -> tuple[Tensor, Broadcast | None, int]:
        """Their scores, what came down for them, and its bytes."""
        broadcast, nbytes = None, 0
        with self.workers.one() as worker, torch.no_grad():
            client, found = worker.client, []
            if client.scores_after == "aggregation":
                broadcast, nbytes = self.sent(users, round + 1)
            for some in [users] if newcomers else self.store.parts(client, users, self.capacity.scored):
                if newcomers is None:
                    self.store.load(client, some, to_train=False)
                else:
                    client.load(some, client.start(some))
                client.own = Own(newcomers or self.data, some, round + 1, self.epochs)
                if broadcast is not None:
                    client.receive(broadcast, round + 1)
                found.append(client.score())
                if newcomers is not None:
                    without = client.own.history.lengths.eq(0).to(client.device)
                    found[-1] = torch.where(without[:, None], client.popular_now, found[-1])
        scores = torch.cat(found) if len(found) > 1 else found[0]
        finite = scores.sum(1).isfinite()  # a hundredth of the time of looking at each
        if not finite.all() and not (finite := scores.isfinite().all(1)).all():
            raise NotFiniteError("score", users[~finite.cpu()].tolist())
        return scores, broadcast, nbytes

    def check_scores(self, round: int) -> None:
        """Score with everybody who has trained: a last step that diverged shows only there.

        Raises:
            NotFiniteError: as `score`.
        """
        there = (self.store.known & self.at_home).nonzero().squeeze(1)
        for _ in self.workers.map(partial(self._score, round=round), there.split(self.cohort_size)):
            pass

    def state_dict(self) -> dict[str, Any]:
        """Everything of the clients on which the next round depends: that of all of them, in the first process."""
        return {
            "held": together.masks(self.processes, self.held.masks),
            "store": together.store(self.processes, self.store.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any], bytes_scoring: int) -> None:
        """Go back to where `state_dict` was taken, as `FederatedLoop.load_state_dict` does.

        Args:
            state: Of all clients.
            bytes_scoring: That had come down by then.
        """
        self.held.load(state["held"], self.at_home)
        self.bytes_scoring = bytes_scoring
        whose = None if self.processes.number == 1 else self.at_home
        self.store.load_state_dict(state["store"], whose)

    def open_stored(self) -> None:
        """Free the room that the store has reserved: what is loaded next is used where it lies, and not trained."""
        self.store = OpenedStore(*self._store_of)
