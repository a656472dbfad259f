"""Noised uploads: a step of the wire by which a round's sum, or each upload, has differential privacy of its clients.

A client sends what everybody knows (what has come down, or the start that all share) and what it has changed in it. The
change is clipped to a norm, and rounded towards 0 into whole numbers, which makes no norm larger. Discrete noise is
added to every number. Centrally each client adds a part: the sum over a round's participants has what the budget asks
for, and nobody knows it. Locally each client adds all of it by itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cgfedrec.errors import RunError, check, not_positive
from cgfedrec.privacy.accountant import rho_of_sum
from cgfedrec.privacy.budget import MOST_DELTA, rho_within
from cgfedrec.privacy.clipping import clipped
from cgfedrec.privacy.discrete import WIDEST, of_each
from cgfedrec.random import Stream, keys, mark
from cgfedrec.wire.bounds import LARGEST, Bounds
from cgfedrec.wire.messages import NotFiniteError, Upload
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Step

FINE = 10
"""One client's noise has a standard deviation of 2^10 to 2^11 of the whole numbers that travel: rounding hides in it,
and sums of discrete noise are as good as a Gaussian."""


@dataclass(frozen=True)
class Among:
    """What noise follows from, beside the settings.

    Args:
        clients: How many there are.
        participants: How many take part in a round.
        turns: In how many of the planned rounds one client takes part at most.
        mark: Of the run and its data: what clients draw noise of.
    """

    clients: int
    participants: int
    turns: int
    mark: bytes = b""


class Noised(Step):
    """Clips what each client has changed, and hides it in noise. It is the first step.

    What is promised is differential privacy of a client's whole history against its taking part with no change. A table
    of which nothing is known beforehand is clipped as a whole.

    Args:
        norm: The largest L2 norm of a client's change, over all numbers of its upload together.
        epsilon: What all rounds together may spend; ``null`` for no end, with ``noise``.
        delta: At which epsilon is told; by default clients^-1.1.
        noise: Standard deviation of a round's noise, in units of the norm. By default what lets epsilon last for
            loop.rounds.
        local: Whether each client's upload has all of the noise, so that it hides the client from the server too.
        largest: The largest magnitude of a known number; what is beyond is clipped to it, for all alike.

    Raises:
        InputError: for settings out of range, and where some are missing.
    """

    before_sums = True

    def __init__(
        self,
        norm: float | None = None,
        epsilon: float | None = None,
        delta: float | None = None,
        noise: float | None = None,
        local: bool = False,
        largest: float = 16.0,
    ) -> None:
        unbounded = aimless = None
        if norm is None:
            unbounded = "wire.steps: Noised.norm: how much noise epsilon needs follows from a bound; give one"
        if epsilon is None and noise is None:
            aimless = "wire.steps: Noised: give epsilon, or noise, or both"
        check(
            unbounded,
            aimless,
            not_positive("wire.steps: Noised.norm", norm, 1e6, or_none=True),
            not_positive("wire.steps: Noised.epsilon", epsilon, 1000, or_none=True),
            not_positive("wire.steps: Noised.delta", delta, 0.5, or_none=True),
            not_positive("wire.steps: Noised.noise", noise, 1e6, or_none=True),
            not_positive("wire.steps: Noised.largest", largest, 2.0**20),
        )
        assert norm is not None
        self.norm, self.epsilon, self.delta, self.local, self.largest = norm, epsilon, delta, local, largest
        self.sums_only = not local
        self._noise, self._among = noise, Among(0, 0, 0)

    def among(self, among: Among) -> Noised:
        """The same step in a federation. Before that it knows not how much noise a client adds, and does nothing.

        Raises:
            InputError: where so few clients make delta no privacy.
        """
        settled = copy.copy(self)
        settled._among = among
        no_privacy = None
        if settled.at > MOST_DELTA:
            no_privacy = (
                f"wire.steps: Noised.delta: {settled.at:.2g}, with {among.clients} clients, is no privacy; at most "
                f"{MOST_DELTA}"
            )
        check(no_privacy)
        return settled

    @property
    def at(self) -> float:
        """The delta at which epsilon is told."""
        return self.delta if self.delta is not None else float(self._among.clients**-1.1)

    @property
    def given(self) -> bool:
        """Whether a round's noise was given, and does not follow from epsilon and ``loop.rounds``."""
        return self._noise is not None

    @property
    def noise(self) -> float:
        """Standard deviation of a round's noise, in units of the norm: of the sum's, or of an upload's."""
        if self._noise is not None:
            return self._noise
        assert self.epsilon is not None
        return math.sqrt(self._among.turns / (2 * rho_within(self.epsilon, self.at)))

    @property
    def sigma(self) -> float:
        """Standard deviation of one client's noise, in its own units."""
        shares = 1 if self.local else self._among.participants
        return self.noise * self.norm / math.sqrt(shares)

    @property
    def parts(self) -> float:
        """A number of 1 travels as so many whole ones: a power of two."""
        return 2.0 ** (FINE - math.floor(math.log2(self.sigma)))

    @property
    def most(self) -> int:
        """How large a whole number of one client can be."""
        return int((self.largest + self.norm + WIDEST * self.sigma) * self.parts) + 3

    def price(self, numbers: int) -> float:
        """The rho of zCDP that a round spends of a client who takes part, with so many numbers in an upload."""
        shares = 1 if self.local else self._among.participants
        return rho_of_sum(self.norm * self.parts, self.sigma * self.parts, shares, numbers)

    def told(self, numbers: int) -> str:
        """What is worth knowing before a run with so many numbers in an upload."""
        among = self._among
        of_sum = self.noise * math.sqrt(numbers)
        if self.local:
            of_sum *= math.sqrt(among.participants)
        told = (
            f"privacy: a client's change is clipped at norm {self.norm:g}; in the sum over {among.participants:,} "
            f"clients noise has a norm of {of_sum:,.0f} times that, and what clients change at most "
            f"{among.participants:,} times"
        )
        if of_sum > among.participants:
            told = f"warning: {told}: noise swamps it"
        return told

    def problems(self, fields: Mapping[str, Field], clients: int) -> Iterator[str]:
        if not self._among.clients:
            yield "wire.steps: Noised works in a simulation, and not over a network as yet"
            return
        if not fields:
            yield "wire.steps: Noised: nothing is sent up that needs noise"
        for name, field in fields.items():
            if why := _no_noise(field):
                yield f"wire.steps: Noised cannot hide {name!r}: {why}"
        if self.most * self._among.participants > LARGEST:
            yield (
                f"wire.steps: Noised: a sum of {self._among.participants:,} clients' numbers up to {self.most:,} does "
                f"not fit into {LARGEST.bit_length() - 1} bits; a smaller Noised.largest would help, or more noise"
            )

    def fields(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
        if not self._among.clients or any(map(_no_noise, fields.values())):
            return fields  # which is refused
        # Of the sum, for which whole numbers without a step behind must have room too.
        most = torch.tensor(min(self.most * self._among.participants, LARGEST))
        return {
            name: Field(field.shape, torch.int64, bounds=Bounds(most.expand(field.shape), signed=True))
            for name, field in fields.items()
        }

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        """As of any step.

        Raises:
            NotFiniteError: for numbers that are not finite, which have no norm.
            RunError: for an upload of something else than at the start, and for known values of another shape.
        """
        fields, known = upload.fields, upload.public()
        for name, field in fields.items():
            if why := _no_noise(field):
                raise RunError(f"wire.steps: Noised cannot hide {name!r}: {why}")
        bases: dict[str, Tensor] = {}
        changes: list[Tensor] = []
        for name, value in upload.values.items():
            bases[name] = self._whole(name, known.get(name), fields[name])
            change = value.detach().cpu().double() - bases[name] / self.parts
            changes.append(change.flatten(1))
        change = torch.cat(changes, 1)  # [clients, numbers]
        finite = change.isfinite().all(1)
        if not finite.all():
            raise NotFiniteError("upload", upload.clients[~finite.to(upload.clients.device)].tolist())
        whole = (clipped(change, self.norm) * self.parts).trunc().long()
        # Where anything else was asked of clients, or of others, noise is other noise: it would cancel in a difference.
        asked = mark(self._among.mark, self.sigma.hex(), *(base.numpy().tobytes() for base in bases.values()))
        own_keys = keys(seed, Stream.UPLOADS, upload.clients.cpu().numpy(), round, of=asked)
        whole += torch.from_numpy(of_each(self.sigma * self.parts, own_keys, whole.shape[1]))
        values: dict[str, Tensor] = {}
        sizes = [one.shape[1] for one in changes]
        for (name, field), own in zip(fields.items(), whole.split(sizes, 1), strict=True):
            values[name] = own.reshape(-1, *field.shape) + bases[name]
        return Upload.of_fields(upload.clients, values, self.fields(fields))

    def _whole(self, name: str, known: Tensor | None, field: Field) -> Tensor:
        """What everybody knows of a value, `[...]`, int64; zeros where that is nothing."""
        if known is None:
            return torch.zeros(field.shape, dtype=torch.int64)
        if tuple(known.shape) != field.shape:  # without it all of the value would be clipped, and not its change
            raise RunError(
                f"wire.steps: Noised: {name!r} is sent in the shape {list(field.shape)}, and Client.public says that "
                f"everybody knows {list(known.shape)} of it"
            )
        within = known.detach().cpu().double().clamp(-self.largest, self.largest)
        return (within * self.parts).round().long()

    def reverse(self, upload: Upload, round: int) -> Upload:
        values = {name: (value.double() / self.parts).float() for name, value in upload.values.items()}
        return Upload.of_fields(
            upload.clients, values, {name: Field(field.shape) for name, field in upload.fields.items()}
        )

    def opened(self, total: Sum, fields: Mapping[str, Field]) -> Sum:
        """As of any step.

        Raises:
            RunError: for a sum in which a part of the noise is missing.
        """
        if not self.local and total.clients < self._among.participants:
            raise RunError(
                f"{total.clients} of {self._among.participants} clients have sent something, and the noise of the "
                "others is missing: the sum is not opened, which would spend more than wire.steps: Noised allows"
            )
        values = {name: value.double() / self.parts for name, value in total.values.items()}
        return Sum(values, total.clients, total.told)


def _no_noise(field: Field) -> str | None:
    """Why such a field cannot be hidden, if that is so."""
    if field.sparse:
        return "only some of its rows travel, and which ones they are says what a client has"
    if not field.dtype.is_floating_point:
        return "these are whole numbers, which would travel as they are"
    return None
