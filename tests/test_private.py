"""Differential privacy of CGFedCo: the accountant, the noise, what one client can add, and a run with a budget."""

from __future__ import annotations

import decimal
import hashlib
import json
import math
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import Fabric
from torch import Tensor

from cgfedrec.cli import main
from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.data.histories import History
from cgfedrec.errors import InputError, Notice, RunError
from cgfedrec.evaluation.ranking import evaluate
from cgfedrec.failures import Failures
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo
from cgfedrec.privacy.accountant import delta_of_drawing, epsilon_of, rho_of, rho_of_sum
from cgfedrec.privacy.budget import FRACTION, SHARES, Privacy
from cgfedrec.privacy.discrete import INEXACT, DiscreteGaussian
from cgfedrec.structure import LabelSets, Neighbours
from cgfedrec.structure.noisy import PrivateServer
from cgfedrec.structure.private import (
    JUDGED_NORM,
    NoisyTally,
    PrivateCounts,
    PrivateLabels,
    PrivatePairs,
    PrivateSigns,
    both_ways,
    judged,
    once,
)
from cgfedrec.structure.rows import Rows
from cgfedrec.structure.tallies import SHARES as PARTS
from cgfedrec.structure.tallies import Known
from cgfedrec.testing import Conformance, prepared, ran, same, trained
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.wire import Step, Wire
from tests.sums import server_of

ITEMS = 7
BUDGET = Privacy(epsilon=4.0)


# The accountant


def test_epsilon_is_never_above_the_simple_bound_and_falls_with_noise() -> None:
    delta = 1e-4
    spent = [epsilon_of(1 / (2 * sigma**2), delta) for sigma in (0.5, 1, 2, 4, 8, 64)]
    assert spent == sorted(spent, reverse=True)
    for sigma, epsilon in zip((0.5, 1, 2, 4, 8, 64), spent, strict=True):
        rho = 1 / (2 * sigma**2)
        assert epsilon <= rho + 2 * math.sqrt(rho * math.log(1 / delta))


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
def test_a_budget_is_spent_to_the_end_and_not_beyond(epsilon: float) -> None:
    rho = rho_of(epsilon, 1e-5)
    assert epsilon_of(rho, 1e-5) <= epsilon == pytest.approx(epsilon_of(rho * (1 + 1e-9), 1e-5), rel=1e-6)


def test_the_accountant_agrees_with_that_of_a_library() -> None:
    accounting = pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    from dp_accounting.rdp import RdpAccountant

    for rho, delta in ((0.02, 1e-6), (0.5, 1e-5), (1.68, 4e-4), (12.0, 1e-3)):
        theirs = RdpAccountant(orders=list(1 + np.exp(np.linspace(-6, 9, 20_000))))
        theirs.compose(accounting.ZCDpEvent(rho / 2), 2)
        assert epsilon_of(rho, delta) == pytest.approx(theirs.get_epsilon(delta), rel=1e-5)


def test_what_sums_of_discrete_noise_cost_besides_is_nothing_where_noise_is_fine_and_much_where_it_is_coarse() -> None:
    plain = 3.0**2 / (2 * 100 * 6.0**2)
    assert rho_of_sum(3.0, 6.0, 100, 10_000) == pytest.approx(plain, rel=1e-12)
    assert rho_of_sum(3.0, 0.6, 100, 10_000) > 1.5 * 100 * plain
    # The sum over k itself, which the bound by its first term is never below.
    tau = 10 * sum(math.exp(-2 * math.pi**2 * 0.8**2 * k / (k + 1)) for k in range(1, 100))
    assert rho_of_sum(0.0, 0.8, 100, 4) >= tau**2 * 4 / 2 / 2


def test_that_noise_is_not_drawn_exactly_costs_nothing_but_for_budgets_that_are_none() -> None:
    assert delta_of_drawing(8.0, 10**10) < 1e-25
    assert delta_of_drawing(900.0, 10) == 1


# The noise


