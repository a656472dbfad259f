"""The two results on which the project stands, in small."""

from __future__ import annotations

import pytest
from benchmarks.labels import CONFIG, settings
from benchmarks.leak import local

import cgfedrec
from tests.conftest import require_data


def test_it_is_the_labels_that_help() -> None:
    """CGFedRec ranks far above popularity, Local and itself with permuted labels, on a seed of its own."""
    found = {}
    for name, override in settings().items():
        summary = cgfedrec.fit(str(CONFIG), override, {"seed_everything": 11, "logger": None, "run_dir": name}).summary
        found[name] = summary["test/ndcg@10"]
        found["popularity"] = summary["popularity/test/ndcg@10"]
    assert found["CGFedRec"] > 2 * max(found["popularity"], found["Local"], found["labels permuted"])


def test_the_leak_lifts_clients_that_train_alone() -> None:
    """ML-100K, published settings, four rounds; the whole is `python -m benchmarks.leak`."""
    path = require_data("ml-100k/ratings.csv")
    ((leaking, _),), ((honest, in_full),) = (local(path, name, 0, 4).values() for name in ("reference", "strict"))
    assert leaking == pytest.approx(0.337, abs=0.05)
    assert 0.06 < honest < 0.14
    assert in_full < 0.02
