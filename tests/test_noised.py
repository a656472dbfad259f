"""Differential privacy of tables: what one client can add, the noise, the budget, and what is refused."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.errors import InputError, Notice, RunError
from cgfedrec.loop import FederatedLoop
from cgfedrec.privacy.accountant import epsilon_of
from cgfedrec.privacy.spending import Spending
from cgfedrec.run.checkpoint import read_checkpoint
from cgfedrec.server import Server
from cgfedrec.wire.bounds import Bounds
from cgfedrec.wire.clipped import Clipped
from cgfedrec.wire.messages import NotFiniteError, Upload
from cgfedrec.wire.noised import Among, Noised
from cgfedrec.wire.secure import SecureSums
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Step, Wire
from tests.conftest import TINY

SMALL = {**TINY, "method": {"class_path": "PFedRec", "init_args": {"dim": 4}}}
QUIET = {"loop.patience": None, "loop.checkpoint_every": 1}


def steps(*classes: str, **noised: Any) -> str:
    """``wire.steps`` as YAML: `Noised`, and others behind it."""
    given = {"norm": 2.0, **noised}
    return json.dumps([{"class_path": "Noised", "init_args": given}, *({"class_path": one} for one in classes)])


def step(clients: int = 6, participants: int | None = None, turns: int = 3, **given: Any) -> Noised:
    settings = {"norm": 1.0, "epsilon": 8.0, "delta": 1e-3, **given}
    return Noised(**settings).among(Among(clients, participants or clients, turns))


def uploads(values: Tensor, public: Tensor | None = None) -> Upload:
    """Tables `[clients, rows, columns]`, of which `[rows, columns]` is public."""
    known = {} if public is None else {"table": public}
    return Upload(torch.arange(len(values)), {"table": values}, public=lambda: known)


def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cgfedrec.wire.noised.of_each", lambda sigma, seeds, number: np.zeros((len(seeds), number), np.int64)
    )


# What one client can add


def test_no_change_however_large_moves_a_sum_by_more_than_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tables of three numbers on a grid that is fine, coarse and huge, in two values, around what is public."""
    without_noise(monkeypatch)
    grid = [0.0, 1e-5, -0.3, 0.77, 2.5, -1e4, 3e30]
    tables = torch.tensor(list(product(grid, repeat=3)))
    public = torch.tensor([[0.25, -7.0]])
    sent = Upload(
        torch.arange(len(tables)),
        {"table": tables[:, None, :2], "bias": tables[:, 2:]},
        public=lambda: {"table": public},
    )
    noised = step(len(tables), norm=0.9)
    changed = noised.forward(sent, 1, 7).values
    nobody = noised.forward(
        Upload(torch.tensor([0]), {"table": public[None], "bias": torch.zeros(1, 1)}, public=sent.public), 1, 7
    ).values
    moved = torch.cat([(changed[name] - nobody[name]).flatten(1) for name in changed], 1).double()
    norms = moved.norm(dim=1)
    assert norms.max() <= 0.9 * noised.parts
    assert norms.max() > 0.9 * noised.parts - 3
    assert (nobody["table"] == (public * noised.parts).round()).all()
    # What is within the norm is sent as it is, to one part of a whole number.
    near = (tables - torch.tensor([0.25, -7.0, 0.0])).norm(dim=1) < 0.9
    assert not near.any()
    small = uploads(public + torch.tensor([[[0.5, -0.25]]]), public)
    arrived = noised.reverse(noised.forward(small, 1, 7), 1).values["table"]
    assert (arrived - small.values["table"]).abs().max() <= 1 / noised.parts


def test_numbers_beyond_the_largest_are_public_at_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    without_noise(monkeypatch)
    public = torch.tensor([[100.0, -3.0]])
    noised = step(largest=4.0)
    sent = noised.forward(uploads(public[None], public), 1, 7).values["table"] / noised.parts
    assert sent[0, 0, 1] == pytest.approx(-3.0, abs=1e-3)
    assert 4.9 < sent[0, 0, 0] <= 5.0  # 4 are public, and of what is left the norm


