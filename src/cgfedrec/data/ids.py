"""Ids of users and items, of any type."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.data.report import HOLLOW, PADDED

EXACT = 2**53
"""Floats hold every whole number up to here; above it, neighbours become the same float."""

_NONE = ("na", "n/a", "<na>", "null", "none", "nan")
"""What programs write where there is no value, in lower case."""


def as_ids(ids: pl.Series) -> pl.Series:
    """Ids as whole numbers (int64) if nothing is lost by that, else as text; null where there is none.

    Floats and decimals without a fraction count as whole numbers, since that is what many tables make of a column of
    whole numbers in which one is missing. Text is taken as it stands: ``7``, ``007`` and ``7.0`` are three ids.

    Raises:
        ValueError: for types that are no ids, and for floats that cannot tell ids apart.
    """
    kind = ids.dtype
    if kind.is_integer() and kind not in (pl.UInt64, pl.Int128, pl.UInt128):
        return ids.cast(pl.Int64)
    if kind.is_nested() or kind == pl.Object:
        raise ValueError(f"is of type {kind}, expected numbers or text")
    if kind.is_float() or kind.is_decimal():
        return _of_fractions(ids)
    text = ids.cast(pl.String, strict=False)
    text = text.set(text.str.strip_chars() == "", None)
    numbers = text.cast(pl.Int64, strict=False)
    # Only if each text is what its number would be written as: 007 must stay.
    if (numbers.cast(pl.String) == text).all() and numbers.null_count() == text.null_count():
        return numbers
    return text


def doubtful(ids: pl.Series) -> dict[str, int]:
    """How many of some ids, `[ids]`, are unlikely to be meant, by why; they are ids all the same.

    >>> doubtful(pl.Series(["u1", " u1", "NA"]))
    {'ids with blanks at an end': 1, 'ids such as NA, null, None or nan': 1}
    """
    if ids.dtype != pl.String:
        return {}
    bare = ids.str.strip_chars()
    counts = {PADDED: int((bare != ids).sum()), HOLLOW: int(bare.str.to_lowercase().is_in(_NONE).sum())}
    return {what: count for what, count in counts.items() if count}


def places(ids: pl.Series, among: pl.Series) -> NDArray[np.int64]:
    """Where each id stands among others, `[ids]`; -1 for one that is not there. Other types are compared as text.

    >>> places(pl.Series(["7", "x", "9"]), pl.Series([7, 8, 9]))
    array([ 0, -1,  2])
    """
    if ids.dtype != among.dtype:
        ids, among = ids.cast(pl.String), among.cast(pl.String)
    known = pl.DataFrame({"id": among, "place": np.arange(len(among))})
    found = pl.DataFrame({"id": ids}).join(known, "id", "left", maintain_order="left")
    return found["place"].fill_null(-1).to_numpy()


def beyond_exact(numbers: pl.Series) -> str | None:
    """The problem with floats so large that two ids may have become one; ``None`` if there are none."""
    if not numbers.dtype.is_float():
        return None
    far = numbers.filter(numbers.abs() >= EXACT)
    if far.is_empty():
        return None
    return f"holds floats beyond 2^53, such as {far[0]:.0f}, which stand for several whole numbers; write whole ones"


def _of_fractions(ids: pl.Series) -> pl.Series:
    """Ids that are floats or decimals: whole numbers if all are, else text, with ``7`` for 7.0."""
    present = ids
    if ids.dtype.is_float():
        present = ids.set(~ids.is_finite(), None)  # NaN is how pandas spells a missing number
    if problem := beyond_exact(present):
        raise ValueError(problem)
    whole = present.cast(pl.Int64, strict=False)
    same = whole.cast(present.dtype) == present
    if same.all() and whole.null_count() == present.null_count():
        return whole
    either = pl.select(pl.when(same).then(whole.cast(pl.String)).otherwise(present.cast(pl.String)))
    return either.to_series().alias(ids.name)
