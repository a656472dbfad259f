from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from cgfedrec.errors import RunError
from cgfedrec.files import DamagedError
from cgfedrec.kit.table import TableClient
from cgfedrec.methods.local import Local
from cgfedrec.simulation.store import ClientStore, DiskStore, MemoryStore, OpenedStore, WholeStore
from cgfedrec.simulation.store.blocks import checksums
from cgfedrec.simulation.store.differing import raw
from cgfedrec.simulation.store.layout import Layout

USERS, ITEMS, DIM = 23, 7, 4
ROW = 4 * (ITEMS * DIM + DIM + 1)
"""Bytes of a record: the table, and the head's weight and bias."""
Kind = Callable[..., ClientStore]


@pytest.fixture
def client() -> TableClient:
    return TableClient(Local(dim=DIM, head="private"), ITEMS, 0)


@pytest.fixture
def make(client: TableClient, tmp_path: Path) -> Callable[..., ClientStore]:
    def make(kind: Kind, folder: str = "a", **options: Any) -> ClientStore:
        return kind(torch.arange(USERS).flip(0), client.private(), folder=tmp_path / folder, **options)

    return make


def train(store: ClientStore, client: TableClient, users: list[int], value: float) -> None:
    """What a round does to a cohort: every number becomes ``value`` + the user's number."""
    store.load(client, torch.tensor(users))
    for private in client.private().values():
        private.copy_((torch.tensor(users) + value).view(-1, *[1] * (private.ndim - 1)).expand_as(private))
    store.save(client)


def first_numbers(store: ClientStore, users: list[int]) -> list[float]:
    return [float(v) for v in store.read(torch.tensor(users))["table"][:, 0, 0]]


@pytest.mark.parametrize("kind", [MemoryStore, WholeStore, DiskStore])
def test_rows_are_kept_and_strangers_stand_at_the_start(
    kind: Kind, client: TableClient, make: Callable[..., ClientStore]
) -> None:
    store = make(kind)
    train(store, client, [5, 2, 9], 100)
    train(store, client, [2, 11], 200)
    store.load(client, torch.tensor([9, 0, 2]))
    start = client.start(torch.tensor([0]))
    for name, private in client.private().items():
        assert (private[0] == 109).all()
        assert private[1].equal(start[name][0])
        assert (private[2] == 202).all()
    assert store.known.nonzero().squeeze(1).tolist() == [2, 5, 9, 11]


@pytest.mark.parametrize("kind", [MemoryStore, DiskStore])
def test_half_the_room_is_half_the_room_and_rounds(
    kind: Kind, client: TableClient, make: Callable[..., ClientStore], tmp_path: Path
) -> None:
    store = make(kind, dtype="bfloat16")
    train(store, client, [5, 2], 0.123456)
    assert store.read(torch.tensor([5]))["table"].dtype == torch.bfloat16
    store.load(client, torch.tensor([5, 2]))
    assert client.table.dtype == torch.float32
    assert client.table[0, 0, 0].item() == torch.tensor(5.123456).bfloat16().item()


@pytest.mark.parametrize("before", [MemoryStore, WholeStore, DiskStore])
@pytest.mark.parametrize("after", [MemoryStore, WholeStore, DiskStore, OpenedStore])
def test_either_kind_takes_the_state_of_either(
    before: Kind, after: Kind, client: TableClient, make: Callable[..., ClientStore]
) -> None:
    store = make(before)
    train(store, client, [5, 2, 9], 100)
    other = make(after)
    other.load_state_dict(store.state_dict())
    assert first_numbers(other, [2, 5, 9]) == [102, 105, 109]
    assert other.known.equal(store.known)
    third = make(MemoryStore)
    third.load_state_dict(other.state_dict())
    assert first_numbers(third, [2, 5, 9]) == [102, 105, 109]


def test_what_a_checkpoint_needs_is_never_overwritten(client: TableClient, make: Callable[..., ClientStore]) -> None:
    """Killed at any moment, a run goes on from its last checkpoint, and its best one is there."""
    store = make(DiskStore)
    train(store, client, list(range(12)), 100)
    for name in ("last", "best"):
        store.pin(name)
    best = store.state_dict()
    for round in range(2, 40):
        train(store, client, [(round * 5 + one) % USERS for one in range(6)], 100 * round)
        killed = make(DiskStore)
        killed.load_state_dict(best)
        assert first_numbers(killed, list(range(12))) == [100 + user for user in range(12)]
        if round % 3 == 0:
            store.pin("last")
            last, expected = store.state_dict(), first_numbers(store, store.state_dict()["users"].tolist())
        elif round > 3:
            killed.load_state_dict(last)
            assert first_numbers(killed, last["users"].tolist()) == expected
    assert store.index.room.size <= 3 * USERS


