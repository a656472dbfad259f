"""Whole numbers of known bounds: as many bits as their bounds ask for, exact sums, and nothing beyond the bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cgfedrec.kit.factors import FactorClient
from cgfedrec.kit.gather import GatherServer
from cgfedrec.kit.means import MeanServer, TableServer
from cgfedrec.methods.fedmf import FedMF, FedMFClient
from cgfedrec.processes import Processes
from cgfedrec.testing import Conformance
from cgfedrec.wire.bounds import LARGEST, Bounds
from cgfedrec.wire.frames import Frames
from cgfedrec.wire.messages import Broadcast, Upload, dense
from cgfedrec.wire.values import Counts, Field, IdLists, Weights
from cgfedrec.wire.wire import Step, Wire, WireError
from tests.slow_bits import in_bytes, width_of, written

REACHES = st.sampled_from([0, 0, 1, 2, 3, 4, 7, 100, 2**20 - 1, 2**20, LARGEST])


@dataclass(frozen=True)
class Drawn:
    """Bounds, and numbers within them for some clients, `[clients, rows, columns]` or `[clients, rows]`."""

    bounds: Bounds
    values: Tensor

    def upload(self, values: Tensor | None = None) -> Upload:
        if values is None:
            values = self.values
        return Upload(torch.arange(len(values)), {"count": values}, bounds={"count": self.bounds})

    @property
    def sparse(self) -> Tensor:
        """The same numbers without the rows that are zero."""
        return self.values.to_sparse(2).coalesce()


@st.composite
def drawn(draw: st.DrawFn, clients: int = 3, most: int = 6) -> Drawn:
    rows, columns = draw(st.integers(0, most)), draw(st.integers(0, most))
    largest = torch.tensor([draw(REACHES) for _ in range(rows)], dtype=torch.int64)
    if draw(st.booleans()):  # one bound for all columns of a row
        largest = largest[:, None].expand(rows, columns)
    elif draw(st.booleans()):
        largest = torch.tensor([draw(REACHES) for _ in range(rows * columns)], dtype=torch.int64).view(rows, columns)
    signed = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randint(2**62, (clients, *largest.shape), generator=generator) % (largest + 1)
    if signed:
        values = values * (1 - 2 * torch.randint(2, values.shape, generator=generator))
    values[torch.rand(clients, rows, generator=generator) < 0.5] = 0  # whole rows
    return Drawn(Bounds(largest, signed), values)


def by_hand(values: Tensor, bounds: Bounds) -> bytes:
    digits = ""
    for number, largest in zip(values.flatten().tolist(), bounds.largest.flatten().tolist(), strict=True):
        width = bounds.bits
        if width is None:
            width = width_of(2 * largest + 1 if bounds.signed else largest + 1)
        digits += written(number, width)
    return in_bytes(digits)


@given(drawn())
def test_each_number_travels_in_the_bits_of_its_bound(numbers: Drawn) -> None:
    for bits in (None, 42, 62):
        bounds = replace(numbers.bounds, bits=bits)
        sent = Broadcast({"count": Counts(numbers.values[0], bounds)})
        packed = sent.pack()
        payload = by_hand(numbers.values[0], bounds)
        assert packed[len(packed) - len(payload) :] == payload
        assert len(packed) == 1 + 1 + 5 + 3 + 4 * bounds.largest.ndim + len(payload)
        assert bounds.nbytes == len(payload)
        received = Broadcast.unpack(packed, sent.fields).values["count"]
        assert received == sent.values["count"]


@given(drawn())
def test_an_upload_is_the_same_dense_or_sparse(numbers: Drawn) -> None:
    sent, sparse = numbers.upload(), numbers.upload(numbers.sparse)
    messages = sent.pack()
    assert [message[-numbers.bounds.nbytes :] for message in messages if numbers.bounds.nbytes] == [
        by_hand(values, numbers.bounds) for values in numbers.values if numbers.bounds.nbytes
    ]
    assert sparse.pack() == messages, "which rows are zero shows in nothing that travels"
    for upload in (sent, sparse):
        arrived, nbytes = Wire().up(upload, sent.fields, 1, 7)
        assert nbytes == sum(map(len, messages))
        assert arrived.values["count"] is upload.values["count"], "not a copy"
        assert arrived.fields == Upload.unpack(upload.clients, messages, sent.fields).fields == sent.fields
        total = arrived.sum()
        twice = total.dense()
        assert twice.values["count"].equal(numbers.values.sum(0))
        twice += total
        assert total.values["count"].dtype == twice.values["count"].dtype == torch.int64
        assert twice.values["count"].equal(2 * numbers.values.sum(0))
    received = Upload.unpack(sent.clients, messages, sent.fields).values["count"]
    assert received.equal(numbers.values)


def test_sums_beyond_what_a_float_holds_are_exact() -> None:
    largest = torch.tensor([LARGEST])
    values = torch.cat((torch.full((2**14, 1), LARGEST), torch.ones(1, 1, dtype=torch.int64)))  # 2^54 + 1
    for one in (values, values.to_sparse(2).coalesce()):
        total = Upload(torch.arange(2**14 + 1), {"count": one}, bounds={"count": Bounds(largest)}).sum()
        twice = total.dense()
        twice += total
        assert twice.values["count"].tolist() == [2 * (LARGEST * 2**14 + 1)]


@pytest.mark.parametrize(
    ("values", "signed", "problem"),
    [
        ([[0, 4]], False, "4 is not between 0 and 3"),
        ([[1, 2]], False, "1 is not between 0 and 0"),
        ([[0, -1]], False, "-1 is not between 0 and 3"),
        ([[0, -4]], True, "-4 is not between -3 and 3"),
        ([[0, -(2**63)]], True, f"-{2**63} is not between -3 and 3"),
    ],
)
def test_numbers_beyond_their_bounds_are_refused(values: list[list[int]], signed: bool, problem: str) -> None:
    numbers = Drawn(Bounds(torch.tensor([0, 3]), signed), torch.tensor(values))
    for upload in (numbers.upload(), numbers.upload(numbers.sparse)):
        with pytest.raises(WireError, match=f"field 'count': {problem}"):
            Wire().up(upload, upload.fields, 1, 7)
        with pytest.raises(ValueError, match=f"field 'count': {problem}"):
            upload.pack()
    with pytest.raises(WireError, match=f"field 'count': {problem}"):
        Wire().down(Broadcast({"count": Counts(numbers.values[0], numbers.bounds)}), 1)


def test_bits_that_are_no_number_are_refused() -> None:
    """A signed number up to 2 takes 3 bits, and 3, -3 and -4 are none; nor do bits follow the last one."""
    field = {"count": Field((1,), torch.int64, bounds=Bounds(torch.tensor([2]), signed=True))}
    head = Broadcast({"count": Counts(torch.tensor([0]), Bounds(torch.tensor([2]), signed=True))}).pack()[:-1]
    for pattern, number in ((0b000, 0), (0b010, 2), (0b111, -1), (0b110, -2)):
        value = Broadcast.unpack(head + bytes([pattern << 5]), field).values["count"]
        assert isinstance(value, Counts)
        assert value.values.tolist() == [number]
    for pattern in (0b011, 0b100, 0b101):
        with pytest.raises(ValueError, match=r"field 'count': -?[34] is not between -2 and 2"):
            Broadcast.unpack(head + bytes([pattern << 5]), field)
    with pytest.raises(ValueError, match="field 'count': the bits that fill its last byte are not zeros"):
        Broadcast.unpack(head + b"\x01", field)
    with pytest.raises(ValueError, match="1 bytes follow its last field"):
        Broadcast.unpack(head + b"\x00\x00", field)


@pytest.mark.parametrize(
    ("largest", "bits", "problem"),
    [
        (torch.tensor([1.0]), None, "bounds are int64, not torch.float32"),
        (torch.tensor([3, -1]), None, "between -1 and 3"),
        (torch.tensor([2**40 + 1]), None, "between 0 and 1099511627776"),
        (torch.tensor([1, 4]), 63, "a number takes between 0 and 62 bits, not 63"),
        (torch.tensor([1, 4]), 2, "numbers up to 4 take 3 bits each, not 2"),
    ],
)
def test_bounds_that_are_none_are_refused(largest: Tensor, bits: int | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Bounds(largest, bits=bits)
    assert Bounds(torch.tensor([1, 4]), bits=3).nbytes == 1


def test_bounds_are_compared_by_value() -> None:
    bounds = Bounds(torch.tensor([[3], [5]]).expand(2, 4))
    same = Bounds(torch.tensor([[3] * 4, [5] * 4]))
    assert bounds == same
    assert hash(bounds) == hash(same)
    assert bounds.nbytes == same.nbytes == 3
    assert Field((2, 4), torch.int64, bounds=bounds) == Field((2, 4), torch.int64, bounds=same)
    others = (replace(same, signed=True), replace(same, bits=20), Bounds(same.largest + 1), Bounds(same.largest[0]))
    assert bounds not in others


def test_bounds_for_all_columns_take_no_room_of_their_own() -> None:
    bounds = Bounds(torch.full((1000, 1), 5).expand(1000, 2**40))
    assert bounds.nbytes == 1000 * 2**40 * 3 // 8
    assert bounds.widths.shape == (1000, 2**40)


COUNT = {"count": Field((2,), torch.int64, bounds=Bounds(torch.tensor([3, 3])))}
DENSE = torch.tensor([[1, 0], [2, 3]])


def sparse(clients: list[int], rows: list[int], coalesced: bool = True) -> Tensor:
    indices = torch.tensor([clients, rows])
    return torch.sparse_coo_tensor(
        indices, torch.ones(len(rows), dtype=torch.int64), (2, 2), is_coalesced=coalesced, check_invariants=False
    )


@pytest.mark.parametrize(
    ("value", "bounds", "problem"),
    [
        (DENSE, Bounds(torch.tensor([3, 3]), signed=True), "field 'count' is not int64"),
        (DENSE, Bounds(torch.tensor([3, 4])), "field 'count' has other bounds than are expected"),
        (DENSE, Bounds(torch.tensor([3, 3]), bits=20), "field 'count' is not int64"),
        (DENSE, Bounds(torch.tensor([3])), r"field 'count' is \[2\], with bounds for \[1\]"),
        (DENSE.float(), COUNT["count"].bounds, "field 'count' is of torch.float32, and numbers of known bounds are"),
        (DENSE.to_sparse(2).coalesce(), None, "field 'count' is a sparse tensor, and only whole numbers with bounds"),
        (DENSE.to_sparse(1), COUNT["count"].bounds, "field 'count': it is sparse, and so must be coalesced"),
        (sparse([0, 0], [1, 1], coalesced=False), COUNT["count"].bounds, "it is sparse, and so must be coalesced"),
        (sparse([0, 0], [1, 1]), COUNT["count"].bounds, "not those of different rows, in ascending order"),
        (sparse([1, 0], [1, 1]), COUNT["count"].bounds, "not those of different rows, in ascending order"),
        (sparse([0, 0], [0, 2]), COUNT["count"].bounds, "not those of different rows, in ascending order"),
        (sparse([0, 2], [0, 1]), COUNT["count"].bounds, "not those of different rows, in ascending order"),
        (DENSE, None, "field 'count' is not int64 .2. of known bounds"),
    ],
)
def test_what_the_server_did_not_declare_is_refused(value: Tensor, bounds: Bounds | None, problem: str) -> None:
    upload = Upload(torch.arange(2), {"count": value}, bounds={} if bounds is None else {"count": bounds})
    with pytest.raises(WireError, match=problem):
        Wire().up(upload, COUNT, 1, 7)


def test_a_sparse_tensor_without_bounds_is_refused_by_name() -> None:
    for names in (frozenset[str](), frozenset({"rows"})):
        upload = Upload(torch.arange(2), {"rows": torch.eye(3).expand(2, 3, 3).to_sparse(2)}, names)
        with pytest.raises(ValueError, match="field 'rows' is a sparse tensor"):
            upload.pack()
        with pytest.raises(WireError, match="field 'rows' is a sparse tensor"):
            Wire().up(upload, upload.fields, 1, 7)


def test_bounds_are_for_whole_tables() -> None:
    upload = Upload(torch.arange(2), {"count": DENSE[..., None]}, frozenset({"count"}))
    bounded = replace(upload, bounds={"count": Bounds(torch.tensor([[3], [3]]))})
    with pytest.raises(WireError, match="field 'count' has bounds, and so all its rows travel"):
        Wire().up(bounded, bounded.fields, 1, 7)


def test_rows_of_single_clients_are_found_dense_or_sparse() -> None:
    values = torch.tensor([[[1, 2], [0, 0]], [[0, 0], [3, 1]]])
    for one in (values, values.to_sparse(2).coalesce()):
        upload = Upload(torch.tensor([4, 9]), {"count": one})
        places, rows = upload.of(torch.tensor([9, 5, 4]), "count")
        assert places.tolist() == [0, 2]
        assert rows.equal(values[[1, 0]])


def test_a_server_of_means_rounds_those_of_whole_numbers_once() -> None:
    field = Field((1,), torch.int64, bounds=Bounds(torch.tensor([2**30])))
    server = MeanServer({"count": field}, seed=0)
    values = torch.tensor([[2**24]] * 2 + [[2**24 + 1]] * 5)  # float32 has no number between 2^24 and 2^24 + 2
    sent = Upload(torch.arange(7), {"count": values}, bounds={"count": Bounds(torch.tensor([2**30]))})
    server.aggregate(server.reduce(Wire().up(sent, server.expects, 1, 7)[0]))
    server.update(sent.clients, 1)
    assert server.mean("count").tolist() == [2**24]


def test_a_server_that_gathers_keeps_the_bounds() -> None:
    numbers = Drawn(Bounds(torch.tensor([3, 3])), DENSE)
    server = GatherServer(COUNT)
    kept = server.reduce(numbers.upload(numbers.sparse))
    assert kept.fields == COUNT
    assert dense(kept.values["count"]).equal(DENSE)
    assert kept.values["count"] is not numbers.values
    for client in kept.clients.flip(0):
        server.aggregate(kept.only(client[None]))
    server.gather(Processes())
    gathered = server.take_uploads()
    assert all(piece.fields == COUNT for piece in gathered.pieces)
    assert gathered.clients.equal(kept.clients)
    assert gathered.of("count").equal(DENSE)


def test_one_client_alone_is_sent_whole_numbers_too() -> None:
    numbers = Drawn(Bounds(torch.tensor([3, 3])), DENSE)
    arrived, nbytes = Wire().down(Broadcast(own=numbers.upload()), 2)
    assert arrived is not None
    assert arrived.own is not None
    assert arrived.own.fields == COUNT
    assert arrived.own.values["count"].equal(DENSE)
    assert nbytes == sum(map(len, numbers.upload().pack()))


class Forgetful(Step):
    """A step that knows nothing of bounds."""

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        return Upload(upload.clients, {name: value * 2 for name, value in upload.values.items()})

    def reverse(self, upload: Upload, round: int) -> Upload:
        return Upload(upload.clients, {name: value // 2 for name, value in upload.values.items()})


class Doubling(Forgetful):
    """One that says what becomes of them."""

    def fields(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
        return {name: replace(field, bounds=self.doubled(field.bounds)) for name, field in fields.items()}

    def doubled(self, bounds: Bounds | None) -> Bounds:
        assert bounds is not None
        return replace(bounds, largest=2 * bounds.largest)

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        bounds = {name: self.doubled(one) for name, one in upload.bounds.items()}
        return replace(super().forward(upload, round, seed), bounds=bounds)

    def reverse(self, upload: Upload, round: int) -> Upload:
        bounds = {name: replace(one, largest=one.largest // 2) for name, one in upload.bounds.items()}
        return replace(super().reverse(upload, round), bounds=bounds)


def test_a_step_keeps_the_bounds_or_is_refused() -> None:
    numbers = Drawn(Bounds(torch.tensor([3, 3])), DENSE)
    arrived, nbytes = Wire([Doubling()]).up(numbers.upload(), COUNT, 1, 7)
    assert arrived.values["count"].equal(DENSE)
    wider = Drawn(Bounds(torch.tensor([6, 6])), 2 * DENSE)
    assert nbytes == sum(map(len, wider.upload().pack()))
    for values in (DENSE, DENSE.to_sparse(2).coalesce()):
        with pytest.raises(WireError, match="field 'count' is "):
            Wire([Forgetful()]).up(numbers.upload(values), COUNT, 1, 7)


@given(drawn(clients=1), st.data())
def test_changed_bytes_are_refused_or_numbers_within_their_bounds(numbers: Drawn, data: st.DataObject) -> None:
    sent = Broadcast({"count": Counts(numbers.values[0], numbers.bounds)})
    packed = bytearray(sent.pack())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(max(0, len(packed) - 2), len(packed)))
    try:
        received = Broadcast.unpack(bytes(packed[:cut]), sent.fields)
    except ValueError:
        return
    assert received.pack() == bytes(packed), "only one message says this"


class WholeClient(FedMFClient):
    """Sends beside its table the tenths of some rows, as whole numbers."""

    def upload(self) -> Upload:
        table = self.table.detach()
        tenths = (10 * table).round().long().clamp(-3, 3)
        tenths[table[..., 0] < 0.1] = 0  # [clients, items, dim]
        values = {"table": table, "tenths": tenths.to_sparse(2).coalesce(), "dense": tenths[..., 0].abs()}
        return Upload(self.users, values, bounds=bounds(*table.shape[1:]))


def bounds(items: int, dim: int) -> dict[str, Bounds]:
    return {
        "tenths": Bounds(torch.full((items, 1), 3).expand(items, dim), signed=True),
        "dense": Bounds(torch.full((items,), 3)),
    }


class WholeServer(TableServer):
    """Sends a value of each kind."""

    def broadcast(self, users: Tensor, round: int) -> Broadcast | None:
        table = self.mean("table")
        counts = (10 * self.mean("dense")).long()
        lists = torch.tensor([[0, 5, 9], [3, -1, -1]])
        sizes = torch.tensor([3, 1])
        weights = Weights(lists == 5, (lists == 5).long(), torch.tensor([0.5, 0]).half(), sizes)
        return Broadcast(
            {
                "table": table,
                "counts": Counts(counts, Bounds(torch.full_like(counts, 30))),
                "lists": IdLists(lists, sizes, 60),
                "weights": weights,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Whole(FedMF):
    client_class: ClassVar[type[FactorClient]] = WholeClient

    def server(self, num_items: int, seed: int) -> TableServer:
        fields = {"table": Field((num_items, self.dim))}
        for name, one in bounds(num_items, self.dim).items():
            fields[name] = Field(one.shape, torch.int64, bounds=one)
        return WholeServer(fields, seed)


class TestWhole(Conformance):
    uploads = {"table", "tenths", "dense"}

    def method(self, **settings: Any) -> Whole:
        return Whole(**{"dim": 8} | settings)


def test_frames_of_a_cohort_count_what_is_packed() -> None:
    upload = Upload(
        torch.tensor([4, 9]),
        {"table": torch.ones(2, 3), "count": DENSE.to_sparse(2).coalesce()},
        bounds={"count": Bounds(torch.tensor([3, 3]))},
    )
    assert Frames.of(upload).nbytes == sum(map(len, upload.pack()))
