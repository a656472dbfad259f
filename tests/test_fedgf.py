"""FedGF: the basis is that of the dense graph, sums wait for all and show no client, alpha is chosen by validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cgfedrec
from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.data.own import Own
from cgfedrec.errors import InputError, RunError
from cgfedrec.evaluation.ranking import evaluate, gains
from cgfedrec.kit.basis import orthonormal
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import FedGF
from cgfedrec.methods.fedgf import CHOOSE, COUNT, PRODUCT, FedGFClient, FedGFServer
from cgfedrec.protocol import Protocol
from cgfedrec.testing import Conformance, prepared, trained
from cgfedrec.wire.messages import Upload


@pytest.fixture
def data() -> FederatedDataModule:
    """Some items of one client, some of two, and some of more."""
    return prepared(synthetic=Synthetic(users=40, items=60, groups=6, interactions=10))


def matrix(data: FederatedDataModule) -> Tensor:
    """X, `[users, items]`, float64."""
    return torch.from_numpy(data.training_matrix().toarray())


def weighted(data: FederatedDataModule, least: int) -> Tensor:
    """R, `[users, items]`, float64, with zeros for items that fewer than ``least`` clients have."""
    ones = matrix(data)
    counts = ones.sum(0)
    return ones / ones.sum(1, keepdim=True).sqrt() * counts.clamp_min(1).rsqrt() * (counts >= least)


def server_of(loop: FederatedLoop) -> FedGFServer:
    assert isinstance(loop.server, FedGFServer)
    return loop.server


@pytest.mark.parametrize("least", [1, 3])
def test_with_all_columns_the_first_product_has_the_eigenvalues_and_the_scores_of_the_dense_graph(
    least: int, data: FederatedDataModule
) -> None:
    method = FedGF(rank=500, iterations=1, alphas=(0.7,), least_clients=least)
    loop = trained(method, data, 7, rounds=9)
    rows, ones = weighted(data, least), matrix(data)
    graph = rows.T @ rows
    values, vectors = torch.linalg.eigh(graph)
    real = values > 1e-5
    torch.testing.assert_close(
        server_of(loop).spectrum[: int(real.sum())].double(), values[real].flip(0), atol=1e-5, rtol=1e-3
    )
    basis, counts = vectors[:, real], ones.sum(0)
    scarce = torch.where(counts >= least, counts.clamp_min(1).rsqrt(), 0.0)
    expected = ones @ graph + 0.7 * (ones * scarce) @ basis @ basis.T * counts.sqrt()
    torch.testing.assert_close(loop.score(torch.arange(data.num_users)).double(), expected, atol=2e-4, rtol=1e-3)


def test_few_columns_come_to_span_the_largest_eigenvectors(data: FederatedDataModule) -> None:
    rows = weighted(data, 3)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    largest = vectors[:, -3:]
    outside = []
    for iterations in (1, 3, 30):
        loop = trained(FedGF(rank=8, iterations=iterations, alphas=(1.0,)), data, 100, rounds=99)
        basis = server_of(loop).basis.double()
        torch.testing.assert_close(basis.T @ basis, torch.eye(8).double(), atol=1e-5, rtol=0)
        outside.append((largest - basis @ (basis.T @ largest)).norm().item())
    assert outside[0] > 3 * outside[1] > 30 * outside[2]
    torch.testing.assert_close(server_of(loop).spectrum[:3].double(), values[-3:].flip(0), atol=1e-4, rtol=0)


def test_columns_beyond_the_directions_of_the_graph_are_zero() -> None:
    product = torch.zeros(6, 4)
    product[:2] = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    basis, spectrum = orthonormal(product)
    assert spectrum.gt(0).tolist() == [True, True, False, False]
    assert not basis[:, 2:].any()
    assert basis[:2, :2].abs().sum() > 1


class Opened(FedGFServer):
    """Keeps every sum that is opened, by name, and from how many clients it came."""

    def __init__(self, method: FedGF, num_items: int, seed: int) -> None:
        super().__init__(method, num_items, seed)
        self.seen: list[tuple[str, Tensor, int]] = []

    def opened(self, name: str, total: Tensor) -> dict[str, float]:
        self.seen.append((name, total.clone(), int(self.there.sum())))
        return super().opened(name, total)


class Watched(FedGF):
    """FedGF with a server that keeps its sums."""

    def server(self, num_items: int, seed: int) -> Opened:
        return Opened(self, num_items, seed)


@pytest.mark.parametrize("participants", [40, 7])
def test_no_sum_shows_the_profile_of_one_client(participants: int, data: FederatedDataModule) -> None:
    """An item of one or two clients has no row in a product, and no sum is opened before all have added to it."""
    loop = trained(Watched(rank=8), data, 7, rounds=99, participants=participants)
    assert isinstance(loop.server, Opened)
    counts = matrix(data).sum(0)
    assert (counts == 1).any()
    assert (counts == 2).any()
    assert [name for name, _, _ in loop.server.seen] == ["count", "product", "product", "product", "choose"]
    for name, total, clients in loop.server.seen:
        assert clients == data.num_users
        if name == COUNT:
            assert total.equal(counts)
        elif name == PRODUCT:
            assert total.any(1).equal(counts >= 3)


def test_any_participation_ends_at_the_same_filter(data: FederatedDataModule) -> None:
    loops = [trained(FedGF(rank=8), data, 7, rounds=99, participants=number) for number in (40, 7)]
    assert [loop.round for loop in loops] == [5, 30]
    basis, other = (server_of(loop).basis for loop in loops)
    torch.testing.assert_close(other, basis, atol=1e-5, rtol=0)
    assert server_of(loops[0]).chosen == server_of(loops[1]).chosen


def test_a_client_adds_to_no_sum_twice(data: FederatedDataModule) -> None:
    """Whatever a server asks. One that asks twice is told so when the round ends."""
    loop = trained(FedGF(rank=8), data, 100, rounds=2)
    users = torch.arange(data.num_users)
    sent = []
    with loop.clients.workers.one() as worker:
        client = worker.client
        loop.clients.store.load(client, users)
        for _ in range(2):
            client.own = Own(data, users, 3, 1)
            client.receive(loop.server.broadcast(users, 3), 3)
            sent.append(client.upload())
    assert sent[0].clients.equal(users)
    assert not len(sent[1].clients)
    loop.server.aggregate(loop.server.reduce(Upload(users[:5], {PRODUCT: sent[0].values[PRODUCT][:5]})))
    with pytest.raises(RunError, match="5 clients have added to the sum 'product', where 40 were asked"):
        loop.server.update(users, 3)


def test_alpha_is_the_one_that_gains_most_in_validation(data: FederatedDataModule) -> None:
    alphas = (0.0, 0.3, 50.0)
    loop = trained(FedGF(rank=8, alphas=alphas), data, 7, rounds=99)
    gained = []
    for alpha in alphas:
        one = trained(FedGF(rank=8, alphas=(alpha,)), data, 7, rounds=99)
        assert one.round == loop.round - 1
        gained.append(evaluate(data, "val", one.score, 100)["val/ndcg@10"])
    assert len(set(gained)) == 3
    best = alphas[gained.index(max(gained))]
    judged = {alpha: loop.history[-1][f"readings/alpha {alpha:g}"] for alpha in alphas}
    assert judged == pytest.approx(dict(zip(alphas, gained, strict=True)))
    assert loop.server.get_buffer("chosen") == alphas.index(best)
    assert loop.history[-1]["clients/judged"] == data.num_users
    assert loop.history[-1]["val/ndcg@10"] == pytest.approx(max(gained))


def test_where_nobody_holds_out_the_first_alpha_stays_and_the_report_says_so() -> None:
    data = prepared(synthetic=Synthetic(users=40, items=60, groups=6, interactions=10), split="none")
    loop = trained(FedGF(rank=8, alphas=(0.1, 0.0)), data, 7, rounds=99)
    assert loop.history[-1]["clients/judged"] == 0
    assert loop.server.get_buffer("chosen") == 0
    alone = trained(FedGF(rank=8, alphas=(0.1,)), data, 7, rounds=99)
    everyone = torch.arange(data.num_users)
    assert loop.score(everyone).equal(alone.score(everyone))


def test_phases_say_what_rounds_are_for_and_messages_what_they_cost(data: FederatedDataModule) -> None:
    phases, nbytes = [], []
    for rounds in range(1, 6):
        loop = trained(FedGF(rank=8), data, 100, rounds=rounds)
        phases.append(loop.server.phase)
        nbytes.append((loop.bytes_up / data.num_users, loop.bytes_down / data.num_users))
    assert phases == [*(f"power iteration {k} of 3" for k in (1, 2, 3)), "choose", ""]
    up, down = torch.tensor(nbytes).T.diff().round()
    table = 4 * 8 * data.num_items
    # Three products go up. The first basis is a seed, and so two come down for the products and one to score with.
    assert [int(one) // table for one in up] == [1, 1, 1, 0]
    assert [int(one) // table for one in down] == [0, 1, 1, 1]


def test_before_a_filter_has_come_down_all_items_are_alike(data: FederatedDataModule) -> None:
    loop = trained(FedGF(rank=8), data, 100, rounds=1)
    assert not loop.score(torch.arange(3)).any()
    assert not loop.server.finished


def test_too_few_items_that_enough_clients_have_are_said() -> None:
    """With none of them every item would have the score 0."""
    alone = prepared(synthetic=Synthetic(users=12, items=400, groups=6, interactions=8))
    counts = matrix(alone).sum(0)
    least = int(counts.max()) + 1
    with pytest.raises(RunError, match=rf"0 of {alone.num_items} items have {least} clients \(method.least_clients\)"):
        trained(FedGF(rank=8, least_clients=least), alone, 7, rounds=9)


def test_settings_that_cannot_work_are_refused(data: FederatedDataModule) -> None:
    with pytest.raises(InputError) as error:
        FedGF(rank=0, iterations=0, alphas=(-1.0,), least_clients=0)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        f"method.{name}" for name in ("rank", "iterations", "alphas", "least_clients")
    ]
    with pytest.raises(InputError, match=r"method\.alphas: there is none"):
        FedGF(alphas=())
    # Results are named by their digits, of which there are six.
    with pytest.raises(InputError, match=r"method\.alphas: 0\.3 stands there 3 times, to six digits; give it once"):
        FedGF(alphas=(0.3, 1.0, 0.30000001, 0.3))
    with pytest.raises(InputError, match=r"method\.least_clients: 41 is more than the 40 clients"):
        trained(FedGF(rank=8, least_clients=41), data, 100)


@pytest.mark.parametrize("protocol", [Protocol(), Protocol(candidates="sampled", num_candidates=20)])
def test_gains_are_those_of_the_evaluation_and_0_where_nothing_is_held_out(protocol: Protocol) -> None:
    data = prepared(protocol, synthetic=Synthetic(users=20, items=60, groups=6, skew=0.5, interactions=10))
    scores = torch.rand(20, 60, generator=torch.Generator().manual_seed(0))
    cohort = data.ranking(torch.arange(20), "val")
    mine = gains("ndcg@10", scores, cohort)
    expected = evaluate(data, "val", lambda users: scores[users], 7)["val/ndcg@10"]
    assert mine.mean().item() == pytest.approx(expected)
    assert expected > 0
    cohort.relevant[3] = -1
    assert gains("ndcg@10", scores, cohort)[3] == 0
    assert mine.count_nonzero() > 1


class TestFedGF(Conformance):
    uploads: ClassVar = {COUNT, PRODUCT, CHOOSE}
    rounds: ClassVar = 5
    optimizers: ClassVar = {}
    wrong: ClassVar = {"rank": 0}
    odd: ClassVar = {"rank": 7}
    good: ClassVar = {"rank": 16, "iterations": 3}

    def method(self, **settings: Any) -> Method:
        return FedGF(**{"rank": 8, "iterations": 3} | settings)

    def test_a_product_is_a_client_s_share(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 100, rounds=2)
        users = torch.tensor([3, 1])
        with loop.clients.workers.one() as worker:
            client = worker.client
            assert isinstance(client, FedGFClient)
            loop.clients.store.load(client, users)
            client.own = Own(data, users, 3, 1)
            client.receive(loop.server.broadcast(users, 3), 3)
            sent = client.upload().values[PRODUCT].double()
        basis, rows = server_of(loop).basis.double(), weighted(data, 3)[users]
        torch.testing.assert_close(sent, torch.einsum("ci,cj,jr->cir", rows, rows, basis), atol=1e-6, rtol=1e-5)


def test_its_checkpoint_can_be_read(tmp_path: Path) -> None:
    """More items than columns: the library's basis then lies in memory column by column."""
    synthetic = {"users": 80, "items": 300, "groups": 6, "interactions": 12}
    run = cgfedrec.fit(
        {"method": "FedGF", "data.synthetic": synthetic, "logger": None, "run_dir": str(tmp_path / "run")}
    )
    assert len(cgfedrec.load(run.checkpoints / "last.ckpt").recommend(top_k=1)) == 80
