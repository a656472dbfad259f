"""Several processes that train one federation together: each has clients of its own, and all end with the same bits.

What they tell each other is whole numbers, added up exactly, or bytes as they are. So nothing depends on how many they
are.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Thread

import torch
import xxhash
from lightning import Fabric
from torch import Tensor, distributed

from cgfedrec.errors import RunError


class Processes:
    """The processes of one run, by Fabric's collectives; without Fabric, one alone.

    Everybody calls these methods alike and in the same order.

    Args:
        fabric: Over as many processes as there are. Nothing can be said before `launch`.

    Attributes:
        number: How many there are.
        rank: Which of them this is, from 0.
    """

    def __init__(self, fabric: Fabric | None = None) -> None:
        self._fabric = fabric
        self.number, self.rank = 1, 0
        if fabric is not None:
            self.number, self.rank = fabric.world_size, fabric.global_rank

    def launch(self) -> None:
        """Start the others, where nobody else has, and wait until all are there."""
        if self._fabric is None:
            return
        if not self.first:
            Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        self._fabric.launch()
        atexit.register(_leave)

    @property
    def first(self) -> bool:
        """Whether this one writes, prints and logs."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of everybody's whole numbers, `[...]`, int64: exact."""
        if self._fabric is None:
            return value
        with _connected():
            # Fabric changes what it is given, and makes an average unless told otherwise.
            total = self._fabric.all_reduce(value.clone().to(self._fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.to(value.device)

    def any(self, here: bool) -> bool:
        """Whether something is so anywhere."""
        return bool(self.sum(torch.tensor(int(here))))

    def together(self, value: Tensor) -> list[Tensor]:
        """What each process has, in order: `[any, ...]`, alike in type and in all axes but the first."""
        if self._fabric is None:
            return [value]
        if not value.shape[1:].numel():  # rows without numbers are no bytes, but rows
            return [value.new_empty(int(number), *value.shape[1:]) for number in self.together(_length(value))]
        return [_rows(part, value) for part in self._exchanged(_bytes(value))]

    def at_first(self, value: Tensor) -> Tensor:
        """What all processes have, one after another, `[all, ...]`, on the first; what this one has, on the others.

        Args:
            value: `[any, ...]`, alike in type and in all axes but the first.
        """
        if self._fabric is None:
            return value
        device = self._fabric.device
        numbers = [int(number) for number in self.together(_length(value))]
        if not value.shape[1:].numel():  # likewise
            return value.new_empty(sum(numbers), *value.shape[1:])
        with _connected():
            if not self.first:
                distributed.send(_bytes(value).to(device), 0)
                return value
            # Straight to where they belong: the rows of all clients may be most of the memory.
            total = value.new_empty(sum(numbers), *value.shape[1:])
            total[: len(value)] = value
            row, begin = value.shape[1:].numel() * value.itemsize, len(value)
            for rank, number in enumerate(numbers[1:], start=1):
                received = torch.empty(number * row, dtype=torch.uint8, device=device)
                distributed.recv(received, rank)
                total[begin : begin + number] = _rows(received.cpu(), value)
                begin += number
        return total

    def texts(self, text: str) -> list[str]:
        """What each process says, in order."""
        if self._fabric is None:
            return [text]
        sent = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
        return [bytes(part.numpy()).decode() for part in self._exchanged(sent)]

    def check_alike(self, what: str, state: Mapping[str, object]) -> None:
        """Raise `RunError` unless every process has the same numbers: each has computed them on its own."""
        if self.number == 1:
            return
        digest = xxhash.xxh3_64()
        for value in state.values():
            if isinstance(value, Tensor):
                digest.update(_bytes(value).numpy().tobytes())
        ours = torch.tensor([digest.intdigest()], dtype=torch.uint64).view(torch.int64)
        if len(set(torch.cat(self.together(ours)).tolist())) > 1:
            raise RunError(f"the processes' {what} are not the same; start them with the same software and processors")

    def _exchanged(self, sent: Tensor) -> list[Tensor]:
        """Everybody's bytes, `[bytes]` each. They travel padded to the longest."""
        assert self._fabric is not None
        device = self._fabric.device
        with _connected():
            lengths = self._fabric.all_gather(torch.tensor([len(sent)], device=device))
            assert isinstance(lengths, Tensor)
            padded = torch.zeros(max(int(lengths.max()), 1), dtype=torch.uint8, device=device)
            padded[: len(sent)] = sent
            gathered = self._fabric.all_gather(padded)
        assert isinstance(gathered, Tensor)
        return [part[:length].cpu() for part, length in zip(gathered, lengths.flatten().tolist(), strict=True)]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """End with an error everywhere if the body, in which nobody speaks to another, ends with one anywhere.

        Raises:
            RunError: where another process has failed, with its error.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if self.number > 1:
            told = self.texts(_words(failure))
            for rank, words in enumerate(told):
                if words and failure is None:
                    failure = RunError(f"process {rank} has failed: {words}")
        if failure is not None:
            raise failure


def _words(error: Exception | None) -> str:
    if error is None:
        return ""
    return str(error) or type(error).__name__


def _length(value: Tensor) -> Tensor:
    """How many rows there are, `[any, ...]` to `[1]`."""
    return torch.tensor([len(value)])


def _bytes(value: Tensor) -> Tensor:
    """A tensor laid out as bytes, `[any, ...]` to `[bytes]`."""
    return value.detach().cpu().flatten().view(torch.uint8)


def _rows(sent: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_bytes`, `[bytes]` to `[any, ...]`, for rows that are like those of another tensor."""
    row = like.shape[1:]
    return sent.clone().view(like.dtype).reshape(-1, *row)


def _leave() -> None:
    """Part from the other processes in peace: their connections have threads, which must not be cut off."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _end_with(parent: int) -> None:
    """End this process when its parent is no more: it might wait for it forever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError("another process of this run has gone away; it has said why, if it could") from error
