"""Lists of ids, and weights over them: bytes as they would be written by hand, and none that give anything else."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.values import Field, IdLayout, IdLists, WeightLayout, Weights
from cgfedrec.wire.wire import Wire, WireError
from tests.slow_bits import in_bytes, width_of, written


def lists(rows: list[list[int]], high: int, most: int | None = None, coding: Any = "rice") -> IdLists:
    if most is None:
        most = max(map(len, rows), default=0)
    padded = [row + [-1] * (most - len(row)) for row in rows]
    ids = torch.tensor(padded, dtype=torch.int64).view(len(rows), most)
    return IdLists(ids, torch.tensor([len(row) for row in rows], dtype=torch.int64), high, coding)


def rows_of(value: IdLists) -> list[list[int]]:
    return [row[:size] for row, size in zip(value.ids.tolist(), value.sizes.tolist(), strict=True)]


@st.composite
def id_lists(draw: st.DrawFn) -> IdLists:
    high = draw(st.sampled_from([1, 2, 3, 17, 60, 1682, 2**31]))
    rows = draw(st.lists(st.sets(st.integers(0, high - 1), max_size=8), max_size=6))
    most = max(map(len, rows), default=0) + draw(st.integers(0, 2))
    return lists([sorted(row) for row in rows], high, most, draw(st.sampled_from(["rice", "plain"])))


def rice_by_hand(value: IdLists) -> bytes:
    choices, lowest, unary = "", "", ""
    for row in rows_of(value):
        if not row:
            continue
        gaps = [b - a - 1 for a, b in zip([-1, *row[:-1]], row, strict=True)]
        middle = 9 * (value.high - len(row)) / (13 * (len(row) + 1))
        even = 0 if middle < 2 else math.floor(math.log2(middle))
        candidates = []
        for choice in range(4):
            k = max(0, even - 2 + choice)
            candidates.append((sum(k + 1 + gap // 2**k for gap in gaps), choice, k))
        _, choice, k = min(candidates)
        choices += written(choice, 2)
        lowest += "".join(written(gap, k) for gap in gaps)
        unary += "".join("0" * (gap // 2**k) + "1" for gap in gaps)
    return in_bytes(choices + lowest + unary)


def by_hand(value: IdLists) -> bytes:
    if value.coding == "rice":
        return rice_by_hand(value)
    return in_bytes("".join(written(one, width_of(value.high)) for row in rows_of(value) for one in row))


@given(id_lists())
def test_ids_travel_as_they_would_be_written_by_hand(value: IdLists) -> None:
    sent = Broadcast({"ids": value})
    packed, payload = sent.pack(), by_hand(value)
    assert packed[len(packed) - len(payload) :] == payload
    assert len(packed) == 1 + 1 + 3 + 3 + 4 * 4 + len(payload)
    assert Broadcast.unpack(packed, sent.fields).values["ids"] == value
    arrived, nbytes = Wire().down(sent, 3)
    assert arrived is not None
    assert arrived.values["ids"] == value
    assert nbytes == 3 * len(packed)


def test_lists_of_everything_and_of_nothing() -> None:
    cases: list[list[list[int]]] = [[], [[]], [[], [0], []], [list(range(40))] * 3]
    for rows in cases:
        for coding in ("rice", "plain"):
            sent = Broadcast({"ids": lists(rows, max(1, *map(len, rows), 0), coding=coding)})
            assert Broadcast.unpack(sent.pack(), sent.fields).values == sent.values


def test_both_codings_say_the_same_and_gaps_in_fewer_bits() -> None:
    """100 lists of 64 ids of 1682, and what the best code for lists without any order to them takes."""
    rows = [sorted(torch.randperm(1682)[:64].tolist()) for _ in range(100)]
    received, lengths = {}, {}
    for coding in ("rice", "plain"):
        sent = Broadcast({"ids": lists(rows, 1682, coding=coding)})
        lengths[coding] = 8 * len(sent.pack()) / 6400
        value = Broadcast.unpack(sent.pack(), sent.fields).values["ids"]
        assert isinstance(value, IdLists)
        received[coding] = value.ids
    assert received["rice"].equal(received["plain"])
    least = math.log2(math.comb(1682, 64)) / 64
    assert least < lengths["rice"] < least + 0.4
    assert 11 < lengths["plain"] < 11.1


SMALL = lists([[2, 3, 7], [], [0]], 9)
NARROW = replace(SMALL, coding="plain")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (lists([[2, 2]], 9), "the ids of a list do not ascend"),
        (lists([[3, 2]], 9), "the ids of a list do not ascend"),
        (lists([[3], [9]], 9), "its ids lie between 3 and 9, not between 0 and 8"),
        (lists([[-1]], 9), "its ids lie between -1 and -1"),
        (replace(SMALL, ids=SMALL.ids.abs()), "something else than -1 stands beyond the sizes"),
        (replace(SMALL, ids=SMALL.ids.int()), "its ids are of torch.int32, not int64"),
    ],
)
def test_lists_that_are_none_are_not_sent(value: IdLists, problem: str) -> None:
    for coded in (value, replace(value, coding="plain")):
        with pytest.raises(ValueError, match=f"field 'ids': {problem}"):
            Broadcast({"ids": coded}).pack()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"high": 0}, "field 'ids' has ids below 0"),
        ({"high": 2**31 + 1}, "and that must be between 1 and 2147483648"),
        ({"high": 2}, "has 3 different ids below 2"),
        ({"coding": "gaps"}, "has the coding 'gaps', which is none of rice, plain"),
        ({"sizes": torch.tensor([3, 0])}, r"not \[rows, most\] with int64 \[rows\]"),
        ({"sizes": torch.tensor([3.0, 0, 1])}, r"not \[rows, most\] with int64 \[rows\]"),
        ({"sizes": torch.tensor([4, 0, 1])}, "has lists of 0 to 4 entries, and at most 3 fit"),
        ({"sizes": torch.tensor([-1, 0, 1])}, "has lists of -1 to 1 entries"),
    ],
)
def test_a_field_of_lists_that_cannot_be_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        Wire().down(Broadcast({"ids": replace(SMALL, **change)}), 1)
    layout = replace(IdLayout(SMALL.sizes, 9), **change)
    with pytest.raises(ValueError, match=problem):
        Broadcast.unpack(b"\x01", {"ids": Field((3, 3), torch.int64, lists=layout)})


def test_lists_of_another_kind_are_refused_by_name() -> None:
    """With one id alone, plain ids and the gaps between them differ in nothing but the code of their kind."""
    alone = lists([[0]], 1)
    for value, other in ((SMALL, NARROW), (SMALL, replace(SMALL, high=10)), (alone, replace(alone, coding="plain"))):
        for sent, expected in ((value, other), (other, value)):
            problem = f"field 'ids' is not {len(value.ids)} lists of {expected.coding} ids below {expected.high}"
            with pytest.raises(ValueError, match=problem):
                Broadcast.unpack(Broadcast({"ids": sent}).pack(), Broadcast({"ids": expected}).fields)


def payload_of(value: IdLists, digits: str) -> bytes:
    """A message with these bits in place of the ids that ``value`` holds."""
    whole = Broadcast({"ids": value}).pack()
    payload = in_bytes(digits)
    return whole[: 1 + 1 + 3 + 3 + 4 * 3] + len(payload).to_bytes(4, "little") + payload


# Ids that lie evenly would have k = 0 in the first list and 1 in the last. With these choices k is 0 in both.
CHOICES = written(2, 2) + written(1, 2)


@pytest.mark.parametrize(
    ("digits", "problem"),
    [
        (CHOICES + "001100011", None),
        (CHOICES + "001100011000000000", "it goes on after its last id"),
        (CHOICES + "0011000111", "it holds 5 ids, not 4"),
        (CHOICES + "00110001", "it holds 3 ids, not 4"),
        (CHOICES + "0011000000000011", "a gap is longer than 9 ids"),
        (CHOICES + "0010000100011", "its ids lie between 0 and 11, not between 0 and 8"),
        ("", "it is cut off"),
    ],
)
def test_gaps_that_are_none_are_refused(digits: str, problem: str | None) -> None:
    data = payload_of(SMALL, digits)
    fields = Broadcast({"ids": SMALL}).fields
    if problem is None:
        assert Broadcast.unpack(data, fields).values["ids"] == SMALL
        return
    with pytest.raises(ValueError, match=f"field 'ids': {problem}"):
        Broadcast.unpack(data, fields)


@pytest.mark.parametrize(
    ("digits", "problem"),
    [
        ("0010001101110000", None),
        ("0010001100110000", "the ids of a list do not ascend"),
        ("0010001110010000", "its ids lie between 0 and 9"),
        ("00100011", "its ids take 2 bytes, not 1"),
    ],
)
def test_plain_ids_that_are_none_are_refused(digits: str, problem: str | None) -> None:
    data = payload_of(NARROW, digits)
    fields = Broadcast({"ids": NARROW}).fields
    if problem is None:
        assert Broadcast.unpack(data, fields).values["ids"] == NARROW
        return
    with pytest.raises(ValueError, match=f"field 'ids': {problem}"):
        Broadcast.unpack(data, fields)


def test_nothing_but_zeros_fills_the_last_byte() -> None:
    narrow = lists([[1]], 9, coding="plain")
    with pytest.raises(ValueError, match="field 'ids': the bits that fill its last byte are not zeros"):
        Broadcast.unpack(payload_of(narrow, "00010001"), Broadcast({"ids": narrow}).fields)


def test_lists_cannot_be_longer_than_what_the_receiver_knows_of_them() -> None:
    """The longest lists there are: ids far apart in one row. One byte more is refused before it is looked at."""
    for high in (2, 50, 1682):
        for size in (1, 2):
            value = lists([list(range(high - size, high))] * 5, high)
            fields = Broadcast({"ids": value}).fields
            packed = Broadcast({"ids": value}).pack()
            assert Broadcast.unpack(packed, fields).values["ids"] == value
            head = packed[: 1 + 1 + 3 + 3 + 4 * 3]
            for more in (len(packed), 2**32 - 1):
                with pytest.raises(ValueError, match="field 'ids' says that it is longer than such lists can be"):
                    Broadcast.unpack(head + more.to_bytes(4, "little") + bytes(10**5), fields)


def weights(value: IdLists, bits: int, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    kept = (value.ids >= 0) & (torch.rand(value.ids.shape, generator=generator) < 0.6)
    levels = torch.randint(1 << bits, value.ids.shape, generator=generator) * kept
    scales = torch.rand(len(value.ids), generator=generator).half()
    return Weights(kept, levels, scales, value.sizes, bits)


def weights_by_hand(value: Weights) -> bytes:
    mask, levels = "", ""
    for kept, row, size in zip(value.kept.tolist(), value.levels.tolist(), value.sizes.tolist(), strict=True):
        for entry in range(size):
            mask += str(int(kept[entry]))
            if kept[entry]:
                levels += written(row[entry], value.bits)
    return value.scales.numpy().astype("<f2").tobytes() + in_bytes(mask + levels)


@given(id_lists(), st.integers(1, 16), st.integers(0, 2**32))
def test_weights_travel_as_they_would_be_written_by_hand(value: IdLists, bits: int, seed: int) -> None:
    sent = Broadcast({"weights": weights(value, bits, seed)})
    one = sent.values["weights"]
    assert isinstance(one, Weights)
    packed, payload = sent.pack(), weights_by_hand(one)
    assert packed[len(packed) - len(payload) :] == payload
    assert len(packed) == 1 + 1 + 7 + 3 + 4 * 3 + len(payload)
    assert Broadcast.unpack(packed, sent.fields).values["weights"] == one


FEW = Weights(
    torch.tensor([[True, False], [True, False], [False, False]]),
    torch.tensor([[5, 0], [15, 0], [0, 0]]),
    torch.tensor([0.5, 1.0, 0.0]).half(),
    torch.tensor([2, 1, 0]),
)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kept": FEW.kept | True}, ": it keeps entries beyond the sizes of its lists"),
        ({"levels": FEW.levels + 1}, ": it has levels for entries that it does not keep"),
        ({"levels": 2 * FEW.levels}, ": its levels are not all between 0 and 15"),
        ({"levels": -FEW.levels}, ": its levels are not all between 0 and 15"),
        ({"scales": -FEW.scales}, ": its scales are not all finite and at least 0"),
        ({"scales": FEW.scales / 0}, ": its scales are not all finite and at least 0"),
        ({"scales": FEW.scales.float()}, r": its scales are torch.float32 \[3\], not torch.float16 \[3\]"),
        ({"scales": FEW.scales[:2]}, r": its scales are torch.float16 \[2\], not"),
        ({"kept": FEW.kept[:, :1]}, r": its kept are torch.bool \[3, 1\], not torch.bool \[3, 2\]"),
        ({"bits": 17}, " has 17 bits a level, and that must be between 1 and 16"),
        ({"bits": 0}, " has 0 bits a level"),
        ({"sizes": torch.tensor([3, 1, 0])}, " has lists of 0 to 3 entries, and at most 2 fit"),
    ],
)
def test_weights_that_are_none_are_not_sent(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"field 'weights'{problem}"):
        Broadcast({"weights": replace(FEW, **change)}).pack()


@pytest.mark.parametrize(
    ("at", "byte", "problem"),
    [
        (-7, 0xB8, "its scales are not all finite and at least 0"),  # -0.5
        (-7, 0x7C, "its scales are not all finite and at least 0"),  # an infinite scale
        (-2, 0b11101011, "3 entries have weights, and there are 2"),
        (-2, 0b10001011, "1 entries have weights, and there are 2"),
        (-1, 0b11100001, "the bits that fill its last byte are not zeros"),
    ],
)
def test_bytes_that_are_no_weights_are_refused(at: int, byte: int, problem: str) -> None:
    sent = Broadcast({"weights": FEW})
    packed = bytearray(sent.pack())
    assert packed[-2:] == bytes([0b10101011, 0b11100000])  # kept: 10 and 1; 5 and 15
    packed[at] = byte
    with pytest.raises(ValueError, match=f"field 'weights': {problem}"):
        Broadcast.unpack(bytes(packed), sent.fields)


def test_more_weights_than_entries_are_refused() -> None:
    sent = Broadcast({"weights": FEW})
    packed = sent.pack()
    at = len(packed) - len(weights_by_hand(FEW)) - 4
    for count, problem in ((4, "has more weights than the lists have entries"), (3, ": 2 entries have weights")):
        changed = packed[:at] + count.to_bytes(4, "little") + packed[at + 4 :]
        with pytest.raises(ValueError, match=f"field 'weights'.*{problem}"):
            Broadcast.unpack(changed, sent.fields)


def tried(sent: Broadcast, data: bytes) -> None:
    """Whatever the bytes say: a message that could be sent, or an error, and no more memory than a message takes."""
    tracemalloc.start()
    try:
        received = Broadcast.unpack(data, sent.fields)
    except ValueError:
        return
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20
    # What is sent is checked: so what can be sent again keeps what it promises.
    assert Broadcast.unpack(received.pack(), received.fields).values == received.values


@given(id_lists(), st.integers(1, 16), st.data())
def test_changed_bytes_are_refused_or_lists_and_weights(value: IdLists, bits: int, data: st.DataObject) -> None:
    sent = Broadcast({"ids": value, "weights": weights(value, bits, 0)})
    packed = bytearray(sent.pack())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(max(0, len(packed) - 3), len(packed)))
    tried(sent, bytes(packed[:cut]))


@given(id_lists(), st.binary(max_size=60), st.booleans())
def test_any_bytes_after_a_header_are_refused_or_lists(value: IdLists, payload: bytes, whole: bool) -> None:
    sent = Broadcast({"ids": value})
    head = sent.pack()[: 1 + 1 + 3 + 3 + 4 * 3]
    if whole:
        head += len(payload).to_bytes(4, "little")
    tried(sent, head + payload)


def test_lists_are_compared_by_value() -> None:
    other = lists([[2, 3, 7], [], [0]], 9)
    assert other == SMALL
    assert other.ids is not SMALL.ids
    assert Broadcast({"ids": other}).fields == Broadcast({"ids": SMALL}).fields
    assert IdLayout(SMALL.sizes, 9) != WeightLayout(SMALL.sizes)
    for changed in (replace(SMALL, high=10), NARROW, lists([[2, 3, 6], [], [0]], 9), lists([[2, 3, 7], [], [0]], 9, 4)):
        assert changed != SMALL