def test_a_resumed_run_overwrites_nothing_either(client: TableClient, make: Callable[..., ClientStore]) -> None:
    store = make(DiskStore)
    train(store, client, list(range(12)), 100)
    for name in ("last", "best"):
        store.pin(name)
    best = store.state_dict()
    train(store, client, list(range(12)), 200)
    store.pin("last")
    resumed = make(DiskStore)
    resumed.load_state_dict(store.state_dict())
    for round in range(3, 9):
        train(resumed, client, list(range(6)), 100 * round)
    again = make(DiskStore)
    again.load_state_dict(best)
    assert first_numbers(again, list(range(12))) == [100 + user for user in range(12)]
    again.load_state_dict(store.state_dict())
    assert first_numbers(again, list(range(12))) == [200 + user for user in range(12)]


def test_to_score_newcomers_share_one_start(client: TableClient, make: Callable[..., ClientStore]) -> None:
    store = make(MemoryStore)
    scores: list[Tensor] = []
    for to_train in (True, False):
        store.load(client, torch.arange(5), to_train=to_train)
        scores.append(client.score())
        assert (client.table.stride(0) == 0) != to_train
    assert scores[0].equal(scores[1])


def test_rows_that_come_from_memory_go_beside_what_checkpoints_need(
    client: TableClient, make: Callable[..., ClientStore]
) -> None:
    """A run on disk, resumed in memory, resumed on disk: its best checkpoint is still there."""
    disk, memory, again = make(DiskStore), make(MemoryStore), make(DiskStore)
    train(disk, client, list(range(12)), 100)
    disk.pin("best")
    best = disk.state_dict()
    memory.load_state_dict(best)
    train(memory, client, list(range(12)), 200)
    again.load_state_dict(memory.state_dict())
    assert first_numbers(again, list(range(12))) == [200 + user for user in range(12)]
    again.load_state_dict(best)
    assert first_numbers(again, list(range(12))) == [100 + user for user in range(12)]


def test_a_file_may_outgrow_the_memory_of_the_machine(
    client: TableClient, make: Callable[..., ClientStore], tmp_path: Path
) -> None:
    store = make(DiskStore)
    train(store, client, list(range(12)), 100)
    store.pin("last")
    state = store.state_dict()
    for path in (tmp_path / "a").iterdir():
        os.truncate(path, int(1.2 * psutil.virtual_memory().total))  # sparse: it takes no room
    resumed = make(DiskStore)
    resumed.load_state_dict(state)
    train(resumed, client, [3, 20, 21], 200)
    assert first_numbers(resumed, [2, 3, 20]) == [102, 203, 220]
    assert sum(path.stat().st_blocks for path in (tmp_path / "a").iterdir()) * 512 < 2**20


