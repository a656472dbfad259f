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
    again = cgfedrec.fit(TINY, {"fabric": {"accelerator": "cuda"}, "run_dir": "again"})
    everyone = torch.arange(again.data.num_users)
    tables = [run.clients.read(everyone)["table"] for run in (runs["cpu"], runs["cuda"], again)]
    assert (tables[1] - tables[0]).norm() < 1e-3 * tables[0].norm()
    assert tables[2].equal(tables[1])
