"""Who takes part in a round: drawn from the seed, by round and client."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cgfedrec.errors import Notice, no_count, not_positive
from cgfedrec.random import Stream, bits


class Sampling:
    """How participants are drawn. Arguments are those of `cgfedrec.loop.FederatedLoop`."""

    def __init__(self, participation: float, participants: int | None, resample: bool) -> None:
        self.participation, self.participants, self.resample = participation, participants, resample

    def problems(self) -> Iterator[str | None]:
        """What is wrong with the settings."""
        yield no_count("loop.participants", self.participants, or_none=True)
        yield not_positive("loop.participation", self.participation, 1)
        if self.participants is not None and self.participation != 1:
            yield "loop.participants: give either this or loop.participation, not both"

    def number(self, users: int) -> int:
        """How many of so many users take part in a round."""
        return self.participants or max(1, round(self.participation * users))

    def too_many(self, users: int, of: str) -> str | None:
        """The problem if more are to take part than the ``users`` that there are ``of`` something."""
        if self.participants is None or self.participants <= users:
            return None
        return f"loop.participants: {self.participants} is more than the {users} {of}"

    def tell_fewer(self, able: int, users: int) -> None:
        """Say it where fewer of the ``users`` are ``able`` to train than are to take part in a round."""
        if self.participants is not None and self.participants > able:
            warnings.warn(
                f"loop.participants: {self.participants} are to take part, and of the {users} users only {able} have "
                "anything to train on: these take part in each round",
                Notice,
                stacklevel=3,
            )

    def draw(self, pool: Tensor, number: int, seed: int, round: int, attempt: int = 0) -> Tensor:
        """This round's participants, `[participants]`, int64, in ascending order.

        Args:
            pool: `[clients]`: those who are wanted.
            number: How many to draw.
            seed: The shared one.
            round: From 1.
            attempt: At the round, from 0: where nobody came through, others are drawn.
        """
        drawn_in = 0  # a round that never is: drawn once, for all rounds
        if self.resample:
            drawn_in = round
        counters = [drawn_in]
        if self.resample and attempt:
            counters.append(attempt)
        # A random number for everyone in the pool, of which the smallest win.
        users = pool.numpy()
        keys = bits(seed, Stream.PARTICIPANTS, *counters, users)
        return torch.from_numpy(np.sort(users[keys.argsort()[:number]]))