@contextmanager
def full_disk(nbytes: int) -> Iterator[None]:
    """No file may be longer than that, which the system says much as it says that a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def half(file: int, offset: int, length: int) -> None:
    os.truncate(file, offset + length // 2)
    raise OSError(errno.ENOSPC, "full")


def unsupported(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "not here")


@pytest.mark.parametrize("reserves", [None, unsupported, half])
def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_what_was_there(
    reserves: Callable[..., None] | None,
    client: TableClient,
    make: Callable[..., ClientStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = make(DiskStore)
    train(store, client, list(range(6)), 100)
    store.pin("last")
    state = store.state_dict()
    sizes = {path: path.stat().st_size for path in (tmp_path / "a").iterdir()}
    message = rf"the disk of {tmp_path / 'a'} is full: {6 * ROW} bytes"
    limit = 100 * ROW if reserves is half else 6 * ROW
    with monkeypatch.context() as patched, full_disk(limit):
        patched.setattr(os, "posix_fallocate", reserves or os.posix_fallocate)
        with pytest.raises(RunError, match=message):
            train(store, client, list(range(4)), 200)
    assert {path: path.stat().st_size for path in sizes} == sizes
    assert first_numbers(store, list(range(6))) == [100 + user for user in range(6)]
    for again in (store, make(DiskStore)):
        again.load_state_dict(state)
        train(again, client, list(range(4)), 300)
        assert first_numbers(again, [0, 3, 4]) == [300, 303, 104]


def test_room_is_taken_before_it_is_written_to(make: Callable[..., ClientStore], tmp_path: Path) -> None:
    make(DiskStore).files.grow(0, 1000)
    path = tmp_path / "a" / "records.float32"
    assert path.stat().st_size == 1000 * ROW
    assert path.stat().st_blocks * 512 >= path.stat().st_size


@pytest.mark.parametrize("kind", [MemoryStore, WholeStore, DiskStore, OpenedStore])
def test_a_row_that_is_not_what_was_written_is_refused(
    kind: Kind, client: TableClient, make: Callable[..., ClientStore], tmp_path: Path
) -> None:
    store = make(DiskStore)
    train(store, client, list(range(6)), 100)
    state = store.state_dict()
    path = tmp_path / "a" / "records.float32"
    whole = path.read_bytes()
    for damaged in (whole[:5] + b"!" + whole[6:], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=rf"^{path}: .* damaged, or a run at work in this folder is changing it"):
            _read_all(make(kind), state)
    path.write_bytes(whole)
    assert _read_all(make(kind), state) == [100 + user for user in range(6)]


def _read_all(store: ClientStore, state: dict[str, Any]) -> list[float]:
    store.load_state_dict(state)
    return first_numbers(store, list(range(6)))


def test_a_state_that_a_run_at_work_has_overwritten_is_refused_and_not_mixed(
    client: TableClient, make: Callable[..., ClientStore]
) -> None:
    running, beside = make(DiskStore), make(OpenedStore)
    train(running, client, list(range(6)), 100)
    running.pin("last")
    beside.load_state_dict(running.state_dict())
    for round in (2, 3):
        assert first_numbers(beside, list(range(6))) == [100 + user for user in range(6)]
        train(running, client, list(range(6)), 100 * round)
        running.pin("last")
    with pytest.raises(DamagedError, match="wait until it has ended"):
        first_numbers(beside, list(range(6)))


def test_what_a_checkpoint_refers_to_is_synced_before_it_is_written(
    client: TableClient, make: Callable[..., ClientStore], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append(Path(f"/proc/self/fd/{file}").readlink().name)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    store = make(DiskStore)
    train(store, client, [0], 100)
    assert not synced
    store.pin("last")
    assert set(synced) == {"a", *(path.name for path in (tmp_path / "a").iterdir())}


LARGE = 400  # items: with them a table is large enough to be kept as what differs
FEW = torch.tensor([0, 5, 399])


@pytest.fixture
def large() -> TableClient:
    return TableClient(Local(dim=DIM, head="private"), LARGE, 0)


def touch(store: ClientStore, client: TableClient, users: list[int], value: float, sent: Tensor | None = None) -> None:
    """What a round does to a cohort: few rows become ``value`` + the user's number. Others stay, or are as sent."""
    store.load(client, torch.tensor(users))
    alike = {}
    if sent is not None:
        client.table.data.copy_(sent)
        alike = {"table": sent}
    client.table.data[:, FEW] = (torch.tensor(users) + value)[:, None, None].float()
    store.save(client, alike)


def table_of(start: Tensor, user: int, value: float) -> Tensor:
    """What `touch` leaves of a table `[items, dim]`."""
    table = start.clone()
    table[FEW] = user + value
    return table


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (MemoryStore, "float32"),
        (MemoryStore, "bfloat16"),
        (WholeStore, "float32"),
        (DiskStore, "float32"),
        (DiskStore, "bfloat16"),
    ],
)
def test_a_table_is_kept_as_the_rows_that_differ_bit_for_bit(
    kind: Kind, dtype: str, large: TableClient, make_of: Any
) -> None:
    kept = getattr(torch, dtype)
    store = make_of(kind, large, dtype=dtype)
    start, sent = large.start(torch.tensor([0]))["table"][0], torch.randn(LARGE, DIM)
    expected: dict[int, Tensor] = {}
    for users, value, base in (
        ([5, 2, 9], 100, None),
        ([2, 11], 200, sent),
        ([11, 5], 300, None),
        ([9], 400, start + 1),
    ):
        before = {user: expected.get(user, start) for user in users}
        touch(store, large, users, value, base)
        for user in users:
            expected[user] = table_of(before[user] if base is None else base, user, value).to(kept)
    last = make_of(kind, large, "a" if kind is DiskStore else "other", dtype=dtype)
    last.load_state_dict(store.state_dict())
    for one in (store, last):
        for user, table in expected.items():
            assert one.read(torch.tensor([user]))["table"][0].equal(table)
        together = one.read(torch.tensor(list(expected)))["table"]
        assert together.equal(torch.stack(list(expected.values())))


@pytest.fixture
def make_of(tmp_path: Path) -> Callable[..., ClientStore]:
    def make_of(kind: Kind, client: TableClient, folder: str = "a", **options: Any) -> ClientStore:
        return kind(torch.arange(USERS).flip(0), client.private(), folder=tmp_path / folder, **options)

    return make_of