def test_what_is_not_finite_is_named_and_never_sent() -> None:
    values = torch.zeros(3, 2, 2)
    values[1, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError) as error:
        step().forward(uploads(values), 1, 7)
    assert error.value.clients == [1]


# The noise


@pytest.mark.parametrize("local", [False, True])
def test_a_sum_has_the_noise_that_the_budget_asks_for_and_each_upload_its_part(local: bool) -> None:
    noised = step(20, noise=2.0, norm=0.5, local=local)
    sent = noised.forward(uploads(torch.zeros(20, 60, 50)), 3, 7).values["table"].double() / noised.parts
    own = 1.0 if local else 1.0 / math.sqrt(20)
    assert sent.std(dim=(1, 2)).numpy() == pytest.approx(np.full(20, own), rel=0.08)
    assert float(sent.sum(0).std()) == pytest.approx(own * math.sqrt(20), rel=0.08)
    again = noised.forward(uploads(torch.zeros(20, 60, 50)), 4, 7).values["table"].double() / noised.parts
    assert abs(float((sent * again).mean())) < 0.05 * own**2  # of another round


def test_epsilon_and_rounds_say_how_much_noise() -> None:
    for turns in (1, 10):
        noised = step(50, turns=turns, epsilon=3.0)
        spending = Spending(noised.price(1000), noised.noise, 3.0, noised.at, 50)
        assert spending.last_round(0, 99, lambda _: torch.arange(50)) == turns
        for _ in range(turns):
            spending.charge(torch.arange(50))
        assert 2.9999 < spending.epsilon <= 3.0
    assert step(50).noise == step(50, local=True).noise
    assert step(100, delta=None).at == pytest.approx(100**-1.1)


def test_the_accountant_agrees_with_that_of_a_library() -> None:
    accounting = pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    from dp_accounting.rdp import RdpAccountant

    for noise, rounds, local in ((1.5, 7, False), (12.0, 40, True)):
        noised = step(100, noise=noise, epsilon=None, norm=3.0, local=local)
        theirs = RdpAccountant(orders=list(1 + np.exp(np.linspace(-6, 9, 20_000))))
        theirs.compose(accounting.GaussianDpEvent(noise), rounds)
        ours = epsilon_of(rounds * noised.price(500), 1e-3)
        assert ours == pytest.approx(theirs.get_epsilon(1e-3), rel=1e-5)


# The budget


def test_a_client_spends_in_its_own_rounds_alone() -> None:
    spending = Spending(0.1, 2.0, None, 1e-3, 4)
    drawn = {1: [0, 1], 2: [1, 2], 3: [1, 0], 4: [2, 0]}
    for users in drawn.values():
        spending.charge(torch.tensor(users))
    assert spending.spent.tolist() == pytest.approx([0.3, 0.3, 0.2, 0.0])
    assert spending.epsilon == epsilon_of(float(spending.spent.max()), 1e-3)
    bounded = Spending(0.1, 2.0, epsilon_of(0.25, 1e-3), 1e-3, 4)
    assert bounded.last_round(0, 4, lambda one: torch.tensor(drawn[one])) == 2
    bounded.charge(torch.tensor([0, 1]))
    assert bounded.last_round(1, 4, lambda one: torch.tensor(drawn[one])) == 2
    with pytest.raises(ValueError, match="must stay as they were"):
        Spending(0.1, 2.5, None, 1e-3, 4).load_state_dict(spending.state_dict())
    for spoilt in (spending.spent.float(), spending.spent[:2], -spending.spent, spending.spent * torch.nan):
        with pytest.raises(ValueError, match="are no numbers"):
            spending.load_state_dict({"spent": spoilt, "noise": 2.0})


