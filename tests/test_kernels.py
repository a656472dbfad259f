"""Compiled loops: they end where torch does, whoever trains beside whom, and are used where they do what was asked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Fabric
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from cgfedrec.client import Batch, Client, StepOutput
from cgfedrec.data.synthetic import Synthetic
from cgfedrec.errors import Notice, RunError
from cgfedrec.kernels import compiled
from cgfedrec.kernels.cache import UNUSED, Cache, Files, tell_of_nowhere
from cgfedrec.kernels.compiled import exp_of_negative
from cgfedrec.kit.optimisers import FactorAdam, TableSGD
from cgfedrec.kit.rows import by_rows
from cgfedrec.kit.steps import Places, plain_rate
from cgfedrec.kit.table import TableClient
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Method
from cgfedrec.methods import CGFedCo, CGFedRec, CoFedRec, FedMF, Local, PFedRec
from cgfedrec.methods.fedmf import FedMFClient
from cgfedrec.methods.local import LocalClient
from cgfedrec.methods.pfedrec import PFedRecClient
from cgfedrec.structure import prototypes
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
    "FedMF, a long average": lambda: FedMF(dim=8, optimizer=partial(FactorAdam, betas=(0.9, 0.999999), eps=1e-4)),
    "CGFedRec": lambda: CGFedRec(dim=16, clusters=6, reg=0.5),
    "CGFedRec, prototypes": lambda: CGFedRec(dim=16, clusters=6, reg=0.5, contrast="prototypes"),
    "CoFedRec": lambda: CoFedRec(dim=16, clusters=6, reg=0.5),
    "cluster labels": lambda: CGFedCo(structure=ClusterLabels(dim=16, clusters=6, reg=0.5)),
}


def loops_of(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each cohort that trains from now on, whether it does so in a compiled loop."""
    seen: list[bool] = []
    for kind in (Client, TableClient, AlignedClient, FedMFClient):
        if "compiled_steps" in vars(kind):
            made = vars(kind)["compiled_steps"]

            def compiled_steps(self: Client, *args: Any, made: Any = made, kind: type = kind) -> Any:
                found = made(self, *args)
                if kind is next(base for base in type(self).__mro__ if "compiled_steps" in vars(base)):
                    seen.append(found is not None)
                return found

            monkeypatch.setattr(kind, "compiled_steps", compiled_steps)
    return seen


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    return loops_of(monkeypatch)


def by_steps(method: Method, monkeypatch: pytest.MonkeyPatch, **options: Any) -> FederatedLoop:
    """A run in which every step is the client's and its optimisers'."""
    with monkeypatch.context() as patch:
        for kind in (TableClient, AlignedClient, FedMFClient):
            patch.setattr(kind, "compiled_steps", Client.compiled_steps)
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
    assert TableClient.compiled_steps is not Client.compiled_steps
    assert ScaledClient.compiled_steps is Client.compiled_steps
    assert OtherOptimisers.compiled_steps is Client.compiled_steps


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
    held, other = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 3))
    optimizer = TableSGD([held], lr=0.5)
    assert plain_rate(optimizer, held) == 0.5
    assert plain_rate(by_rows(optimizer), held) == 0.5
    assert plain_rate(optimizer, held, other) is None
    assert plain_rate(TableSGD([held, other], lr=0.5), held) is None
    groups: Any = [{"params": [held], "lr": 0.1}, {"params": [other], "lr": 0.2}]
    assert plain_rate(TableSGD(groups), held, other) is None
    handle = register_optimizer_step_post_hook(lambda *_: None)
    assert plain_rate(optimizer, held) is None
    handle.remove()
    optimizer.register_step_post_hook(lambda *_: None)
    assert plain_rate(optimizer, held) is None
    meddling: list[Callable[[Any], Any]] = [
        lambda parameter: parameter.requires_grad_(False),
        lambda parameter: parameter.register_hook(lambda gradient: 2 * gradient),
        lambda parameter: parameter.register_post_accumulate_grad_hook(lambda _: None),
    ]
    for meddle in meddling:
        parameter = nn.Parameter(torch.zeros(2, 3))
        assert plain_rate(TableSGD([parameter], lr=0.5), parameter) == 0.5
        meddle(parameter)
        assert plain_rate(TableSGD([parameter], lr=0.5), parameter) is None
    double = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    assert plain_rate(TableSGD([double], lr=0.5), double) is None


