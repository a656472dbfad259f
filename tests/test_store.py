from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cgfedrec.store import ClientStore, DiskStore, MemoryStore
from cgfedrec.table import TableClient

USERS, ITEMS, DIM = 23, 7, 4
Kind = Callable[..., ClientStore]


@pytest.fixture
def client() -> TableClient:
    return TableClient(ITEMS, 0, DIM, torch.optim.SGD, 1.0, 1.0, "private")


@pytest.fixture
def make(client: TableClient, tmp_path: Path) -> Callable[..., ClientStore]:
    def make(kind: Kind, folder: str = "a", **options: str) -> ClientStore:
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
@pytest.mark.parametrize("after", [MemoryStore, DiskStore])
def test_either_kind_takes_the_state_of_either(
    before: Kind, after: Kind, client: TableClient, make: Callable[..., ClientStore]
) -> None:
    store = make(before)
    train(store, client, [5, 2, 9], 100)
    other = make(after)
    other.load_state_dict(store.state_dict())
    assert first_numbers(other, [2, 5, 9]) == [102, 105, 109]
    assert other.known.equal(store.known)


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
