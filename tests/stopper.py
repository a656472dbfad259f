"""Runs command lines in processes that end, as by SIGKILL, just before their k-th operation on a file.

`python -m tests.stopper` reads lines of JSON, `[[arguments...], k]`, and answers each with `[exit code, operations]`.
It imports what the command line needs, runs none of it, and so can fork safely.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
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


def run(arguments: list[str], stop_before: int) -> tuple[int, int]:
    """Run a command line in a process of its own; its exit code and how many operations there were."""
    from cgfedrec.cli import main

    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code, count = 1, [0]

        def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any, **named: Any) -> Any:
                count[0] += 1
                if count[0] == stop_before:
                    os._exit(KILLED)
                return operation(*arguments, **named)

            return run

        try:
            for owner, name in OPERATIONS:
                setattr(owner, name, counted(getattr(owner, name)))
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            code = main(arguments)
            os.write(writing, str(count[0]).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as told:
        number = told.read()
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), int(number or 0)


if __name__ == "__main__":
    import torch

    import cgfedrec.run
    import cgfedrec.tune  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
