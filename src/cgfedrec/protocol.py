"""How a result is measured: one object, stored with every result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from cgfedrec.errors import check, no_count


@dataclass(frozen=True)
class Protocol:
    """How a result is measured.

    ``strict`` draws training negatives from everything outside the user's training items, since a client cannot know
    its own future. ``reference`` does what the published code of this field does and leaves the validation and test
    items out of the negatives: this leaks the answer, and is here to reproduce published numbers only.

    Args:
        name: ``strict`` or ``reference``.
        candidates: What a held-out item is ranked against: the ``full`` catalogue without the items that the user is
            known to have, or ``sampled``, some items that the user never touched, fixed per user and seed. By
            default ``full`` under ``strict`` and ``sampled`` under ``reference``.
        num_candidates: How many items a ``sampled`` ranking draws for each user.
        ties: Which of a user's interactions with the same timestamp counts as later: ``file_first``, the one that
            stands first in the file, or one at ``random`` (seeded).
        cutoffs: The lengths k at which HR@k, NDCG@k and MRR@k are reported.
    """

    name: Literal["strict", "reference"] = "strict"
    candidates: Literal["full", "sampled"] | None = None
    num_candidates: int = 99
    ties: Literal["file_first", "random"] = "file_first"
    cutoffs: Sequence[int] = (5, 10, 20, 50, 100)

    def __post_init__(self) -> None:
        check(*self._problems())
        # Frozen, but for this: whoever names cut-offs may do so in any order.
        object.__setattr__(self, "cutoffs", tuple(sorted(set(self.cutoffs))))

    def _problems(self) -> Iterator[str | None]:
        if self.name not in ("strict", "reference"):
            yield f"protocol.name: {self.name!r} is unknown; choose strict or reference"
        yield no_count("protocol.num_candidates", self.num_candidates)
        if not self.cutoffs:
            yield "protocol.cutoffs: name one or more"
        for cutoff in self.cutoffs:
            yield no_count("protocol.cutoffs", cutoff)

    @property
    def ranking(self) -> Literal["full", "sampled"]:
        """What held-out items are ranked against, defaults applied."""
        if self.candidates:
            return self.candidates
        if self.name == "strict":
            return "full"
        return "sampled"

    @property
    def num_sampled(self) -> int | None:
        """How many candidates are sampled for each user; ``None`` where the whole catalogue is ranked."""
        return self.num_candidates if self.ranking == "sampled" else None

    @property
    def leaks(self) -> bool:
        """Whether training negatives avoid the held-out items, and so reveal them."""
        return self.name == "reference"

    def to_dict(self) -> dict[str, object]:
        """Plain values, as stored in checkpoints and in ``summary.json``."""
        return asdict(self) | {"candidates": self.ranking, "cutoffs": list(self.cutoffs)}