@pytest.mark.parametrize("sigma", [0.7, 1.0, 4.0, 55.5])
def test_noise_is_a_discrete_gaussian(sigma: float) -> None:
    noise = DiscreteGaussian(sigma)
    # What the tables draw, place by place: what stays, and what comes from elsewhere. Whole numbers, so it is exact.
    implied = [0] * len(noise.places)
    for place, (both, (high, low)) in enumerate(zip(noise.places.tolist(), noise.rest.tolist(), strict=True)):
        keep = (both >> 32 << 128) + (high << 64) + low
        implied[place] += keep
        implied[both & (2**32 - 1)] += noise.full - keep
    with decimal.localcontext(prec=60):
        exact = [(-decimal.Decimal(z * z) / 2 / decimal.Decimal(sigma) ** 2).exp() for z in range(noise.most + 1)]
        exact[0] /= 2  # which has two signs
        whole = noise.full * len(implied)
        off = sum(
            abs(one / sum(exact) - decimal.Decimal(made) / whole) for one, made in zip(exact, implied, strict=False)
        )
    assert off / 2 < INEXACT
    assert not any(implied[len(exact) :])
    drawn = noise.draw(b"5", 200_000)
    of_both_signs = np.array(exact, float) / float(sum(exact))
    assert drawn.var() == pytest.approx(of_both_signs @ np.arange(noise.most + 1) ** 2, rel=0.02)
    assert abs(drawn.mean()) < 5 * sigma / math.sqrt(200_000)
    counts = np.bincount(abs(drawn), minlength=noise.most + 1) / 200_000
    assert counts == pytest.approx(of_both_signs, abs=5 * math.sqrt(of_both_signs.max() / 200_000))


def test_noise_is_a_function_of_its_key_and_of_nothing_else() -> None:
    drawn = DiscreteGaussian(40.0).draw(b"5", 200_000)
    assert not (DiscreteGaussian(40.0).draw(b"6", 100) == drawn[:100]).all()
    assert (DiscreteGaussian(40.0).draw(b"5", 100_000) == drawn[:100_000]).all()
    assert hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest()[:16] == "ae6a7f34dac15dcf"  # on every machine


def test_what_the_first_bits_leave_undecided_is_decided_by_more_of_them() -> None:
    noise = DiscreteGaussian(40.0)
    likely = noise.rest[:, 0] / 2.0**64  # how likely each place stays, once the first bits say nothing
    for place in (0, 7, 300, 560):
        stays = noise._stays(np.full(20_000, place), b"5", 0)
        assert stays.mean() == pytest.approx(likely[place], abs=0.02)


# What one client can add


def everybody(items: int = ITEMS) -> History:
    """One client for each possible history."""
    sets = list(chain.from_iterable(combinations(range(items), size) for size in range(items + 1)))
    padded = torch.tensor([[*one, *[-1] * (items - len(one))] for one in sets])
    return History(padded, torch.zeros_like(padded), torch.zeros(padded.shape, dtype=torch.float64))


def known(items: int = ITEMS, clients: int = 500) -> Known:
    counts = torch.tensor([[clients, PARTS * clients, PARTS * clients]]).expand(items, -1)
    pairs = torch.tensor([[other for other in range(items) if other != row] for row in range(items)])
    rows = Rows.of(counts, 1, PARTS)
    return Known(items, clients, 3, rows=rows, labels=torch.arange(items) % 3, pairs=pairs)


TALLIES: list[NoisyTally] = [
    PrivateCounts(privacy=BUDGET),
    PrivateSigns(privacy=BUDGET, number=4),
    PrivateLabels(privacy=BUDGET),
    PrivatePairs(privacy=BUDGET),
]


def norms(added: Tensor) -> Tensor:
    found: Tensor = added.double().flatten(1).norm(dim=1)
    return found


@pytest.mark.parametrize("tally", TALLIES, ids=lambda tally: tally.name)
def test_no_history_adds_more_than_its_norm(tally: NoisyTally) -> None:
    """A neighbour has one history less, so what that adds is all by which two sums can differ."""
    added = norms(tally.without_noise(everybody(), known()))
    most = FRACTION * tally.norm(known())
    assert added.max() <= most
    # The bound is hardly larger than it must be, even for so few items.
    assert added.max() > 0.85 * most


