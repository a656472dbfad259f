"""Scores of tables that are kept as what differs from a base: those of tables in full, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cgfedrec.client import Client
from cgfedrec.data import FederatedDataModule
from cgfedrec.data.synthetic import Synthetic
from cgfedrec.failures import Failures
from cgfedrec.kit import scores
from cgfedrec.loop import FederatedLoop
from cgfedrec.memory import is_shared
from cgfedrec.method import Method
from cgfedrec.methods import FedMF, PFedRec
from cgfedrec.methods.fedmf import FedMFClient
from cgfedrec.methods.fedncf import FedNCFClient
from cgfedrec.methods.pfedrec import PFedRecClient
from cgfedrec.simulation.store.opened import OpenedStore
from cgfedrec.testing import prepared, trained
from cgfedrec.wire.messages import Broadcast
from cgfedrec.wire.moved import laid_out, of_rows
from tests.test_touched import STORES

USERS, ITEMS = 40, 900


@pytest.fixture(scope="module")
def data() -> FederatedDataModule:
    return prepared(synthetic=Synthetic(users=USERS, items=ITEMS, groups=6, interactions=12))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of each time that somebody scores: how many clients at once, and whether their tables were laid out."""
    seen: list[tuple[int, bool]] = []
    score = scores.linear

    def watched(vectors: Tensor, tables: Tensor, moved: Tensor | None = None) -> Tensor:
        seen.append((len(vectors), not is_shared(tables) and len(tables) > 1))  # one alone shares with nobody
        return score(vectors, tables, moved)

    monkeypatch.setattr(scores, "linear", watched)
    return seen


@pytest.mark.parametrize("dim", [1, 2, 5, 8, 16, 31, 32, 33, 64, 100])
def test_a_score_does_not_depend_on_where_its_row_lies(dim: int) -> None:
    clients, items = 5, 1100  # more than are scored at once
    vectors, base = torch.randn(clients, dim), torch.randn(items, dim)
    moved = of_rows(
        torch.tensor([[0, 0, 0, 2, 2, 4], [0, 511, 1099, 3, 512, 700]]), torch.randn(6, dim), (clients, items, dim)
    )
    tables = laid_out(moved, base)
    found = scores.linear(vectors, base.expand(clients, -1, -1), moved)
    assert found.equal(scores.linear(vectors, tables))
    assert found[1].equal(scores.linear(vectors, base.expand(clients, -1, -1))[1])
    assert found[2:3].equal(scores.linear(vectors[2:3], tables[2:3])), "whoever scores beside"
    expected = (tables.double() @ vectors.double()[:, :, None]).squeeze(2)
    assert found.double().sub(expected).abs().max() < 1e-5 * (1 + dim)
    rounded = scores.linear(vectors.double(), base.double().expand(clients, -1, -1), moved.double())
    assert rounded.sub(expected).abs().max() < 1e-12 * (1 + dim), "torch does the same"


def test_vectors_of_other_tables_are_refused() -> None:
    """A loop would read beyond the end of a row."""
    tables = torch.randn(3, 7, 4)
    scores.linear(torch.randn(3, 4), tables)
    for vectors in torch.randn(3, 5), torch.randn(4, 4), torch.randn(2, 4):
        with pytest.raises(ValueError, match="do not belong"):
            scores.linear(vectors, tables)
    moved = of_rows(torch.tensor([[0], [8]]), torch.randn(1, 4), (3, 9, 4))
    with pytest.raises(ValueError, match="do not belong"):
        scores.linear(torch.randn(3, 4), tables[:1].expand(3, -1, -1), moved)


METHODS: dict[str, tuple[type[Client], Callable[[], Method]]] = {
    "PFedRec": (PFedRecClient, lambda: PFedRec(dim=8)),
    "FedMF": (FedMFClient, lambda: FedMF(dim=8)),
}


