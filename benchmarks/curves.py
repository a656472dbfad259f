"""How the cost of a round grows: with users, items, clusters, dim and participants, on synthetic data.

Each point is a federation in a process of its own. An exponent is the slope of a straight line through the logarithms
of its upper half, where what is constant weighs least.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from rich.progress import track

from benchmarks.once import in_a_process

BASE: dict[str, Any] = {"users": 200, "items": 1000, "dim": 32, "clusters": 50, "participants": None}
AXES: dict[str, list[dict[str, Any]]] = {
    "users": [{"users": users, "items": 300} for users in (100, 300, 1000, 3000, 10_000)],
    # users enough to touch nearly every item, for only those are in the catalogue
    "items": [
        {"items": items, "users": 100 + items // 4, "participants": 32} for items in (200, 600, 2000, 6000, 20_000)
    ],
    "clusters": [
        {"clusters": clusters, "items": 3000, "users": 850, "participants": 64} for clusters in (10, 30, 100, 300, 1000)
    ],
    "dim": [{"dim": dim} for dim in (4, 12, 40, 120, 400)],
    "participants": [
        {"participants": number, "users": 10_000, "items": 300} for number in (100, 300, 1000, 3000, 10_000)
    ],
}
TARGET = {"users": 1_000_000, "items": 100_000}


def measure() -> pl.DataFrame:
    """All points: `axis`, `contrast`, `value`, `seconds`, `peak` (MiB), `state` (MiB), one a row."""
    jobs = [(axis, "exact", point) for axis, points in AXES.items() for point in points]
    jobs += [(axis, "prototypes", point) for axis in ("items", "clusters") for point in AXES[axis]]
    rows = []
    for axis, kind, point in track(jobs, "cost curves"):
        found = in_a_process(**BASE | point, contrast=kind, rounds=3)
        memory = [found[name] / 2**20 for name in ("peak", "state")]
        rows.append((axis, kind, found.get(axis, point[axis]), found["seconds"], *memory))
    return pl.DataFrame(
        rows, schema=["axis", "contrast", "value", "seconds", "peak", "state"], orient="row", strict=False
    )


def exponents(points: pl.DataFrame) -> pl.DataFrame:
    """The exponent of seconds and of memory beyond a process's own, for each axis and contrast."""
    rows = []
    for (axis, kind), group in points.group_by("axis", "contrast", maintain_order=True):
        upper = group.sort("value")[len(group) // 2 - 1 :]
        own = group["peak"].min()
        slopes = [
            float(np.polyfit(np.log(upper["value"]), np.log(np.maximum(column, 1e-9)), 1)[0])
            for column in (upper["seconds"], upper["peak"] - own + 1)
        ]
        rows.append((axis, kind, *slopes))
    return pl.DataFrame(rows, schema=["axis", "contrast", "seconds", "memory"], orient="row")


def predict(points: pl.DataFrame, slopes: pl.DataFrame) -> pl.DataFrame:
    """Hours a round, and state, of 1 M users x 100 k items, d = 16, all or a hundredth taking part: from the largest
    number of items that was measured, a client's seconds grown by the exponent of items, times the participants.
    """
    rows = []
    for kind in ("exact", "prototypes"):
        largest = points.filter((pl.col("axis") == "items") & (pl.col("contrast") == kind)).sort("value")[-1]
        slope = slopes.filter((pl.col("axis") == "items") & (pl.col("contrast") == kind))["seconds"].item()
        seconds = largest["seconds"].item() / 32 * (TARGET["items"] / largest["value"].item()) ** slope
        for share in (1.0, 0.01):
            participants = round(share * TARGET["users"])
            state = participants * (TARGET["items"] * 16 + 17) * 4 / 2**40
            rows.append((kind, participants, seconds, seconds * participants / 3600, state))
    names = ["contrast", "participants", "client_s", "round_hours", "state_TiB_a_round"]
    return pl.DataFrame(rows, schema=names, orient="row")


def plot(points: pl.DataFrame, path: Any) -> None:
    """Seconds a round against each axis, on logarithmic scales."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    axes = figure.subplots(2, len(AXES), sharey="row")
    for column, axis in enumerate(AXES):
        for kind in ("exact", "prototypes"):
            group = points.filter((pl.col("axis") == axis) & (pl.col("contrast") == kind)).sort("value")
            for row, name in enumerate(("seconds", "peak")):
                axes[row, column].loglog(group["value"], group[name], marker="o", markersize=4, label=kind)
        axes[1, column].set_xlabel(axis)
    axes[0, 0].set_ylabel("seconds a round")
    axes[1, 0].set_ylabel("peak memory, MiB")
    axes[0, 0].legend()
    figure.suptitle("Cost of a round on synthetic data, two local epochs")
    figure.savefig(path, dpi=120)