@pytest.mark.parametrize("tally", TALLIES, ids=lambda tally: tally.name)
def test_one_client_stays_within_the_bounds_of_the_sum(tally: NoisyTally) -> None:
    history, now = everybody(), known()
    sent = tally.of(history, torch.arange(len(history.items)), now, 7)
    assert tally.bounds(now).problem(sent) is None
    assert tally.bounds(now).problem(sent.sum(0, keepdim=True)) is None


def test_a_clip_that_lets_more_through_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgfedrec.structure.private.clipped", lambda values, norm, norms=None: values)
    added = norms(TALLIES[1].without_noise(everybody(), known()))
    assert added.max() > FRACTION * TALLIES[1].norm(known())


def test_the_noise_of_all_clients_together_is_what_the_budget_asks_for() -> None:
    now, clients = known(clients=500), 500
    nobody = History(*(torch.full((clients, 1), -1), *[torch.zeros(clients, 1)] * 2))
    for tally in TALLIES:
        sent = tally.of(nobody, torch.arange(clients), now, 1)
        total = sent.sum(0)[tally.bounds(now).largest > 0].double() / FRACTION
        spread = float(total.square().mean().sqrt())
        assert spread == pytest.approx(tally.sigma(now), rel=6 / math.sqrt(2 * total.numel()))
        again = tally.of(nobody, torch.arange(clients) + clients, now, 1)
        assert not again.equal(sent), "other clients have the same noise"
    of_budget = sum(t.norm(now) ** 2 / (2 * t.sigma(now) ** 2) for t in TALLIES)
    assert of_budget == pytest.approx((1 - SHARES["choose"]) * rho_of(4.0, 500**-1.1), rel=1e-6)


def test_a_pair_is_counted_once_and_stands_in_both_rows() -> None:
    pairs = torch.tensor([[1, 3], [0, 2], [0, 3], [2, -1]])
    counted = once(pairs)
    # 0-1 in row 0 alone, 0-3 only there, 1-2 only in row 1, 2-0 only in row 2, 2-3 in row 2 and not in row 3.
    assert counted.tolist() == [[True, True], [False, True], [True, True], [False, False]]
    counts = torch.tensor([[5, 6], [0, 7], [8, 9], [0, 0]])
    assert both_ways(pairs, counts).tolist() == [[5, 6], [5, 7], [8, 9], [9, 0]]


def test_what_clients_say_of_readings_is_clipped_together() -> None:
    gained = torch.rand(400, 6, generator=torch.Generator().manual_seed(0))
    gained[:, -1] = 0
    quiet = Privacy(epsilon=900.0)
    said = judged(gained, quiet, Known(1, 400, 0), torch.arange(400), 2)
    own = quiet.own_sigma("choose", JUDGED_NORM, 400)
    assert (norms(said) <= FRACTION * JUDGED_NORM + 7 * own * math.sqrt(6)).all()


# A run


def private(epsilon: float = 8.0, **settings: Any) -> CGFedCo:
    return CGFedCo(privacy=Privacy(epsilon=epsilon), **settings)


def crowd(seed: int = 0) -> FederatedDataModule:
    return prepared(seed=seed, synthetic=Synthetic(users=800, items=60, groups=6, interactions=12))


class TestPrivateCGFedCo(Conformance):
    uploads: ClassVar = set(SHARES)
    rounds: ClassVar = len(SHARES)
    optimizers: ClassVar = {}
    wrong: ClassVar = {"columns": 0}
    odd: ClassVar = {"columns": 7}
    good: ClassVar = {"columns": 16}

    def method(self, **settings: Any) -> CGFedCo:
        return private(60.0, **{"columns": 8} | settings)


def test_a_run_says_what_it_spent_sum_by_sum() -> None:
    loop = trained(private(), crowd(), 200, rounds=10)
    server = server_of(loop)
    assert isinstance(server, PrivateServer)
    assert server.finished
    spent = [row["privacy/epsilon"] for row in loop.history]
    assert spent == sorted(spent)
    assert len(spent) == len(SHARES)
    assert 8 * (1 - 1e-6) < spent[-1] <= 8
    assert loop.history[-1]["privacy/delta"] == pytest.approx(800**-1.1)


