"""Secure sums: what is opened is what plain sums are, to rounding; nothing of too few; the rest is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.errors import InputError, RunError
from cgfedrec.server import Server
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.clipped import Clipped
from cgfedrec.wire.messages import NotFiniteError, Upload
from cgfedrec.wire.quantised import Quantised
from cgfedrec.wire.secure import SecureSums
from cgfedrec.wire.secure.step import CLIPPED
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Wire
from tests.conftest import TINY

SECURE = "[{class_path: SecureSums}]"
SMALL = {name: value for name, value in TINY.items() if name != "method"}


def opened(wire: Wire, upload: Upload, expected: dict[str, Field] | None = None) -> Sum:
    fields = expected or upload.fields
    arrived, _ = wire.up(upload, fields, 1, 7)
    assert arrived.fields == wire.added(fields)
    return wire.opened(arrived.sum(), fields)


def tables(clients: int = 5, scale: float = 1.0) -> Upload:
    generator = torch.Generator().manual_seed(3)
    return Upload(torch.arange(clients), {"table": scale * torch.randn(clients, 6, 4, generator=generator)})


def test_the_sum_of_tables_is_right_to_half_a_step_for_each_client() -> None:
    upload = tables()
    total = opened(Wire([SecureSums(fraction_bits=10)]), upload)
    exact = upload.values["table"].double().sum(0)
    assert ((total.values["table"] - exact).abs() <= 5 * 2**-11).all()
    assert not total.values["table"].equal(exact)
    assert total.clients == 5
    assert total.told == {"secure/clipped": 0}


def test_whole_numbers_keep_their_bits_and_their_exact_sum_whatever_wraps_on_the_way() -> None:
    values = torch.tensor([[-3, 0], [5, 0], [-1, 7]])
    bounds = Bounds(torch.tensor([9, 7]), signed=True)
    upload = Upload(torch.arange(3), {"count": values}, bounds={"count": bounds})
    plain, secure = (Wire(steps).up(upload, upload.fields, 1, 7)[1] for steps in ([], [SecureSums()]))
    assert plain == secure
    wire = Wire([SecureSums()])
    assert opened(wire, upload).values["count"].tolist() == [1, 7]
    # A number may come as any other that is the same modulo 2^5: that is what masks leave.
    shifted = Sum({"count": torch.tensor([1 + 32 * 12345, 7 - 32])}, 3)
    assert wire.opened(shifted, upload.fields).values["count"].tolist() == [1, 7]


def test_numbers_beyond_the_range_are_clipped_and_counted() -> None:
    upload = tables(3, scale=0.1)
    upload.values["table"][1, 2, 3], upload.values["table"][2, 0, 0] = 5.0, -7.0
    total = opened(Wire([SecureSums(largest=2.0)]), upload)
    assert total.told == {"secure/clipped": 2}
    clipped = upload.values["table"].clamp(-2, 2).double().sum(0)
    assert (total.values["table"] - clipped).abs().max() < 1e-3


def test_the_largest_level_is_never_exceeded_where_no_float32_is_that_number() -> None:
    step = SecureSums(largest=100.3, fraction_bits=20)
    (found, _) = step.fixed.encode("x", torch.tensor([[1e6, -1e6]]), torch.tensor([0]))
    assert found[0, 0] == -found[0, 1]
    assert step.fixed.levels - 8 < found[0, 0] <= step.fixed.levels
    assert float(torch.tensor(float(step.fixed.levels))) > step.fixed.levels


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named_and_never_sent(bad: float) -> None:
    upload = tables()
    upload.values["table"][1, 2, 3] = bad
    with pytest.raises(NotFiniteError) as error:
        Wire([SecureSums()]).sent(upload, 1, 7)
    assert error.value.clients == [1]


def test_no_sum_of_too_few_is_opened_and_none_that_cannot_be_one() -> None:
    wire, upload = Wire([SecureSums(least_clients=4)]), tables(3)
    with pytest.raises(RunError, match=r"3 clients have sent something.*fewer than 4"):
        opened(wire, upload)
    bounds = Bounds(torch.tensor([5]))  # three bits, of which 6 and 7 are no sum
    with pytest.raises(RunError, match=r"'count' cannot be one of what clients send"):
        wire.opened(Sum({"count": torch.tensor([6])}, 4), {"count": Field((1,), torch.int64, bounds=bounds)})


@pytest.mark.parametrize(
    ("step", "field", "clients", "told"),
    [
        (SecureSums(bits=20, fraction_bits=10), Field((3,)), 100, r"at most 31 clients.*100; 22 bits would"),
        (SecureSums(least_clients=8), Field((3,)), 7, r"fewer than 8 clients .*and 7 take part"),
        (SecureSums(), Field((3, 2), sparse=True), 9, "'x': only some of its rows travel"),
        (SecureSums(), Field((3,), torch.int64), 9, r"'x': nothing says what its sum can reach"),
        (
            SecureSums(),
            Field((3,), torch.int64, bounds=Bounds(torch.tensor([1, 1, 1]), bits=50)),
            9,
            "its numbers take 50 bits",
        ),
    ],
)
def test_what_cannot_be_added_up_is_refused_with_the_numbers(
    step: SecureSums, field: Field, clients: int, told: str
) -> None:
    server = Server({"x": field})
    server.wire = Wire([step])
    with pytest.raises((InputError, RunError), match=told):  # no fields travel in place of some of these
        raise InputError(list(server.no_sum(clients)))


@pytest.mark.parametrize(
    "options", [{"bits": 7}, {"bits": 41}, {"least_clients": 1}, {"largest": 0}, {"largest": 1000.0, "bits": 20}]
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="SecureSums"):
        SecureSums(**options)


def test_a_step_that_is_undone_upload_by_upload_stands_behind_or_nowhere() -> None:
    assert not list(Wire([SecureSums(), Quantised()]).problems(False, "FedMF"))
    (told,) = Wire([Quantised(), SecureSums()]).problems(False, "FedMF")
    assert "Quantised is undone for each upload, and SecureSums behind it leaves only a sum" in told


def test_norms_are_bounded_before_secure_sums_by_those_who_keep_to_it() -> None:
    upload = tables()
    wire = Wire([Clipped(norm=0.5), SecureSums()])
    assert not list(wire.problems(False, "FedMF"))
    clipped = Clipped(norm=0.5).forward(upload, 1, 7).values["table"].double().sum(0)
    assert (opened(wire, upload).values["table"] - clipped).abs().max() < 1e-3
    assert clipped.abs().max() < 2.5


@pytest.mark.parametrize("method", ["FedMF", "PFedRec", "FedNCF", "FedRAP", "CGFedRec", "CGFedCo", "FedGF"])
def test_runs_end_where_plain_ones_end_and_say_what_was_clipped(method: str) -> None:
    base = {**SMALL, "method": TINY["method"] if method == "CGFedRec" else method, "loop.rounds": 8}
    plain = cgfedrec.fit(base, {"run_dir": "plain"})
    secure = cgfedrec.fit(base, {"run_dir": "secure", "wire.steps": SECURE})
    assert secure.summary["bytes/up"] > plain.summary["bytes/up"]
    assert secure.summary["bytes/down"] > plain.summary["bytes/down"]
    assert secure.summary["test/ndcg@10"] == pytest.approx(plain.summary["test/ndcg@10"], abs=0.08)
    if method == "CGFedCo":  # whole numbers: the same to the last bit
        assert secure.summary["test/ndcg@10"] == plain.summary["test/ndcg@10"]
        for name, value in plain.server.state_dict().items():
            assert value.equal(secure.server.state_dict()[name]), name
    else:
        assert pl.read_csv("secure/metrics.csv")["secure/clipped"].drop_nulls().len()


def test_how_clients_are_grouped_does_not_show_and_a_run_resumes_in_the_middle_of_a_sum() -> None:
    base = {**SMALL, "method": "FedMF", "wire.steps": SECURE}
    one, two = (cgfedrec.fit(base, {"run_dir": f"run{size}", "loop.cohort_size": size}) for size in (5, 16))
    assert one.server.state_dict()["means.table"].equal(two.server.state_dict()["means.table"])
    base = {**SMALL, "method": "CGFedCo", "wire.steps": SECURE, "loop.participants": 15, "loop.rounds": 40}
    base["loop.evaluate_every"] = 40
    base |= {f"loop.failures.{when}": 0.15 for when in ("before", "during", "after")}
    whole = cgfedrec.fit(base, {"run_dir": "whole"})
    assert whole.server.finished
    assert whole.summary["clients/failed"] > 0
    cgfedrec.fit(base, {"run_dir": "half", "loop.rounds": 2})
    resumed = cgfedrec.fit({"ckpt_path": "half/checkpoints/last.ckpt", "loop.rounds": 40})
    assert resumed.summary["test/ndcg@10"] == whole.summary["test/ndcg@10"]
    after = resumed.server.state_dict()
    assert all(value.equal(after[name]) for name, value in whole.server.state_dict().items())


def test_a_server_never_gets_a_single_upload() -> None:
    class Curious(Server):
        def reduce(self, upload: Upload) -> Upload | Sum:
            raise AssertionError("it has looked at uploads")

    curious = Curious()
    curious.wire = Wire([SecureSums()])
    upload = curious.wire.sent(tables(), 1, 7)
    assert isinstance(curious.reduced(upload), Sum)


def test_a_process_without_participants_has_zeros_of_what_is_added_up() -> None:
    server = Server({"x": Field((3,))})
    server.wire = Wire([SecureSums()])
    nobody = server.of_nobody()
    assert isinstance(nobody, Sum)
    assert {name: value.dtype for name, value in nobody.values.items()} == {"x": torch.int64, CLIPPED: torch.int64}


@pytest.mark.parametrize("method", ["GPFedRec", "CoFedRec", "FedCA", "CoLR"])
def test_methods_that_look_at_single_uploads_are_refused_before_anything_is_written(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = main(["fit", "--method", method, "--run_dir", "no", "--logger", "null", "--wire.steps", SECURE])
    assert told == 2
    assert "SecureSums works on sums alone, and the server of" in capsys.readouterr().err
    assert not Path("no").exists()


def test_too_few_bits_or_participants_are_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = "[{class_path: SecureSums, init_args: {bits: 20, fraction_bits: 12, least_clients: 50}}]"
    given = ["--method", "FedMF", "--loop.participants", "30", "--run_dir", "no", "--logger", "null"]
    assert main(["fit", *given, "--wire.steps", steps]) == 2
    told = capsys.readouterr().err
    assert "20 bits hold the sum of at most" in told
    assert "no sum of fewer than 50 clients" in told
    assert not Path("no").exists()


def test_clipped_numbers_travel_as_one_more_number() -> None:
    sent = SecureSums().forward(tables(2), 1, 7)
    assert sent.values[CLIPPED].tolist() == [[0], [0]]
    assert replace(sent, clients=sent.clients).fields == SecureSums().fields(tables(2).fields)


MASKED = "[{class_path: SecureSums, init_args: {masked: true, neighbours: 16}}]"
"""The whole protocol in a simulation."""


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("CGFedCo", {}),
        ("FedMF", {"loop.failures.before": 0.05, "loop.failures.during": 0.1, "loop.failures.after": 0.05}),
    ],
)
def test_masks_change_no_bit_and_those_of_dropouts_are_recovered(method: str, options: dict[str, float]) -> None:
    pytest.importorskip("Crypto", reason="pip install 'cgfedrec[secure]'")
    base = {**SMALL, "method": method, "loop.rounds": 2, **options}
    plain = cgfedrec.fit(base, {"run_dir": "plain", "wire.steps": MASKED.replace("true", "false")})
    masked = cgfedrec.fit(base, {"run_dir": "masked", "wire.steps": MASKED})
    for name, value in plain.server.state_dict().items():
        assert value.equal(masked.server.state_dict()[name]), name
    for name in ("bytes/up", "bytes/down"):
        assert plain.summary[name] == masked.summary[name]
    if options:
        assert masked.summary["clients/failed"] > 0


def test_masks_of_a_simulation_that_would_take_too_long_or_leave_parts_closed_are_refused_with_the_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("Crypto", reason="pip install 'cgfedrec[secure]'")
    given = ["fit", "--run_dir", "no", "--logger", "null", "--wire.steps", MASKED, "--method"]
    assert main([*given, "CGFedCo", "--loop.participants", "30"]) == 2
    assert "CGFedCo's sums span rounds, and masks open each round's part by itself" in capsys.readouterr().err
    monkeypatch.setattr("cgfedrec.simulation.masked.MOST_SECONDS", 0.1)
    assert main([*given, "FedMF"]) == 2
    assert "clients with 16 neighbours and" in (told := capsys.readouterr().err)
    assert "which give the same results" in told
    assert not Path("no").exists()
