"""Inner loops that numba compiles, where one pass over what a cache holds takes a part of what many torch calls do.

Each is a faster way to a result that torch code beside it defines, on a CPU and in float32. Clients are gone through
one after another, each as if it were alone, so nothing depends on who trains beside whom.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEW = 64
"""Length of a list of the best up to which a loop finds it: it puts one item after another in its place."""


def is_loaded() -> bool:
    """Whether numba is there already, which takes half a second to load. The same comes out with and without it."""
    return "numba" in sys.modules


class Samples(NamedTuple):
    """A batch as loops take it: what each sample is, `[clients, batch]` each."""

    rows: NDArray[np.int64]
    """Which row of all clients' tables, as one."""
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    logits: NDArray[np.float32]
    """Into it goes what the last step saw."""
