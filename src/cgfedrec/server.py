"""What every method's server is: a module that sees uploads, and never interactions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from cgfedrec.data.changes import Changes
from cgfedrec.errors import InputError
from cgfedrec.growing import Growing
from cgfedrec.processes import Processes
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire

CLIENTS = "clients/"
"""What begins the names under which a server reports from how many clients a sum came."""

SPENT = "privacy/"
"""What begins the names under which a server reports what sums have spent of a budget: ``privacy/epsilon`` at
``privacy/delta``."""

READINGS = "readings/"
"""What begins the names under which a server reports how well each way to read what it has found serves clients: by
their metric, or, under differential privacy, by how much that is above popularity alone, clipped and with noise."""


class Server(Growing):
    """A server that does nothing. It is the base of all others, and Local has it as it is.

    Its buffers are its state, saved in every checkpoint. It does not count rounds: the loop tells it which one it is,
    from 1. What it sends in a round depends only on the `update` before, since some cohorts train while others are
    aggregated.

    In a round, each cohort first gets its `broadcast`. Once it has trained, any thread calls `reduce` for it. Then
    `aggregate` takes in the cohorts one after another, always in the same order. One `update` ends the round.

    Args:
        expects: The fields of one client's upload, by name. What arrives is checked against them.

    Attributes:
        sum: What this round's participants have sent so far, added up, where a server keeps such a sum.
        changes: Where a run goes on with other data, by whom they have changed.
        wire: By which uploads come, and their sum is opened.
    """

    sees_single_uploads = False
    """Whether it must look at what each client sends, and so cannot work on sums, as secure aggregation wants."""

    def __init__(self, expects: Mapping[str, Field] | None = None) -> None:
        super().__init__()
        self.expects: Mapping[str, Field] = dict(expects or {})
        self.sum: Sum | None = None
        self.changes: Changes | None = None
        self.wire = Wire()

    alike_from = 1
    """From which round on clients do the same in each; what earlier ones take tells nothing of later ones."""

    of_clients: tuple[str, ...] = ()
    """Buffers that tell of single clients: who they are, or what only some of them have added. No export has them."""

    @property
    def working(self) -> int:
        """Bytes that it takes at most, where that is worth telling: what a run will need is said before it starts."""
        return 0

    @property
    def saved(self) -> int:
        """Bytes of its state in a checkpoint, about."""
        return sum(value.numel() * value.itemsize for value in self.state_dict().values())

    updates: Literal["never", "exactly", "warm"] = "never"
    """Whether it can go on from a run on other data (`update_from`): ``exactly``, so that it ends as if it had begun
    with the data of now; or ``warm``, which only begins with what was trained."""

    @property
    def phase(self) -> str:
        """What the next round is for, in a word, where rounds differ: shown while it runs."""
        return ""

    @property
    def preparing(self) -> bool:
        """Whether the last round changed nothing of what clients score with, so that it need not be evaluated."""
        return False

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do: another round would change nothing."""
        return False

    def enrol(self, users: Tensor) -> None:
        """Hear, before the first round, who will ever take part, `[clients]`.

        Raises:
            InputError: where a federation of so many cannot work.
        """

    def update_from(self, state: Mapping[str, Any], changes: Changes) -> None:
        """Go on from the state of a run on other data, before the first round.

        Args:
            state: Its server's.
            changes: Between its data and those of now.

        Raises:
            InputError: if that cannot be, as by default.
        """
        raise InputError(f"update_from: {type(self).__name__} cannot add what has changed to what it has; start again")

    def wanted(self) -> Tensor | None:
        """Whom the next round needs, `[clients]`, int64, ascending: participants are drawn from these alone.

        ``None`` for no matter whom of those who have something to train on. Who has gone since the run before has
        nothing, and takes part only where a server wants to hear what is taken back.
        """
        return None

    def leave(self, users: Tensor) -> dict[str, float]:
        """Hear, between two rounds, of clients who will take part no more, `[clients]`: their devices are gone.

        Returns:
            What is worth logging of it, by name.
        """
        return {}

    def welcome(self) -> Broadcast | None:
        """What a client receives once, when it first takes part; ``None`` for nothing."""
        return None

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        """What goes down to ``users`` `[clients]` before they train in a round; ``None`` for nothing.

        Clients that only score receive what they would before the next round.
        """
        return None

    def implausible(self, upload: Upload) -> Mapping[int, str]:
        """By client, why what it sends cannot come from an honest one, as far as a single upload shows that.

        Asked only where single uploads may be refused, by several threads at once.
        """
        return {}

    def doubted(self, upload: Upload) -> Mapping[int, str]:
        """As `implausible`; but where nothing makes sense but a sum, no single upload tells anything."""
        if self.wire.sums_only:
            return {}
        return self.implausible(upload)

    def reduce(self, upload: Upload) -> Upload | Sum:
        """What is left of a cohort's uploads for `aggregate`: their sum, where no single one is needed.

        Several threads call it, each for a cohort of its own, so it changes nothing here.

        Raises:
            NotFiniteError: naming the clients, if a value is not finite.
        """
        return upload.sum()

    def of_nobody(self) -> Upload | Sum:
        """What `reduce` leaves of no uploads: a process may have none of the participants."""
        fields = self.wire.added(self.expects)
        values = {name: torch.zeros(0, *field.shape, dtype=field.dtype) for name, field in fields.items()}
        return self.reduced(Upload.of_fields(torch.empty(0, dtype=torch.int64), values, fields))

    def reduced(self, upload: Upload) -> Upload | Sum:
        """As `reduce`; but where nothing makes sense but a sum, no method's server sees the uploads before it."""
        if self.wire.sums_only:
            return upload.sum()
        if type(self).reduce is not Server.reduce:
            upload = upload.whole()
        return self.reduce(upload)

    def most_added(self, participants: int) -> int:
        """Over how many clients it opens a sum, at most, where so many take part in a round: by default these."""
        return participants

    def no_sum(self, participants: int) -> Iterator[str]:
        """Why its wire cannot carry what it expects, where so many clients take part in a round."""
        yield from self.wire.no_sum(self.expects, self.most_added(participants))

    def aggregate(self, part: Upload | Sum) -> None:
        """Take in what `reduce` left of a cohort. Cohorts come one after another, always in the same order."""

    def gather(self, processes: Processes) -> None:
        """All cohorts of a round have been taken in; with several processes, take in what the other servers have too.

        Args:
            processes: That train together.
        """

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """End a round. With several processes each does it, and all with the same result.

        Args:
            users: `[participants]`, int64: who took part, in ascending order.
            round: From 1.

        Returns:
            What is worth logging about it, by name.
        """
        return {}

    def end(self, users: Tensor, refused: Collection[int], round: int) -> dict[str, float]:
        """End a round in which the uploads of some clients were refused. Result as of `update`.

        Who was refused is not waited for any longer: it could hold up all others.

        Args:
            users: `[participants]`, as of `update`; there may be none.
            refused: Who was refused.
            round: From 1.
        """
        report: dict[str, float] = {}
        if refused:
            report |= self.leave(torch.tensor(list(refused)))
        if len(users):
            report |= self.update(users, round)
        return report

    def histograms(self) -> dict[str, Tensor]:
        """Values `[any]` of which the distribution is worth logging, by name."""
        return {}
