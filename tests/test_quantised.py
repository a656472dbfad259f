"""Quantised uploads: few bits, unbiased, the same however clients are grouped, and counted as what travels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.errors import InputError
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.messages import NotFiniteError, Upload
from cgfedrec.wire.quantised import Quantised
from cgfedrec.wire.wire import Wire
from tests.conftest import TINY


def sent(upload: Upload, bits: int = 4, round: int = 1, seed: int = 7) -> Upload:
    return Wire([Quantised(bits)]).up(upload, upload.fields, round, seed)[0]


def tables(clients: int = 3, *shape: int) -> Upload:
    return Upload(torch.arange(clients), {"table": torch.randn(clients, *(shape or (5, 8)))})


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_a_number_comes_within_one_level_and_its_mean_is_right(bits: int) -> None:
    upload = tables(1)
    exact, most = upload.values["table"].double(), 2 ** (bits - 1) - 1
    step = exact.abs().max() / most
    arrived = torch.stack([sent(upload, bits, round).values["table"] for round in range(1, 2001)]).double()
    # Three float32 operations on numbers of up to `most` steps lead to a level, and two back. Each is off by at most
    # 2^-24 of its result: less than six times that many steps together, which no bits but many feel.
    assert ((arrived - exact).abs() <= step * (1 + 6 * most * 2**-24)).all()
    # The deviation of a mean of 2,000 roundings is at most step / 2 / sqrt(2000).
    assert ((arrived.mean(0) - exact).abs() < 5 * step / 2 / 2000**0.5).all()
    if bits < 16:
        smallest = arrived.flatten(1)[:, exact.abs().flatten().argmin()]  # the largest number is a level itself
        assert len(smallest.unique()) == 2  # a level above and one below


def test_what_arrives_of_a_client_depends_on_no_other_and_on_the_round() -> None:
    upload = tables(4)
    together = sent(upload).values["table"]
    alone = [sent(Upload(upload.clients[[one]], {"table": upload.values["table"][[one]]})) for one in range(4)]
    assert together.equal(torch.cat([one.values["table"] for one in alone]))
    assert not together.equal(sent(upload, round=2).values["table"])
    assert not together.equal(sent(upload, seed=8).values["table"])


def test_messages_are_as_long_as_their_bits_say() -> None:
    upload = tables(2, 100, 32)
    plain, few = (Wire(steps).up(upload, upload.fields, 1, 7)[1] for steps in ([], [Quantised(4)]))
    assert plain > 2 * 100 * 32 * 4
    assert 2 * 100 * 32 / 2 < few < 2 * (100 * 32 / 2 + 60)


def test_whole_numbers_sparse_tables_and_zeros_arrive_as_they_were() -> None:
    counts, rows = torch.tensor([[3, 0], [1, 2]]), torch.zeros(2, 4, 3)
    rows[0, 2] = torch.tensor([0.1, 0.2, 0.3])
    upload = Upload(
        torch.tensor([1, 5]),
        {"counts": counts, "rows": rows, "zeros": torch.zeros(2, 3)},
        sparse=frozenset({"rows"}),
        bounds={"counts": Bounds(torch.tensor([3, 3]))},
    )
    arrived = sent(upload).values
    assert all(arrived[name].equal(value) for name, value in upload.values.items())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(bad: float) -> None:
    upload = tables(3)
    upload.values["table"][1, 2, 3] = bad
    with pytest.raises(NotFiniteError) as error:
        sent(upload)
    assert error.value.clients == [1]


@pytest.mark.parametrize("bits", [1, 17, "many"])
def test_other_bits_are_refused(bits: Any) -> None:
    with pytest.raises(InputError, match=r"Quantised\.bits"):
        Quantised(bits)


def test_a_run_sends_fewer_bytes_and_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    base = {name: value for name, value in TINY.items() if name != "method"} | {"method": "PFedRec"}
    plain = cgfedrec.fit(base, {"run_dir": "plain"})
    steps = "[{class_path: cgfedrec.wire.quantised.Quantised, init_args: {bits: 8}}]"
    few = cgfedrec.fit(base, {"run_dir": "few", "wire.steps": steps})
    assert 0.24 < few.summary["bytes/up"] / plain.summary["bytes/up"] < 0.27
    assert few.summary["bytes/down"] == plain.summary["bytes/down"]
    assert few.summary["test/ndcg@10"] > 0
    assert main(["test", "--ckpt_path", "few/checkpoints/best.ckpt"]) == 0
    one, two = (
        cgfedrec.fit(base, {"run_dir": name, "wire.steps": steps, "loop.cohort_size": size})
        for name, size in (("one", 5), ("two", 16))
    )
    table = "means.table"
    torch.testing.assert_close(one.server.state_dict()[table], two.server.state_dict()[table])
    assert main(["fit", "--method", "PFedRec", "--run_dir", "no", "--wire.steps", steps.replace("8", "40")]) == 2
    assert "Quantised.bits" in capsys.readouterr().err
