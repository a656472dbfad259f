"""Compiled loops: they end where torch does, whoever trains beside whom, and are used where they do what was asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import pytest
import torch
from lightning import Fabric
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from cgfedrec.client import Batch, Client, StepOutput
from cgfedrec.kernels import compiled
from cgfedrec.kernels.compiled import exp_of_negative
from cgfedrec.kit.fused import plain_rate
from cgfedrec.kit.optimisers import FactorAdam, TableSGD
from cgfedrec.kit.rows import by_rows
from cgfedrec.kit.table import TableClient
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import CGFedCo, CGFedRec, CoFedRec, FedMF, Local, PFedRec
from cgfedrec.methods.fedmf import FedMFClient
from cgfedrec.structure.alignment import AlignedClient
from cgfedrec.structure.clusterlabels import ClusterLabels
from cgfedrec.structure.contrast import Kind, loss_and_gradient
from cgfedrec.structure.passes import CompiledPasses, Passes, passes_for
from cgfedrec.testing import prepared, same, trained
from cgfedrec.wire.moved import sum_beside
from cgfedrec.wire.sums import GRID, rounded_sum

METHODS: dict[str, Callable[[], Method]] = {
    "Local": lambda: Local(dim=16, local_epochs=2),
    "Local, no whole vectors": lambda: Local(dim=5),
    "PFedRec": lambda: PFedRec(dim=16),
    "FedMF": lambda: FedMF(dim=16, local_epochs=2),
    # With a smaller epsilon Adam turns what is left by rounding into whole steps.
    "FedMF, no whole vectors": lambda: FedMF(dim=5, optimizer=partial(FactorAdam, eps=1e-4)),
    "FedMF, other averages": lambda: FedMF(dim=8, optimizer=partial(Adam, lr=0.02, betas=(0.8, 0.95), eps=1e-4)),
    "CGFedRec": lambda: CGFedRec(dim=16, clusters=6, reg=0.5),
    "CGFedRec, prototypes": lambda: CGFedRec(dim=16, clusters=6, reg=0.5, contrast="prototypes"),
    "CoFedRec": lambda: CoFedRec(dim=16, clusters=6, reg=0.5),
    "cluster labels": lambda: CGFedCo(structure=ClusterLabels(dim=16, clusters=6, reg=0.5)),
}


def loops_of(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each cohort that trains from now on, whether it does so in a compiled loop."""
    seen: list[bool] = []
    for kind in (Client, TableClient, AlignedClient, FedMFClient):
        if "fused" in vars(kind):
            made = vars(kind)["fused"]

            def fused(self: Client, *args: Any, made: Any = made, kind: type = kind) -> Any:
                found = made(self, *args)
                if kind is next(base for base in type(self).__mro__ if "fused" in vars(base)):
                    seen.append(found is not None)
                return found

            monkeypatch.setattr(kind, "fused", fused)
    return seen


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    return loops_of(monkeypatch)


def by_steps(method: Method, monkeypatch: pytest.MonkeyPatch, **options: Any) -> FederatedLoop:
    """A run in which every step is the client's and its optimisers'."""
    with monkeypatch.context() as patch:
        for kind in (TableClient, AlignedClient, FedMFClient):
            patch.setattr(kind, "fused", Client.fused)
        return trained(method, prepared(), 7, **options)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_where_its_steps_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = by_steps(METHODS[name](), monkeypatch, rounds=6)
    seen = loops_of(monkeypatch)
    loops = trained(METHODS[name](), prepared(), 7, rounds=6)
    assert seen
    assert all(seen)
    same(loops, steps, exactly=False)


class ScaledClient(TableClient):
    def training_step(self, batch: Batch, step: int) -> StepOutput:  # type: ignore[override]
        return StepOutput(2 * super().training_step(batch, step).loss)


class OtherOptimisers(TableClient):
    def configure_optimizers(self) -> list[Optimizer]:
        return super().configure_optimizers()


def test_a_step_of_ones_own_is_taken() -> None:
    assert TableClient.fused is not Client.fused
    assert ScaledClient.fused is Client.fused
    assert OtherOptimisers.fused is Client.fused


@pytest.mark.parametrize(
    "method",
    [
        Local(optimizer=partial(SGD, lr=0.1, momentum=0.9)),
        Local(optimizer=partial(SGD, lr=0.1, weight_decay=0.1)),
        Local(optimizer=partial(Adam, lr=0.1)),
        FedMF(optimizer=partial(Adam, lr=0.1, amsgrad=True)),
        FedMF(optimizer=partial(Adam, lr=0.1, weight_decay=0.1)),
        FedMF(optimizer=partial(SGD, lr=0.1)),
    ],
    ids=["momentum", "decay", "Adam of a head", "AMSGrad", "Adam with decay", "SGD of factors"],
)
def test_other_optimisers_take_their_own_steps(method: Method, seen: list[bool]) -> None:
    trained(method, prepared(), 7, rounds=1)
    assert seen
    assert not any(seen)


def test_what_is_as_it_should_be_is_compiled(seen: list[bool]) -> None:
    trained(Local(optimizer=partial(TableSGD, lr=0.2)), prepared(), 7, rounds=1)
    trained(FedMF(optimizer=partial(FactorAdam, lr=0.2)), prepared(), 7, rounds=1)
    assert seen
    assert all(seen)


