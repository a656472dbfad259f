"""Workers: threads that each own a client module, so that cohorts train and rank side by side.

Threads that share one small tensor operation wait for each other more than they work, and stand still as soon as a
core is busy with something else. So a worker computes on one thread, and owns a whole cohort.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

import torch
from lightning import Fabric

from cgfedrec.client import Client
from cgfedrec.train import Worker

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """As many workers as torch has threads (``OMP_NUM_THREADS``) on a CPU, one on a GPU.

    Args:
        fabric: Sets up every worker's client.
        client: Makes a client.
    """

    def __init__(self, fabric: Fabric, client: Callable[[], Client]) -> None:
        self.number = 1 if fabric.device.type == "cuda" else torch.get_num_threads()
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for _ in range(self.number):
            one = client()
            module, *optimizers = fabric.setup(one, *one.configure_optimizers())
            self._idle.put(Worker(one, module, optimizers))
        self._pool = ThreadPoolExecutor(self.number, "worker", initializer=lambda: torch.set_num_threads(1))

    @contextmanager
    def one(self) -> Iterator[Worker]:
        """A worker that nobody else uses meanwhile; waits for one."""
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results of ``function`` in the order of ``items``, of which only a few are taken ahead."""
        remaining = iter(items)
        pending: deque[Future[R]] = deque(
            self._pool.submit(function, item) for item in islice(remaining, 2 * self.number)
        )
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(self._pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
