"""Threads that are set on purpose, and cores that are watched: what a ratio can be believed by."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

BUSY = 0.1
"""The share of the cores from which on other work is said to disturb."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def use(threads: int) -> None:
    """Let this process, and those that it starts, compute on so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


@contextmanager
def on(threads: int) -> Iterator[None]:
    """Compute on so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def faster(work: Callable[[], Any]) -> int:
    """Whether ``work``, a small sample of it, is faster on one thread or on all: how many that is.

    Small operations shared by threads stand still as soon as one core has something else to do, so a way that
    is not ours must be given the better of the two, or it looks many times slower than it is.
    """
    seconds = {}
    for threads in (1, torch.get_num_threads()):
        with on(threads):
            work()  # the first call pays for starting threads
            started = time.perf_counter()
            work()
            seconds[threads] = time.perf_counter() - started
    return min(seconds, key=lambda threads: seconds[threads])


class Others:
    """Watches what other processes take of the cores from its start on."""

    def __init__(self) -> None:
        self.before = self._seconds()

    def share(self) -> float:
        """Their share of all cores since the start, from 0 to 1."""
        now = self._seconds()
        everyone, ours, elapsed = (after - before for after, before in zip(now, self.before, strict=True))
        return min(1.0, max(0.0, (everyone - ours) / (elapsed * (os.cpu_count() or 1))))

    def warning(self) -> str | None:
        """What to say beside figures that were measured since the start; nothing where the cores were quiet."""
        share = self.share()
        if share < BUSY:
            return None
        return f"other processes took {share:.0%} of the cores meanwhile: these figures are rough, ratios included"

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Seconds of work of everybody, of this process and those that it started and that ended, and of the clock."""
        whole, own = psutil.cpu_times(), psutil.Process().cpu_times()
        everyone = whole.user + whole.system + getattr(whole, "nice", 0.0)
        return everyone, own.user + own.system + own.children_user + own.children_system, time.perf_counter()
