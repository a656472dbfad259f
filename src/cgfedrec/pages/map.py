"""A map of items as SVG: each a point at its place, in the colour of its cluster, named where one points at it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from cgfedrec.pages.plot import STYLES

SIZE, MARGIN = 560, 12


def item_map(
    places: NDArray[np.float64], clusters: Sequence[int], names: Sequence[str], sizes: Sequence[float], title: str
) -> str:
    """An SVG of points.

    Args:
        places: `[items, 2]`.
        clusters: `[items]`: the rank of each item's cluster by its size; the first `STYLES` have a colour.
        names: `[items]`: shown of a point where one points at it.
        sizes: `[items]`, from 0 to 1: how large a point is.
        title: For those who cannot see it.
    """
    low, high = places.min(0), places.max(0)
    inside = MARGIN + (places - low) / np.maximum(high - low, 1e-12) * (SIZE - 2 * MARGIN)
    out = [
        f'<svg class="chart map" viewBox="0 0 {SIZE} {SIZE}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>"
    ]
    # The large clusters last: what has no colour stays behind them.
    for place in np.argsort([-cluster for cluster in clusters], kind="stable"):
        (x, y), cluster = inside[place], clusters[place]
        style = f"c{cluster}" if cluster < STYLES else "muted"
        out.append(
            f'<circle class="point {style}" cx="{x:.1f}" cy="{y:.1f}" r="{1.8 + 4 * sizes[place]:.1f}">'
            f"<title>{escape(names[place])}</title></circle>"
        )
    return "\n".join([*out, "</svg>"])
