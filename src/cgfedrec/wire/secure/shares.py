"""Secrets of 32 bytes in shares, of which any so many tell the secret and fewer tell nothing (Shamir).

PyCryptodome shares 16 bytes at a time: a secret is two of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from cgfedrec.wire.secure.neighbours import SECRET

try:
    from Crypto.Protocol.SecretSharing import Shamir
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("shares need pycryptodome: pip install cgfedrec[secure]", name="Crypto") from error

HALF = SECRET // 2


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """A share of 32 bytes for each holder.

    Args:
        secret: 32 bytes.
        threshold: How many of the shares tell it.
        holders: How many shares there are.
    """
    halves = (Shamir.split(threshold, holders, part, ssss=False) for part in (secret[:HALF], secret[HALF:]))
    return [one + other for (_, one), (_, other) in zip(*halves, strict=True)]


def joined(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret.

    Args:
        shares: By the place of their holder, from 0.
        threshold: How many tell it.

    Raises:
        ValueError: where there are fewer, or one is no share.
    """
    if len(shares) < threshold or any(len(share) != SECRET for share in shares.values()):
        raise ValueError(f"{len(shares)} shares of a secret have come, and {threshold} of {SECRET} bytes tell it")
    few = sorted(shares.items())[:threshold]
    halves = ([(place + 1, share[part]) for place, share in few] for part in (slice(0, HALF), slice(HALF, SECRET)))
    return b"".join(Shamir.combine(half, ssss=False) for half in halves)
