"""Rounds that differ: whom a server wants, what comes down once, what trains nothing, and when all is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.client import Batch
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import RunError
from cgfedrec.kit.factors import FactorMethod
from cgfedrec.kit.means import SumServer, TableServer
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import FedMF
from cgfedrec.methods.fedmf import FedMFClient
from cgfedrec.processes import Processes
from cgfedrec.testing import trained
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field, Labels
from tests.conftest import MakeData


class Doubling(Processes):
    """Stands for a second process that has the same sums."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def sum(self, value: Tensor) -> Tensor:
        self.calls += 1
        return value * 2


def test_a_sum_over_processes_adds_values_and_clients_and_leaves_its_own() -> None:
    ours = Sum({"count": torch.tensor([3, 2**40]), "table": torch.tensor([0.5])}, clients=7)
    both = ours.over_processes(Doubling())
    assert both.clients == 14
    assert both.values["count"].tolist() == [6, 2**41]
    assert both.values["count"].dtype == torch.int64
    assert both.values["table"].tolist() == [1.0]
    assert ours.values["count"].tolist() == [3, 2**40]


def test_a_sum_that_would_not_be_exact_over_processes_is_refused() -> None:
    with pytest.raises(RunError, match="sum of table is beyond 8192"):
        Sum({"table": torch.tensor([8192.0])}, clients=1).over_processes(Doubling())


def test_the_order_of_a_sum_shows_nowhere() -> None:
    random = torch.Generator().manual_seed(0)
    # Large and small numbers side by side: in float64 alone the order of their sum would show.
    scales = 10.0 ** torch.randint(-12, 2, (60, 3, 4), generator=random)
    tables = torch.randn(60, 3, 4, generator=random) * scales
    upload = Upload(torch.arange(60), {"table": tables})
    parts = [Upload(torch.arange(len(part)), {"table": part}).sum() for part in tables.flip(0).split(7)]
    first = parts[0].values["table"].clone()
    total = parts[0].dense()
    for part in parts[1:]:
        total += part
    assert total.values["table"].equal(upload.sum().values["table"])
    assert total.clients == 60
    assert parts[0].values["table"].equal(first)  # a part is left as it came


def test_few_rows_are_added_up_as_if_all_were_laid_out() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 9, (4, 50), generator=random)  # [clients, rows], of which few are left
    rows *= torch.rand(4, 50, generator=random) < 0.1
    values = rows[..., None].expand(-1, -1, 3)
    bounds = {"count": Bounds(torch.full((50, 3), 2**10))}
    plain = Upload(torch.arange(4), {"count": values}, bounds=bounds)
    few = Upload(torch.arange(4), {"count": values.to_sparse(2)}, bounds=bounds)
    assert few.sum().values["count"].layout == torch.sparse_coo
    total = few.sum().dense()
    total += few.sum()
    assert total.values["count"].equal(2 * plain.sum().values["count"])


def test_the_loop_adds_sums_up_over_processes_before_the_server_sees_them(make_data: MakeData) -> None:
    data, alone = make_data(), trained(FedMF(dim=4), make_data(), 5, rounds=2)
    loop = FederatedLoop(rounds=2, cohort_size=5)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, FedMF(dim=4))
    doubling = Doubling()
    doubling.number = 2  # the server asks for the sum of both; whatever else there is, is here
    server = loop.server
    assert isinstance(server, SumServer)
    with patch.object(server, "gather", lambda *_: SumServer.gather(server, doubling)):
        loop.fit()
    assert doubling.calls == 3 * 2  # whether a table is too large, the table and the clients, in each round
    # Twice the sum over twice the clients: the same means, where either alone would have changed them.
    assert loop.server.mean("table").equal(alone.server.mean("table"))  # type: ignore[operator]


