"""Workers: threads that each own a client module, so that cohorts train and rank side by side.

Torch can share one operation among several threads, but the operations of a small cohort are too short for that. The
threads would wait for each other more than they work, and all would wait as soon as one core is busy with something
else. So each worker computes on one thread of its own and has a whole cohort to itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

import torch
from lightning import Fabric

from cgfedrec.client import Client
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.kit.rows import leaves_alone
from cgfedrec.lent import Lent
from cgfedrec.method import Method
from cgfedrec.random import private_seed
from cgfedrec.train import Worker
from cgfedrec.wire.messages import Broadcast

T = TypeVar("T")
R = TypeVar("R")


_threads: ContextVar[int] = ContextVar("threads", default=0)
"""How many torch has outside of `on_one_thread`: a callback may set up a federation of its own."""


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Let this thread compute alone inside, as each worker does; also a decorator.

    What several of torch's threads have shared is soon done. Then they wait for more, and a thread that waits is busy
    for a while: it takes a third of the cores from workers.
    """
    before = torch.get_num_threads()
    outside = _threads.set(_threads.get() or before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads.reset(outside)


class Workers:
    """As many workers as torch has threads (``OMP_NUM_THREADS``) on a CPU, one on a GPU.

    Args:
        fabric: Sets up every worker's client and its optimisers.
        client: Makes a client; called once for each worker.
    """

    def __init__(self, fabric: Fabric, client: Callable[[], Client]) -> None:
        self.number = 1 if fabric.device.type == "cuda" else _threads.get() or torch.get_num_threads()
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        # Set up once and for all cohorts: Fabric keeps every module that it has ever set up.
        for _ in range(self.number):
            one = client()
            made = one.configure_optimizers()
            if not all(leaves_alone(optimizer) for optimizer in made):
                one.follows = frozenset()  # rows move that no batch touches
            if made:
                module, *optimizers = fabric.setup(one, *made)
            else:
                # Nothing is trained. Fabric returns the module alone then, and no tuple.
                module, optimizers = fabric.setup(one), []
            self._idle.put(Worker(one, module, optimizers, Lent()))
        self._pool = ThreadPoolExecutor(self.number, "worker", initializer=lambda: torch.set_num_threads(1))

    @contextmanager
    def one(self) -> Iterator[Worker]:
        """Lend a worker that nobody else uses meanwhile; wait until one is idle."""
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results of ``function``, in the order of ``items``.

        Args:
            function: Called on the workers' threads, several calls at a time.
            items: Taken only a few ahead of the results that were fetched, so that not all results wait in memory.

        Raises:
            Exception: what ``function`` raises, when its result would be next.
        """
        remaining = iter(items)
        # Two for each worker: one that it works on, and one to go on with at once.
        pending: deque[Future[R]] = deque(
            self._pool.submit(function, item) for item in islice(remaining, 2 * self.number)
        )
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(self._pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:  # after an error, or if nobody fetches the rest
            for future in pending:
                future.cancel()


def welcomed(method: Method, data: FederatedDataModule, welcome: Broadcast) -> Client:
    """A worker's client, welcomed once for all whom it will hold."""
    client = method.client(data.num_items, private_seed(data.seed))
    client.welcome(welcome)
    return client
