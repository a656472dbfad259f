"""Own: what lies on the devices of a cohort's clients, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from cgfedrec.data.batches import Batch
from cgfedrec.data.candidates import RankingCohort
from cgfedrec.data.histories import History
from cgfedrec.data.module import FederatedDataModule


@dataclass(frozen=True)
class Own:
    """A cohort's own data in one round. Nothing of it is drawn or looked up before somebody asks.

    Args:
        data: Of the simulated federation.
        users: `[clients]`, int64: whose.
        round: From 1.
        epochs: Passes over a client's own samples in a round.
    """

    data: FederatedDataModule
    users: Tensor
    round: int
    epochs: int

    @cached_property
    def history(self) -> History:
        """Their training items, the newest first. What is held out for validation or test is not among them."""
        return self.data.histories(self.users)

    @property
    def mark(self) -> bytes:
        """Of the run and of the data: what noise is drawn of."""
        return self.data.mark

    @cached_property
    def before(self) -> History:
        """What they had when they last added to sums that go on with other data."""
        assert self.data.changes is not None
        return self.data.changes.of(self.users)

    def batches(self) -> Sequence[Batch]:
        """Their samples, with negatives drawn for this round."""
        return self.data.draw(self.users, self.round, self.epochs)

    def validation(self) -> RankingCohort | None:
        """What they hold out to choose among settings, and what it is ranked against; ``None`` where nobody does.

        Clients may judge by it, and may not train on it.
        """
        if not self.data.holds_out("val"):
            return None
        return self.data.ranking(self.users, "val")
