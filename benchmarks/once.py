"""One federation in a process of its own: seconds a round and peak memory, as JSON.

python -m benchmarks.once '{"users": 1000, "items": 500, "dim": 16, "clusters": 20}'
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

DEFAULTS: dict[str, Any] = {
    "users": 1000,
    "items": 1000,
    "dim": 32,
    "clusters": 50,
    "participants": None,
    "contrast": "exact",
    "interactions": 20,
    "rounds": 3,
    "path": None,
}


def in_a_process(**settings: Any) -> dict[str, float]:
    """Run `measure` in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.once", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{settings}: {done.stderr.strip().splitlines()[-1:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(settings: dict[str, Any]) -> dict[str, float]:
    """Train some rounds, the first of which has no labels yet and is not counted; nothing is evaluated."""
    from lightning import Fabric

    from benchmarks.leak import ratings
    from cgfedrec.data import FederatedDataModule, Synthetic
    from cgfedrec.loop import FederatedLoop
    from cgfedrec.methods import CGFedRec
    from cgfedrec.protocol import Protocol

    given = DEFAULTS | settings
    imported = status("VmRSS")
    if given["path"]:
        data = ratings(Path(given["path"]), Protocol(), 0)
    else:
        synthetic = Synthetic(given["users"], given["items"], groups=10, interactions=given["interactions"])
        data = FederatedDataModule(synthetic=synthetic, split="none")
        data.attach(Protocol(), 0)
        data.setup()
    times: list[float] = []

    class Watch:
        def on_federation_start(self, loop: FederatedLoop) -> None:
            times.append(time.perf_counter())

        def on_round_end(self, loop: FederatedLoop) -> None:
            times.append(time.perf_counter())

    loop = FederatedLoop(given["rounds"], participants=given["participants"], evaluate_every=10**6, patience=None)
    method = CGFedRec(clusters=given["clusters"], contrast=given["contrast"], dim=given["dim"], lr_eta=0.01)
    with tempfile.TemporaryDirectory() as directory:
        fabric = Fabric(accelerator="cpu", devices=1, callbacks=[Watch()])
        loop.setup(fabric, data, method, Path(directory))
        loop.fit()
        trained = loop.clients.store.known.nonzero().squeeze(1)
        state = len(trained) * sum(rows.nbytes for rows in loop.clients.store.read(trained[:1]).values())
        in_memory = state if loop.clients.capacity.store in ("memory", "whole") else 0
    peak = status("VmHWM")
    return {
        "seconds": median(after - before for before, after in pairwise(times[1:])),
        "peak": peak,
        "imported": imported,
        "state": in_memory,
        "beyond": peak - in_memory,
        "items": data.num_items,
    }


def status(name: str) -> int:
    """Bytes of this process's memory, as Linux counts them: ``VmHWM``, the most so far, or ``VmRSS``, now.

    `resource.getrusage` would not do: a new process inherits the peak of the one that started it.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
