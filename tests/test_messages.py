from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgfedrec.messages import Broadcast, Labels, SparseRows, Upload


@given(st.integers(1, 300), st.integers(2, 1000), st.integers(0, 2**32))
def test_labels_survive_the_wire_at_ceil_log2_bits(items: int, clusters: int, seed: int) -> None:
    values = torch.randint(clusters, (items,), generator=torch.Generator().manual_seed(seed))
    packed = Broadcast({"labels": Labels(values, clusters)}).pack()
    labels = Broadcast.unpack(packed).values["labels"]
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
    received = Broadcast.unpack(sent.pack())
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
    assert upload.nbytes == sum(map(len, messages))
    received = Upload.unpack(upload.clients, messages)
    assert all(received.values[name].equal(value) for name, value in upload.values.items())


def test_an_empty_upload_takes_nothing() -> None:
    assert Upload(torch.tensor([4, 9])).nbytes == 0


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_bytes_that_are_no_message_are_refused(cut: int) -> None:
    packed = Broadcast({"labels": Labels(torch.arange(10), 10)}).pack()
    with pytest.raises(ValueError, match="no message"):
        Broadcast.unpack(packed[:cut])
    with pytest.raises(ValueError, match="bytes follow"):
        Broadcast.unpack(packed + b"x")


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**32))
def test_of_sparse_rows_only_those_cross_the_wire_that_are_not_zero(
    items: int, dim: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    touched = torch.rand(3, items, generator=generator) < share
    rows = torch.where(touched[:, :, None], torch.rand(3, items, dim, generator=generator) + 0.5, 0)
    upload = Upload(torch.arange(3), {"rows": rows, "user": torch.randn(3, 2)}, frozenset({"rows"}))
    messages = upload.pack()
    assert upload.nbytes == sum(map(len, messages))
    empty = len(Upload(torch.arange(1), {"rows": rows[:1] * 0, "user": torch.zeros(1, 2)}, upload.sparse).pack()[0])
    assert [len(message) - empty for message in messages] == (touched.sum(1) * (4 + 4 * dim)).tolist()
    received = Upload.unpack(upload.clients, messages)
    assert received.sparse == upload.sparse
    assert all(received.values[name].equal(value) for name, value in upload.values.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sparse_rows_go_down_as_they_go_up(dtype: torch.dtype) -> None:
    rows = torch.zeros(5, 2, dtype=dtype)
    rows[1], rows[4, 1] = 1.5, torch.nan
    packed = Broadcast({"rows": SparseRows(rows)}).pack()
    received = Broadcast.unpack(packed).values["rows"]
    assert isinstance(received, SparseRows)
    assert received.touched.tolist() == [False, True, False, False, True]
    torch.testing.assert_close(received.values, rows, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="cut off"):
        Broadcast.unpack(packed[:-1])
