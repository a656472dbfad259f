"""Counter-based random numbers: a hash of (seed, stream, counters).

Every draw is a function of who draws, in which round and at which position. So no result depends on the order of the
clients, on the size of a cohort or on where a run was resumed. The mixing function is the finaliser of SplitMix64
(Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """What a random number is for; two uses never share one."""

    START = 1
    NEGATIVES = 2
    SHUFFLE = 3
    CANDIDATES = 4
    PARTICIPANTS = 5
    CLUSTERS = 6
    TIES = 7
    SYNTHETIC = 8
    SPLIT = 9
    PERMUTATION = 10
    BASIS = 11
    NOISE = 12
    MIXES = 13
    GROUPS = 14
    SIGNS = 15
    HEADS = 16
    READING = 17
    PROJECTIONS = 18
    DROPOUT = 19
    ROUNDING = 20
    FAILURES = 30
    DEVICES = 31
    DELAYS = 32
    ROWS = 33
    PRIVACY = 40
    UPLOADS = 45


def shared_seed(seed: int) -> int:
    """The seed that server and clients both know, derived from that of a run: of the start that clients share."""
    return _derived(seed, b"shared")


def private_seed(seed: int) -> int:
    """The seed of what only clients may know: their noise, their private heads, their batches.

    A simulation derives both seeds from that of the run, so that it can be repeated. The run's seed belongs to whoever
    runs the simulation, and to neither side. The function is one-way: from the shared seed nobody computes it back,
    except by trying, which is easy where the run's seed is small. A client in a deployment draws its private seed from
    its own machine instead.
    """
    return _derived(seed, b"private")


def _derived(seed: int, purpose: bytes) -> int:
    """63 bits of a hash (BLAKE2b) of the seed. The mixing below would not do: it can be run backwards."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "little") >> 1


def bits(seed: int, stream: Stream, *counters: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each position of the broadcast ``counters``."""
    with np.errstate(over="ignore"):  # the hash is arithmetic modulo 2^64
        state = _mix(np.asarray(np.uint64(seed % 2**64) + _GOLDEN * np.uint64(stream)))
        # One after the other, not added up: (user 1, item 2) and (user 2, item 1) are different draws.
        for counter in counters:
            state = _mix(state + _GOLDEN * (np.asarray(counter).astype(np.uint64) + np.uint64(1)))
    return state


def mark(*parts: bytes | str) -> bytes:
    """32 bytes by which these parts are told from any others (BLAKE2b)."""
    hashed = hashlib.blake2b(digest_size=32)
    for part in parts:
        held = part.encode() if isinstance(part, str) else part
        hashed.update(len(held).to_bytes(8, "little"))
        hashed.update(held)
    return hashed.digest()


def keys(seed: int, stream: Stream, *counters: ArrayLike, of: bytes = b"") -> list[bytes]:
    """A key for each position of the broadcast ``counters``: for draws that must not tell of others of the same seed.

    Whoever knows some of the bits above can compute the seed from them. What is drawn with a key goes through a hash
    that nobody can run backwards.

    Args:
        seed: As of `bits`.
        stream: As of `bits`.
        counters: As of `bits`.
        of: A `mark`: what is drawn of something else has other keys.
    """
    parts = np.broadcast_arrays(*(np.asarray(one).astype(np.uint64) for one in (stream, *counters, seed)))
    return [row.tobytes() + of for row in np.stack(parts, axis=-1).astype("<u8").reshape(-1, len(parts))]


def uniform(seed: int, stream: Stream, *counters: ArrayLike) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), one for each position of the broadcast ``counters``."""
    return ((bits(seed, stream, *counters) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(seed: int, stream: Stream, *counters: ArrayLike) -> NDArray[np.float64]:
    """Standard normal numbers, one for each position of the broadcast ``counters`` (Box and Muller 1958)."""
    radius = np.sqrt(-2 * np.log(uniform(seed, stream, *counters, 0)))
    return np.asarray(radius * np.cos(2 * np.pi * uniform(seed, stream, *counters, 1)))


def laplace(seed: int, stream: Stream, *counters: ArrayLike) -> NDArray[np.float64]:
    """Laplace numbers of scale 1, one for each position of the broadcast ``counters``."""
    centred = uniform(seed, stream, *counters) - 0.5
    return np.asarray(-np.sign(centred) * np.log1p(-2 * np.abs(centred)))


def integers(random_bits: NDArray[np.uint64], high: ArrayLike) -> NDArray[np.int64]:
    """Whole numbers in [0, high) from 64 random bits each; ``high`` below 2^32 (bias below high / 2^32)."""
    drawn = np.asarray(random_bits >> np.uint64(32)) * np.asarray(high).astype(np.uint64)
    drawn >>= np.uint64(32)
    return np.asarray(drawn).view(np.int64)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: each bit of the result depends on all bits of the state."""
    mixed = state ^ (state >> np.uint64(30))
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_2
    mixed ^= mixed >> np.uint64(31)
    return mixed
