"""Whether a state that a store is to take over fits it: a checkpoint may come from anybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cgfedrec.simulation.store.rowfiles import RowFiles


def check_state(
    state: Mapping[str, Any],
    num_users: int,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    files: RowFiles,
) -> None:
    """Make sure that a state holds rows for clients that exist, or refers to slots that exist.

    There are two kinds of state. Both list the ``users`` who have a row. A store in memory adds the ``rows``
    themselves, in the same order. A store on disk adds the ``slots`` in which the rows lie, the checksums of the rows
    (``sums``), and the slots that each checkpoint needs (``pins``).

    Args:
        state: To be taken over.
        num_users: Of the store.
        shapes: The shape of one row of each private tensor.
        dtypes: The type in which each tensor is kept.
        files: Of the store: a state may refer to them.

    Raises:
        FileNotFoundError: if it refers to files that are not there.
        ValueError: if anything else is wrong with it.
    """
    users = state["users"]
    _check_numbers("users", users, (-1,), num_users)
    if len(users.unique()) != len(users):
        raise ValueError("the clients' state names a user twice")
    if "rows" in state:
        _check_rows(state["rows"], len(users), shapes, dtypes)
        return
    # A store that nobody has trained with has no files yet.
    slots = 0
    if len(users):
        slots = files.size()
    _check_numbers("slots", state["slots"], (len(users),), slots)
    _check_numbers("sums", state["sums"], (len(users), len(shapes)))
    for name, pinned in dict(state["pins"]).items():
        _check_numbers(f"pins.{name}", pinned, (-1,), slots)
    if len(state["slots"].unique()) != len(users):
        raise ValueError("the clients' state gives two users one slot")


def _check_rows(
    rows: Mapping[str, Any],
    number: int,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    if set(rows) != set(shapes):
        raise ValueError(f"the clients' state holds {sorted(rows)} where {sorted(shapes)} are expected")
    for name, value in rows.items():
        shape, kept = (number, *shapes[name]), dtypes[name]
        # Floats may be of another width: a run can go on with another loop.state_dtype.
        alike = isinstance(value, Tensor) and (value.dtype == kept or kept.is_floating_point)
        if not alike or value.shape != shape or value.is_floating_point() != kept.is_floating_point:
            raise ValueError(f"the clients' {name} is not {list(shape)} numbers of {kept}")


def _check_numbers(name: str, value: Any, shape: tuple[int, ...], below: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is whole numbers of a shape, -1 for any length, in [0, below)."""
    fits = isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == len(shape)
    if not fits or any(wanted not in (-1, found) for wanted, found in zip(shape, value.shape, strict=True)):
        raise ValueError(f"the clients' {name} are not {list(shape)} whole numbers")
    if below is not None and len(value) and not 0 <= int(value.min()) <= int(value.max()) < below:
        raise ValueError(f"the clients' {name} are not all in [0, {below})")
