from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cgfedrec.random import Stream, bits, integers, uniform


def test_bits_depend_on_every_counter_and_on_nothing_else() -> None:
    everyone = bits(1, Stream.SHUFFLE, np.arange(100)[:, None], 7, np.arange(50))
    alone = bits(1, Stream.SHUFFLE, np.array([42])[:, None], 7, np.arange(50))
    assert (everyone[42] == alone[0]).all()
    assert len(np.unique(everyone)) == everyone.size
    assert (everyone != bits(2, Stream.SHUFFLE, np.arange(100)[:, None], 7, np.arange(50))).all()
    assert (everyone != bits(1, Stream.NEGATIVES, np.arange(100)[:, None], 7, np.arange(50))).all()


def test_uniform_is_uniform() -> None:
    drawn = uniform(0, Stream.START, np.arange(200_000))
    assert drawn.min() > 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert abs(counts / len(drawn) - 0.05).max() < 0.002


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**31))
def test_integers_stay_in_range(word: int, high: int) -> None:
    assert 0 <= integers(np.array([word], np.uint64), high)[0] < high
