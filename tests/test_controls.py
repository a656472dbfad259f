"""Controls of CGFedCo: each does what it says, against dense computations that see everyone's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Fabric
from torch import Tensor

import cgfedrec
from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.data.histories import History
from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo
from cgfedrec.random import Stream, bits, private_seed
from cgfedrec.structure import Neighbours
from cgfedrec.structure.collect import SumsServer
from cgfedrec.structure.columns import SignColumns
from cgfedrec.structure.controls import Heads, shuffled
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import Known
from cgfedrec.testing import prepared, trained
from cgfedrec.wire.values import Weights

COLUMNS, CLUSTERS = 16, 12


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data() -> FederatedDataModule:
    return prepared(synthetic=Synthetic(users=60, items=90, groups=6, interactions=12))


def server_of(data: FederatedDataModule, **settings: Any) -> SumsServer:
    """The server of a run that has ended."""
    method = CGFedCo(**{"columns": COLUMNS, "clusters": CLUSTERS} | settings)
    server = trained(method, data, cohort_size=17, rounds=9, evaluate_every=9).server
    assert isinstance(server, SumsServer)
    assert server.finished
    return server


def histories(data: FederatedDataModule, server: SumsServer) -> Tensor:
    """X, `[clients, rows]`, float64."""
    return torch.from_numpy(data.training_matrix().toarray())[:, server.known.the_rows.items]


def co_occurrence(data: FederatedDataModule, server: SumsServer) -> Tensor:
    """G, `[rows, rows]`, float64."""
    own = histories(data, server)
    return own.T @ own


def phases(server: SumsServer) -> list[str]:
    return [step.phase for step in server.timeline]


def weights_of(server: SumsServer) -> Weights:
    weights = server.bulletins["structure/1"].values["weights"]
    assert isinstance(weights, Weights)
    return weights


def test_random_labels_are_the_same_labels_in_another_order(data: FederatedDataModule) -> None:
    ours, default = server_of(data, second="random_labels"), server_of(data)
    assert ours.labels.equal(shuffled(default.labels, ours.seed))
    assert ours.labels.bincount().equal(default.labels.bincount())
    assert (ours.labels != default.labels).double().mean() > 0.5
    columns = torch.nn.functional.one_hot(ours.labels).double()
    assert ours.total("labels").double().equal(co_occurrence(data, ours) @ columns)


def test_new_signs_stand_in_place_of_labels(data: FederatedDataModule) -> None:
    server = server_of(data, second="signs")
    assert phases(server) == ["bounds", "sketch", "signs", "verify", "choose"]
    first, second = (tally.columns(server.known) for tally in server.columns)
    assert second.shape == (len(server.known.the_rows), CLUSTERS)
    assert second.abs().eq(1).all()
    assert not (first.T @ second).abs().eq(len(first)).any()  # none is one of the first sketch
    assert server.total("signs").double().equal(co_occurrence(data, server) @ second.double())


def test_power_iteration_goes_on_from_the_first_sketch(data: FederatedDataModule) -> None:
    server = server_of(data, second="power")
    assert phases(server) == ["bounds", "sketch", "power", "verify", "choose"]
    found, rows = server.directions.double(), len(server.known.the_rows)
    torch.testing.assert_close(found.T @ found, rows * torch.eye(CLUSTERS).double(), atol=1e-4, rtol=0)
    # The best approximation of G C by so many directions, which its singular values tell.
    sketch = co_occurrence(data, server) @ server.columns[0].columns(server.known).double()
    rest = sketch - found @ (found.T @ sketch) / rows
    torch.testing.assert_close(rest.norm(), torch.linalg.svdvals(sketch)[CLUSTERS:].norm(), rtol=1e-4, atol=1e-4)
    total = server.total("power")
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, co_occurrence(data, server) @ found, rtol=1e-5, atol=1e-4)


def test_a_run_with_power_iteration_is_read_again() -> None:
    settings = {"method": "CGFedCo", "method.second": "power", "data.synthetic": {"users": 60, "items": 90}}
    run = cgfedrec.fit({**settings, "loop.rounds": 9, "logger": None, "run_dir": "run"})
    loaded = cgfedrec.load("run/checkpoints/best.ckpt")
    assert loaded.recommend(top_k=3).equals(run.recommend(top_k=3))


def test_power_iteration_goes_on_after_a_stop_in_the_middle_of_its_sum(data: FederatedDataModule) -> None:
    method = CGFedCo(columns=COLUMNS, clusters=CLUSTERS, second="power")

    def loop_of(rounds: int) -> FederatedLoop:
        loop = FederatedLoop(rounds=rounds, cohort_size=17, participation=0.4)
        loop.setup(Fabric(accelerator="cpu", devices=1), data, method, Path("clients"))
        return loop

    whole, first, second = loop_of(30), loop_of(8), loop_of(30)
    whole.fit()
    first.fit()
    assert first.server.phase == "power"
    state = first.state_dict()
    assert state["server"]["part"].dtype == torch.float64
    assert state["server"]["part"].numel()
    second.load_state_dict(state)
    second.fit()
    assert isinstance(whole.server, SumsServer)
    assert whole.server.finished
    for name, buffer in whole.server.state_dict().items():
        assert buffer.equal(second.server.state_dict()[name]), name


def test_heads_project_from_the_side_of_the_users(data: FederatedDataModule) -> None:
    server = server_of(data, sketch="heads")
    assert phases(server) == ["bounds", "sketch", "verify", "choose"]
    assert not server.labels.numel()
    number = COLUMNS + CLUSTERS
    drawn = bits(private_seed(data.seed), Stream.HEADS, np.arange(data.num_users)[:, None], np.arange(number))
    heads = torch.from_numpy(np.where(drawn >= 2**63, 1.0, -1.0))  # [clients, columns]
    sketch = histories(data, server).T @ heads
    assert server.total("sketch").double().equal(sketch)

    torch.testing.assert_close(server.factor(), sketch / number**0.5)


def test_with_many_heads_the_factor_is_that_of_the_co_occurrence(data: FederatedDataModule) -> None:
    """Its error shrinks with the root of their number."""
    server = server_of(data, sketch="heads", columns=1024, clusters=1024)
    found, exact = server.factor() @ server.factor().T, co_occurrence(data, server)
    assert (found - exact).norm() < 0.3 * exact.norm()


def test_a_head_follows_from_the_private_seed_alone() -> None:
    rows = Rows.of(torch.tensor([[3, 6], [3, 6], [4, 9]]), least=3)
    history = History(torch.tensor([[2, 0], [1, -1]]), torch.tensor([[0, 1], [0, 0]]), torch.zeros(2, 2))
    tally, users = Heads(number=40), torch.tensor([5, 8])

    def added(shared: int, private: int, users: Tensor = users) -> Tensor:
        return tally.of(history, users, Known(3, 9, shared, rows), private).to_dense()

    ours = added(1, 7)
    assert ours.equal(added(2, 7))
    assert not ours.equal(added(1, 8))
    assert not ours[:1].equal(added(1, 7, torch.tensor([6, 8]))[:1])  # another client has another head
    # A row of an own item is the head, and the others are zero: items 2, 0, 1 have the rows 0, 1, 2.
    assert ours[0, 0].equal(ours[0, 1])
    assert ours[0, 0].abs().eq(1).all()
    assert not ours[0, 2].any()
    assert not ours[1, :2].any()
    assert not ours[1, 2].equal(ours[0, 0])
    assert tally.field(Known(3, 9, 1, rows)).bounds.problem(ours) is None  # type: ignore[union-attr]


def test_without_verification_the_factor_alone_weighs_the_pairs(data: FederatedDataModule) -> None:
    server = server_of(data, verify=False)
    assert phases(server) == ["bounds", "sketch", "labels", "choose"]
    factor, clients = server.factor(), server.known.the_rows.clients
    raised = (clients + 50 - factor.square().sum(1)).clamp_min(25)
    inverse = torch.linalg.inv(factor @ factor.T + torch.diag(raised))
    dense = -inverse / inverse.diagonal()[:, None]  # [rows, rows]
    pairs, weights = server.pairs, weights_of(server)
    assert server.bulletins["verify"].values["pairs"].ids.equal(pairs)  # type: ignore[union-attr]
    ours = weights.levels * weights.scales.double()[:, None]
    theirs = dense.gather(1, pairs.clamp_min(0))
    step = weights.scales.double()[:, None].expand_as(ours)
    assert ((ours - theirs).abs() <= 0.51 * step)[weights.kept].all()
    assert weights.kept.sum() > 2 * len(pairs)
    assert not weights.kept.equal(weights_of(server_of(data)).kept)


def test_plain_packing_changes_bytes_and_nothing_else(data: FederatedDataModule) -> None:
    loops = [
        trained(CGFedCo(columns=COLUMNS, packing=packing), data, cohort_size=17, rounds=9, evaluate_every=9)
        for packing in ("tight", "plain")
    ]
    tight, plain = (loop.server.state_dict() for loop in loops)
    for name, buffer in tight.items():
        assert buffer.equal(plain[name]), name
    assert loops[1].bytes_up > 1.5 * loops[0].bytes_up
    assert loops[1].bytes_down > loops[0].bytes_down


def test_plain_packing_takes_more_bits_where_the_largest_number_needs_them() -> None:
    rows = Rows.of(torch.tensor([[9, 2**21], [8, 5]]), least=3)
    known = Known(2, 10, 0, rows)
    assert SignColumns(20, number=4).bounds(known).widths.unique().tolist() == [23]  # 2^22 + 1 values
    assert SignColumns(30, number=4).bounds(known).widths.unique().tolist() == [30]


def test_one_client_is_enough_for_a_row_where_that_is_wanted() -> None:
    data = prepared(synthetic=Synthetic(users=40, items=400, groups=6, interactions=12))
    server = server_of(data, least_clients=1)
    there = torch.from_numpy(data.training_matrix().sum(0)).nonzero().squeeze(1)
    assert server.known.the_rows.items.sort().values.equal(there)
    assert len(server_of(data).known.the_rows) < len(there)


def test_a_flat_reading_leaves_nothing_to_choose(data: FederatedDataModule) -> None:
    server = server_of(data, structure=Neighbours(reading="flat"))
    assert phases(server) == ["bounds", "sketch", "labels", "verify"]
    assert not server.judged.numel()


def test_a_second_sketch_beside_heads_is_refused() -> None:
    with pytest.raises(InputError, match=r"method\.second: power has no effect with the sketch of heads"):
        CGFedCo(sketch="heads", second="power")
