"""What every method's server is: a module that sees uploads, and never interactions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning import Fabric
from torch import Tensor, nn

from cgfedrec.errors import RunError
from cgfedrec.wire.messages import Broadcast, Upload


class Growing(nn.Module):
    """A module with buffers whose length changes from round to round: it takes those of any length."""

    grows: tuple[str, ...] = ()
    """Their names."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.grows:
            setattr(self, name, self.get_buffer(name).new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Server(Growing):
    """A server that does nothing: the base of all, and the whole of the Local control.

    Its buffers are its state, saved in every checkpoint. A broadcast depends on the last `update` alone, for cohorts
    train while others are aggregated.
    """

    sees_single_uploads = False
    """Whether it must look at what each client sends, and so cannot work on sums, as secure aggregation wants."""

    def welcome(self) -> Broadcast | None:
        """What a client receives once, when it first takes part; ``None`` for nothing."""
        return None

    def broadcast(self, users: Tensor) -> Broadcast | None:
        """What goes down to the participants ``users`` `[clients]` before they train; ``None`` for nothing."""
        return None

    def reduce(self, upload: Upload) -> Upload:
        """What is left of a cohort's uploads for `aggregate`; by default all.

        Several threads call it, each for a cohort of its own, so it changes nothing here.
        """
        return upload

    def aggregate(self, upload: Upload) -> None:
        """Take in what `reduce` left of a cohort's uploads, one cohort after another, always in the same order."""

    def update(self, fabric: Fabric, round: int) -> dict[str, float]:
        """End round ``round`` (counted from 1), and return what is worth logging about it."""
        return {}

    def histograms(self) -> dict[str, Tensor]:
        """Values of which the distribution is worth logging, by name."""
        return {}


class MeanServer(Server):
    """Averages what this round's participants upload, and keeps the mean tables.

    Sums are float64 and the mean is rounded to float32, so that neither the order of the clients nor the size of a
    cohort shows in it, unless a mean lies within some 1e-16 of the middle between two float32.

    Args:
        shapes: The shape of each uploaded value, without its clients axis.
        seed: Of the shared start, which goes down as this seed and not as a table.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.means = nn.Module()
        self.sums: dict[str, Tensor] = {}
        self.participants = 0
        for name, shape in shapes.items():
            self.means.register_buffer(name, torch.zeros(shape))

    def mean(self, name: str) -> Tensor:
        """The mean of an uploaded value over the last round's participants; zeros before the first."""
        return self.means.get_buffer(name)

    def welcome(self) -> Broadcast:
        return Broadcast({"seed": torch.tensor(self.seed)})

    def reduce(self, upload: Upload) -> Upload:
        """Sum a cohort's uploads. Raises `NotFiniteError`, naming the clients, if a value is not finite."""
        sums = {name: _sum(value) for name, value in upload.values.items()}
        for name, total in sums.items():
            if not total.isfinite().all():
                bad = upload.clients[~upload.values[name].flatten(1).isfinite().all(1).cpu()].tolist()
                raise NotFiniteError(f"uploaded {name}", bad or upload.clients.tolist())
        return Upload(upload.clients, sums)

    def aggregate(self, upload: Upload) -> None:
        for name, total in upload.values.items():
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.participants += len(upload.clients)

    def update(self, fabric: Fabric, round: int) -> dict[str, float]:
        for name, total in self.sums.items():
            self.mean(name).copy_(total / self.participants)
        self.sums, self.participants = {}, 0
        return {}


class TableServer(MeanServer):
    """Sends down the means as they are, from the second round on; those of the first start from the welcome's seed."""

    rounds: Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        super().__init__(shapes, seed)
        self.register_buffer("rounds", torch.tensor(0))

    def broadcast(self, users: Tensor) -> Broadcast | None:
        return Broadcast(dict(self.means.named_buffers())) if self.rounds else None

    def update(self, fabric: Fabric, round: int) -> dict[str, float]:
        self.rounds.fill_(round)
        return super().update(fabric, round)


def _sum(value: Tensor) -> Tensor:
    """The sum over clients in float64, `[clients, ...]` to `[...]`; on a CPU by numpy, which needs half the time."""
    if value.is_cuda:
        return value.sum(0, dtype=torch.float64)
    return torch.from_numpy(np.asarray(value.numpy().sum(0, dtype=np.float64)))


class NotFiniteError(RunError):
    """Something that must be a number is not; ``clients`` are the internal numbers of those where it shows."""

    def __init__(self, what: str, clients: list[int]) -> None:
        super().__init__(f"the {what} of {len(clients)} clients is not finite: the state has diverged")
        self.what = what
        self.clients = clients
