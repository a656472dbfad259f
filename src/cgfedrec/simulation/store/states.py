"""Whether a state that a store is to take over fits it: a checkpoint may come from anybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cgfedrec.simulation.store.blocks import FileBlocks
from cgfedrec.simulation.store.layout import Layout


def check_state(state: Mapping[str, Any], num_users: int, layout: Layout, files: FileBlocks) -> None:
    """Make sure that a state tells of clients that exist, and of blocks that exist.

    A state lists the ``users`` who have a record, `[records]`, and of each: the base of each table (``bases``,
    `[records, tables]`, -1 where it is whole), how many rows of it stand in the record (``numbers``, likewise), a
    checksum (``sums``, `[records]`), and its ``blocks``, one record after another, `[blocks]`. Of each base it tells of
    which table it is (``base_tables``, `[bases]`), its checksum (``base_sums``) and its blocks (``base_blocks``).

    There are two kinds of state. That of a store in memory holds all blocks, in ``pieces``, `[blocks, block]` each.
    That of a store on disk holds what each other checkpoint needs of the file (``pins``, `[blocks]` each).

    Args:
        state: To be taken over.
        num_users: Of the store.
        layout: Of its records.
        files: Of the store: a state may refer to them.

    Raises:
        FileNotFoundError: if it refers to a file that is not there.
        ValueError: if anything else is wrong with it.
    """
    users, tables = state["users"], len(layout.tables)
    _check_numbers("users", users, (-1,), num_users)
    if len(users.unique()) != len(users):
        raise ValueError("the clients' state names a user twice")
    _check_numbers("base_tables", state["base_tables"], (-1,), tables)
    shared = len(state["base_tables"])
    _check_numbers("base_sums", state["base_sums"], (shared,))
    _check_numbers("sums", state["sums"], (len(users),))
    bases, numbers = state["bases"], state["numbers"]
    _check_numbers("bases", bases, (len(users), tables), shared, least=-1)
    _check_numbers("numbers", numbers, (len(users), tables))
    whole = bases < 0
    if not torch.where(whole, numbers == layout.items, (numbers >= 0) & (numbers <= layout.items)).all():
        raise ValueError("the clients' numbers of rows are not those of their tables")
    of_table = torch.cat((state["base_tables"], torch.tensor([-1])))[bases]
    if not (whole | (of_table == torch.arange(tables))).all():
        raise ValueError("the clients' bases are of other tables")

    if "pieces" in state:
        size = _size_of(state["pieces"], layout)
    else:
        size = 0
        # A store that nobody has trained with has no file yet.
        if len(users):
            size = files.size()
        for name, pinned in dict(state["pins"]).items():
            _check_numbers(f"pins.{name}", pinned, (-1,), size)
    _check_numbers("blocks", state["blocks"], (int(layout.lengths(~whole, numbers).sum()),), size)
    of_bases = sum(layout.base_length(table) for table in state["base_tables"].tolist())
    _check_numbers("base_blocks", state["base_blocks"], (of_bases,), size)
    everything = torch.cat((state["blocks"], state["base_blocks"]))
    if len(everything.unique()) != len(everything):
        raise ValueError("the clients' state gives two records one block")


def some_of(state: Mapping[str, Any], whose: Tensor, layout: Layout) -> dict[str, Any]:
    """What a checked state has of some users.

    Args:
        state: Of any kind of store.
        whose: `[users]`, bool: of whom.
        layout: Of its records.
    """
    ours = whose[state["users"]]
    lengths = layout.lengths(state["bases"] >= 0, state["numbers"])
    some = dict(state) | {name: state[name][ours] for name in ("users", "numbers", "sums")}
    some["blocks"] = state["blocks"][ours.repeat_interleave(lengths)]
    # Bases that they need, numbered anew; the last place is for -1.
    needed = torch.zeros(len(state["base_sums"]) + 1, dtype=torch.bool)
    needed[state["bases"][ours]] = True
    needed = needed[:-1]
    place = torch.full((len(needed) + 1,), -1)
    place[:-1][needed] = torch.arange(int(needed.sum()))
    of_bases = torch.tensor([layout.base_length(table) for table in state["base_tables"].tolist()]).long()
    return some | {
        "bases": place[state["bases"][ours]],
        "base_tables": state["base_tables"][needed],
        "base_sums": state["base_sums"][needed],
        "base_blocks": state["base_blocks"][needed.repeat_interleave(of_bases)],
    }


def _size_of(pieces: Any, layout: Layout) -> int:
    """How many blocks pieces of memory hold. Raises ``ValueError`` if they are no such pieces."""
    for piece in list(pieces):
        fits = isinstance(piece, Tensor) and piece.dtype == torch.uint8 and piece.ndim == 2
        if not fits or piece.shape[1] != layout.block:
            raise ValueError(f"the clients' pieces are not blocks of {layout.block} bytes")
    return sum(len(piece) for piece in pieces)


def _check_numbers(name: str, value: Any, shape: tuple[int, ...], below: int | None = None, least: int = 0) -> None:
    """Raise ``ValueError`` unless ``value`` is whole numbers of a shape, -1 for any length, in [least, below)."""
    fits = isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == len(shape)
    if not fits or any(wanted not in (-1, found) for wanted, found in zip(shape, value.shape, strict=True)):
        raise ValueError(f"the clients' {name} are not {list(shape)} whole numbers")
    if below is not None and value.numel() and not least <= int(value.min()) <= int(value.max()) < below:
        raise ValueError(f"the clients' {name} are not all in [{least}, {below})")
