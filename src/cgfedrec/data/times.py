"""Times of interactions: numbers of any unit, dates with and without a zone, in text and in typed columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cgfedrec.data.ids import EXACT, beyond_exact

_NANOSECONDS = r"\.\d{7,}"
"""A fraction of a second that microseconds cannot hold."""
_UNITS = ((1e11, 10**9), (1e14, 10**6), (1e17, 10**3))
"""What numbers count since 1970: seconds if all are below the first bound, milliseconds if all are below the second,
microseconds below the third, else nanoseconds. With each bound, how many nanoseconds the unit has.
"""
SECONDS_IN_A_DAY = 86_400
NANOSECONDS_IN_A_DAY = SECONDS_IN_A_DAY * 10**9


def as_times(times: pl.Series) -> pl.Series:
    """Times as numbers whose order is right: int64, or float64 where some have fractions; null where there is none.

    Numbers stay as they are, whatever they count. Dates become the time since 1970; without a zone they are in UTC. If
    a column of text holds both, the numbers are taken for seconds, milliseconds, microseconds or nanoseconds since
    1970, by their size.

    Raises:
        ValueError: for types that are no times, and where different times would become one.
    """
    kind = times.dtype
    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Binary, pl.Null) or kind.is_decimal():
        return _of_text(times.cast(pl.String, strict=False))
    if kind.is_integer():
        return times.cast(pl.Int64, strict=False)
    if kind.is_float():
        finite = times.set(~times.is_finite(), None)
        if problem := beyond_exact(finite):
            raise ValueError(problem)
        return finite.cast(pl.Float64)
    if kind == pl.Date:  # not in days: numbers are told apart by their size
        times = times.cast(pl.Datetime("us"))
    if kind in (pl.Datetime, pl.Date, pl.Duration):
        return times.to_physical().cast(pl.Int64, strict=False)  # in the column's own unit: nothing is rounded
    raise ValueError(f"is of type {kind}, expected numbers, dates or text")


def _of_text(times: pl.Series) -> pl.Series:
    """Whole numbers, then numbers with fractions, then dates: each step reads what the steps before left."""
    text = times.str.strip_chars()
    whole = _fill(text.cast(pl.Int64, strict=False), text, _without_zeros)
    left = text.set(whole.is_not_null(), None)
    if left.null_count() == len(left):
        return whole
    fractions = left.cast(pl.Float64, strict=False)
    fractions = fractions.set(~fractions.is_finite(), None)
    left = left.set(fractions.is_not_null(), None)
    unit = None  # of the numbers, if there are some: the nanoseconds in one
    if whole.is_not_null().any() or fractions.is_not_null().any():
        unit = _unit_of(whole, fractions)
    # Microseconds by default: nanoseconds since 1970 end in the year 2262.
    fine = unit == 1 or bool(left.str.contains(_NANOSECONDS).any())
    dates = _dates(left, "ns" if fine else "us")
    if not dates.is_not_null().any():
        if fractions.is_not_null().any():
            return _as_floats(text, whole, fractions)
        return whole
    if unit is None:
        return dates
    scale = unit  # from the numbers' unit to that of the dates
    if not fine:
        scale = unit // 1000
    in_unit = pl.coalesce(whole * scale, (fractions * scale).round().cast(pl.Int64, strict=False), dates)
    return pl.select(in_unit).to_series().alias(times.name)


def _fill(found: pl.Series, text: pl.Series, read: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """What was found, and where nothing was found, what ``read`` makes of the text; it is slow, and reads no more."""
    gaps = (found.is_null() & text.is_not_null()).arg_true()
    if not len(gaps):
        return found
    return found.scatter(gaps, read(text.gather(gaps)))


def _without_zeros(text: pl.Series) -> pl.Series:
    """Whole numbers that are written as floats, digit for digit: ``978300002.0``."""
    return text.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)


def _unit_of(whole: pl.Series, fractions: pl.Series) -> int:
    """How many nanoseconds one of these numbers counts, if they count the time since 1970."""
    largest = max(float(series.cast(pl.Float64).abs().max() or 0) for series in (whole, fractions))  # type: ignore[arg-type]
    return nanoseconds(largest)


def nanoseconds(largest: float) -> int:
    """How many nanoseconds the unit has in which numbers up to ``largest`` count the time since 1970, by their size."""
    return next((unit for bound, unit in _UNITS if largest < bound), 1)


def of_coarser_unit(times: NDArray[Any]) -> NDArray[np.bool_]:
    """Which times, `[interactions]`, seem to count a coarser unit than the largest does: seconds beside milliseconds.

    By the unit of the largest they would lie within three years of 1970, by the coarser one after 1973.

    >>> of_coarser_unit(np.array([978300760, 978300760000]))
    array([ True, False])
    """
    unit = nanoseconds(float(np.abs(times).max(initial=0)))
    lowest = next((bound for bound, coarser in _UNITS if coarser == 1000 * unit), 0.0)
    return np.asarray((times >= lowest / 1000) & (times < lowest))


def _as_floats(text: pl.Series, whole: pl.Series, fractions: pl.Series) -> pl.Series:
    """Numbers of which some have a fraction, as floats. Raises `ValueError` if two that differ would become one."""
    floats = pl.select(pl.coalesce(fractions, whole.cast(pl.Float64))).to_series().alias(text.name)
    # As written, without zeros at the end: 1.50 and 1.5 are the same number.
    written = text.set(whole.is_not_null(), None).str.replace(r"(\.\d*?)0+$", "${1}")
    table = pl.DataFrame({"float": floats, "whole": whole, "written": written}).filter(floats.is_not_null())
    far = table.filter(pl.col("whole").abs() >= EXACT)
    both = table.filter(pl.col("written").is_not_null())
    tied = both.group_by("float").agg(pl.col("written").unique()).filter(pl.col("written").list.len() > 1)
    if len(far):
        raise ValueError(f"holds fractions beside numbers beyond 2^53, such as {far['whole'][0]}; write whole numbers")
    if len(tied):
        one, other = tied["written"][0].sort()[:2]
        raise ValueError(f"holds {one} and {other}, which are the same float; write whole numbers of a smaller unit")
    return floats


def _dates(text: pl.Series, unit: str) -> pl.Series:
    """ISO dates, as numbers of ``unit`` since 1970."""

    def parsed(text: pl.Series) -> pl.Series:
        layouts = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")
        readings = [text.str.to_datetime(layout, strict=False, time_unit=unit) for layout in layouts]  # type: ignore[arg-type]
        zoned = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", strict=False, time_unit=unit)  # type: ignore[arg-type]
        day = text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime(unit))  # type: ignore[arg-type]
        found = pl.coalesce(zoned.dt.replace_time_zone(None), *readings, day)
        return pl.select(found.cast(pl.Int64)).to_series().alias(text.name)

    return _fill(parsed(text.str.replace(" ", "T", literal=True)), text, lambda rest: parsed(_plainly(rest)))


def _plainly(text: pl.Series) -> pl.Series:
    """Other spellings of ISO dates, as ``2001-01-01T10:00:00+00:00``."""
    return (
        text.str.replace(r"(?i)^(\d{4}-\d\d-\d\d)(?:\s+|T)", "${1}T")
        .str.replace(r"(?i)\s*(?:UTC|GMT|Z)$", "+00:00")
        .str.replace(r"\s+([+-]\d\d(?::?\d\d)?)$", "${1}")
        .str.replace(r"(T.*[+-]\d\d)$", "${1}:00")
        .str.replace(r"T(\d\d:\d\d)($|[+-])", "T${1}:00${2}")
    )