def test_a_run_stops_before_its_budget_is_exceeded_and_goes_on_counting() -> None:
    base = {**SMALL, **QUIET, "wire.steps": steps("SecureSums", epsilon=8.0, noise=0.7)}
    with pytest.warns(Notice, match=r"ends after round 2 of 9, since the next one would spend more than epsilon 8 "):
        whole = cgfedrec.fit(base, {"run_dir": "whole", "loop.rounds": 9})
    assert whole.summary["rounds"] == 2
    noised = whole.server.wire.steps[0]
    assert isinstance(noised, Noised)
    price = noised.price(50 * 4)
    spent = whole.history["privacy/epsilon"].to_list()
    assert spent == pytest.approx([epsilon_of(price, noised.at), epsilon_of(2 * price, noised.at)])
    assert spent[-1] == whole.summary["privacy/epsilon"] <= 8.0 < epsilon_of(3 * price, noised.at)
    assert whole.summary["privacy/delta"] == pytest.approx(40**-1.1)
    assert "epsilon" in Path("whole/report.html").read_text()
    assert "privacy/epsilon" in pl.read_csv("whole/metrics.csv").columns

    cgfedrec.fit(base, {"run_dir": "half", "loop.rounds": 1})
    with pytest.warns(Notice, match="ends after round 2 of 7"):
        resumed = cgfedrec.fit({"ckpt_path": "half/checkpoints/last.ckpt", "loop.rounds": 7, "logger": None})
    assert resumed.summary["privacy/epsilon"] == whole.summary["privacy/epsilon"]
    assert resumed.server.state_dict()["means.table"].equal(whole.server.state_dict()["means.table"])


@pytest.mark.parametrize("every", [1, 3])
def test_attempts_spend_too_and_a_run_whose_budget_they_end_ends_as_any_other(every: int) -> None:
    """Before, it was an error. Nobody knows before how often nobody comes through."""
    few = {"loop.failures.before": 0.8, "loop.participants": 2, "loop.rounds": 40, "loop.evaluate_every": every}
    # With this seed there were two more attempts at the round that could not be afforded in the end.
    base = {**SMALL, **QUIET, **few, "seed_everything": 1, "wire.steps": steps(epsilon=8.0, local=True)}
    with pytest.warns(Notice) as said:
        run = cgfedrec.fit(base, {"run_dir": "run"})
    told = [str(one.message) for one in said if "the run ends after round" in str(one.message)]
    rounds = run.summary["rounds"]
    assert 1 < rounds < 40
    assert len(told) == 1
    assert f"ends after round {rounds} of 40, since the next one would spend more than epsilon 8 " in told[0]
    spending = run.loop.spending
    assert spending is not None
    assert spending.spent.max() <= spending.limit
    assert spending.spent.max() + spending.price > spending.limit
    last = run.training.history[-1]
    assert last["round"] == rounds
    assert "val/ndcg@10" in last
    assert last["privacy/epsilon"] == run.summary["privacy/epsilon"] == spending.epsilon
    written = pl.read_csv("run/metrics.csv")
    assert written["round"].is_unique().all()
    assert written["privacy/epsilon"].to_list()[-1] == pytest.approx(spending.epsilon)
    saved = read_checkpoint(Path("run/checkpoints/last.ckpt"))["loop"]
    assert (saved["round"], saved["spending"]["spent"].equal(spending.spent)) == (rounds, True)
    assert last["clients/failed"] == saved["failures"][0] == written["clients/failed"][-1]


def test_noise_that_follows_from_the_rounds_cannot_change_with_them() -> None:
    run = cgfedrec.fit({**SMALL, **QUIET, "run_dir": "run", "wire.steps": steps(epsilon=8.0), "loop.rounds": 2})
    assert 7.999 < run.summary["privacy/epsilon"] <= 8
    with pytest.raises(InputError, match=r"a round's noise is .* these must stay as they were"):
        cgfedrec.fit({"ckpt_path": "run/checkpoints/last.ckpt", "loop.rounds": 4, "logger": None})


