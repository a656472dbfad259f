"""How a loop is compiled, and the arithmetic that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels.cache import Cache, Nowhere

Function = TypeVar("Function", bound=Callable[..., Any])

SETTINGS: dict[str, Any] = {
    "nogil": True,  # workers' threads run side by side
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},  # sums may use vectors; but what is not finite stays so
}
LOG2_E = np.float32(1.4426950408889634)
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
"""ln 2 in two parts, of which small multiples of the first are exact (Cody and Waite 1980)."""
LOWEST = np.float32(-87.0)
"""exp of less is taken to be exp of this, 1.6e-38: what is below has no float32 of full precision."""
SERIES = tuple(np.float32(1 / number) for number in (5040, 720, 120, 24, 6, 2, 1, 1))
"""Taylor's coefficients of exp, that of x^7 first: within half of ln 2 they leave an error of 1e-8."""


def compiled(function: Function) -> Function:
    """The same function, compiled at its first call, once for each machine (`cgfedrec.kernels.cache`).

    Where its machine code cannot be kept, each process compiles it anew, which takes a second or two.
    """
    return _compiled(function, SETTINGS)


def compiled_as_written(function: Function) -> Function:
    """As `compiled`; but each operation is rounded, in the order in which it stands there."""
    return _compiled(function, SETTINGS | {"fastmath": False})


def _compiled(function: Function, settings: dict[str, Any]) -> Function:
    made: Any = numba.njit(**settings)(function)
    if made is not function:  # as it is where NUMBA_DISABLE_JIT is set
        try:
            made._cache = Cache(function)  # what njit(cache=True) does with a cache of its own
        except RuntimeError:  # there is nowhere to keep it
            made._cache = Nowhere()
    found: Function = made
    return found


def inlined(function: Function) -> Function:
    """The same function of single numbers, put into the loops that call it, which can so use vectors."""
    made: Function = numba.njit(inline="always", **SETTINGS)(function)
    return made


@inlined
def exp_of_negative(x: np.float32) -> np.float32:
    """exp(x) for x of at most 0, by instructions that vectors have: a fifth of the time of the C library's."""
    x = LOWEST if x < LOWEST else x  # what is no number stays none
    power = np.rint(x * LOG2_E)  # not floor(... + 0.5), which numba does not turn into vectors
    rest = x - power * LN_2_HIGH - power * LN_2_LOW
    series = SERIES[0]
    for coefficient in SERIES[1:]:
        series = series * rest + coefficient
    bits = (np.int32(power) + np.int32(127)) << np.int32(23)  # of 2^power
    return series * np.int32(bits).view(np.float32)


@compiled
def score(
    table: NDArray[np.float32],
    rows: NDArray[np.int64],
    vector: NDArray[np.float32],
    bias: np.float32,
    logits: NDArray[np.float32],
) -> None:
    """Into ``logits`` `[batch]`: vector . row + bias, of the rows at some places `[batch]` of a table `[rows, dim]`."""
    for sample in range(len(rows)):
        row = table[rows[sample]]
        total = bias
        for column in range(len(vector)):
            total += row[column] * vector[column]
        logits[sample] = total


@compiled
def slope(
    logits: NDArray[np.float32],
    targets: NDArray[np.float32],
    weights: NDArray[np.float32],
    slopes: NDArray[np.float32],
) -> None:
    """Into ``slopes`` `[batch]`: how the weighted binary cross-entropy changes with each logit."""
    for sample in range(len(logits)):
        small = exp_of_negative(-abs(logits[sample]))
        above = np.float32(1) if logits[sample] >= 0 else small
        slopes[sample] = (above / (np.float32(1) + small) - targets[sample]) * weights[sample]
