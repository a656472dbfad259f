"""The benchmarks' own tools: threads, other work on the cores, plots that cannot be drawn."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from benchmarks import threads
from benchmarks.__main__ import drawn, plot_ratios

TABLE = pl.DataFrame({"what": ["round"], "ratio": [8.0], "asked": [5]})


def test_other_work_on_the_cores_is_seen_and_ones_own_is_not() -> None:
    others = threads.Others()
    line = "import time; end = time.time() + 30\nwhile time.time() < end: pass"
    busy = subprocess.Popen([sys.executable, "-c", line])
    try:
        time.sleep(2)
        assert "other processes took" in (others.warning() or "")
    finally:
        busy.kill()
        busy.wait()
    before = others.before
    everyone, ours, clock = others._seconds()
    others.before = (everyone - 1.0, ours - 1.0, clock - 10.0)
    assert others.share() < 0.1, "a second of our own work"
    others.before = before


def test_threads_are_set_and_given_back() -> None:
    before = torch.get_num_threads()
    with threads.on(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    seen: list[int] = []
    torch.set_num_threads(2)
    try:

        def slower_with_more() -> None:
            seen.append(torch.get_num_threads())
            time.sleep(0.01 * seen[-1])

        assert threads.faster(slower_with_more) == 1
        assert threads.faster(lambda: time.sleep(0.02 / torch.get_num_threads())) == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 2, 2]


def test_without_the_plots_library_the_plot_alone_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("ratios.png")
    drawn(plot_ratios, TABLE, path)
    assert path.exists()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    drawn(plot_ratios, TABLE, path)
    assert "ratios.png is left out" in capsys.readouterr().out
    assert not path.exists(), "a plot of before beside the figures of now"
