"""Bits written one after another by hand, to check what packs them all at once."""

from __future__ import annotations


def width_of(values: int) -> int:
    """The bits that tell so many values apart."""
    width = 0
    while 2**width < values:
        width += 1
    return width


def written(number: int, width: int) -> str:
    """A number modulo 2^width, the most significant bit first."""
    digits = ""
    for place in reversed(range(width)):
        digits += str(number // 2**place % 2)
    return digits


def in_bytes(digits: str) -> bytes:
    """Eight to a byte, zeros at the end."""
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8))
