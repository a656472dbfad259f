"""What lies on a node: its folder, and the data of the clients who live there."""

from __future__ import annotations

import secrets
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.data.ids import as_ids
from cgfedrec.data.interactions import Interactions
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.errors import InputError, Notice, check
from cgfedrec.files import digest, write_atomically
from cgfedrec.protocol import Protocol

ITEMS, USERS, SECRET = "items.csv", "users.csv", "secret"
"""The catalogue, which is the same everywhere; the clients' numbers; and the seed of what only this node may know."""
INTERACTIONS = "interactions.*"
"""The interactions of this node's clients."""


class NodeFolder:
    """The files of a node.

    Args:
        path: The folder.

    Raises:
        InputError: naming what is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        named = "flower-supernode is told by --node-config \"folder='...'\" which one is this node's"
        check(None if path.is_dir() else f"{path.absolute()}: there is no such folder on this machine; {named}")
        found = sorted(path.glob(INTERACTIONS))
        check(
            None if (path / ITEMS).is_file() else f"{path / ITEMS}: is missing: the catalogue, a column item",
            None if (path / USERS).is_file() else f"{path / USERS}: is missing: the columns user and number",
            None if len(found) == 1 else f"{path / INTERACTIONS}: {len(found)} files, expected one",
        )
        self.interactions = found[0]

    @property
    def items(self) -> pl.Series:
        """Item ids as texts, `[items]`; the number of an item is its place."""
        return column(self.path / ITEMS, "item")

    @property
    def catalogue(self) -> str:
        """The checksum of the catalogue."""
        return catalogue_of(self.items)

    def numbers(self, clients: int) -> dict[str, int]:
        """The number of each user who lives here.

        Args:
            clients: How many there are everywhere.

        Raises:
            InputError: for numbers that are none, or twice there.
        """
        path = self.path / USERS
        users, numbers = column(path, "user"), column(path, "number").cast(pl.Int64, strict=False)
        if numbers.null_count() or not numbers.is_between(0, clients - 1).all():
            raise InputError(f"{path}: numbers must be whole, from 0 to {clients - 1}")
        if numbers.n_unique() < len(numbers) or users.n_unique() < len(users):
            raise InputError(f"{path}: a user or a number is there twice")
        return dict(zip(users.to_list(), numbers.to_list(), strict=True))

    def secret(self) -> int:
        """The seed of what only this node may know, drawn when it is first asked for."""
        path = self.path / SECRET
        if not path.exists():
            write_atomically(path, f"{secrets.randbits(63)}\n", private=True)
        if path.stat().st_mode & 0o077:
            told = (
                f"{path}: others on this machine can read it, and so take away this node's noise; chmod 600 closes it"
            )
            warnings.warn(told, Notice, stacklevel=2)
        text = path.read_text().strip()
        if not (text.isascii() and text.isdigit() and int(text) < 2**63):
            raise InputError(f"{path}: holds no whole number below 2^63; remove it, and a new one is drawn")
        return int(text)


class NodeData(FederatedDataModule):
    """The data of the clients who live on one node, numbered as everywhere: the others have none.

    Args:
        folder: Of the node.
        like: Arguments as of this data module, which has no data.
        clients: How many there are on all nodes.
    """

    def __init__(self, folder: NodeFolder, like: FederatedDataModule, clients: int) -> None:
        super().__init__(
            str(folder.interactions),
            like.format,
            split=like.split,
            min_interactions=like.min_interactions,
            negatives=like.negatives,
            batch_size=like.batch_size,
        )
        self.folder, self.clients = folder, clients

    @classmethod
    def ready(
        cls, folder: NodeFolder, like: FederatedDataModule, clients: int, protocol: Protocol, run: str
    ) -> NodeData:
        """Set up with the node's own seed; arguments as of the class, and of `attach`."""
        data = cls(folder, like, clients)
        data.attach(protocol, folder.secret(), run=run)
        data.setup()
        return data

    @property
    def here(self) -> NDArray[np.int64]:
        """The numbers of the clients who live here and can take part, ascending, `[clients]`."""
        return np.flatnonzero(self.interactions_per_user())

    def read(self) -> Interactions:
        """What the file holds, with all clients and the whole catalogue, by their numbers everywhere."""
        data, numbers = super().read(), self.folder.numbers(self.clients)
        users = data.user_ids.cast(pl.String).to_list()
        if unknown := [user for user in users if user not in numbers]:
            raise InputError(f"{self.path}: user {unknown[0]} has no number in {self.folder.path / USERS}")
        # As text too: a node may have numbers alone where others have text. Nothing is lost by that, since ids that are
        # not written as numbers are, such as 007, have not become numbers (`as_ids`).
        catalogue, own = self.folder.items, data.item_ids.cast(pl.String).to_list()
        places = {item: place for place, item in enumerate(catalogue.to_list())}
        if unknown := [item for item in own if item not in places]:
            raise InputError(f"{self.path}: item {unknown[0]} is not in {self.folder.path / ITEMS}")
        user = np.array([numbers[one] for one in users], data.users.dtype)
        item = np.array([places[one] for one in own], data.items.dtype)
        return Interactions(
            pl.Series(range(self.clients), dtype=pl.Int64),
            as_ids(catalogue),
            user[data.users],
            item[data.items],
            data.times,
            data.positive,
            dict(data.report),
        )

    def _kept(self, read_in: Interactions, fewest: int) -> tuple[Interactions, NDArray[np.int8]]:
        counts = np.bincount(read_in.users[read_in.positive], minlength=self.clients)
        rows = (counts >= fewest)[read_in.users]
        if not rows.any():
            raise InputError(f"{self.path}: no user has {fewest} interactions or more (min_interactions)")
        times = None if read_in.times is None else read_in.times[rows]
        kept = replace(
            read_in,
            users=read_in.users[rows],
            items=read_in.items[rows],
            times=times,
            positive=read_in.positive[rows],
            order=np.empty(0, np.int32),
        )
        return kept, self._split(kept)


def catalogue_of(items: pl.Series) -> str:
    """The checksum of a catalogue, `[items]`."""
    return digest("\n".join(items.cast(pl.String).to_list()).encode())


def column(path: Path, name: str) -> pl.Series:
    """A column of a file of ours, as texts, `[rows]`. Raises `InputError` for one that is not there or has gaps."""
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if name not in table.columns or table[name].null_count():
        raise InputError(f"{path}: needs a column {name} without gaps")
    return table[name]