def test_who_is_drawn_less_often_needs_less_noise() -> None:
    base = {**SMALL, **QUIET, "wire.steps": steps(epsilon=8.0), "loop.rounds": 8, "loop.participants": 10}
    run = cgfedrec.fit({**base, "run_dir": "some", "loop.evaluate_every": 4})
    assert isinstance(run.training, FederatedLoop)
    spending = run.training.spending
    assert spending is not None
    turns = (spending.spent / spending.price).round()
    assert turns.sum() == 80
    assert turns.max() < 8
    assert 7.999 < run.summary["privacy/epsilon"] <= 8


# Runs


@pytest.mark.parametrize(
    ("method", "norm"),
    [
        ({"method": "FedMF", "method.init_scale": 2.0}, 20.0),  # a table of norm 80
        ({"method": "FedNCF"}, 2.0),  # a network of norm 10
    ],
    ids=["FedMF", "FedNCF"],
)
def test_with_next_to_no_noise_and_no_clip_a_run_is_the_plain_one(method: dict[str, Any], norm: float) -> None:
    """What is public is put in again: no start and no table that came down is missing."""
    base = {**SMALL, **method, "loop.rounds": 2}
    plain = cgfedrec.fit(base, {"run_dir": "plain"}).server.state_dict()
    noised = cgfedrec.fit(base, {"run_dir": "noised", "wire.steps": steps(norm=norm, noise=1e-5)}).server.state_dict()
    for name, value in plain.items():
        if name.startswith("means."):
            assert (noised[name] - value).abs().max() < 2e-3, name


def test_secure_sums_behind_change_nothing_and_sums_do_not_depend_on_cohorts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgfedrec.run.run.made_of", lambda config: "the same run")
    base = {**SMALL, "loop.rounds": 2}
    runs = [
        cgfedrec.fit(base, {"run_dir": "a", "wire.steps": steps(epsilon=8.0)}),
        cgfedrec.fit(base, {"run_dir": "b", "wire.steps": steps("SecureSums", epsilon=8.0), "loop.cohort_size": 7}),
    ]
    one, two = (run.server.state_dict()["means.table"] for run in runs)
    assert one.equal(two)


def test_local_noise_serves_servers_that_look_at_single_uploads_and_bears_failures() -> None:
    more = {"method.aggregation": "median", "loop.failures.after": 0.3, "loop.rounds": 2}
    run = cgfedrec.fit({**SMALL, "run_dir": "run", "wire.steps": steps(epsilon=8.0, local=True), **more})
    assert 7.999 < run.summary["privacy/epsilon"] <= 8


def test_no_sum_is_opened_from_which_noise_is_missing() -> None:
    wire = Wire([step(), SecureSums()])
    fields = {"table": Field((2, 2))}
    total = wire.up(uploads(torch.zeros(5, 2, 2)), fields, 1, 7)[0].sum()
    with pytest.raises(RunError, match="5 of 6 clients have sent something, and the noise of the others is missing"):
        wire.opened(total, fields)
    assert isinstance(Wire([step(local=True), SecureSums()]).opened(total, fields), Sum)


