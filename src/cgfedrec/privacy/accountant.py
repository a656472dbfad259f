"""The accountant: what sums with discrete Gaussian noise spend, as zCDP, and what that is as epsilon at a delta.

zCDP (Bun and Steinke 2016, arXiv 1605.02065) adds up: sums that spend rho_1, rho_2, ... spend their sum, even where
what is asked in one depends on what came of another. `dp-accounting` finds the same numbers, and a test holds to that.
It is not needed to train.
"""

from __future__ import annotations

import math

import numpy as np

from cgfedrec.privacy.discrete import INEXACT

_ORDERS = 1 + np.exp(np.linspace(-10, 12, 40_000))
"""Orders that are tried. Each gives a valid bound, and the smallest counts."""


def epsilon_of(rho: float, delta: float) -> float:
    """The epsilon that rho-zCDP has at a delta (Canonne, Kamath and Steinke 2020, arXiv 2004.00010, proposition 12).

    Args:
        rho: At least 0.
        delta: Between 0 and 1.

    >>> round(epsilon_of(0.5, 1e-5), 2)  # the simple bound, rho + 2 sqrt(rho ln(1/delta)), would be 5.30
    4.73
    """
    rest = (math.log(1 / delta) - np.log(_ORDERS)) / (_ORDERS - 1) + np.log1p(-1 / _ORDERS)
    return max(0.0, float((rho * _ORDERS + rest).min()))


def rho_of(epsilon: float, delta: float) -> float:
    """The largest rho whose `epsilon_of` is at most ``epsilon``, to within a share of 1e-12."""
    low, high = 0.0, epsilon  # epsilon is larger than rho wherever delta is small
    while epsilon_of(high, delta) < epsilon:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if epsilon_of(middle, delta) <= epsilon:
            low = middle
        else:
            high = middle
    return low


def rho_of_sum(norm: float, sigma: float, clients: int, numbers: int) -> float:
    """What a sum spends to which each client adds discrete Gaussian noise of its own.

    Such noise does not add up to a discrete Gaussian exactly. With tau = 10 sum over k < clients of
    exp(-2 pi^2 sigma^2 k / (k + 1)) for what that costs, the sum is eps^2 / 2-zCDP, where eps is the smaller of
    sqrt(norm^2 / (clients sigma^2) + tau numbers / 2) and norm / (sqrt(clients) sigma) + tau sqrt(numbers)
    (Kairouz, Liu and Steinke 2021, arXiv 2102.06387, proposition 14).

    Args:
        norm: The largest Euclidean norm of what one client adds, in units of the whole numbers that travel.
        sigma: Of each client's noise, in the same units; at least 1/2.
        clients: How many add noise.
        numbers: Of the sum.
    """
    # k / (k + 1) is smallest for the first; all others are at most as large a term.
    tau = 10 * (clients - 1) * math.exp(-(math.pi**2) * sigma**2)
    share = norm / (math.sqrt(clients) * sigma)
    return min(math.sqrt(share**2 + tau * numbers / 2), share + tau * math.sqrt(numbers)) ** 2 / 2


def delta_of_drawing(epsilon: float, numbers: int) -> float:
    """What is lost of delta since noise is drawn with probabilities that are not quite those of a discrete Gaussian.

    Together so many numbers are at most a distance s = numbers x `INEXACT` from exact ones (total variation). Then an
    outcome of probability at most e^epsilon p + delta has at most e^epsilon p + delta + (1 + e^epsilon) s.

    Args:
        epsilon: That is promised.
        numbers: How many all clients draw.
    """
    return min(1.0, (1 + math.exp(min(epsilon, 700))) * numbers * INEXACT)
