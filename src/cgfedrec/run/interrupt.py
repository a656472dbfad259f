"""What a run does when it is told to stop: it ends its round and saves, or gives the round up where that takes long."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from signal import Signals as Signal

import torch

from cgfedrec.loop import FederatedLoop
from cgfedrec.run.signals import Signals

GRACE = {signal.SIGTERM: 1.5, signal.SIGINT: 10.0}
"""Seconds that a round may still take. Whoever sends SIGTERM, such as a scheduler, may kill soon; a person may send a
second signal."""


class Interrupt:
    """On SIGINT or SIGTERM, lets the round end and be saved, then stops; on a second one, stops at once.

    A round that takes longer than `GRACE` is given up, and the last checkpoint stands. Several processes must agree on
    the round after which they stop, so they end it however long it takes.

    Args:
        stands: Says what is left of the run where this round is given up.

    Attributes:
        signal: The number of the first signal that came, to any process, if one did.
    """

    def __init__(self, stands: Callable[[int], str]) -> None:
        self.stands = stands
        self.signal: int | None = None
        self._signals: Signals | None = None
        self._timer: threading.Timer | None = None
        self._told = False
        self._ending = 0  # the round after which it stops
        self._judged = 0  # the last round of which `on_round_end` has heard

    def on_federation_start(self, loop: FederatedLoop) -> None:
        """Note signals from now on, in place of what they would do."""

        def stop(came: list[Signal]) -> str:
            if len(came) > 1:
                if loop.processes.first:
                    self._tell()
                raise SystemExit(128 + came[-1])
            # What comes when a round has been judged already stops the next one, unless there is none.
            self._ending = number = min(loop.round + (self._judged == loop.round), loop.rounds)
            told = f"ending round {number}, then saving; once more to stop at once"
            if loop.processes.number == 1:
                seconds = GRACE[came[0]]
                told += f". If that takes longer than {seconds:g} s, the round is given up"
                self._timer = threading.Timer(seconds, self._give_up, [came[0]])
                self._timer.daemon = True
                self._timer.start()
            return told

        self._signals = Signals(stop).listen()

    def _give_up(self, number: Signal) -> None:
        """End the process on SIGTERM, as that would have done without us; on SIGINT as a second one does."""
        self._tell()
        if number == signal.SIGTERM:
            sys.stdout.flush()
            os._exit(128 + number)  # the interpreter would wait for threads that train
        os.kill(os.getpid(), number)

    def _tell(self) -> None:
        """Say once what is left of the run."""
        if not self._told:
            self._told = True
            print(f"\n{self.stands(self._ending)}", file=sys.stderr, flush=True)

    def on_round_end(self, loop: FederatedLoop) -> None:
        """Stop after this round if a signal has come. All processes must agree, whichever of them was told."""
        assert self._signals is not None
        self._judged = loop.round
        here = torch.tensor([self._signals.came[0] if self._signals.came else 0])
        first = max(int(number) for number in loop.processes.together(here))
        if first:
            loop.should_stop, self.signal = True, first

    def on_federation_end(self, loop: FederatedLoop) -> None:
        """Hand signals back, however training ended."""
        if self._signals is not None:
            self._signals.release()

    def over(self) -> None:
        """The run has ended in time."""
        if self._timer is not None:
            self._timer.cancel()