def test_whoever_meddles_with_an_optimiser_is_heard() -> None:
    optimizer = TableSGD([nn.Parameter(torch.zeros(2, 3))], lr=0.5)
    assert plain_rate(optimizer) == 0.5
    assert plain_rate(by_rows(optimizer)) == 0.5
    optimizer.register_step_post_hook(lambda *_: None)
    assert plain_rate(optimizer) is None


def test_mixed_precision_is_torch_s(seen: list[bool]) -> None:
    loop = FederatedLoop(rounds=1)
    loop.setup(Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"), prepared(), Local())
    loop.fit()
    assert not seen


def examples(clients: int, items: int, dim: int, clusters: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(items)
    table = torch.randn(clients, items, dim, generator=generator)
    table[0, 0] = 0  # has no direction
    labels = torch.randint(clusters, (items,), generator=generator)
    labels[1] = clusters  # alone in its cluster
    return table, labels


@pytest.mark.parametrize("kind", ["exact", "prototypes"])
@pytest.mark.parametrize(("items", "clusters"), [(5, 2), (90, 7), (700, 40)])
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_compiled_alignment_is_torch_s(kind: Kind, items: int, clusters: int, temperature: float) -> None:
    table, labels = examples(3, items, 12, clusters)
    ours, slope = loss_and_gradient(table, labels, temperature, kind=kind)
    expected, expected_slope = loss_and_gradient(table.double(), labels, temperature, kind=kind)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
    rest = slice(1, None)  # the gradient of a row without length is arbitrary, and huge
    apart = (slope.double() - expected_slope)[:, rest].norm() / expected_slope[:, rest].norm()
    assert apart < 1e-5


def test_each_pass_is_torch_s() -> None:
    table, labels = examples(2, 70, 9, 5)
    sizes, shares = labels.bincount().float(), torch.rand(70)
    outcomes: list[list[Tensor]] = []
    assert isinstance(passes_for(table), CompiledPasses)
    assert type(passes_for(table.double())) is Passes
    for passes in (Passes(), CompiledPasses()):
        unit, norms = passes.unit_rows(table)
        sums = passes.by_label(unit, labels, 6)
        rows, tile = table.clone(), -5 * table[:, :9].clone().abs()
        of_rows, of_columns = torch.ones(2, 9), torch.ones(2, 9)
        passes.add_of_label(rows, sums, labels, shares)
        passes.exponentials(tile, 0.5, of_rows, of_columns)
        weighed = tile.clone()
        passes.weigh(weighed, of_rows, of_columns)
        slope = rows.clone()
        passes.across(slope, unit, norms.clamp_min(1))
        similarity = unit @ (sums / sizes[:, None]).mT
        positive, total = passes.against_prototypes(similarity, labels, sizes, 1.0, 1e-6)
        alone = sizes[labels] == 1
        found = [unit, norms, sums, rows, tile, of_rows, of_columns, weighed, slope, similarity]
        outcomes.append([*found, positive[:, ~alone], total[:, ~alone]])
    for torch_s, ours in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, torch_s, rtol=1e-5, atol=1e-6)


def test_sums_are_those_of_rounded_numbers() -> None:
    # longer than a piece; as small as 2^-45, where rounding shows, and as large as 2^20
    values = (
        torch.randn(4, 3000, generator=torch.Generator().manual_seed(0))
        * 2.0 ** torch.arange(-45, 20).repeat(47)[:3000]
    )
    expected = (values.double() * GRID).round() / GRID
    assert rounded_sum(values).equal(expected.sum(0))
    assert not rounded_sum(values).equal(values.double().sum(0))
    tables, base = values.view(4, 100, 30), torch.zeros(100, 30)
    assert sum_beside(tables.to_sparse(2).coalesce(), base).equal(expected.sum(0).view(100, 30))
    values[1, 7], values[2, 2999] = torch.nan, -torch.inf
    assert rounded_sum(values).isnan().nonzero().tolist() == [[7]]
    assert rounded_sum(values)[2999] == -torch.inf


@compiled.compiled
def exponentials(numbers: np.ndarray) -> np.ndarray:
    found = np.empty_like(numbers)
    for place in range(len(numbers)):
        found[place] = exp_of_negative(numbers[place])
    return found


def test_the_exponential_is_one() -> None:
    numbers = -np.geomspace(1e-9, 87, 100_000, dtype=np.float32)
    expected = np.exp(numbers.astype(np.float64))
    np.testing.assert_allclose(exponentials(numbers), expected, rtol=3e-7)
    odd = exponentials(np.array([0, -100, -1e30, -np.inf, np.nan], np.float32))
    assert odd[0] == 1
    np.testing.assert_allclose(odd[1:4], 0, atol=2e-38)
    assert np.isnan(odd[4])


def test_where_machine_code_cannot_be_kept_it_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made = numba.njit

    def nowhere(*args: Any, cache: bool = False, **settings: Any) -> Any:
        if cache:
            return lambda _: (_ for _ in ()).throw(RuntimeError("no locator available"))
        return made(*args, **settings)

    monkeypatch.setattr(numba, "njit", nowhere)

    def double(number: float) -> float:
        return 2 * number

    assert compiled.compiled(double)(4.0) == 8.0