class Counting:
    """A callback that wants to hear of steps."""

    steps = 0

    def on_after_optimizer_step(self, **_: Any) -> None:
        self.steps += 1


def test_whoever_wants_to_hear_of_steps_does() -> None:
    loop, heard = FederatedLoop(rounds=1), Counting()
    loop.setup(Fabric(accelerator="cpu", devices=1, callbacks=[heard]), prepared(), Local())
    loop.fit()
    assert heard.steps > 0


def test_a_step_that_one_client_was_given_is_taken(seen: list[bool]) -> None:
    loop = FederatedLoop(rounds=1)
    loop.setup(Fabric(accelerator="cpu", devices=1), prepared(), Local())
    every = [loop.clients.workers._idle.get() for _ in range(loop.clients.workers.number)]
    for worker in every:
        worker.client.training_step = worker.client.training_step  # type: ignore[method-assign]
        loop.clients.workers._idle.put(worker)
    loop.fit()
    assert not seen


@pytest.mark.parametrize("name", ["training_step", "configure_optimizers"])
@pytest.mark.parametrize("method", ["Local", "CGFedRec", "cluster labels"])
def test_a_step_that_a_class_was_given_later_is_taken(
    method: str, name: str, seen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training it is there by the class that it was put on, by a subclass, or in what a client has."""
    made, calls = getattr(TableClient, name), list[str]()

    def mine(self: TableClient, *args: Any) -> Any:
        calls.append(name)
        return made(self, *args)

    monkeypatch.setattr(TableClient, name, mine)
    trained(METHODS[method](), prepared(), 7, rounds=6)
    assert calls
    assert not any(seen)
    monkeypatch.undo()
    assert not AlignedClient.replaced("training_step")


@pytest.mark.parametrize("shift", [1, -1, 10**7])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", [LocalClient, PFedRecClient, FedMFClient])
def test_items_that_there_are_not_are_refused(
    kind: type[Client], whole: bool, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled loop would read and write wherever that is."""
    if whole:
        monkeypatch.setattr(kind, "follows", frozenset())

    def shifted(self: Client) -> list[Batch]:
        return [batch._replace(items=batch.items + shift) for batch in self.own.batches()]

    monkeypatch.setattr(kind, "batches", shifted)
    method = {LocalClient: Local, PFedRecClient: PFedRec, FedMFClient: FedMF}[kind]()
    data = prepared(synthetic=Synthetic(users=60, items=20, groups=2, interactions=10))
    with pytest.raises(RunError, match="not in the catalogue"):
        trained(method, data, 7, rounds=1)


def test_batches_whose_parts_do_not_belong_together_are_refused() -> None:
    table, items = nn.Parameter(torch.zeros(2, 9, 4)), torch.zeros(2, 3, dtype=torch.int64)
    numbers = torch.zeros(2, 3)
    good = Batch(items, numbers.double(), numbers, torch.ones(2), torch.ones(2, dtype=torch.bool))
    assert Places(table, None).samples(good).targets.dtype == np.float32
    for wrong in (
        good._replace(targets=numbers[:, :2]),
        good._replace(weights=numbers[:1]),
        Batch(*(torch.cat((one, one)) for one in good)),
    ):
        with pytest.raises(RunError, match="more than 2 clients"):
            Places(table, None).samples(wrong)


@pytest.mark.parametrize(
    ("kind", "items", "dim", "clusters"),
    [("exact", 513, 16, 5), ("prototypes", 96, 16, 5), ("prototypes", 33, 7, 5), ("prototypes", 1600, 10, 300)],
)
def test_alignment_of_some_clients_is_that_of_each(kind: Kind, items: int, dim: int, clusters: int) -> None:
    """To the bit: who trains beside whom depends on how many processes there are."""
    table, labels = examples(9, items, dim, clusters)
    together = loss_and_gradient(table, labels, kind=kind)
    alone = [loss_and_gradient(one.clone(), labels, kind=kind) for one in table.split(1)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert whole.equal(torch.cat(parts))


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
@pytest.mark.parametrize("fewest", [8, 64])
def test_compiled_alignment_is_torch_s(
    kind: Kind, items: int, clusters: int, temperature: float, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prototypes, "CACHED", 2**19 if fewest == 64 else 0)  # else so few items at a time
    monkeypatch.setattr(prototypes, "FEWEST", fewest)
    table, labels = examples(3, items, 12, clusters)
    ours, slope = loss_and_gradient(table, labels, temperature, kind=kind)
    monkeypatch.setattr(prototypes, "FEWEST", 10**6)
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
        positive, total = passes.against_prototypes(similarity, labels, sizes, 1.0, 1e-6, 70)
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


def double(number: float) -> float:
    return 2 * number


class Elsewhere(Cache):
    """Keeps it in a folder of a test."""

    folder = Path()

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = Files(self.folder, "double")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Elsewhere, "folder", tmp_path)
    monkeypatch.setattr(compiled, "Cache", Elsewhere)
    return tmp_path


def hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


def test_machine_code_is_used_again(kept: Path) -> None:
    first, second = compiled.compiled(double), compiled.compiled(double)
    assert [first(4.0), second(4.0)] == [8.0, 8.0]
    assert [hits(first), hits(second)] == [0, 1]
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"12345678", b"short", None], ids=["empty", "cut", "short", "a bit"])
def test_machine_code_that_is_damaged_is_made_anew(damage: bytes | None, kept: Path) -> None:
    assert compiled.compiled(double)(4.0) == 8.0
    (file,) = kept.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]) if damage is None else damage)
    again = compiled.compiled(double)
    assert again(4.0) == 8.0
    assert hits(again) == 0
    once_more = compiled.compiled(double)
    assert once_more(4.0) == 8.0
    assert hits(once_more) == 1  # what was damaged has been replaced


