"""A method: the client and the server that belong together, and the settings of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cgfedrec.client import Client
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import check, no_count
from cgfedrec.server import Server

MOST_DIM = 2**16
"""Numbers in an embedding, or in a layer of a network."""
MOST_EPOCHS = 10_000
"""Passes over a client's samples in one round. The batches of all of them are drawn before the first."""


class Recommender:
    """What ``--method`` names: a federated `Method`, or a centralised reference.

    Either is a dataclass. Its fields are its settings, and the text below a field is the help of the option. A subclass
    gives a setting another default by declaring the field again; without a text of its own it keeps the help.
    """

    def __post_init__(self) -> None:
        """Check the settings. Raises `InputError` with everything that is wrong with them."""
        check(*self.problems())

    def problems(self) -> Iterator[str | None]:
        """What is wrong with the settings; ``None`` for each check that found nothing.

        A subclass yields what is wrong with its own settings, then those of ``super().problems()``.
        """
        yield from ()

    def check(self, data: FederatedDataModule) -> None:
        """Raise `InputError` for settings that do not fit the data, before anything is written."""

    @property
    def alternatives(self) -> Sequence[Mapping[str, Any]]:
        """Settings to choose among that each take a training of their own, as they override these here, by name.

        Earlier cuts of a rolling evaluation choose one; anything else takes the first. By default there is one, which
        overrides nothing.
        """
        return ({},)

    @property
    def readings(self) -> Mapping[str, Mapping[str, Any]]:
        """Ways to read what one training has found, by a name of a word or two: each as the settings that fix it.

        Validation chooses one. Where nothing is held out for that, it is the first. By default there is one, which
        fixes nothing.
        """
        return {"default": {}}


@dataclass(frozen=True, kw_only=True)
class Method(Recommender, ABC):
    """A published method: builds its client and its server, which read its settings."""

    local_epochs: int
    """Passes over a participant's own samples in each round."""

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.local_epochs", self.local_epochs, most=MOST_EPOCHS)
        yield from super().problems()

    @abstractmethod
    def client(self, num_items: int, seed: int) -> Client:
        """The cohort module. Raises `InputError` for settings that cannot work with this many items."""

    @abstractmethod
    def server(self, num_items: int, seed: int) -> Server:
        """The server. Raises `InputError` for settings that cannot work with this many items."""
