"""What methods reach at each cut of a rolling evaluation, drawn from a comparison's folder.

cgfedrec compare --config configs/compare/rolling.yaml
python -m benchmarks.cuts runs/compare/rolling/ML-100K docs/time.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import polars as pl

METRIC = "test/ndcg@10"


def over_cuts(folder: Path) -> pl.DataFrame:
    """The mean over seeds at each cut: `method`, `round`, `value`.

    Args:
        folder: Of one data set of a comparison, with a folder for each method and, in that, for each seed.
    """
    rows = [
        pl.read_csv(path).select(pl.lit(path.parts[-3]).alias("method"), "round", pl.col(METRIC).alias("value"))
        for path in sorted(folder.glob("*/*/metrics.csv"))
    ]
    return pl.concat(rows).group_by("method", "round").agg(pl.col("value").mean()).sort("method", "round")


def draw(points: pl.DataFrame, path: Path) -> None:
    """A line for each method, best mean first in the legend."""
    order = points.group_by("method").agg(pl.col("value").mean()).sort("value", descending=True)["method"]
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for number, method in enumerate(order):
        of_method = points.filter(pl.col("method") == method)
        mark = "os^Dvx+"[number % 7]
        colour = plt.colormaps["tab20"](number)
        values = (of_method["round"], of_method["value"])
        axes.plot(*values, label=method, marker=mark, markersize=4, linewidth=1.4, color=colour)
    axes.set_xlabel("cut in time")
    axes.set_ylabel("NDCG@10 of users' next items")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    draw(over_cuts(Path(sys.argv[1])), Path(sys.argv[2]))
