"""Lists of ids: Golomb-Rice coded gaps, or each id as it is."""

from __future__ import annotations

import numpy as np
import torch

from cgfedrec.wire import bits
from cgfedrec.wire.bits import Bits, Integers
from cgfedrec.wire.kind import Kind
from cgfedrec.wire.values import Field, IdLayout, IdLists

_CHOICE = 2
"""Bits of the choice of a row's k."""
_LOWEST = -2
"""The lowest choice: so much is added to the k that suits ids that lie evenly."""


class IdKind(Kind[IdLists]):
    """Id lists `[rows, most]`. Their header has the axes (rows, most, high, bytes), where so many ``bytes`` follow.

    A gap is the difference to the id before (to -1 at first) less one. The k lowest bits of a gap travel as they are,
    and the rest, a number q, as q zeros and a one. The k that suits ids that lie evenly follows from ``high`` and the
    row's size. Each row that is not empty has that k, one more, or one or two less, whatever makes it shortest.

    One after another, without padding, follow: the choice of each row that is not empty, 2 bits; the lowest bits of all
    gaps; and all that is written in zeros and ones. So the place of everything is known before it is read, and all rows
    are read at once. Zeros fill the last byte.

    Candidates of items numbered by falling popularity take 5.9 bits an id on ML-100K (plain: 11), 5.6 on FilmTrust (10)
    and 8.0 on LastFM (13): benchmarks/NOTES.md has these figures, and those of other ways to choose k.
    """

    too_many = "says that it is longer than such lists can be"

    def code(self, field: Field) -> int:
        if _layout(field).coding == "rice":
            return 252
        return 251

    def axes(self, field: Field) -> tuple[int, ...]:
        return (*field.shape, _layout(field).high)

    def most(self, field: Field) -> int:
        layout = _layout(field)
        sizes = _sizes(layout)
        if layout.coding == "plain":
            return (int(sizes.sum()) * field.bits + 7) // 8
        # Whatever the ids, no row is longer than with the k for ids that lie evenly, which is among the choices.
        even = _even(layout.high, sizes)
        longest = _CHOICE + sizes * (1 + even) + ((layout.high - sizes) >> even)
        return (int(longest[sizes > 0].sum()) + 7) // 8

    def encode(self, value: IdLists, field: Field) -> tuple[bytes, int]:
        layout = _layout(field)
        ids = _entries(value)
        if layout.coding == "plain":
            payload = bits.to_bytes(bits.of_width(ids, field.bits))
        else:
            payload = bits.to_bytes(_rice(_gaps(ids, _sizes(layout)), _sizes(layout), layout.high))
        return payload, len(payload)

    def size(self, field: Field, count: int) -> int:
        return count

    def decode(self, payload: bytes, field: Field, count: int) -> IdLists:
        layout = _layout(field)
        sizes = _sizes(layout)
        if layout.coding == "plain":
            entries = int(sizes.sum())
            if count != self.most(field):
                raise ValueError(f"its ids take {self.most(field)} bytes, not {count}")
            ids = bits.read_width(bits.split(payload, entries * field.bits), field.bits, entries)
        else:
            ids = _ids(_read_rice(payload, sizes, layout.high), sizes)
        problem = _problem(ids, sizes, layout.high)
        if problem is not None:
            raise ValueError(problem)
        lists = np.full(field.shape, -1, np.int64)
        lists[_inside(sizes, field.shape[1])] = ids
        return IdLists(torch.from_numpy(lists), layout.sizes, layout.high, layout.coding)


def _layout(field: Field) -> IdLayout:
    assert isinstance(field.lists, IdLayout)
    return field.lists


def _sizes(layout: IdLayout) -> Integers:
    return np.asarray(layout.sizes.cpu().numpy())


def _inside(sizes: Integers, most: int) -> np.ndarray:
    """`[rows, most]`, bool: where a list has an entry."""
    return np.asarray(np.arange(most) < sizes[:, None])


def _entries(value: IdLists) -> Integers:
    """The ids of all rows one after another, `[entries]`, checked."""
    if value.ids.dtype != torch.int64:
        raise ValueError(f"its ids are of {value.ids.dtype}, not int64")
    lists, sizes = value.ids.cpu().numpy(), value.sizes.cpu().numpy()
    inside = _inside(sizes, lists.shape[1])
    ids = np.asarray(lists[inside])
    problem = _problem(ids, sizes, value.high)
    if problem is None and (lists[~inside] != -1).any():
        problem = "something else than -1 stands beyond the sizes of its lists"
    if problem is not None:
        raise ValueError(problem)
    return ids