class AskingServer(TableServer):
    """Wants clients 0 to 5 twice, in rounds that train nothing, tells everybody labels, and trains two rounds more."""

    @property
    def phase(self) -> str:
        return "ask" if self.rounds_done < 4 else ""

    @property
    def preparing(self) -> bool:
        return self.rounds_done < 4

    @property
    def finished(self) -> bool:
        return self.rounds_done == 6

    rounds_done = 0

    def wanted(self) -> Tensor | None:
        if self.rounds_done >= 4:
            return None
        return torch.arange(3) + 3 * (self.rounds_done % 2)

    def update(self, users: Tensor, round: int) -> dict[str, float]:
        self.rounds_done = round
        return super().update(users, round) | {"asked": float(len(users))}

    def broadcast(self, users: Tensor, round: int) -> Broadcast:
        labels = Bulletin.of({"labels": Labels(torch.arange(8), 8)})
        return Broadcast({"asks": torch.tensor(round <= 4, dtype=torch.uint8)}, kept={"labels": labels})


class AskedClient(FedMFClient):
    """Trains nothing while it is asked."""

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        assert broadcast is not None
        self.asked = bool(broadcast.values["asks"])
        assert isinstance(broadcast.kept["labels"].values["labels"], Labels)

    def batches(self) -> Sequence[Batch]:
        if self.asked:
            return []
        return super().batches()


@dataclass(frozen=True, kw_only=True)
class Asking(FactorMethod):
    """A method with both kinds of rounds."""

    dim: int = 4
    local_epochs: int = 1

    def client(self, num_items: int, seed: int) -> AskedClient:
        return AskedClient(self, num_items, seed)

    def server(self, num_items: int, seed: int) -> AskingServer:
        return AskingServer({"table": Field((num_items, self.dim))}, seed)


class Watch:
    """Notes who took part, and what the round was for."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[int]]] = []
        self.users: list[int] = []
        self.phase = "ask"

    def on_cohort_end(self, loop: FederatedLoop, users: Tensor) -> None:
        self.users += users.tolist()

    def on_round_end(self, loop: FederatedLoop) -> None:
        self.seen.append((self.phase, sorted(self.users)))
        self.users, self.phase = [], loop.server.phase


@pytest.fixture
def watched(data: FederatedDataModule) -> tuple[FederatedLoop, Watch]:
    watch = Watch()
    loop = FederatedLoop(rounds=50, participants=5, patience=2)
    loop.setup(Fabric(accelerator="cpu", devices=1, callbacks=[watch]), data, Asking())
    loop.fit()
    return loop, watch


@pytest.fixture
def data(make_data: MakeData) -> FederatedDataModule:
    return make_data()


def test_a_server_chooses_whom_it_wants_and_when_all_is_done(watched: Any) -> None:
    loop, watch = watched
    assert loop.round == 6
    assert watch.seen[:4] == [("ask", [0, 1, 2]), ("ask", [3, 4, 5])] * 2
    assert [(phase, len(users)) for phase, users in watch.seen[4:]] == [("", 5), ("", 5)]


def test_rounds_that_prepare_have_rows_without_metrics_and_cost_no_patience(watched: Any) -> None:
    loop, _ = watched
    assert [row["asked"] for row in loop.history] == [3, 3, 3, 3, 5, 5]
    assert ["train/loss" in row for row in loop.history] == [False] * 4 + [True] * 2
    # The state changed nothing of what clients score with until the last of them; from there on rounds are evaluated.
    measured = [loop.monitor in row for row in loop.history]
    assert measured == [False, False, False, True, True, True]
    assert loop.best is not None
    assert loop.monitor in loop.best


def test_a_bulletin_comes_down_once_for_each_client(watched: Any) -> None:
    loop, watch = watched
    there = {user for _, users in watch.seen for user in users}
    bulletin = Bulletin.of({"labels": Labels(torch.arange(8), 8)}).nbytes
    message = len(Broadcast({"asks": torch.tensor(1, dtype=torch.uint8)}).pack())
    welcome = len(loop.server.welcome().pack())
    asked = sum(len(users) for _, users in watch.seen)
    # Everybody is scored, and welcomed for that at the latest.
    once = len(there) * bulletin + loop.data.num_users * welcome
    assert loop.bytes_down + loop.bytes_scoring == asked * message + once
    assert loop.clients.held.masks["labels"].nonzero().squeeze(1).tolist() == sorted(there)