@pytest.mark.parametrize("run", list(STORES))
@pytest.mark.parametrize("name", list(METHODS))
def test_scores_are_those_of_whole_tables(
    name: str,
    run: str,
    data: FederatedDataModule,
    loaded: list[tuple[int, bool]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    kind, method = METHODS[name]
    monkeypatch.chdir(tmp_path)  # where a store has its file
    loop = trained(method(), data, 7, **{"rounds": 3} | STORES[run])
    everyone = data.order()  # as those stand who have trained together
    loaded.clear()
    found = loop.score(everyone)
    if run not in ("some fail", "some take part", "judged at the end"):
        assert not any(whole for _, whole in loaded), "nobody's table is laid out"
    order = torch.randperm(USERS)
    assert loop.score(everyone[order]).equal(found[order]), "in another order others score beside them"
    opened = FederatedLoop(
        rounds=3, cohort_size=7, **{name: one for name, one in STORES[run].items() if name != "rounds"}
    )
    opened.setup(loop.fabric, data, method(), Path("clients"), to_train=False)
    opened.open_state_dict(loop.state_dict())
    assert isinstance(opened.clients.store, OpenedStore)
    assert opened.score(everyone).equal(found), "from a checkpoint"
    monkeypatch.setattr(kind, "scores_moved", False)
    loaded.clear()
    assert loop.score(everyone).equal(found)
    assert all(whole for _, whole in loaded)


def test_tables_are_laid_out_where_few_users_have_the_same_base(
    data: FederatedDataModule, loaded: list[tuple[int, bool]]
) -> None:
    loop = trained(PFedRec(dim=8), data, 7, rounds=6, participants=5)
    loop.clients.capacity = replace(loop.clients.capacity, scored=20)
    loaded.clear()
    found = loop.score(torch.arange(USERS))
    assert [number for number, _ in loaded] == [20, 20]
    assert all(whole for _, whole in loaded)
    loop.clients.capacity = replace(loop.clients.capacity, scored=1)
    loaded.clear()
    assert loop.score(torch.arange(USERS)).equal(found)
    assert len(loaded) < USERS
    assert not any(whole for _, whole in loaded)


def test_a_client_with_scores_of_its_own_has_whole_tables(data: FederatedDataModule) -> None:
    class Own(PFedRecClient):
        def score(self) -> Tensor:
            assert self.table.shape == (len(self.users), ITEMS, 8)
            assert not self.moved
            return super().score() + self.table.sum(2) * 0

    assert PFedRecClient.scores_moved
    assert not Own.scores_moved
    assert not FedNCFClient.scores_moved

    class Likewise(PFedRec):
        client_class = Own

    ours, theirs = trained(Likewise(dim=8), data, 7), trained(PFedRec(dim=8), data, 7)
    assert ours.score(torch.arange(USERS)).equal(theirs.score(torch.arange(USERS)))


def test_a_score_that_was_put_there_later_has_whole_tables(
    data: FederatedDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, everyone = trained(PFedRec(dim=8), data, 7), data.order()
    expected = loop.score(everyone)

    def later(self: PFedRecClient) -> Tensor:
        return (self.table.detach() @ self.head_weight.detach()[:, :, None]).squeeze(2)

    monkeypatch.setattr(PFedRecClient, "score", later)
    torch.testing.assert_close(loop.score(everyone), expected)
    monkeypatch.undo()
    for _ in range(loop.clients.workers.number):
        with loop.clients.workers.one() as worker:
            monkeypatch.setattr(worker.client, "score", partial(later, worker.client))  # type: ignore[arg-type]
    torch.testing.assert_close(loop.score(everyone), expected)


def test_a_client_that_loads_in_its_own_way_has_whole_tables(data: FederatedDataModule) -> None:
    class Loading(PFedRecClient):
        def load(self, users: Tensor, private: Mapping[str, Tensor]) -> None:  # type: ignore[override]
            super().load(users, private)

    class Method(PFedRec):
        client_class = Loading

    ours, theirs = trained(Method(dim=8), data, 7), trained(PFedRec(dim=8), data, 7)
    assert ours.score(data.order()).equal(theirs.score(data.order()))


def test_whole_tables_are_laid_out_a_few_at_a_time(data: FederatedDataModule, loaded: list[tuple[int, bool]]) -> None:
    """Also where others score beside a base."""
    loop = trained(PFedRec(dim=8), data, 7, failures=Failures(refused=0.5))
    store, some = loop.clients.store, data.order()[5:25]
    everyone = data.order()
    found = loop.score(everyone)
    store.write(some, store.read(some))  # without a base
    loop.clients.capacity = replace(loop.clients.capacity, scored=7)
    loaded.clear()
    assert loop.score(everyone).equal(found)
    assert loaded == [(5, False), (7, True), (7, True), (6, True), (15, False)]


def test_what_comes_down_to_score_with_replaces_a_table(data: FederatedDataModule) -> None:
    class Late(PFedRecClient):
        scores_after = "aggregation"
        follows = frozenset({"table"})

        def receive(self, broadcast: Broadcast | None, round: int) -> None:
            super().receive(broadcast, round)

    class Latest(PFedRec):
        client_class = Late

    loop = trained(Latest(dim=8), data, 7)
    everyone = data.order()
    broadcast, _ = loop.clients.sent(everyone, 4)
    assert broadcast is not None
    table, heads = broadcast.values["table"], loop.clients.store.read(everyone)["head_weight"]
    assert isinstance(table, Tensor)
    assert loop.score(everyone).equal(scores.linear(heads, table.expand(USERS, -1, -1)))
