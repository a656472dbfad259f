"""What every method's server is: a module that sees uploads, and never interactions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cgfedrec.data.changes import Changes
from cgfedrec.errors import InputError
from cgfedrec.processes import Processes
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field

CLIENTS = "clients/"
"""What begins the names under which a server reports from how many clients a sum came."""

SPENT = "privacy/"
"""What begins the names under which a server reports what sums have spent of a budget: ``privacy/epsilon`` at
``privacy/delta``."""

READINGS = "readings/"
"""What begins the names under which a server reports how well each way to read what it has found serves clients."""


class Growing(nn.Module):
    """A module with buffers whose length changes from round to round. It loads those of any length."""

    grows: tuple[str, ...] = ()
    """Their names."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Torch refuses a buffer of another length: each is first made as long as the one that is loaded into it.
        for name in self.grows:
            loaded = state_dict[prefix + name]
            setattr(self, name, self.get_buffer(name).new_empty(loaded.shape, dtype=loaded.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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
    """

    sees_single_uploads = False
    """Whether it must look at what each client sends, and so cannot work on sums, as secure aggregation wants."""

    def __init__(self, expects: Mapping[str, Field] | None = None) -> None:
        super().__init__()
        self.expects: Mapping[str, Field] = dict(expects or {})
        self.sum: Sum | None = None
        self.changes: Changes | None = None

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

        ``None`` for no matter whom.
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

    def reduce(self, upload: Upload) -> Upload | Sum:
        """What is left of a cohort's uploads for `aggregate`: their sum, where no single one is needed.

        Several threads call it, each for a cohort of its own, so it changes nothing here.

        Raises:
            NotFiniteError: naming the clients, if a value is not finite.
        """
        return upload.sum()

    def of_nobody(self) -> Upload | Sum:
        """What `reduce` leaves of no uploads: a process may have none of the participants."""
        values = {name: torch.zeros(0, *field.shape, dtype=field.dtype) for name, field in self.expects.items()}
        return self.reduce(Upload.of_fields(torch.empty(0, dtype=torch.int64), values, self.expects))

    def aggregate(self, part: Upload | Sum) -> None:
        """Take in what `reduce` left of a cohort. Cohorts come one after another, always in the same order."""

    def gather(self, processes: Processes, order: Tensor) -> None:
        """Take in what the servers of other processes have aggregated in this round, so that all have the same.

        Args:
            processes: That train together; with one there is nothing to do.
            order: All users, `[users]`, in the order in which their uploads come.
        """

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        """End a round. With several processes each does it, and all with the same result.

        Args:
            users: `[participants]`, int64: who took part, in the order in which their uploads came.
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


class SumServer(Server):
    """Adds up what a round's participants send, and looks at nothing else. What becomes of the sum is a subclass's."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.sum = None  # of a round that was not ended: what is loaded is the state between two
        super()._load_from_state_dict(*args, **kwargs)

    def aggregate(self, part: Upload | Sum) -> None:
        if isinstance(part, Upload):
            part = part.sum()
        if self.sum is not None:
            part = self.sum + part
        self.sum = part

    def gather(self, processes: Processes, order: Tensor) -> None:
        if processes.number > 1:
            ours = self.sum or self.of_nobody()
            assert isinstance(ours, Sum)
            self.sum = ours.over_processes(processes)

    def take_sum(self) -> Sum:
        """This round's sum. The next one begins from nothing."""
        assert self.sum is not None, "a round without participants"
        total, self.sum = self.sum, None
        return total


class MeanServer(SumServer):
    """Averages what this round's participants upload, and keeps the mean tables.

    Sums are exact (`cgfedrec.wire.sums.GRID`), and the mean is rounded to float32. So neither the order of the
    clients, nor the size of a cohort, nor the number of processes shows in it.

    Args:
        expects: The fields of one client's upload, by name.
        seed: Of the start that all clients share, which goes down as this seed and not as a table.
    """

    def __init__(self, expects: Mapping[str, Field], seed: int) -> None:
        super().__init__(expects)
        self.seed = seed
        self.means = nn.Module()
        for name, field in expects.items():
            self.means.register_buffer(name, torch.zeros(field.shape))

    def mean(self, name: str) -> Tensor:
        """The mean of an uploaded value over the last round's participants, `[...]`; zeros before the first."""
        return self.means.get_buffer(name)

    def welcome(self) -> Broadcast:
        return Broadcast({"seed": torch.tensor(self.seed)})

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        total = self.take_sum()
        for name, values in total.values.items():
            self.mean(name).copy_(values.double() / total.clients)  # divided in float64, and rounded by the copy
        return {}


class TableServer(MeanServer):
    """Sends down the means as they are. In the first round there are none: clients start from the welcome's seed."""

    updates = "warm"
    warm = False

    def update_from(self, state: Mapping[str, Any], changes: Changes) -> None:
        """Begin with the means of then; an item that was not there yet has zeros."""
        moved = torch.from_numpy(changes.moved)
        for name, mean in self.means.named_buffers():
            old = state[f"means.{name}"]
            if old.shape == mean.shape:
                mean.copy_(old)
            else:
                mean[moved] = old
        self.warm = True

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        if round <= 1 and not self.warm:
            return None
        return Broadcast(dict(self.means.named_buffers()))
