"""What every method's client is: a LightningModule that holds a cohort."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from cgfedrec.data.batches import Batch as Batch
from cgfedrec.data.own import Own
from cgfedrec.memory import aligned, is_shared, shared_by
from cgfedrec.serving.readers import Reader
from cgfedrec.wire.messages import Broadcast, Upload

STEPS = ("training_step", "configure_optimizers")
"""The methods that say what a client's steps are."""


class StepOutput(NamedTuple):
    """What one optimiser step of a cohort saw.

    Attributes:
        loss: `[clients]`, each client's loss. The cohort's is their sum, and so no client's gradient meets another's.
        reported: `[clients]` each: further values that are worth a look. Their names are among those in
            `Client.reports`.
    """

    loss: Tensor
    reported: Mapping[str, Tensor] = MappingProxyType({})


CompiledSteps = Callable[[Batch], StepOutput]
"""Takes all of a batch's steps at once: see `Client.compiled_steps`."""


class Client(LightningModule, ABC):
    """A cohort of clients, trained together as if each were alone.

    Every parameter has a leading `clients` axis, and each row of it is private to one client. Nothing here may mix rows
    of that axis. One module serves many cohorts in turn: `load` swaps in the private state of the next one. In
    training, clients whose batches are used up leave (`cgfedrec.train.narrow`), the last ones first.

    A method's client says how to start (`start`), what the loss of a step is (`training_step`), and which optimisers
    take a step on each batch, in order (`configure_optimizers`). It also has the three verbs of federation: `receive`,
    `upload` and `score`.
    """

    scores_after: Literal["training", "aggregation"] = "training"
    """Whether clients score with what they had after training, or with what the server made of it since."""
    serves_newcomers: ClassVar[bool] = False
    """Whether a client that never takes part can score by what comes down and its own history alone."""
    reports: ClassVar[tuple[str, ...]] = ()
    """Names of what a training step reports beside the loss. The loop averages each into a column ``train/<name>``."""
    follows: frozenset[str] = frozenset()
    """Private tables that come down whole in each round (`replace`), and of which training moves the rows of its
    batches alone. In `training_step` such a table is `[1, rows, dim]`, the rows of all clients that their batches
    touch, and ``batch.items`` counts among them. Afterwards `private` has it as a sparse tensor (`cgfedrec.touched`).
    A subclass with a `training_step`, `receive` or `upload` of its own says anew what follows. Nothing does where an
    optimiser moves rows that had no gradient, as decay does."""
    scores_moved: ClassVar[bool] = False
    """Whether `score` takes tables that follow as `moved` has them, so that nobody lays them out for it: the parameter
    is the base then, which all share. A subclass with a `score` or `load` of its own says so anew."""
    users: Tensor
    """`[clients]`, int64: who is in the cohort."""
    own: Own
    """What lies on the clients' own devices: their training items in the order of time, and samples drawn from them."""
    moved: dict[str, Tensor]
    """Tables that follow, once they are trained, `[clients, items, dim]` sparse by name: see `cgfedrec.touched`."""
    bases: dict[str, Tensor]
    """What their other rows are, `[items, dim]` by name."""
    seed: int
    """The seed of what only clients may know: noise, private heads, and the user vectors with which they start."""
    _defined: ClassVar[dict[str, object]]
    """Its steps and ``score``, as the class was defined."""

    def __init__(self) -> None:
        super().__init__()
        self.users = torch.empty(0, dtype=torch.int64)
        self.moved, self.bases = {}, {}
        self._welcomed: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What was said of another need not be true.
        if cls._has_changed("follows", "training_step", "receive", "upload"):
            cls.follows = frozenset()
        if cls._has_changed("scores_moved", "score", "load"):
            cls.scores_moved = False
        if cls._has_changed("compiled_steps", *STEPS):
            cls.compiled_steps = Client.compiled_steps  # type: ignore[method-assign]
        cls._defined = {name: getattr(cls, name) for name in (*STEPS, "score")}

    @classmethod
    def replaced(cls, *names: str) -> bool:
        """Whether others were put in the place of `STEPS` or ``score`` since it was defined."""
        defined = [(base, vars(base)["_defined"]) for base in cls.__mro__ if "_defined" in vars(base)]
        return any(getattr(base, name) != methods[name] for base, methods in defined for name in names)

    @classmethod
    def _has_changed(cls, said: str, *names: str) -> bool:
        """Whether it has another method of one of these ``names`` than the class that has ``said`` something."""
        who = next(base for base in cls.__mro__ if said in vars(base))
        return any(getattr(cls, name) != getattr(who, name) for name in names)

    @abstractmethod
    def start(self, users: Tensor) -> dict[str, Tensor]:
        """The private state with which clients begin: for every parameter, `[clients, ...]`.

        Where all begin alike, one client's values are expanded, which takes the memory of one.
        """

    @abstractmethod
    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        """The loss that optimiser number ``step`` of `configure_optimizers` steps on."""

    @abstractmethod
    def configure_optimizers(self) -> list[Optimizer]:
        """The optimisers that take one step each, in this order, on every batch."""

    def compiled_steps(self, optimizers: Sequence[Optimizer], ends: NDArray[np.int64] | None) -> CompiledSteps | None:
        """What takes all of a batch's steps in one compiled loop (`cgfedrec.kernels`); by default there is none.

        It ends where `training_step`, the gradients and the optimisers do, but for rounding, and many times as fast. It
        is asked for on a CPU in float32, before each cohort trains. A subclass with a `training_step` or
        `configure_optimizers` of its own has none, unless it says so anew. Nobody asks for it where either was replaced
        later, on a class or a client.

        Args:
            optimizers: Those of `configure_optimizers`.
            ends: `[clients]`: where each client's rows end in a table that follows; ``None`` where tables are whole.
        """
        return None

    def welcome(self, broadcast: Broadcast | None) -> None:
        """Take what the server sends once, when a client first takes part: the seed of the start that all share."""
        if broadcast is not None:
            seed = broadcast.values["seed"]
            assert isinstance(seed, Tensor)
            self._welcomed = int(seed)

    @property
    def shared_seed(self) -> int:
        """The seed of the start that all clients share; a client's own one where no server has welcomed it."""
        if self._welcomed is None:
            return self.seed
        return self._welcomed

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        """Take what the server sent for a round, from 1; ``None`` where it has nothing to say.

        It is called after `load`, before a cohort trains, and may change the private state in place. What it keeps for
        later has a row for each client of the cohort. A batch may be of the first clients alone: `training_step` then
        takes as many of these rows as the batch has.
        """

    def replace(self, name: str, table: Tensor) -> None:
        """Let all of the cohort have one table `[items, dim]` in place of their own: what `receive` does with it."""
        parameter = self.get_parameter(name)
        if name in self.follows:
            self.moved.pop(name, None)
            parameter.data = shared_by(table.to(parameter), len(self.users))
        else:
            parameter.data.copy_(table)

    def alike(self, broadcast: Broadcast | None) -> Mapping[str, Tensor]:
        """Private tables that `receive` has just made the same for most of the cohort, `[items, dim]` each by name.

        A store keeps of a client's table only the rows that differ from it in the end, bit for bit. So what is said
        here costs room or saves it, and changes no result. By default it is what was sent under a parameter's name.
        """
        if broadcast is None:
            return {}
        sent = {name: broadcast.values.get(name) for name, _ in self.named_parameters()}
        return {
            name: value
            for name, value in sent.items()
            if isinstance(value, Tensor) and value.shape == self.get_parameter(name).shape[1:]
        }

    def batches(self) -> Sequence[Batch]:
        """What the cohort trains on in this round, after `receive`; by default its samples with fresh negatives.

        Where it is empty, nothing is trained.
        """
        return self.own.batches()

    def upload(self) -> Upload:
        """What the cohort sends to the server after training; by default nothing.

        Clients that have nothing to say may be left out. An upload of no clients is no message at all.
        """
        return Upload(self.users)

    def public(self, broadcast: Broadcast | None) -> dict[str, Tensor]:
        """What everybody knows of an upload before a round, by name, `[...]`: what has come down under its name, or
        else the start that all share. By default every value that all clients begin with, and all that is sent down.
        """
        begun = self.start(torch.tensor([0, 1]))
        public = {name: value[0] for name, value in begun.items() if value.stride(0) == 0}
        if broadcast is not None:
            public |= {name: value for name, value in broadcast.values.items() if isinstance(value, Tensor)}
        return public

    @abstractmethod
    def score(self) -> Tensor:
        """Each client's scores of all items, `[clients, items]`; only their order matters."""

    @property
    def structured(self) -> bool:
        """Whether what it reads its history by has come down, for clients that score after aggregation. Before that
        it scores by popularity at best, and nothing is recommended.
        """
        return True

    @property
    def popular_now(self) -> Tensor:
        """`[items]`: how popular each item is now, as far as what came down tells.

        It is what a newcomer without any history sees. Only clients that serve newcomers need it.
        """
        raise NotImplementedError

    def reader(self) -> Reader:
        """What a newcomer is scored with, in plain arrays, from what has come down. Only clients that serve newcomers
        have it, and they are asked for it once they are `structured`.
        """
        raise NotImplementedError

    def private(self) -> dict[str, Tensor]:
        """The cohort's private state: for every parameter, `[clients, ...]`.

        After training, a table that follows is sparse: it holds the rows that were trained, and the others are those of
        its base (`bases`).
        """
        return {name: parameter.data for name, parameter in self.named_parameters()} | self.moved

    def load(self, users: Tensor, private: Mapping[str, Tensor], bases: Mapping[str, Tensor] | None = None) -> None:
        """Become another cohort. Training changes its private state in place.

        Args:
            users: `[clients]`, int64: who they are.
            private: For every parameter, `[clients, ...]`. It is copied only where it does not lie as a new tensor
                would (`aligned`). For clients that only score, tables may be sparse (`scores_moved`).
            bases: What the other rows of these are, `[items, dim]` each.
        """
        self.users, self.moved, self.bases = users, {}, dict(bases or {})
        for name, parameter in self.named_parameters():
            parameter.grad = None
            value = private[name]
            if value.is_sparse:
                self.moved[name] = value
                parameter.data = shared_by(self.bases[name].to(parameter.device), len(value))
            elif len(value) and is_shared(value):  # and so it stays, on another device too
                parameter.data = shared_by(value[0].to(parameter.device), len(value))
            else:
                parameter.data = aligned(value.to(parameter.device))


def empty_parameter(*shape: int) -> nn.Parameter:
    """A parameter for a cohort that is yet to come: `[0, *shape]`."""
    return nn.Parameter(torch.empty(0, *shape))


@lru_cache(maxsize=2)
def shared_start(seed: int, scale: float, *shape: int) -> Tensor:
    """The values with which all clients start, `[*shape]`, N(0, scale^2); drawn once, and never changed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def no_newcomers(client: Client, method: str) -> str | None:
    """Why clients of a method can serve nobody who was not in training, if that is so."""
    if client.serves_newcomers:
        return None
    return (
        f"method: clients of {method} score with what they have trained themselves, and not by a history: "
        "nobody can be served who was not in training"
    )
