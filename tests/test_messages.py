from __future__ import annotations

import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.frames import Frames
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Counts, Field, IdLists, Labels, SparseRows, Weights


@given(st.integers(1, 300), st.integers(2, 1000), st.integers(0, 2**32))
def test_labels_survive_the_wire_at_ceil_log2_bits(items: int, clusters: int, seed: int) -> None:
    values = torch.randint(clusters, (items,), generator=torch.Generator().manual_seed(seed))
    sent = Broadcast({"labels": Labels(values, clusters)})
    packed = sent.pack()
    labels = Broadcast.unpack(packed, sent.fields).values["labels"]
    assert isinstance(labels, Labels)
    assert labels.values.equal(values)
    assert labels.clusters == clusters
    header = len(Broadcast({"labels": Labels(values[:0], clusters)}).pack())
    bits = next(bits for bits in range(1, 20) if 2**bits >= clusters)
    assert len(packed) - header == -(-items * bits // 8)


def test_60_clusters_of_1682_items_take_six_bits_each() -> None:
    packed = Broadcast({"labels": Labels(torch.arange(1682) % 60, 60)}).pack()
    assert 1262 <= len(packed) <= 1262 + 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_tensors_survive_the_wire(dtype: torch.dtype) -> None:
    sent = Broadcast({"a": torch.randn(3, 4).to(dtype), "scalar": torch.tensor(7).to(dtype), "none": torch.zeros(0, 2)})
    received = Broadcast.unpack(sent.pack(), sent.fields)
    assert received.values.keys() == sent.values.keys()
    for name, value in sent.values.items():
        got = received.values[name]
        assert isinstance(got, torch.Tensor)
        assert isinstance(value, torch.Tensor)
        assert got.dtype == value.dtype
        assert got.equal(value)


def test_an_upload_is_one_message_for_each_client() -> None:
    upload = Upload(torch.tensor([4, 9]), {"table": torch.randn(2, 5, 3), "bias": torch.randn(2)})
    messages = upload.pack()
    assert len(messages) == 2
    assert Frames.of(upload).nbytes == sum(map(len, messages))
    received = Upload.unpack(upload.clients, messages, upload.fields)
    assert all(received.values[name].equal(value) for name, value in upload.values.items())


def test_an_empty_upload_takes_nothing() -> None:
    assert Frames.of(Upload(torch.tensor([4, 9]))).nbytes == 0


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_bytes_that_are_no_message_are_refused(cut: int) -> None:
    sent = Broadcast({"labels": Labels(torch.arange(10), 10)})
    with pytest.raises(ValueError, match="no message"):
        Broadcast.unpack(sent.pack()[:cut], sent.fields)
    with pytest.raises(ValueError, match="bytes follow"):
        Broadcast.unpack(sent.pack() + b"x", sent.fields)


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**32))
def test_of_sparse_rows_only_those_cross_the_wire_that_are_not_zero(
    items: int, dim: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    touched = torch.rand(3, items, generator=generator) < share
    rows = torch.where(touched[:, :, None], torch.rand(3, items, dim, generator=generator) + 0.5, 0)
    upload = Upload(torch.arange(3), {"rows": rows, "user": torch.randn(3, 2)}, frozenset({"rows"}))
    messages = upload.pack()
    assert Frames.of(upload).nbytes == sum(map(len, messages))
    empty = len(Upload(torch.arange(1), {"rows": rows[:1] * 0, "user": torch.zeros(1, 2)}, upload.sparse).pack()[0])
    assert [len(message) - empty for message in messages] == (touched.sum(1) * (4 + 4 * dim)).tolist()
    received = Upload.unpack(upload.clients, messages, upload.fields)
    assert received.sparse == upload.sparse
    assert all(received.values[name].equal(value) for name, value in upload.values.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sparse_rows_go_down_as_they_go_up(dtype: torch.dtype) -> None:
    rows = torch.zeros(5, 2, dtype=dtype)
    rows[1], rows[4, 1] = 1.5, torch.nan
    sent = Broadcast({"rows": SparseRows(rows)})
    packed = sent.pack()
    received = Broadcast.unpack(packed, sent.fields).values["rows"]
    assert isinstance(received, SparseRows)
    assert received.touched.tolist() == [False, True, False, False, True]
    torch.testing.assert_close(received.values, rows, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="cut off"):
        Broadcast.unpack(packed[:-1], sent.fields)


SENT = Broadcast(
    {
        "labels": Labels(torch.arange(11) % 5, 5),
        "rows": SparseRows(torch.eye(6)[:, :2]),
        "table": torch.arange(6.0).reshape(3, 2),
        "round": torch.tensor(3),
        "counts": Counts(torch.tensor([0, -2, 900]), Bounds(torch.tensor([0, 2, 1000]), signed=True)),
        "ids": IdLists(torch.tensor([[1, 4, 30], [7, -1, -1]]), torch.tensor([3, 1]), 40),
        "plain": IdLists(torch.tensor([[1, 4, 30], [7, -1, -1]]), torch.tensor([3, 1]), 40, "plain"),
        "weights": Weights(
            torch.tensor([[False, True]]), torch.tensor([[0, 3]]), torch.tensor([0.5]).half(), torch.tensor([2])
        ),
    }
)
"""A message with a field of every kind."""


def allocates_at_most(limit: int, data: bytes) -> None:
    """Whatever the bytes say: a message as expected, or an error, and no more memory than a message takes."""
    tracemalloc.start()
    try:
        received = Broadcast.unpack(data, SENT.fields)
    except ValueError:
        return
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < limit
    labels, rows, table = (received.values[name] for name in ("labels", "rows", "table"))
    assert isinstance(labels, Labels)
    assert 0 <= int(labels.values.min()) <= int(labels.values.max()) < 5
    assert isinstance(rows, SparseRows)
    assert rows.values.shape == (6, 2)
    assert isinstance(table, torch.Tensor)
    assert (table.shape, table.dtype) == ((3, 2), torch.float32)
    assert received.fields == SENT.fields
    assert Broadcast.unpack(received.pack(), SENT.fields).values.keys() == SENT.values.keys(), "it could be sent again"


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_what_was_expected(data: bytes) -> None:
    allocates_at_most(2**20, data)


@given(st.data())
def test_a_changed_message_is_refused_or_what_was_expected(data: st.DataObject) -> None:
    packed = bytearray(SENT.pack())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    allocates_at_most(2**20, bytes(packed[: data.draw(st.integers(len(packed) - 3, len(packed)))]))


def test_twenty_bytes_cannot_ask_for_gigabytes() -> None:
    small = Broadcast({"rows": SparseRows(torch.zeros(6, 2))})
    header = small.pack()
    huge = header[:-12] + (2**31 - 1).to_bytes(4, "little") + (2**20).to_bytes(4, "little") + header[-4:]
    with pytest.raises(ValueError, match=r"field 'rows' is not sparse float32 \[6, 2\]"):
        Broadcast.unpack(huge, small.fields)
    many = header[:-4] + (2**32 - 1).to_bytes(4, "little")
    with pytest.raises(ValueError, match="more rows than there are items"):
        Broadcast.unpack(many, small.fields)


def test_labels_and_places_outside_their_range_are_refused() -> None:
    packed = bytearray(Broadcast({"labels": Labels(torch.arange(11) % 5, 5)}).pack())
    packed[-2] = 0xFF
    with pytest.raises(ValueError, match="label 7 is not below the 5 clusters"):
        Broadcast.unpack(bytes(packed), {"labels": Field((11,), clusters=5)})
    rows = Broadcast({"rows": SparseRows(torch.eye(6)[:, :2])})
    for place in (6, -1, 0):  # beyond the last item, before the first, the same again
        packed = bytearray(rows.pack())
        packed[-20:-16] = place.to_bytes(4, "little", signed=True)
        with pytest.raises(ValueError, match="in ascending order"):
            Broadcast.unpack(bytes(packed), rows.fields)


def test_a_message_of_another_kind_is_named_with_its_client() -> None:
    upload = Upload(torch.tensor([4, 9]), {"table": torch.randn(2, 5, 3)})
    other = Upload(torch.tensor([9]), {"table": torch.randn(1, 5, 3).double()})
    with pytest.raises(ValueError, match=r"client 9: .* field 'table' is not float32 \[5, 3\]"):
        Upload.unpack(upload.clients, [upload.pack()[0], other.pack()[0]], upload.fields)
