"""The command line in processes of its own that start at once.

A new interpreter takes seconds to import torch and Lightning. These processes are forked from one that has imported
them (`tests.preload`) and has done nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

from tests.stopper import stop_before

ROOT = Path(__file__).parents[1]
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.preload"])


class Command:
    """A command line at work, which is started as it is made; with the part of `subprocess.Popen` that tests need.

    Args:
        arguments: Of ``cgfedrec``.
        stop_at: End as by SIGKILL just before this operation on a file (`tests.stopper`), counted from 1.
        environment: By default, that of this process.
    """

    def __init__(self, *arguments: object, stop_at: int = 0, environment: Mapping[str, str] | None = None) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self._folder = tempfile.TemporaryDirectory()
        given = dict(os.environ if environment is None else environment)
        _start_server()
        self._process = _FORKED.Process(target=_main, args=(self.arguments, given, Path(self._folder.name), stop_at))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Negative if a signal ended it; none while it works."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._printed("stdout")

    @property
    def stderr(self) -> str:
        """What it has printed to its error stream so far."""
        return self._printed("stderr")

    @property
    def operations(self) -> int:
        """On files, once it has ended by itself."""
        return int(self._printed("operations") or 0)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Its exit code. Raises `subprocess.TimeoutExpired`, and kills it, if it takes longer."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """All that it prints until its end."""
        self.wait(timeout)
        return self.stdout, self.stderr

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _printed(self, name: str) -> str:
        path = Path(self._folder.name) / name
        return path.read_text() if path.exists() else ""


@cache
def _start_server() -> None:
    """Start the process that commands are forked from, with our root in its path.

    Without it `tests.preload` could not be imported, and nobody would say so.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), before)))
    try:
        ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def cgfedrec(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = Command(*arguments)
    code = command.wait()
    return subprocess.CompletedProcess(command.arguments, code, command.stdout, command.stderr)


def launch(arguments: list[str], output: object, environment: Mapping[str, str], lock: object) -> Command:
    """In place of `cgfedrec.experiments.compare.runner.launch`: runs start at once, and print nowhere."""
    return Command(*arguments, environment=environment)


def fresh(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new interpreter, where it is the imports that matter, or another installation."""
    command = [sys.executable, "-m", "cgfedrec.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def _main(arguments: list[str], environment: Mapping[str, str], folder: Path, stop_at: int) -> None:
    """What happens in the forked process, which is in the caller's working directory."""
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    from cgfedrec.cli import main

    run: Callable[[list[str]], int] = main
    with stop_before(stop_at) as operations:
        code = run(arguments)
    (folder / "operations").write_text(str(operations()))
    sys.exit(code)
