"""Numbers as bits in a row, and back: each number's most significant bit first, and no gaps between numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
"""`[bits]`, each 0 or 1."""
Integers = NDArray[np.int64]


def of_width(values: Integers, width: int) -> Bits:
    """The lowest ``width`` bits of each number `[numbers]`; `[numbers * width]`."""
    bits = np.empty((len(values), width), np.uint8)
    for place in range(width):  # from the most significant one; all numbers at a time, and no wider array than this
        bits[:, place] = (values >> (width - 1 - place)) & 1
    return bits.reshape(-1)


def read_width(bits: Bits, width: int, count: int) -> Integers:
    """The inverse of `of_width`: ``count`` numbers of ``width`` bits, `[count]`."""
    values = np.zeros(count, np.int64)
    for column in bits.reshape(count, width).T:
        values = (values << 1) | column
    return values


def of_widths(values: Integers, widths: Integers) -> Bits:
    """The lowest bits of each number, as many as its own width says; both `[numbers]`. `[sum of widths]`."""
    bits = np.empty(int(widths.sum()), np.uint8)
    starts = widths.cumsum() - widths
    for place in range(int(widths.max(initial=0))):
        wide = np.flatnonzero(widths > place)  # the numbers that have so many bits
        bits[starts[wide] + place] = (values[wide] >> (widths[wide] - 1 - place)) & 1
    return bits


def read_widths(bits: Bits, widths: Integers) -> Integers:
    """The inverse of `of_widths`; a number of width 0 is 0. `[numbers]`."""
    values = np.zeros(len(widths), np.int64)
    starts = widths.cumsum() - widths
    for place in range(int(widths.max(initial=0))):
        wide = np.flatnonzero(widths > place)
        values[wide] = (values[wide] << 1) | bits[starts[wide] + place]
    return values


def to_bytes(bits: Bits) -> bytes:
    """Eight bits to a byte, the first one the most significant, and zeros to fill the last byte. ``bits``: `[bits]`."""
    return np.packbits(bits).tobytes()


def from_bytes(data: bytes) -> Bits:
    """The inverse of `to_bytes`, with what fills the last byte; `[bits]`."""
    return np.unpackbits(np.frombuffer(data, np.uint8))


def split(data: bytes, used: int) -> Bits:
    """The first ``used`` bits, `[used]`, of bytes that hold no others.

    Raises:
        ValueError: where what fills the last byte is not zeros.
    """
    bits = from_bytes(data)
    if bits[used:].any():
        raise ValueError("the bits that fill its last byte are not zeros")
    return bits[:used]
