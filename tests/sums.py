"""What tests of CGFedCo and its structures share."""

from __future__ import annotations

import cgfedrec
from cgfedrec.cli import main
from cgfedrec.data import FederatedDataModule, Synthetic
from cgfedrec.loop import FederatedLoop
from cgfedrec.structure.collect import SumsServer
from cgfedrec.testing import prepared


def small_data() -> FederatedDataModule:
    """Some items of one client, some of two, and some of more."""
    return prepared(synthetic=Synthetic(users=40, items=60, groups=6, interactions=10))


def server_of(loop: FederatedLoop) -> SumsServer:
    assert isinstance(loop.server, SumsServer)
    return loop.server


def opened_after_fit(structure: str, *options: str) -> FederatedLoop:
    """The federation in the checkpoint of a run that named a structure and its options on the command line."""
    synthetic = '{"users": 40, "items": 60, "groups": 6, "interactions": 10}'
    small = ["--method.structure.clusters", "8", "--method.structure.rounds", "2", "--loop.rounds", "9"]
    where = ["--data.synthetic", synthetic, "--run_dir", "run", "--logger", "null"]
    assert main(["fit", "--method", "CGFedCo", "--method.structure", structure, *options, *small, *where]) == 0
    return cgfedrec.load("run/checkpoints/last.ckpt").loop
