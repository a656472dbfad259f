"""A client that holds nobody yet: its shapes say what a federation will need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from cgfedrec.data.module import FederatedDataModule
from cgfedrec.kit.rows import dense_copies
from cgfedrec.server import Server
from cgfedrec.simulation.demand import Demand, Plans
from cgfedrec.simulation.store import Dtype
from cgfedrec.train import Worker


class Example(NamedTuple):
    """What is known of any client before there is one."""

    private: Mapping[str, Tensor]
    """Its private tensors, `[0, ...]`."""
    sent: Mapping[str, Tensor]
    """What it sends, likewise."""
    copies: int
    """How many tensors as large as a client's its optimisers work with."""
    follows: frozenset[str]
    """Tables of which training moves the rows of its batches alone (`Client.follows`)."""
    trains: bool
    """Whether it has anything to train."""

    @classmethod
    def of(cls, worker: Worker) -> Example:
        """Of a worker's client, and of its optimisers, which Fabric has wrapped."""
        client, optimizers = worker.client, [wrapped.optimizer for wrapped in worker.optimizers]
        copies = max(map(dense_copies, optimizers), default=0)
        return cls(client.private(), client.upload().values, copies, client.follows, bool(optimizers))

    def demand(
        self,
        data: FederatedDataModule,
        server: Server,
        plans: Plans,
        dtype: Dtype,
        workers: int,
        processes: int,
        fails: bool,
    ) -> Demand:
        """What a federation of such clients needs.

        Args:
            data: Set up, with the data of all.
            server: Of these clients.
            plans: How long training is, and for how many.
            dtype: How state is kept between rounds.
            workers: How many cohorts train at a time.
            processes: How many share the clients.
            fails: Whether clients may fail.
        """
        touched = data.batches.counts.clip(max=data.num_items)  # [users]: at most, in a round
        return Demand(
            data.num_users,
            plans.participants,
            plans.rounds,
            plans.resample,
            data.num_items,
            int(data.interactions_per_user().sum()),
            self.private,
            self.sent,
            dtype,
            self.copies,
            workers,
            kept_rounds=plans.kept_rounds,
            checkpoint_every=plans.checkpoint_every,
            sees_single_uploads=server.sees_single_uploads,
            server=server.working,
            saved=server.saved,
            processes=processes,
            follows=self.follows,
            fails=fails,
            draws=self.trains,
            touched=float(touched.mean()),
            most_touched=int(touched.max()),
            sends_rows=not (server.wire.steps or server.sees_single_uploads or fails),
        )