def test_an_estimate_needs_no_more_clients_than_a_cohort(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--method", "FedMF", "--loop.cohort_size", "16", "--data.synthetic.users", "40", "--loop.rounds", "3"]
    assert main(["estimate", *given, "--wire.steps", steps("SecureSums", epsilon=8.0)]) == 0
    assert "3 rounds" in capsys.readouterr().out


# Refusals


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epsilon": 8.0}, r"Noised\.norm: how much noise epsilon needs follows from a bound"),
        ({"norm": 1.0}, "give epsilon, or noise, or both"),
        ({"norm": 0.0, "noise": -1.0}, r"Noised\.norm.*\n.*Noised\.noise"),
        ({"norm": 1.0, "epsilon": 0.0, "delta": 0.9, "largest": 0}, r"epsilon.*\n.*delta.*\n.*largest"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Noised(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "GPFedRec"}, "Noised works on sums alone, and the server of GPFedRec looks at single uploads"),
        ({"method": "CGFedCo"}, r"sums of CGFedCo span several; they have noise .*--method\.privacy\.epsilon"),
        ({"method": "FedGF"}, "sums of FedGF span several$"),
        ({"method": "Local"}, "nothing is sent up that needs noise"),
        ({"method": "CoLR", "local": True}, "'factor': only some of its rows travel"),
        ({"loop.failures.before": 0.1}, r"loop\.failures: with a client that fails its part of the noise is gone"),
        ({"loop.failures.refused": 0.1}, r"loop\.failures: with a client that fails"),
        ({"noise": 0.1}, r"one round with noise of 0\.1 times the norm spends epsilon .* allows 8"),
        ({"delta": 0.4}, r"Noised\.delta: 0\.4, with 40 clients, is no privacy"),
        ({"largest": 1e6, "noise": 4.0, "norm": 1e-6}, r"does not fit into 40 bits"),
    ],
)
def test_what_cannot_be_hidden_is_refused_before_anything_is_written(given: dict[str, Any], told: str) -> None:
    own = {name: given[name] for name in ("noise", "delta", "local", "largest", "norm") if name in given}
    rest = {name: value for name, value in given.items() if name not in own}
    with pytest.raises(InputError, match=told):
        cgfedrec.fit({**SMALL, **rest, "run_dir": "no", "wire.steps": steps(epsilon=8.0, **own)})
    assert not Path("no").exists()


@pytest.mark.parametrize("cut", [{}, {"data.rolling.cut": 2}], ids=["all cuts", "one cut"])
def test_a_rolling_evaluation_is_refused(cut: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--method", "PFedRec", "--data.split", "rolling", "--wire.steps", steps(epsilon=8.0), "--run_dir", "no"]
    more = [text for name, value in cut.items() for text in (f"--{name}", str(value))]
    assert main(["fit", *given, *more, "--logger", "null"]) == 2
    assert "data.split: rolling trains at every cut and chooses by what it has seen" in capsys.readouterr().err
    assert not Path("no").exists()


def test_it_is_the_first_step_and_there_is_one() -> None:
    behind: list[list[Step]] = [[Clipped(), Noised(1.0, 8.0)], [Noised(1.0, 8.0), Noised(1.0, 8.0)]]
    for wrong in behind:
        names = [{"class_path": type(one).__name__, "init_args": {"norm": 1.0}} for one in wrong]
        for one in names:
            if one["class_path"] == "Noised":
                one["init_args"] = {"norm": 1.0, "epsilon": 8.0}
        with pytest.raises(InputError, match="it is the first step, and there is one"):
            cgfedrec.fit({**SMALL, "run_dir": "no", "wire.steps": json.dumps(names)})


def test_noise_that_swamps_everything_is_told_with_the_numbers() -> None:
    assert (
        step(1000, noise=2.0)
        .told(2500)
        .endswith("noise has a norm of 100 times that, and what clients change at most 1,000 times")
    )
    assert step(50, noise=2.0).told(2500).startswith("warning: privacy")
    assert "noise has a norm of 3,162 times" in step(1000, noise=2.0, local=True).told(2500)


def test_over_a_network_it_is_refused() -> None:
    server = Server({"x": Field((3,))})
    server.wire = Wire([Noised(1.0, 8.0)])
    assert list(server.no_sum(5)) == ["wire.steps: Noised works in a simulation, and not over a network as yet"]


def test_what_everybody_knows_has_the_shape_of_what_is_sent() -> None:
    """Were it nothing instead, the whole table would be clipped, and not its change."""
    with pytest.raises(RunError, match=r"'table' is sent in the shape \[2, 3\].* everybody knows \[2, 4\] of it"):
        step().forward(uploads(torch.zeros(2, 2, 3), torch.zeros(2, 4)), 1, 7)


def test_what_appears_later_and_cannot_be_hidden_stops_a_run() -> None:
    bounds = Bounds(torch.tensor([3]))
    with pytest.raises(RunError, match="'count': these are whole numbers"):
        step().forward(Upload(torch.arange(2), {"count": torch.ones(2, 1).long()}, bounds={"count": bounds}), 1, 7)
