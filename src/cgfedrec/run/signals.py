"""SIGINT and SIGTERM: noted in place of what they would do, so that work can end at a good moment."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

Handler = Callable[[int, FrameType | None], object] | int | None
"""As `signal.signal` takes and returns it."""
Reaction = Callable[[list[signal.Signals]], str]
"""Given the signals that have come so far, the newest last, says what happens now. It may raise to stop at once."""


class Signals:
    """The signals that come while its body runs.

    Use it in a ``with`` statement or, where no one block spans the work, by `listen` and `release`. Only the main
    thread of a process may handle signals; elsewhere nothing is noted, and signals do what they always do.

    Args:
        react: Called at each signal. What it returns is printed to the error stream.

    Attributes:
        came: The signals so far, in order.
    """

    def __init__(self, react: Reaction) -> None:
        self.react = react
        self.came: list[signal.Signals] = []
        self._before: dict[signal.Signals, Handler] = {}

    def listen(self) -> Self:
        """Note signals from now on."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def release(self) -> None:
        """Hand signals back to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> Self:
        return self.listen()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came.append(signal.Signals(number))
        told = self.react(self.came)
        # A terminal shows ^C where the cursor is, so a line of ours begins with a new one.
        print(f"\n{self.came[-1].name}: {told}", file=sys.stderr)
