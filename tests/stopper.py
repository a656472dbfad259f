"""Ends a process, as by SIGKILL, just before its k-th operation on a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KILLED = 9
OPERATIONS: list[tuple[Any, str]] = [
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    *((os, name) for name in ("link", "fsync", "truncate", "posix_fallocate", "pwrite", "pwritev")),
]
"""What changes files, in Python's words. A write to an open file is between two of them."""


@contextmanager
def stop_before(operation: int) -> Iterator[Callable[[], int]]:
    """End this process before its operation of that number, if it comes to it; gives how many there were so far."""
    count = 0

    def counted(operate: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == operation:
                os._exit(KILLED)
            return operate(*arguments, **named)

        return run

    before = [(owner, name, getattr(owner, name)) for owner, name in OPERATIONS]
    try:
        for owner, name, operate in before:
            setattr(owner, name, counted(operate))
        yield lambda: count
    finally:
        for owner, name, operate in before:
            setattr(owner, name, operate)
