"""Signals that are noted in place of what they would do."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from cgfedrec.run.signals import Signals


def send(number: signal.Signals) -> None:
    """To this process; a signal is handled before the next line runs."""
    os.kill(os.getpid(), number)


def test_signals_are_noted_in_order_and_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with Signals(lambda came: f"the {len(came)}. is noted") as signals:
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert signals.came == [signal.SIGTERM, signal.SIGINT]
    assert capsys.readouterr().err.split("\n")[1::2] == ["SIGTERM: the 1. is noted", "SIGINT: the 2. is noted"]
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_reaction_may_stop_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stop(came: list[signal.Signals]) -> str:
        raise SystemExit(128 + came[-1])

    with pytest.raises(SystemExit) as stopped, Signals(stop):
        send(signal.SIGTERM)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Signals(lambda came: ""):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
