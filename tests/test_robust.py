"""Robust aggregation: what it computes, that hostile clients do not move it far, and that it keeps all promises."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from lightning import Fabric

from cgfedrec.cli import main
from cgfedrec.errors import InputError, RunError
from cgfedrec.kit.robust import Aggregation, RobustTableServer, krum_scores, trimmed_mean
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedRec, FedMF, PFedRec
from cgfedrec.processes import Processes
from cgfedrec.testing import Conformance, trained
from cgfedrec.wire.messages import NotFiniteError, Upload
from cgfedrec.wire.quantised import Quantised
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire
from tests.conftest import MakeData


def aggregated(kind: Aggregation, tables: torch.Tensor, hostile: float = 0.1, cohort: int = 4) -> torch.Tensor:
    server = RobustTableServer(kind, hostile, {"table": Field(tuple(tables.shape[1:]))}, 0)
    users = torch.arange(len(tables))
    for some in users.split(cohort):
        server.aggregate(server.reduce(Upload(some, {"table": tables[some]})))
    server.gather(Processes())
    server.update(users, 1)
    return server.mean("table")


@pytest.mark.parametrize("number", [9, 10])
def test_median_and_trimmed_mean_are_what_they_say(number: int) -> None:
    tables = torch.randn(number, 5, 3)
    found = aggregated("median", tables)
    torch.testing.assert_close(found, tables.quantile(0.5, dim=0))
    by_hand = tables.sort(0).values[1:-1].mean(0)  # a tenth of 9 or 10 clients is one
    torch.testing.assert_close(aggregated("trimmed_mean", tables, 0.1), by_hand)
    torch.testing.assert_close(trimmed_mean(tables.flatten(1), 0).float(), tables.flatten(1).mean(0))


def test_krum_is_the_upload_nearest_to_its_neighbours() -> None:
    """Straight from the definition, one client and one distance at a time."""
    tables = torch.randn(10, 5, 3)
    hostile, scores = 2, list[float]()
    for one in range(10):
        distances = sorted(float((tables[one] - tables[other]).square().sum()) for other in range(10) if other != one)
        scores.append(sum(distances[: 10 - hostile - 2]))
    squares = torch.cdist(tables.flatten(1), tables.flatten(1)).double().square()
    torch.testing.assert_close(
        krum_scores(squares, hostile), torch.tensor(scores, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )
    order = torch.tensor(scores).argsort()
    assert aggregated("krum", tables, 0.2).equal(tables[order[0]])
    torch.testing.assert_close(aggregated("multi_krum", tables, 0.2), tables[order[:8]].mean(0))


@pytest.mark.parametrize("kind", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_a_few_hostile_uploads_do_not_move_it_far(kind: Aggregation) -> None:
    honest = 1 + 0.1 * torch.randn(18, 5, 3)
    both = torch.cat((honest, torch.full((2, 5, 3), -1e4)))
    assert (aggregated(kind, both, 0.1) - 1).abs().max() < 0.3
    assert aggregated("trimmed_mean", both, 0.0).max() < -900, "the mean is where they want it"


def test_what_cannot_be_told_apart_is_said() -> None:
    with pytest.raises(RunError, match="4 uploads of which 1 may be hostile are too few for the krum; it needs 5"):
        aggregated("krum", torch.randn(4, 2, 2))
    with pytest.raises(RunError, match="2 uploads of which 1 may be hostile are too few for the trimmed_mean"):
        aggregated("trimmed_mean", torch.randn(2, 2, 2))
    tables = torch.randn(6, 2, 2)
    tables[4, 1, 1] = torch.nan
    with pytest.raises(NotFiniteError) as error:
        aggregated("median", tables)
    assert error.value.clients == [4]
    with pytest.raises(InputError, match=r"method.hostile: 0.5 is more than 0.49"):
        PFedRec(hostile=0.5)


@pytest.mark.parametrize("number", [1, 2])
def test_the_median_of_one_or_two_is_there_whatever_is_said_of_hostile_ones(number: int) -> None:
    tables = torch.randn(number, 2, 2)
    torch.testing.assert_close(aggregated("median", tables, 0.49), tables.mean(0))


def test_it_needs_single_uploads_and_the_mean_does_not(make_data: MakeData) -> None:
    class Summed(Quantised):
        sums_only = True

    data = make_data()
    for method in (PFedRec(dim=8), FedMF(dim=8), CGFedRec(dim=8, clusters=6)):
        assert not method.server(10, 0).sees_single_uploads
    for method in (PFedRec(dim=8, aggregation="median"), CGFedRec(dim=8, clusters=6, aggregation="krum")):
        assert method.server(10, 0).sees_single_uploads
        loop = FederatedLoop(rounds=1)
        with pytest.raises(InputError, match=r"Summed works on sums alone, and the server of \w+ looks at single"):
            loop.setup(Fabric(accelerator="cpu", devices=1), data, method, wire=Wire([Summed(8)]))


def test_it_trains(make_data: MakeData) -> None:
    histories = {
        kind: trained(FedMF(dim=8, aggregation=kind), make_data(), 7, rounds=3).history[-1]["train/loss"]
        for kind in ("mean", "median", "trimmed_mean", "krum", "multi_krum")
    }
    assert len(set(histories.values())) == 5, "each is another one"


class TestMedian(Conformance):
    uploads: ClassVar[set[str]] = {"table"}

    def method(self, **settings: Any) -> PFedRec:
        given: dict[str, Any] = {"dim": 8, "aggregation": "median"}
        return PFedRec(**given | settings)


class TestMultiKrum(Conformance):
    uploads: ClassVar[set[str]] = {"table"}

    def method(self, **settings: Any) -> CGFedRec:
        given: dict[str, Any] = {"dim": 8, "clusters": 6, "aggregation": "multi_krum", "hostile": 0.0}
        return CGFedRec(**given | settings)


def test_the_command_line_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.synthetic.users", "30", "--data.synthetic.items", "40", "--method", "FedMF", "--logger", "null"]
    assert main(["fit", *words, "--loop.rounds", "2", "--method.aggregation", "median", "--run_dir", "run"]) == 0
    assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0
    capsys.readouterr()
    assert main(["fit", *words, "--method.aggregation", "mode"]) == 2
    assert "method.aggregation" in capsys.readouterr().err
