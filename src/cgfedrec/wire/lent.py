"""Memory that is lent to tensors, and used again.

To get tens of megabytes anew from the system for every cohort takes longer than to fill them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Lent:
    """Lends memory. What was lent comes back by itself, once no tensor lies in it any longer; never before.

    Several threads may use one.

    >>> lent = Lent()
    >>> first = lent.integers([2, 3])
    >>> where = first.data_ptr()
    >>> lent.integers([2, 3]).data_ptr() == where  # the first is still there
    False
    >>> row = first[1]
    >>> del first
    >>> lent.integers([2, 3]).data_ptr() == where  # and so is a row of it
    False
    >>> del row
    >>> where in {lent.integers([2, 2]).data_ptr(), lent.integers([2, 2]).data_ptr()}
    True
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.int64]] = []

    def integers(self, shape: Sequence[int]) -> Tensor:
        """Whole numbers of any value, int64, `[*shape]`."""
        number = torch.Size(shape).numel()
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(number, np.int64)
        if len(memory) < number:
            memory = np.empty(number, np.int64)
        numbers = memory[:number].reshape(shape)
        # A tensor holds the array that it was made from, and so do all that look into it.
        weakref.finalize(numbers, self._free.append, memory).atexit = False
        return torch.from_numpy(numbers)
