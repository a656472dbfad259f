"""A method: the client and the server that belong together."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cgfedrec.client import Client
from cgfedrec.server import Server

MOST_DIM = 2**16
"""Numbers in an embedding, or in a layer of a network."""
MOST_EPOCHS = 10_000
"""Passes over a client's samples in one round; all their batches are drawn before."""


class Recommender:
    """What ``--method`` names: a federated `Method`, or a centralised reference."""


class Method(Recommender, ABC):
    """A published method, its hyperparameters as init arguments: builds its client and its server.

    Args:
        local_epochs: Passes over a participant's own samples in each round.
    """

    def __init__(self, local_epochs: int) -> None:
        self.local_epochs = local_epochs

    @abstractmethod
    def client(self, num_items: int, seed: int) -> Client:
        """The cohort module. Raises `InputError` for settings that cannot work with this many items."""

    @abstractmethod
    def server(self, num_items: int, seed: int) -> Server:
        """The server. Raises `InputError` for settings that cannot work with this many items."""
