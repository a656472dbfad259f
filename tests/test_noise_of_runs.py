"""Noise of differential privacy belongs to one run: whoever subtracts two runs is left with the noise of both."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

import cgfedrec
from cgfedrec.data import Synthetic
from cgfedrec.data.own import Own
from cgfedrec.methods import CGFedCo
from cgfedrec.privacy.budget import Privacy
from cgfedrec.privacy.discrete import of_each
from cgfedrec.random import Stream, keys, mark
from cgfedrec.run.resume import made_of
from cgfedrec.testing import prepared, trained
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.noised import Among, Noised
from cgfedrec.wire.values import Labels

STEP = {"class_path": "Noised", "init_args": {"norm": 2.0, "noise": 3.0}}
TABLES: dict[str, Any] = {
    "method": {"class_path": "PFedRec", "init_args": {"dim": 4}},
    "wire.steps": json.dumps([STEP]),
    "loop": {"rounds": 3, "patience": None},
    "logger": None,
}
SUMS: dict[str, Any] = {"method": "CGFedCo", "method.privacy.epsilon": 60.0, "method.columns": 8, "logger": None}
Drawn = Callable[[], set[bytes]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The keys of all noise that was drawn since the last call."""
    seen: set[bytes] = set()

    def watched(sigma: float, keys: Sequence[bytes], number: int) -> NDArray[np.int64]:
        seen.update(keys)
        return of_each(sigma, keys, number)

    for place in ("wire.noised", "structure.private"):
        monkeypatch.setattr(f"cgfedrec.{place}.of_each", watched)

    def since() -> set[bytes]:
        found = set(seen)
        seen.clear()
        return found

    return since


def people() -> pl.DataFrame:
    """150 people in 5 groups, 8 items each."""
    rows = [(user, (user % 5) * 10 + (user * 3 + one) % 10, one) for user in range(150) for one in range(8)]
    return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


def keys_of(drawn: Drawn, base: dict[str, Any], data: pl.DataFrame, run_dir: str, **more: Any) -> set[bytes]:
    cgfedrec.fit(base, {"run_dir": run_dir, "data.format.timestamp_column": "timestamp", **more}, data=data)
    return drawn()


@pytest.mark.parametrize("base", [TABLES, SUMS], ids=["tables", "sums"])
def test_the_same_run_has_the_same_noise_and_any_other_run_has_other_noise(base: dict[str, Any], drawn: Drawn) -> None:
    data = people()
    once_more = pl.concat([data, pl.DataFrame({"user": [7], "item": [3], "timestamp": [-1]})])
    swapped = data.with_columns(  # the two oldest items of one person, both of which are trained on
        timestamp=pl.when((pl.col("user") == 7) & (pl.col("timestamp") < 2))
        .then(1 - pl.col("timestamp"))
        .otherwise(pl.col("timestamp"))
    )
    setting = {"method.init_args.lr_eta": 1.0} if base is TABLES else {"method.init_args.clusters": 5}
    runs = {
        "plain": keys_of(drawn, base, data, "plain"),
        "one more": keys_of(drawn, base, once_more, "more"),
        "in another order": keys_of(drawn, base, swapped, "swapped"),
        "a setting": keys_of(drawn, base, data, "setting", **setting),
        "a seed": keys_of(drawn, base, data, "seed", seed_everything=1),
        "a batch": keys_of(drawn, base, data, "batch", **{"data.batch_size": 64}),
    }
    assert all(runs.values())
    for one, other in itertools.combinations(runs, 2):
        assert not runs[one] & runs[other], f"{one}, {other}"
    again = {"loop.cohort_size": 7, "loop.checkpoint_every": 2, "loop.store": "disk", "loop.compress": False}
    assert keys_of(drawn, base, data, "again", **again) == runs["plain"]
    plain, other_one = (
        cgfedrec.load(f"{name}/checkpoints/last.ckpt").server.state_dict() for name in ("plain", "again")
    )
    for name, value in plain.items():
        assert value.equal(other_one[name]), name


def test_more_rounds_than_were_planned_have_the_noise_that_they_would_have_had(drawn: Drawn) -> None:
    whole = cgfedrec.fit(TABLES, {"run_dir": "whole"})
    wanted = drawn()
    cgfedrec.fit(TABLES, {"run_dir": "half", "loop.rounds": 1})
    found = drawn()
    assert found < wanted
    more = {"loop.rounds": 3, "loop.cohort_size": 9, "logger": None}
    resumed = cgfedrec.fit({"ckpt_path": "half/checkpoints/last.ckpt", **more})
    assert found | drawn() == wanted
    assert resumed.server.state_dict()["means.table"].equal(whole.server.state_dict()["means.table"])