@pytest.mark.parametrize("kind", [MemoryStore, WholeStore, DiskStore])
def test_state_takes_room_in_proportion_to_what_differs(kind: Kind, large: TableClient, make_of: Any) -> None:
    """For some rounds, each with another base: no more than a base for each that somebody needs."""
    store = make_of(kind, large)
    whole = LARGE * DIM * 4
    for round in range(20):
        touch(store, large, list(range(USERS)), 100 * round, torch.randn(LARGE, DIM))
        store.pin("last")
        assert len(store.state_dict()["base_sums"]) == 1
    # At most two of each, the ones of before and the ones of now; the file grows by an eighth.
    records, base = USERS * store.layout.block, 2 * whole
    assert store.blocks.size() * store.layout.block <= 9 / 8 * 2 * (records + base) + store.layout.block


def test_bases_last_as_long_as_somebody_needs_them(large: TableClient, make_of: Any) -> None:
    store = make_of(DiskStore, large)
    sent = [torch.randn(LARGE, DIM) for _ in range(3)]
    for round, users in enumerate(([0, 1], [2, 3], [0, 2])):
        touch(store, large, users, 100 * round, sent[round])
        store.pin("last")
        if round == 1:
            store.pin("best")
            best = store.state_dict()
    assert len(store.state_dict()["base_sums"]) == 3
    for round in range(3, 9):
        touch(store, large, [0, 1, 2, 3], 100 * round, torch.randn(LARGE, DIM))
        store.pin("last")
    assert len(store.state_dict()["base_sums"]) == 1
    again = make_of(DiskStore, large)
    again.load_state_dict(best)
    for user, round in ((0, 0), (1, 0), (2, 1), (3, 1)):
        assert again.read(torch.tensor([user]))["table"][0].equal(table_of(sent[round], user, 100 * round))


def test_a_table_that_differs_everywhere_is_whole(large: TableClient, make_of: Any) -> None:
    store = make_of(MemoryStore, large)
    train(store, large, [1, 2], 100)
    state = store.state_dict()
    assert state["bases"].tolist() == [[-1], [-1]]
    assert sum(piece.nbytes for piece in state["pieces"]) <= 2 * (LARGE * DIM + DIM + 1) * 4 + 2 * store.layout.block


def test_a_part_of_the_users_takes_the_bases_that_it_needs(large: TableClient, make_of: Any) -> None:
    store, part = make_of(MemoryStore, large), make_of(MemoryStore, large)
    sent = [torch.randn(LARGE, DIM) for _ in range(3)]
    for user, base in enumerate(sent):
        touch(store, large, [user], 100, base)
    whose = torch.zeros(USERS, dtype=torch.bool)
    whose[[0, 2, 7]] = True
    part.load_state_dict(store.state_dict(), whose)
    assert part.known.nonzero().squeeze(1).tolist() == [0, 2]
    assert len(part.state_dict()["base_sums"]) == 2
    for user in (0, 2):
        assert part.read(torch.tensor([user]))["table"][0].equal(table_of(sent[user], user, 100))


def _record(store: ClientStore, user: int) -> tuple[Tensor, int]:
    """The memory in which a user's record lies, `[bytes]`, and where the items of its table begin."""
    assert isinstance(store, MemoryStore)
    ((piece, first, _),) = store.blocks._runs(store.index.firsts[user : user + 1])
    return piece[first:].view(-1), 4 * (DIM + 1)


@pytest.mark.parametrize("items", [[0, 5, LARGE], [-1, 5, 399], [5, 0, 399], [5, 5, 399]])
def test_items_of_a_record_that_are_none_are_refused(items: list[int], large: TableClient, make_of: Any) -> None:
    """Also where whoever wrote them made the checksum agree."""
    store = make_of(MemoryStore, large)
    touch(store, large, [3], 100)
    record, at = _record(store, 3)
    record[at : at + 12] = torch.tensor(items, dtype=torch.int32).view(torch.uint8)
    with pytest.raises(DamagedError, match="a client's state in it is not what was written"):
        store.read(torch.tensor([3]))
    store.index.sums[3] = checksums(record[: store.layout.block].numpy().reshape(1, -1), torch.tensor([1]))[0]
    with pytest.raises(DamagedError, match="the items of a client's table are no ascending numbers"):
        store.read(torch.tensor([3]))


