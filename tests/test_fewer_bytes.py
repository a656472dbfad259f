"""Fewer bytes: rows that are drawn, broadcasts in few bits: unbiased where they say so, and counted as they travel."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from lightning import Fabric

from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedRec, CoLR, FedMF, GPFedRec, PFedRec
from cgfedrec.testing import same
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.quantised import Quantised
from cgfedrec.wire.toprows import TopRows
from cgfedrec.wire.wire import Step, Wire
from tests.conftest import MakeData


def ran(data: object, method: object, steps: Sequence[Step], size: int = 7, rounds: int = 3) -> FederatedLoop:
    loop = FederatedLoop(rounds=rounds, cohort_size=size)
    loop.setup(Fabric(accelerator="cpu", devices=1), data, method, wire=Wire(steps))  # type: ignore[arg-type]
    loop.fit()
    return loop


def test_rows_that_are_drawn_are_right_in_the_mean() -> None:
    upload = Upload(torch.arange(2), {"table": torch.randn(2, 20, 4) * torch.rand(2, 20, 1).square()})
    upload.values["table"][1, 3] = 0
    rounds = 4000
    arrived = torch.stack(
        [Wire([TopRows(0.3)]).up(upload, upload.fields, one, 7)[0].values["table"] for one in range(1, rounds + 1)]
    )
    exact = upload.values["table"]
    errors = (arrived.double().mean(0) - exact).abs() / (arrived.double().std(0) / rounds**0.5).clamp_min(1e-6)
    assert errors.max() < 5, "deviations of the mean"
    sent = arrived.ne(0).any(3).sum(2).double().mean(0)
    torch.testing.assert_close(sent, torch.tensor([6.0, 6.0], dtype=torch.float64), atol=0.15, rtol=0)
    assert not arrived[:, 1, 3].any()


def test_the_largest_rows_are_sent_as_they_are() -> None:
    upload = Upload(torch.arange(3), {"table": torch.randn(3, 20, 4), "bias": torch.randn(3, 20)})
    arrived = Wire([TopRows(0.3, unbiased=False)]).up(upload, upload.fields, 1, 7)[0].values
    norms = upload.values["table"].norm(dim=2)
    for client in range(3):
        kept = norms[client].argsort(descending=True)[:6].sort().values
        assert arrived["table"][client].ne(0).any(1).nonzero().squeeze(1).equal(kept)
        assert arrived["table"][client, kept].equal(upload.values["table"][client, kept])
    assert arrived["bias"].equal(upload.values["bias"])


def test_all_rows_where_few_are_not_zero_and_with_a_share_of_one() -> None:
    table = torch.zeros(1, 20, 4)
    table[0, 4], table[0, 9] = 1.0, 1e-3
    upload = Upload(torch.arange(1), {"table": table})
    for share in (0.2, 1.0):
        assert Wire([TopRows(share)]).up(upload, upload.fields, 1, 7)[0].values["table"].equal(table)
    zeros = Upload(torch.arange(1), {"table": torch.zeros(1, 20, 4)})
    assert not Wire([TopRows(0.2)]).up(zeros, zeros.fields, 1, 7)[0].values["table"].any()


@pytest.mark.parametrize(
    "step",
    [TopRows(0.25), TopRows(0.25, unbiased=False), Quantised(4, down=4)],
    ids=["drawn rows", "largest rows", "levels"],
)
def test_a_client_draws_for_itself_and_bytes_are_those_that_travel(step: Step, make_data: MakeData) -> None:
    data = make_data()
    for method in (PFedRec(dim=8), CGFedRec(dim=8, clusters=6), CoLR(dim=8), GPFedRec(dim=8)):
        plain, alone, together = (
            ran(data, method, steps, size) for steps, size in (([], 7), ([step], 1), ([step], 100))
        )
        same(alone, together)
        assert alone.bytes_up == together.bytes_up
        if isinstance(method, CoLR):  # only some of its rows travel already, and they stay as they are
            assert alone.bytes_up <= plain.bytes_up
            continue
        assert alone.bytes_up < 0.45 * plain.bytes_up
        if isinstance(step, Quantised) and isinstance(method, PFedRec):
            assert alone.bytes_down < 0.3 * plain.bytes_down


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_broadcast_in_few_bits_is_right_in_the_mean_and_the_same_for_all(bits: int) -> None:
    table = torch.randn(30, 8)
    wire, sent = Wire([Quantised(16, down=bits)]), Broadcast({"table": table, "seed": torch.tensor(7)})
    rounds, step = 2000, table.abs().max() / (2 ** (bits - 1) - 1)
    arrived = []
    for round in range(1, rounds + 1):
        broadcast, nbytes = wire.down(sent, 3, round, 5)
        assert broadcast is not None
        arrived.append(broadcast.values["table"])
        assert broadcast.values["seed"] == 7
    tables = torch.stack(arrived)  # type: ignore[arg-type]
    assert nbytes < 3 * (30 * 8 * bits / 8 + 100)
    assert ((tables - table).abs() <= step * 1.0001).all()
    assert ((tables.double().mean(0) - table).abs() < 5 * step / 2 / rounds**0.5).all()
    again, _ = wire.down(sent, 1, 1, 5)
    assert again is not None
    assert again.values["table"].equal(tables[0])  # type: ignore[union-attr]


def test_clients_train_on_what_has_come_down(make_data: MakeData) -> None:
    """FedMF's table at the start of a round is one of few levels, and the run is another one than without."""
    data = make_data()
    plain, few = (ran(data, FedMF(dim=8), steps) for steps in ([], [Quantised(16, down=3)]))
    assert few.history[-1]["train/loss"] != plain.history[-1]["train/loss"]
    sent, _ = few.clients.sent(torch.tensor([1]), 4)
    assert sent is not None
    assert len(sent.values["table"].unique()) <= 7  # type: ignore[union-attr]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"TopRows.share: 2 is more than 1"):
        TopRows(2)
    with pytest.raises(InputError, match=r"Quantised.down: 1 is below 2"):
        Quantised(8, down=1)
