"""What a run that has ended tells: the test of its best round, and ``summary.json``."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from cgfedrec import __version__
from cgfedrec.centralized import Popularity
from cgfedrec.data import FederatedDataModule
from cgfedrec.evaluation.alike import ranked_alike
from cgfedrec.evaluation.beyond import Asked, beyond_accuracy, group_sizes
from cgfedrec.evaluation.intervals import Values, paired_interval
from cgfedrec.evaluation.metrics import each_users
from cgfedrec.evaluation.ranking import Ranked, summarise
from cgfedrec.files import file_digest
from cgfedrec.method import Recommender
from cgfedrec.run.checkpoint import Header
from cgfedrec.run.folder import CONFIG, METRICS, RANKS
from cgfedrec.run.training import Training
from cgfedrec.server import CLIENTS, READINGS, SPENT
from cgfedrec.structure.labelling import labels_of
from cgfedrec.structure.quality import MEASURED, THETA

PACKAGES = ("lightning", "torch", "torchmetrics", "wandb", "polars", "scikit-learn", "numpy")
"""Those whose version may show in a result."""


def popular_ranks(data: FederatedDataModule) -> Ranked | None:
    """Where showing everybody what is popular ranks the test items; ``None`` where nothing is held out."""
    if not data.holds_out("test"):
        return None
    return ranked_alike(data, "test", Popularity().fit(data).popularity)


def tested(
    data: FederatedDataModule, found: Ranked | None, popular: Ranked | None, method: Recommender, monitor: str
) -> dict[str, float]:
    """Test metrics, as ``popularity/test/...`` those of showing everybody what is popular, and how the two compare.

    Beside accuracy they tell what `both_beyond` does.

    Args:
        data: Whose test items were ranked.
        found: Where they stand; ``None`` where nothing is held out, and so nothing is told.
        popular: Where they stand by popularity.
        method: What ranked them. `Popularity` is not compared with itself.
        monitor: The validation metric that chose the best round; its test value is what `over_popularity` compares.
    """
    if found is None or popular is None:
        return {}
    metric = monitor.removeprefix("val/")
    tests = beside_popularity(data, found, popular) | both_beyond(data, data, found, popular, metric)
    if not isinstance(method, Popularity):
        tests |= over_popularity(found, popular, metric)
    return tests


def beside_popularity(data: FederatedDataModule, found: Ranked, popular: Ranked) -> dict[str, float]:
    """Test metrics of a ranking, and as ``popularity/test/...`` those of showing everybody what is popular.

    Args:
        data: By whose protocol they are measured, and whose popularity they recommend.
        found: Where the test items stand.
        popular: Where they stand by popularity.
    """
    tests = summarise(data, "test", found)
    return tests | {f"popularity/{name}": value for name, value in summarise(data, "test", popular).items()}


def both_beyond(
    trained: FederatedDataModule, asked: FederatedDataModule, found: Ranked, popular: Ranked, metric: str
) -> dict[str, float]:
    """What a ranking and that by popularity are like beyond accuracy, and how many are in each group.

    Args:
        trained: The data that were trained on: they say which items are popular, and which go together.
        asked: The data of those for whom it ranks; the same, but for newcomers.
        found: The ranking.
        popular: That by popularity.
        metric: Such as ``ndcg@10``, for the groups.

    Returns:
        As of `cgfedrec.evaluation.beyond`, named like ``test/novelty@10`` and ``popularity/test/novelty@10``, and
        ``groups/users/few``.
    """
    lengths = torch.from_numpy(np.diff(asked.training_matrix().indptr))  # [users]
    holders = torch.from_numpy(np.bincount(trained.training_matrix().indices, minlength=trained.num_items))
    labels = labels_of(trained)
    mine, theirs = (Asked(lengths[one.users], holders, trained.num_users, labels) for one in (found, popular))
    told = {f"test/{name}": value for name, value in beyond_accuracy(found, mine, metric).items()}
    told |= {f"popularity/test/{name}": value for name, value in beyond_accuracy(popular, theirs, metric).items()}
    return told | group_sizes(found, mine)


def over_popularity(found: Ranked, popular: Ranked, metric: str) -> dict[str, float]:
    """`by_how_much` a metric is above that of popularity, against the same candidates.

    Args:
        found: Where the test items stand.
        popular: Where they stand by popularity.
        metric: Such as ``ndcg@10``.
    """
    # The same users, but a scorer may be given them in an order of its own.
    mine, theirs = (each_users(metric, one.ranks)[one.users.argsort()].numpy() for one in (found, popular))
    return by_how_much(mine, theirs, metric)


def by_how_much(mine: Values, theirs: Values, metric: str) -> dict[str, float]:
    """By how much a metric is above that of popularity, user by user.

    Args:
        mine: `[users]`: the metric's value of each.
        theirs: `[users]`: the same by popularity.
        metric: Such as ``ndcg@10``.

    Returns:
        ``over_popularity/test/METRIC``, the mean difference; the same with ``/low`` and ``/high``, the ends of its 95%
        interval, unless there is a single user, who has none; and ``over_popularity/users``.
    """
    difference = paired_interval(mine, theirs)
    name = f"over_popularity/test/{metric}"
    told: dict[str, float] = {name: difference.mean, "over_popularity/users": difference.n}
    if difference.half is not None:
        told |= {f"{name}/low": difference.low, f"{name}/high": difference.high}
    return told


def stated(header: Header, data: FederatedDataModule, directory: Path) -> dict[str, Any]:
    """What every ``summary.json`` says of a run beside what it measured.

    Args:
        header: Says which run of which method on which data it was.
        data: What it was trained on.
        directory: The run's folder; what is in it is told with its checksum.
    """
    protocol = data.protocol.to_dict()
    written = [directory / name for name in (CONFIG, METRICS, RANKS)]
    return {
        "run": header.run,
        "method": header.method,
        "data": header.fingerprint,
        **({"code": dict(header.code)} if header.code else {}),
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
    }


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
    told = (CLIENTS, SPENT, MEASURED, THETA)
    assert best is not None
    asked: dict[str, int] = {}
    if data.cut:
        asked["cases"] = data.part_size(data.cut.asked)
    return {
        **stated(header, data, directory),
        **asked,
        "round": int(best["round"]),
        "best_round": int(best["round"]),
        "rounds": int(last["round"]),
        **{name: value for name, value in best.items() if name.startswith(("train/", "val/", "clusters/", READINGS))},
        # From how many clients each sum came: told in the row of the round that ended it.
        # So is what sums have spent of a budget, and what a structure is worth; the last one tells all.
        **{name: value for row in training.history for name, value in row.items() if name.startswith(told)},
        **{name: value for name, value in last.items() if name.startswith("bytes/")},
        "time/round": fmean(row["time/round"] for row in training.history),
        **tests,
    }
