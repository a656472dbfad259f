"""Numbers of bytes and lengths of time as people write them."""

from __future__ import annotations


def nbytes(number: float, digits: int = 1, binary: bool = False) -> str:
    """A number of bytes, with a unit that keeps it short.

    >>> nbytes(999), nbytes(1_262), nbytes(5_300_000, 0)
    ('999 B', '1.3 kB', '5 MB')
    >>> nbytes(300 * 2**20, binary=True), nbytes(2.5 * 2**30, binary=True)
    ('300 MiB', '2.5 GiB')

    Args:
        number: Of bytes.
        digits: Decimals; the smallest unit has none.
        binary: In powers of 1,024, from MiB up, as memory and disks of state are told; else in powers of 1,000, as
            what is sent over a network is. Less than one MiB is told as one.
    """
    base, units = 1000, ["B", "kB", "MB", "GB", "TB"]
    if binary:
        base, units = 1024, ["MiB", "GiB", "TiB"]
        number = max(number / 2**20, float(number > 0))
    place = 0
    while number >= base and place + 1 < len(units):
        number, place = number / base, place + 1
    return f"{number:,.{digits if place else 0}f} {units[place]}"


def duration(seconds: float) -> str:
    """A length of time with the unit that keeps it short, and no more digits than count.

    >>> duration(0.0423), duration(42), duration(600), duration(9000)
    ('0.042 s', '42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