def _problem(ids: Integers, sizes: Integers, high: int) -> str | None:
    """Why these ids `[entries]` are not those of lists, if they are not."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < high:
        return f"its ids lie between {ids.min()} and {ids.max()}, not between 0 and {high - 1}"
    if (_gaps(ids, sizes) < 0).any():
        return "the ids of a list do not ascend"
    return None


def _gaps(ids: Integers, sizes: Integers) -> Integers:
    """How many ids are left out before each one, `[entries]`."""
    before = np.empty_like(ids)
    before[1:] = ids[:-1]
    before[_starts(sizes)] = -1
    return ids - before - 1


def _ids(gaps: Integers, sizes: Integers) -> Integers:
    """The inverse of `_gaps`, `[entries]`."""
    steps = (gaps + 1).cumsum()
    before = np.zeros(1 + len(steps), np.int64)  # what all lists before have come to; then each begins at -1
    before[1:] = steps
    filled = sizes[sizes > 0]
    return np.asarray(steps - before[_starts(sizes)].repeat(filled) - 1)


def _starts(sizes: Integers) -> Integers:
    """Where each list that is not empty begins among all entries, `[lists]`."""
    filled = sizes[sizes > 0]
    return np.asarray(filled.cumsum() - filled)


def _even(high: int, sizes: Integers) -> Integers:
    """The k that suits lists whose ids lie evenly, `[rows]`: log2 of the mean gap times ln 2, rounded down.

    In whole numbers, ln 2 being about 9/13: both ends must come to the same.
    """
    middle = 9 * (high - sizes) // (13 * (sizes + 1))
    _, length = np.frexp(middle.astype(np.float64))  # in bits
    return np.maximum(0, np.asarray(length, np.int64) - 1)


def _chosen(high: int, sizes: Integers, choices: Integers) -> Integers:
    """The k of each list that is not empty, from its choice; both `[lists]`."""
    return np.asarray(np.maximum(0, _even(high, sizes[sizes > 0]) + _LOWEST + choices))


def _best(gaps: Integers, sizes: Integers, high: int) -> Integers:
    """The choice with which each list that is not empty is shortest, `[lists]`."""
    filled, starts = sizes[sizes > 0], _starts(sizes)
    lengths = []
    for choice in range(1 << _CHOICE):
        k = _chosen(high, sizes, np.full(len(filled), choice))
        lengths.append(filled * k + np.add.reduceat(gaps >> k.repeat(filled), starts))
    return np.asarray(np.argmin(lengths, axis=0))


def _rice(gaps: Integers, sizes: Integers, high: int) -> Bits:
    """All gaps `[entries]` as bits."""
    if not len(gaps):
        return np.empty(0, np.uint8)
    choices = _best(gaps, sizes, high)
    k = _chosen(high, sizes, choices).repeat(sizes[sizes > 0])  # [entries]
    ends = ((gaps >> k) + 1).cumsum()
    zeros_and_ones = np.zeros(int(ends[-1]), np.uint8)
    zeros_and_ones[ends - 1] = 1
    return np.concatenate((bits.of_width(choices, _CHOICE), bits.of_widths(gaps, k), zeros_and_ones))


def _read_rice(payload: bytes, sizes: Integers, high: int) -> Integers:
    """The gaps of all lists, `[entries]`."""
    data = bits.from_bytes(payload)
    filled = sizes[sizes > 0]
    first = len(filled) * _CHOICE
    if len(data) < first:
        raise ValueError("it is cut off")
    of_lists = _chosen(high, sizes, bits.read_width(data[:first], _CHOICE, len(filled)))
    second = first + int((of_lists * filled).sum())
    ones = np.flatnonzero(data[second:])  # [entries]
    if len(ones) != filled.sum():
        raise ValueError(f"it holds {len(ones)} ids, not {filled.sum()}")
    used = second
    if len(ones):
        used += int(ones[-1]) + 1
    if len(payload) != (used + 7) // 8:
        raise ValueError("it goes on after its last id")
    k = of_lists.repeat(filled)  # [entries]
    zeros = np.diff(ones, prepend=-1) - 1
    if (zeros > (high - 1) >> k).any():
        raise ValueError(f"a gap is longer than {high} ids")
    return (zeros << k) | bits.read_widths(data[first:second], k)
