"""Memory that is lent to tensors, and used again.

To get tens of megabytes anew from the system for every cohort takes longer than to fill them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

SLACK = 8
"""New memory has room for a so many-th part more than is asked for: the next round may need a little more. What nobody
writes to costs nothing."""


class Scratch:
    """Memory for one tensor at a time: whoever has had it before must not need it any more."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Numbers of any value, `[*shape]`."""
        number, memory = torch.Size(shape).numel(), self._memory
        if len(memory) < number or (memory.dtype, memory.device) != (dtype, device):
            self._memory = torch.empty(number + number // SLACK, dtype=dtype, device=device)
        return self._memory[:number].view(*shape)


class Lent:
    """Lends memory of the CPU. What was lent comes back by itself, once no tensor lies in it any longer; never before.

    Several threads may use one.

    >>> lent = Lent()
    >>> first = lent.tensor([2, 3], torch.int64)
    >>> where = first.data_ptr()
    >>> lent.tensor([2, 3], torch.int64).data_ptr() == where  # the first is still there
    False
    >>> row = first[1]
    >>> del first
    >>> lent.tensor([2, 3], torch.int64).data_ptr() == where  # and so is a row of it
    False
    >>> del row
    >>> again = [lent.tensor([3, 2], torch.float64) for _ in range(3)]
    >>> where in {one.data_ptr() for one in again}
    True
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []  # uint8; of torch, which has pages of 2 MiB where the system gives them
        self._lock = Lock()

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Numbers of any value, `[*shape]`."""
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        memory = self._taken(nbytes)
        lying = memory.numpy()[:nbytes]
        # A tensor holds the array that it was made from, and so do all that look into it.
        weakref.finalize(lying, self._free.append, memory).atexit = False
        return torch.from_numpy(lying).view(dtype).view(*shape)

    def _taken(self, nbytes: int) -> Tensor:
        """Free memory that has room for so many bytes and is not far too large, or else new one."""
        with self._lock:  # what comes back meanwhile comes last, and moves no place
            sizes = [(len(memory), place) for place, memory in enumerate(self._free)]
            fitting = [one for one in sizes if nbytes <= one[0] <= 2 * nbytes]
            if fitting:
                return self._free.pop(min(fitting)[1])
            smaller = [one for one in sizes if nbytes <= 2 * one[0] and one[0] < nbytes]
            if smaller:  # it makes room for what takes its place
                self._free.pop(max(smaller)[1])
        return torch.empty(nbytes + nbytes // SLACK, dtype=torch.uint8)