def test_items_whose_differences_are_too_large_for_their_type_are_refused() -> None:
    """From 2^31 - 1 to -2 is a step up, if it is counted in 32 bits."""
    layout = Layout({"table": (LARGE, DIM)}, {"table": torch.float32})
    table = torch.randn(LARGE, DIM)
    rows = table.repeat(1, 1, 1)
    rows[0, [0, 5, 7, 399]] += 1
    packed = layout.pack(1, {"table": rows}, {"table": table})
    packed.content.reshape(-1)[:16] = np.array([0, 2**31 - 1, -2, 399], np.int32).view(np.uint8)
    for beside in (), ("table",):
        with pytest.raises(ValueError, match="no ascending numbers"):
            layout.unpack(packed.content, torch.zeros(1, 1), packed.numbers, {0: raw(table)}, beside=beside)


HOSTILE: dict[str, Any] = {
    "users": [
        torch.tensor([0, 0]),
        torch.tensor([0, USERS]),
        torch.tensor([0, -1]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([[0, 1]]),
        [0, 1],
    ],
    "blocks": [
        torch.tensor([0, 10**12]),
        torch.tensor([-1, 0]),
        torch.tensor([1, 1]),
        torch.tensor([0]),
        torch.tensor([0.0, 1.0]),
    ],
    "base_blocks": [torch.tensor([2, 3]), torch.tensor([0]), torch.tensor([-1, 2]), torch.tensor([10**12, 2]), None],
    "base_tables": [torch.tensor([1]), torch.tensor([-1]), torch.tensor([0, 0]), torch.tensor([0.0])],
    "base_sums": [torch.tensor([0, 1]), None],
    "bases": [torch.tensor([[0], [1]]), torch.tensor([[0], [-2]]), torch.tensor([0, 0]), torch.tensor([[0], [-1]])],
    "numbers": [torch.tensor([[3], [-1]]), torch.tensor([[3], [LARGE + 1]]), torch.tensor([[3], [300]]), None],
    "sums": [torch.tensor([0]), torch.zeros(2, 9, dtype=torch.int64), None],
    "pins": [{"best": torch.tensor([10**12])}, {"best": torch.tensor(0)}, {"best": "x"}],
    "pieces": [
        [],
        [torch.zeros(1, 9, dtype=torch.uint8)],
        [torch.zeros(9, dtype=torch.uint8)],
        [torch.zeros(4, 3204)],
        ["x"],
    ],
}


@pytest.mark.parametrize("kind", [MemoryStore, WholeStore, DiskStore, OpenedStore])
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_a_state_is_data_that_is_checked(kind: Kind, key: str, value: Any, large: TableClient, make_of: Any) -> None:
    source = make_of(MemoryStore if key == "pieces" else DiskStore, large)
    touch(source, large, [0, 1], 100)
    source.pin("last")
    state = source.state_dict()
    assert [len(state[name]) for name in ("blocks", "base_blocks", "base_sums")] == [2, 2, 1]
    store = make_of(kind, large)
    with pytest.raises(ValueError, match="the clients' "):
        store.load_state_dict({**state, key: value})
    store.load_state_dict(state)
    assert first_numbers(store, [0, 1]) == [100, 101]


def test_memory_is_taken_as_clients_take_part() -> None:
    """All users of this federation would take 30.7 GB."""
    store = MemoryStore(torch.arange(6000), {"table": torch.empty(0, 20_000, 64)})
    users = torch.tensor([5999, 3, 70])
    store.write(users, {"table": torch.arange(3.0).view(3, 1, 1).expand(3, 20_000, 64)})
    store.known[users] = True
    assert store.read(torch.tensor([70, 5999]))["table"][:, 0, 0].tolist() == [2, 0]
    state = store.state_dict()
    whole = 20_000 * 64 * 4
    assert 3 * whole <= sum(piece.untyped_storage().nbytes() for piece in state["pieces"]) <= 3.01 * whole


@pytest.mark.parametrize("kind", [MemoryStore, WholeStore, DiskStore])
def test_room_that_is_free_is_used_again(kind: Kind, client: TableClient, make: Callable[..., ClientStore]) -> None:
    store = make(kind)
    for round in range(30):
        for users in ([5, 2], [9, 11, 7]):
            train(store, client, users, 100 * round)
        store.pin("last")
    assert first_numbers(store, [5, 11]) == [2905, 2911]
    assert store.index.room.size <= 12


def test_a_cohort_is_read_into_memory_that_it_has_had_before(
    client: TableClient, make: Callable[..., ClientStore]
) -> None:
    store = make(MemoryStore)
    train(store, client, [9, 11, 3], 100)
    before = client.table.data_ptr()
    train(store, client, [5, 2], 100)
    assert client.table.data_ptr() == before
    store.load(client, torch.tensor([9, 5]))
    assert client.table[:, 0, 0].tolist() == [109, 105]
    assert client.table.data_ptr() == before
