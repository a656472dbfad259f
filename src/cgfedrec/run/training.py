"""What a run asks of whatever trains in it: the rounds of a federation, or the one fit of a reference."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from cgfedrec.data.module import Stage
from cgfedrec.evaluation.ranking import Ranked
from cgfedrec.history import Row


class Training(Protocol):
    """What `cgfedrec.loop.FederatedLoop` and `cgfedrec.run.reference.ReferenceFit` have in common.

    Attributes:
        rounds: How many there are, at most; 1 for a reference.
        round: The last one that ended; 0 before the first.
        monitor: The validation metric that chooses the best round, named like ``val/ndcg@10``.
        seconds: That training has taken so far, over all parts of a resumed run.
        history: A row for each evaluated round.
    """

    rounds: int
    round: int
    monitor: str
    seconds: float

    @property
    def bytes_scoring(self) -> int:
        """That have come down so far to score with, beside what training took."""

    @property
    def history(self) -> list[Row]:
        """A row for each evaluated round."""

    @property
    def best(self) -> Row | None:
        """The row of the best round; none before the first evaluation."""

    def fit(self) -> None:
        """Train to the end."""

    def score(self, users: Tensor) -> Tensor:
        """Scores of all items, `[users, items]`, for users `[users]`, by what has been trained."""

    def ranked(self, stage: Stage) -> Ranked:
        """Where what has been trained ranks what is held out for ``stage``."""

    def histograms(self) -> dict[str, Tensor]:
        """Values `[any]` by name whose distribution is worth a look after a round; often none."""
