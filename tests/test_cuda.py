from __future__ import annotations

import pytest
import torch

import cgfedrec
from tests.conftest import TINY


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_finds_what_a_cpu_finds() -> None:
    runs = {
        device: cgfedrec.fit(TINY, {"fabric": {"accelerator": device}, "run_dir": device}) for device in ("cpu", "cuda")
    }
    for ours, theirs in zip(runs["cuda"].loop.history, runs["cpu"].loop.history, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3)
        assert ours["bytes/total"] == theirs["bytes/total"]
    table = runs["cpu"].clients.rows["table"]
    assert (runs["cuda"].clients.rows["table"] - table).norm() < 1e-3 * table.norm()
    again = cgfedrec.fit(TINY, {"fabric": {"accelerator": "cuda"}, "run_dir": "again"})
    assert again.clients.rows["table"].equal(runs["cuda"].clients.rows["table"])
