from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from cgfedrec.errors import RunError
from cgfedrec.files import DamagedError
from cgfedrec.kit.table import TableClient
from cgfedrec.methods.local import Local
from cgfedrec.simulation.store import ClientStore, DiskStore, MemoryStore, OpenedStore

USERS, ITEMS, DIM = 23, 7, 4
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


@pytest.mark.parametrize("kind", [MemoryStore, DiskStore])
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


@pytest.mark.parametrize("before", [MemoryStore, DiskStore])
@pytest.mark.parametrize("after", [MemoryStore, DiskStore, OpenedStore])
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
    assert isinstance(store, DiskStore)
    assert store._size <= 3 * USERS


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
    row = ITEMS * DIM * 4
    sizes = {path: path.stat().st_size for path in (tmp_path / "a").iterdir()}
    message = rf"the disk of {tmp_path / 'a'} is full: {6 * row} bytes"
    limit = 100 * row if reserves is half else 6 * row
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
    make(DiskStore)._files.grow(0, 1000)
    assert (tmp_path / "a" / "table.float32").stat().st_size == 1000 * ITEMS * DIM * 4
    for path in (tmp_path / "a").iterdir():
        assert path.stat().st_blocks * 512 >= path.stat().st_size


@pytest.mark.parametrize("kind", [MemoryStore, DiskStore, OpenedStore])
def test_a_row_that_is_not_what_was_written_is_refused(
    kind: Kind, client: TableClient, make: Callable[..., ClientStore], tmp_path: Path
) -> None:
    store = make(DiskStore)
    train(store, client, list(range(6)), 100)
    state = store.state_dict()
    path = tmp_path / "a" / "table.float32"
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


HOSTILE: dict[str, Any] = {
    "users": [
        torch.tensor([0, 0]),
        torch.tensor([0, USERS]),
        torch.tensor([0, -1]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([[0, 1]]),
        [0, 1],
    ],
    "slots": [
        torch.tensor([0, 10**12]),
        torch.tensor([-1, 0]),
        torch.tensor([1, 1]),
        torch.tensor([0]),
        torch.tensor([0.0, 1.0]),
    ],
    "sums": [torch.tensor([0, 1]), torch.zeros(2, 9, dtype=torch.int64), None],
    "pins": [{"best": torch.tensor([10**12])}, {"best": torch.tensor(0)}, {"best": "x"}],
    "rows": [
        {},
        {"table": torch.zeros(2, ITEMS, DIM), "more": torch.zeros(2)},
        {"table": torch.zeros(2, ITEMS + 1, DIM)},
        {"table": torch.zeros(3, ITEMS, DIM)},
        {"table": torch.zeros(2, ITEMS, DIM, dtype=torch.int64)},
        {"table": "x"},
    ],
}


@pytest.mark.parametrize("kind", [MemoryStore, DiskStore, OpenedStore])
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_a_state_is_data_that_is_checked(
    kind: Kind, key: str, value: Any, client: TableClient, make: Callable[..., ClientStore]
) -> None:
    source = make(MemoryStore if key == "rows" else DiskStore)
    train(source, client, [0, 1], 100)
    state = source.state_dict()
    if key == "rows":
        value = {**{name: rows for name, rows in state["rows"].items() if value and name != "table"}, **value}
    store = make(kind)
    with pytest.raises(ValueError, match="the clients' "):
        store.load_state_dict({**state, key: value})
    store.load_state_dict(state)
    assert first_numbers(store, [0, 1]) == [100, 101]


def test_memory_is_reserved_for_those_who_take_part() -> None:
    """All users of this federation would take 30.7 GB."""
    store = MemoryStore(torch.arange(6000), {"table": torch.empty(0, 20_000, 64)}, expected=12)
    users = torch.tensor([5999, 3, 70])
    store.write(users, {"table": torch.arange(3.0).view(3, 1, 1).expand(3, 20_000, 64)})
    store.known[users] = True
    assert store.read(torch.tensor([70, 5999]))["table"][:, 0, 0].tolist() == [2, 0]
    assert store.rows["table"].nbytes == 12 * 20_000 * 64 * 4
    state = store.state_dict()
    assert state["rows"]["table"].untyped_storage().nbytes() == 3 * 20_000 * 64 * 4


def test_more_clients_than_were_expected_find_room(client: TableClient, make: Callable[..., ClientStore]) -> None:
    store = make(MemoryStore, expected=2)
    for user in range(USERS):
        train(store, client, [user], 100)
    assert first_numbers(store, list(range(USERS))) == [100 + user for user in range(USERS)]
    assert isinstance(store, MemoryStore)
    assert len(store.rows["table"]) == USERS


def test_cohorts_that_come_again_are_trained_in_place() -> None:
    client = TableClient(Local(dim=DIM, head="private"), 8, 0)  # rows that begin where tensors do
    store = MemoryStore(torch.arange(USERS).flip(0), client.private())
    store.expect(torch.tensor([5, 2, 9, 11]))
    train(store, client, [9, 11], 100)
    train(store, client, [5, 2], 100)
    for users in ([5, 2], [9, 11]):
        store.load(client, torch.tensor(users))
        table = client.private()["table"]
        assert table.data_ptr() == store.rows["table"][store.place[users[0]]].data_ptr()