@pytest.mark.parametrize("noise", [True, False])
def test_any_cohorts_end_the_same_and_so_does_participation_but_for_the_noise(
    monkeypatch: pytest.MonkeyPatch, noise: bool
) -> None:
    """Noise is of the round in which a client is asked."""
    options: dict[str, Any] = {"rounds": 10}
    if not noise:
        monkeypatch.setattr(
            "cgfedrec.structure.private.of_each", lambda sigma, keys, number: np.zeros((len(keys), number), np.int64)
        )
        options = {"rounds": 99, "participants": 240}
    one = trained(private(), crowd(), 800, rounds=10)
    other = trained(private(), crowd(), 70, **options)
    for name in ("counts", "total_sketch", "total_verify", "chosen", "found"):
        assert server_of(one).get_buffer(name).equal(server_of(other).get_buffer(name)), name


def test_a_run_goes_on_in_the_middle_of_a_sum_with_the_same_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = prepared(synthetic=Synthetic(users=150, items=40, groups=4, interactions=12))
    options = {"participants": 60, "evaluate_every": 20}
    whole = ran(private(60.0, columns=8), data, [("memory", 1, 0)], options, rounds=20)
    halves = ran(private(60.0, columns=8), data, [("memory", 1, 12), ("memory", 1, 0)], options, rounds=20)
    assert server_of(whole).finished
    same(halves, whole)


def test_without_the_noise_of_a_refused_client_no_sum_is_opened() -> None:
    class Liar(Step):
        def forward(self, upload: Upload, round: int, seed: int) -> Upload:
            name, value = next(iter(upload.values.items()))
            return replace(upload, values={name: torch.where((upload.clients == 3)[:, None, None], 2**40, value)})

    data = prepared(synthetic=Synthetic(users=150, items=40, groups=4, interactions=12))
    loop = FederatedLoop(rounds=10, cohort_size=150, failures=Failures(refused=0.1))
    loop.setup(Fabric(accelerator="cpu", devices=1), data, private(60.0, columns=8), wire=Wire([Liar()]))
    with (
        pytest.warns(Notice, match="1 of 150 uploads are refused"),
        pytest.raises(RunError, match="1 clients have left or were refused, and their part of the noise with them"),
    ):
        loop.fit()


def test_with_much_budget_it_is_as_good_as_without_noise() -> None:
    data = crowd()
    quiet, plain = (trained(method, data, 200, rounds=10) for method in (private(60.0), CGFedCo()))
    ours, theirs = (evaluate(data, "test", loop.score, 200)["test/ndcg@10"] for loop in (quiet, plain))
    assert ours > 0.9 * theirs


def test_what_is_told_of_readings_is_how_much_better_they_are_than_popularity_alone() -> None:
    data = crowd()
    quiet, plain = (trained(method, data, 200, rounds=10) for method in (private(60.0), CGFedCo()))
    ours, theirs = (
        [loop.history[-1][f"readings/{name}"] for name in server_of(loop).structure.readings] for loop in (quiet, plain)
    )
    noise = Privacy(epsilon=60.0).sigma("choose", JUDGED_NORM, 800) / 800
    assert abs(ours[-1]) < 6 * noise
    better = max(theirs) - theirs[-1]
    assert better / 2 < max(ours) < better  # which are clipped


def test_too_few_people_find_nothing_and_are_told_so() -> None:
    data = prepared(synthetic=Synthetic(users=30, items=60, groups=6, interactions=12))
    with (
        pytest.warns(UserWarning, match="30 clients give an item a weight of"),
        pytest.raises(RunError, match="no two items stand out of the noise"),
    ):
        trained(private(0.2), data, 30, rounds=10)


def test_whatever_noise_says_of_items_can_be_sent_down() -> None:
    """Noise may make a weight larger than all clients together can add, or all of them negative but two."""
    server = private(epsilon=0.5).server(ITEMS, seed=1)
    server.enrol(torch.arange(500))
    assert isinstance(server, PrivateServer)
    total = torch.full((ITEMS, 1), -900 * FRACTION)
    total[:2] = 700 * FRACTION
    counts = server.first_sum(total)
    assert counts[:2, 0].tolist() == [500, 500]
    assert counts.min() >= 0
    assert counts[:, 2].max() <= PARTS * 500
    assert server._counts("bounds", counts).nbytes > 0  # it is within its bounds