def test_what_makes_a_run_are_its_settings_but_for_those_that_may_change_as_it_goes_on() -> None:
    run = cgfedrec.fit(TABLES, {"run_dir": "run", "loop.rounds": 1})
    same = run.config.replace("rounds: 1", "rounds: 9").replace("cohort_size: auto", "cohort_size: 3")
    assert same != run.config
    assert made_of(same) == made_of(run.config) == made_of(run.config.replace("norm: 2.0", "norm: 2"))
    assert made_of(run.config.replace("norm: 2.0", "norm: 2.5")) != made_of(run.config)
    assert made_of(run.config.replace("methods.PFedRec", "methods.FedMF")) != made_of(run.config)


def test_noise_of_another_size_and_around_another_table_is_other_noise(drawn: Drawn) -> None:
    """With the budget spread over more rounds a sum has more noise. It must not be the same noise, only longer."""

    def keys_for(turns: int = 3, public: float = 0.0) -> set[bytes]:
        noised = Noised(1.0, 8.0, 1e-3).among(Among(4, 4, turns, b"a run"))
        known = {"table": torch.full((3, 2), public)}
        upload = Upload(torch.arange(4), {"table": known["table"].expand(4, -1, -1)}, public=lambda: known)
        noised.forward(upload, 1, 7)
        return drawn()

    assert keys_for() == keys_for()
    assert not keys_for() & keys_for(turns=4)
    assert not keys_for() & keys_for(public=0.5)


def test_a_sum_that_is_asked_for_otherwise_has_other_noise(drawn: Drawn) -> None:
    """A server that undoes a round and asks once more, with other labels or without somebody, learns a difference with
    the noise of both sums.
    """
    data = prepared(synthetic=Synthetic(users=150, items=40, groups=4, interactions=12))
    loop = trained(CGFedCo(privacy=Privacy(epsilon=60.0), columns=8), data, 150, rounds=2)
    users = torch.arange(9)
    sent, _ = loop.clients.sent(users, 3)
    assert sent is not None

    def asked(broadcast: Broadcast, round: int = 3) -> set[bytes]:
        with loop.clients.workers.one() as worker:
            loop.clients.store.load(worker.client, users)
            worker.client.own = Own(data, users, round, 1)
            worker.client.receive(broadcast, round)
            worker.client.upload()
        return drawn()

    drawn()
    name = next(name for name in sent.kept if name.startswith("labels"))
    labels = sent.kept[name].values["labels"]
    assert isinstance(labels, Labels)
    others = Bulletin.of({"labels": replace(labels, values=labels.values.flip(0))})
    assert asked(sent) == asked(sent) != set()
    assert not asked(sent) & asked(sent, 4)
    assert not asked(sent) & asked(replace(sent, kept={**sent.kept, name: others}))


def test_a_mark_tells_its_parts_apart() -> None:
    made = [mark(), mark(""), mark("a", "bc"), mark("ab", "c"), mark("abc"), mark(b"abc", b"")]
    assert len(set(made)) == len(made)
    assert mark("abc") == mark(b"abc")
    assert keys(1, Stream.PRIVACY, [0, 1], of=made[2]) != keys(1, Stream.PRIVACY, [0, 1], of=made[3])


# Over a network


def test_over_a_network_another_run_has_other_noise_though_nodes_keep_their_secret(
    drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs in which one user has one item more differed by exactly that item."""
    for name in ("flwr", "cryptography", "tomli", "Crypto"):
        pytest.importorskip(name, reason="pip install 'cgfedrec[flower,secure]'")
    from cgfedrec.deploy.network import federate
    from cgfedrec.wire.secure.collector import Collector
    from tests import here

    opened = list[torch.Tensor]()
    open_it = Collector.opened

    def watched(self: Collector, *given: Any) -> Any:
        total = open_it(self, *given)
        opened.append(next(iter(total.values.values())).clone())
        return total

    monkeypatch.setattr(Collector, "opened", watched)
    secure = [{"class_path": "SecureSums", "init_args": {"neighbours": 4}}]

    def federated(run: str, **more: Any) -> tuple[set[bytes], torch.Tensor]:
        private = {"class_path": "CGFedCo", "init_args": {"privacy": {"epsilon": 8.0}, **more}}
        shutil.rmtree("fed", ignore_errors=True)  # whose secrets are the same each time
        terms = here.deployed(private, {"rounds": 1}, 2, secure)
        opened.clear()
        federate(terms, run, here.Here(terms, 2, run).exchange([], run))
        return drawn(), opened[0]

    first, total = federated("r1")
    other, others = federated("r2")
    assert first
    assert not first & other
    assert not total.equal(others)
    again, once_more = federated("r1")  # by nodes that have forgotten it
    assert again == first
    assert once_more.equal(total)
    settings, _ = federated("r1", clusters=5)
    assert not settings & first