def test_machine_code_of_other_sources_is_not_used(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.compiled(double)(4.0) == 8.0
    monkeypatch.setattr("cgfedrec.kernels.cache.source", lambda: "another")
    again = compiled.compiled(double)
    assert again(4.0) == 8.0
    assert hits(again) == 0


def test_machine_code_that_nobody_reads_any_more_is_removed(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.compiled(double)(4.0) == 8.0
    (old,) = kept.iterdir()
    of_another, other = kept / "triple-1.nbc", kept / "double.pyc"
    of_another.touch()
    other.touch()
    long_ago = time.time() - UNUSED - 60
    for path, read in ((old, long_ago), (of_another, time.time()), (other, long_ago)):
        os.utime(path, (read, long_ago))
    with monkeypatch.context() as patch:
        patch.setattr("cgfedrec.kernels.cache.source", lambda: "another")
        assert compiled.compiled(double)(4.0) == 8.0
    (new,) = set(kept.iterdir()) - {of_another, other}
    assert new != old
    assert of_another.exists()  # another version at work reads it
    assert other.exists()
    assert compiled.compiled(double)(4.0) == 8.0  # what was removed is made anew
    assert old.exists()


def test_where_machine_code_cannot_be_kept_it_is_made_anew_and_told_once(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Elsewhere, "folder", kept / "file" / "folder")
    (kept / "file").write_text("no folder")
    tell_of_nowhere.cache_clear()
    with pytest.warns(Notice, match="NUMBA_CACHE_DIR") as told:
        assert [compiled.compiled(double)(4.0) for _ in range(2)] == [8.0, 8.0]
    assert len(told) == 1

    def nowhere(self: Cache, function: Any) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(Elsewhere, "__init__", nowhere)
    tell_of_nowhere.cache_clear()
    loop = compiled.compiled(double)  # nothing has been compiled yet, so there is nothing to tell
    with pytest.warns(Notice, match="NUMBA_CACHE_DIR"):
        assert loop(4.0) == 8.0