def test_noise_does_not_make_histories_longer() -> None:
    """Most items have no client. What noise adds to some of these it takes from others."""
    server = private(epsilon=1.0).server(3000, seed=1)
    server.enrol(torch.arange(500))
    assert isinstance(server, PrivateServer)
    sigma = server.sigma("bounds")
    noised = sigma * torch.randn(3000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noised[:15] += 100.0  # 3 = sqrt(m) for each of 500 clients
    server.first_sum(FRACTION * noised)
    assert float(server.root) == pytest.approx(3, abs=3 * sigma * math.sqrt(3000) / 500)


@pytest.mark.parametrize(
    ("clients", "settings", "problem"),
    [
        (500, {"epsilon": 0.001}, "nothing can be heard; take a larger epsilon"),
        (3, {"epsilon": 1.0}, r"method\.privacy\.delta: 0\.3, with 3 clients, is no privacy"),
        (500, {"epsilon": 1.0, "delta": 0.2}, "is no privacy; at most 0.1"),
    ],
)
def test_a_budget_that_is_none_is_refused(clients: int, settings: dict[str, float], problem: str) -> None:
    server = CGFedCo(privacy=Privacy(**settings)).server(ITEMS, seed=1)
    with pytest.raises(InputError, match=problem):
        server.enrol(torch.arange(clients))


def test_a_budget_too_large_for_its_integers_is_refused() -> None:
    method = private(60.0)
    server = method.server(60, 0)
    server.enrol(torch.arange(1000))
    with pytest.raises(InputError, match="with 1000000 clients one client's noise"):
        server.enrol(torch.arange(10**6))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"privacy": Privacy(epsilon=0.0)}, "privacy.epsilon"),
        ({"privacy": Privacy(epsilon=1.0, delta=2.0)}, "privacy.delta"),
        ({"share": 0.5}, "method.share"),
        ({"sketch": "heads"}, "method.sketch"),
        ({"second": "power"}, "method.second"),
        ({"half_life": 7.0}, "method.half_life"),
        ({"verify": False}, "method.verify"),
        ({"structure": LabelSets()}, "method.structure"),
        ({"structure": Neighbours(reading="trained")}, "method.structure"),
    ],
)
def test_what_does_not_go_with_a_budget_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        CGFedCo(**{"privacy": BUDGET} | settings)


def test_the_command_line_tells_epsilon_and_refuses_to_spend_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--data.synthetic", '{"users": 600, "items": 60, "groups": 6}', "--logger", "null"]
    assert main(["fit", "--method", "CGFedCo", "--method.privacy.epsilon", "8", *given, "--run_dir", "one"]) == 0
    summary = json.loads(Path("one/summary.json").read_text())
    assert summary["privacy/epsilon"] == pytest.approx(8)
    page = Path("one/report.html").read_text()
    assert "epsilon 8 at delta" in page
    # The reading that clients have chosen is named where they choose, and what the sum with noise says of each.
    shown = capsys.readouterr().out
    chosen = shown.partition("--method.read_by ")[2].partition(";")[0].strip("'\n")
    assert f"choose: 600 clients  {chosen}  val/ndcg@10" in shown
    told = {name.removeprefix("readings/"): value for name, value in summary.items() if name.startswith("readings/")}
    assert max(told, key=lambda name: told[name]) == chosen
    assert "validation, above popularity alone, clipped and with noise" in page
    assert f"<td>{chosen}</td>" in page
    last = "one/checkpoints/last.ckpt"
    more = [*given[:1], '{"users": 620, "items": 60, "groups": 6}', *given[2:]]
    assert main(["fit", "--update_from", last, *more, "--run_dir", "two"]) == 2
    assert "update_from" in capsys.readouterr().err
    rolling = ["--data.split", "rolling", "--run_dir", "three"]
    assert main(["fit", "--method", "CGFedCo", "--method.privacy.epsilon", "8", *given, *rolling]) == 2
    assert "method.privacy" in capsys.readouterr().err
