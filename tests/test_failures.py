"""Clients that fail: drawn from the seed, the same wherever a run trains, and without any trace in what is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Fabric

from cgfedrec.cli import main
from cgfedrec.data import Synthetic
from cgfedrec.errors import InputError, Notice, RunError
from cgfedrec.failures import Failures, Fate
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo, CGFedRec, CoFedRec, CoLR, FedCA, GPFedRec, PFedRec
from cgfedrec.random import shared_seed
from cgfedrec.testing import Stretch, ran, same, trained
from cgfedrec.wire.wire import Wire
from tests.conftest import MakeData

MANY = Failures(before=0.2, during=0.2, after=0.1, deadline=2.0)
METHODS = [PFedRec(dim=8), CGFedRec(dim=8, clusters=6), CoFedRec(dim=8, clusters=6), CoLR(dim=8), GPFedRec(dim=8)]


def test_who_fails_is_a_share_that_the_seed_draws() -> None:
    users = torch.arange(20_000)
    failures = Failures(before=0.1, during=0.2, after=0.3)
    fates = failures.fates(7, users, 3)
    shares = torch.bincount(fates, minlength=4) / len(users)
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.1, 0.2, 0.3]), atol=0.01, rtol=0)
    assert fates.equal(failures.fates(7, users, 3))
    for other in (failures.fates(8, users, 3), failures.fates(7, users, 4), failures.fates(7, users, 3, 1)):
        assert not fates.equal(other)
    some = users[::3]
    assert failures.fates(7, some, 3).equal(fates[::3]), "a client's fate is its own"
    assert Failures().fates(7, users, 3).eq(Fate.WELL).all()


def test_slow_devices_stay_slow() -> None:
    failures, users = Failures(deadline=1.5, spread=0.5), torch.arange(20_000)
    late = torch.stack([failures.fates(7, users, round) == Fate.LOST for round in range(1, 5)])
    # log(1.5) / 0.5 = 0.81 deviations: 20.9% of a normal distribution lie beyond.
    assert abs(late[0].double().mean() - 0.209) < 0.01
    again = late[1][late[0]].double().mean()
    assert again > 0.45, "half of the variance is the device's"
    assert not Failures(spread=0.5).fates(7, users, 1).any()


@pytest.mark.parametrize("method", METHODS, ids=lambda one: type(one).__name__)
def test_where_it_ran_changes_no_bit(
    method: Any, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_data()
    options = {"failures": MANY}
    whole = ran(method, data, [("memory", 1, 0)], options, 4)
    variants: list[list[Stretch]] = [[("memory", 3, 0)], [("disk", 1, 1), ("memory", 1, 0)]]
    for variant in variants:
        same(ran(method, data, variant, options, 4), whole)
    for size in (1, 100):
        same(trained(method, data, size, 4, failures=MANY), trained(method, data, 5, 4, failures=MANY))
    assert 0 < whole.failed < 4 * data.num_users


def test_a_client_that_fails_leaves_no_trace(make_data: MakeData) -> None:
    """A round with failures ends where a round of the others alone does, whatever those do who fail."""
    data = make_data()
    failing = trained(PFedRec(dim=8), data, 7, rounds=1, failures=MANY)
    fates = MANY.fates(shared_seed(data.seed), torch.arange(data.num_users), 1)
    well = (fates == Fate.WELL).nonzero().squeeze(1)
    assert failing.clients.store.known.nonzero().squeeze(1).equal(well)

    class Chosen(FederatedLoop):
        def sample(self) -> torch.Tensor:
            return well

    alone = Chosen(rounds=1, cohort_size=7)
    alone.setup(Fabric(accelerator="cpu", devices=1), data, PFedRec(dim=8))
    alone.fit()
    assert failing.server.mean("table").equal(alone.server.mean("table"))  # type: ignore[operator]
    for name, rows in alone.clients.store.read(well).items():
        assert failing.clients.store.read(well)[name].equal(rows)
    for name in ("train/loss", "val/ndcg@10"):
        assert failing.history[-1][name] == alone.history[-1][name]
    assert failing.history[-1]["clients/failed"] == failing.failed == data.num_users - len(well)


def test_state_is_that_of_the_round_before(make_data: MakeData) -> None:
    data = make_data()
    nobody_yet = Failures(refused=0.5)
    loop = trained(CGFedRec(dim=8, clusters=6), data, 7, rounds=1, failures=nobody_yet)
    before = loop.clients.store.read(torch.arange(data.num_users))
    loop.clients.failures = MANY
    list(loop.clients.train(loop.clients.in_order(torch.arange(data.num_users)), 2))
    after = loop.clients.store.read(torch.arange(data.num_users))
    failed = MANY.fates(shared_seed(data.seed), torch.arange(data.num_users), 2) != Fate.WELL
    assert failed.any()
    assert not failed.all()
    moved = (after["table"] != before["table"]).flatten(1).any(1)
    assert moved.equal(~failed)


@pytest.mark.parametrize("kind", ["before", "during", "after"])
def test_bytes_are_those_that_travelled(kind: str, make_data: MakeData) -> None:
    data = make_data()
    failures = Failures(**{kind: 0.5})
    users = torch.arange(data.num_users)
    failed = int((failures.fates(shared_seed(data.seed), users, 1) != Fate.WELL).sum())
    whole, some = (trained(PFedRec(dim=8), data, 7, rounds=1, failures=one) for one in (Failures(), failures))
    up, down = whole.bytes_up // len(users), whole.bytes_down // len(users)
    came, sent = len(users) - failed * (kind == "before"), len(users) - failed * (kind != "after")
    assert 0 < failed < len(users)
    assert (some.bytes_up, some.bytes_down) == (sent * up, came * down)


def test_sums_ask_again_and_end_the_same(make_data: MakeData) -> None:
    data = make_data(synthetic=Synthetic(users=60, items=60, groups=6, interactions=12))
    method = CGFedCo()
    whole, some = (trained(method, data, 7, rounds=60, evaluate_every=60, failures=one) for one in (Failures(), MANY))
    assert whole.server.finished
    assert some.server.finished
    assert some.round > whole.round
    for name, value in whole.server.state_dict().items():
        assert some.server.state_dict()[name].equal(value), name
    assert whole.history[-1]["val/ndcg@10"] == some.history[-1]["val/ndcg@10"]


def test_a_round_without_anybody_is_tried_again(make_data: MakeData) -> None:
    """Also the first one: a server that sent down what it has of nobody would send zeros."""
    data = make_data()
    for method in (*METHODS, FedCA(dim=8)):
        with pytest.warns(Notice, match=r"round \d: nobody came through; it is tried again"):
            loop = trained(method, data, 7, rounds=3, participants=1, failures=Failures(before=0.8))
        assert [row["round"] for row in loop.history] == [1, 2, 3]
        assert loop.failed > 3
    loop = FederatedLoop(participants=9)
    loop.data, loop.round = data, 2
    first, loop.attempt = loop._drawn(torch.arange(30)), 1
    assert not loop._drawn(torch.arange(30)).equal(first), "others are asked"
    with pytest.raises(RunError, match="in 100 attempts nobody"), pytest.warns(Notice):
        trained(method, data, 7, rounds=3, participants=1, failures=Failures(before=0.9999))


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(InputError) as error:
        Failures(before=-1, deadline=0, spread=11, refused=2)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        f"loop.failures.{name}" for name in ("before", "deadline", "spread", "refused")
    ]
    with pytest.raises(InputError, match="nobody is left"):
        Failures(before=0.5, during=0.3, after=0.2)


TINY = ["--data.synthetic.users", "30", "--data.synthetic.items", "40", "--method", "PFedRec", "--logger", "null"]


def test_the_command_line_takes_them_and_says_who_failed(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--loop.rounds", "2", "--loop.failures.before", "0.3", "--run_dir", "run"]
    assert main(["fit", *words]) == 0
    assert "failed: " in capsys.readouterr().out
    assert '"clients/failed"' in Path("run/summary.json").read_text()
    assert main(["fit", "--ckpt_path", "run/checkpoints/last.ckpt", "--loop.rounds", "3"]) == 0
    capsys.readouterr()
    changed = ["--ckpt_path", "run/checkpoints/last.ckpt", "--loop.rounds", "4", "--loop.failures.before", "0.1"]
    assert main(["fit", *changed]) == 2
    assert "failures.before: the checkpoint has 0.3" in capsys.readouterr().err
    assert main(["fit", *TINY, "--loop.failures.before", "1.5"]) == 2
    assert "loop.failures.before: 1.5 is more than 1" in capsys.readouterr().err


def test_without_failures_nothing_is_said_of_them(make_data: MakeData) -> None:
    loop = trained(PFedRec(dim=8), make_data(), 7, rounds=1)
    assert not [name for name in loop.history[-1] if "failed" in name or "refused" in name]
    state = loop.state_dict()
    del state["failures"]  # as checkpoints of before
    loop.load_state_dict(state)
    state["failures"] = [-1, 0]
    with pytest.raises(ValueError, match="no counts"):
        loop.load_state_dict(state)
    assert isinstance(loop.clients.wire, Wire)
