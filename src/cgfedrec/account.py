"""What a federation keeps count of from round to round: bytes both ways, and clients of whom nothing came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cgfedrec.history import Row
from cgfedrec.server import CLIENTS
from cgfedrec.simulation.together import Told


class Account:
    """Sums over all rounds so far.

    Attributes:
        bytes_up: That clients have sent.
        bytes_down: That have come down to train with.
        failed: Participants of whom nothing came.
        refused: Participants whose upload was refused.
        whose: Of whom any was refused.
    """

    bytes_up = bytes_down = failed = refused = 0
    whose: frozenset[int] = frozenset()

    def add(self, told: Told, participants: Tensor) -> None:
        """Count one round, or one attempt at it, of `[participants]`."""
        self.bytes_up += told.bytes_up
        self.bytes_down += told.bytes_down
        self.refused += len(told.refused)
        self.whose |= told.refused.keys()
        self.failed += len(participants) - len(told.users) - len(told.refused)

    def row(self, bytes_scoring: int, failures: bool) -> Row:
        """What a row of the history says of it.

        Args:
            bytes_scoring: That have come down to score with.
            failures: Whether clients may fail. Where none may and none has, nothing is said of it.
        """
        row: Row = {
            "bytes/up": self.bytes_up,
            "bytes/down": self.bytes_down,
            "bytes/total": self.bytes_up + self.bytes_down,
            "bytes/scoring": bytes_scoring,
        }
        if failures or self.failed or self.refused:
            row |= {f"{CLIENTS}failed": self.failed, f"{CLIENTS}refused": self.refused}
        return row

    def counts(self, bytes_scoring: int) -> dict[str, list[int]]:
        """What `load_counts` needs."""
        return {
            "bytes": [self.bytes_up, self.bytes_down, bytes_scoring],
            "failures": [self.failed, self.refused],
            "refused": sorted(self.whose),
        }

    def load_counts(self, state: Mapping[str, Any]) -> int:
        """Go back to where `counts` was taken; returns the bytes that had come down to score with.

        Raises:
            ValueError: if these are no counts.
        """
        # Checkpoints of before know nothing of failures.
        counts: list[int] = [*state["bytes"], *state.get("failures", (0, 0))]
        self.whose = frozenset(state.get("refused", ()))
        if not all(type(count) is int and count >= 0 for count in (*counts, *self.whose)):
            raise ValueError("bytes or failures are no counts")
        self.bytes_up, self.bytes_down, bytes_scoring, self.failed, self.refused = counts
        return bytes_scoring
