"""Masked sums over a network: the same bits as in a simulation, whoever drops out, and no single upload to be read."""

# ruff: noqa: E402

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

for name in ("flwr", "cryptography", "tomli", "Crypto"):
    pytest.importorskip(name, reason="pip install 'cgfedrec[flower,secure]'")

from cgfedrec.deploy.members import Members
from cgfedrec.deploy.network import federate
from cgfedrec.deploy.node import Node
from cgfedrec.deploy.parcels import DONE, REFUSED, Parcel, unpack_uploads
from cgfedrec.errors import InputError, RunError
from cgfedrec.wire.secure import SecureSums
from tests.here import CGFEDCO, PFEDREC, Here, check_same, deployed, ended, simulated

STEP: dict[str, Any] = {
    "class_path": "cgfedrec.wire.secure.SecureSums",
    "init_args": {"least_clients": 5, "neighbours": 6},
}


@pytest.mark.parametrize(
    ("method", "loop"), [(PFEDREC, {}), (CGFEDCO, {"rounds": 8}), (CGFEDCO, {"rounds": 30, "participants": 18})]
)
def test_masked_sums_end_where_the_simulator_ends(method: Mapping[str, Any], loop: Mapping[str, Any]) -> None:
    terms = deployed(method, loop, steps=[STEP])
    said: list[str] = []
    grid = Here(terms)
    federate(terms, "r", grid.exchange(said))
    found, wanted = ended(), simulated()
    check_same(found, wanted)
    assert "clients mask what they send" in said[0]
    assert "unsigned" in said[0]
    if "participants" not in loop:  # else nobody is left for a last round of too few, and there are fewer rounds
        assert found["bytes"][:2] == wanted["bytes"][:2]
