"""What a run that has ended tells: the test of its best round, and ``summary.json``."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from cgfedrec import __version__
from cgfedrec.centralized import Popularity
from cgfedrec.centralized.factors import SCORED_AT_ONCE
from cgfedrec.data import FederatedDataModule
from cgfedrec.evaluation.ranking import Ranked, evaluate, summarise
from cgfedrec.files import file_digest
from cgfedrec.run.checkpoint import Header
from cgfedrec.run.folder import CONFIG, METRICS, RANKS
from cgfedrec.run.training import Training

PACKAGES = ("lightning", "torch", "torchmetrics", "wandb", "polars", "scikit-learn", "numpy")
"""Those whose version may show in a result."""


def tested(data: FederatedDataModule, found: Ranked | None) -> dict[str, float]:
    """Test metrics and, as ``popularity/test/...``, those of showing everybody what is popular.

    Args:
        data: Whose test items were ranked.
        found: Where they stand; ``None`` where nothing is held out, and so nothing is told.
    """
    if found is None:
        return {}
    popular = evaluate(data, "test", Popularity().fit(data).score, SCORED_AT_ONCE)
    return summarise(data, "test", found) | {f"popularity/{name}": value for name, value in popular.items()}


def summary_of(
    training: Training, header: Header, data: FederatedDataModule, tests: dict[str, float], directory: Path
) -> dict[str, Any]:
    """What ``summary.json`` holds, but for the seconds of the whole run.

    Args:
        training: It has come to its end, and has evaluated a round.
        header: Says which run of which method it was.
        data: What it was trained on.
        tests: Of `tested`.
        directory: The run's folder; what is in it is told with its checksum.
    """
    best, last = training.best, training.history[-1]
    assert best is not None
    protocol = data.protocol.to_dict()
    written = [directory / name for name in (CONFIG, METRICS, RANKS)]
    return {
        "run": header.run,
        "round": int(best["round"]),
        "method": header.method,
        "best_round": int(best["round"]),
        "rounds": int(last["round"]),
        "protocol": protocol,
        "candidates": protocol["candidates"],
        "seed": data.seed,
        "users": data.num_users,
        "items": data.num_items,
        "files": {path.name: file_digest(path) for path in written if path.exists()},
        "versions": {
            "cgfedrec": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        **{name: value for name, value in best.items() if name.startswith(("train/", "val/", "clusters/"))},
        **{name: value for name, value in last.items() if name.startswith("bytes/")},
        "time/round": fmean(row["time/round"] for row in training.history),
        **tests,
    }
