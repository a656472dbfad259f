"""What a run over a network has found is put to use: from its server's checkpoint, and the catalogue of a node."""

# ruff: noqa: E402

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

for name in ("flwr", "cryptography", "tomli"):
    pytest.importorskip(name, reason="pip install 'cgfedrec[flower]'")

from cgfedrec.cli import main
from cgfedrec.deploy.network import federate
from cgfedrec.run.devices import read_server
from cgfedrec.serving import Recommender
from tests.here import CGFEDCO, PFEDREC, Here, deployed, simulated

FEDGF = {"class_path": "cgfedrec.methods.FedGF", "init_args": {"rank": 8}}
CATALOGUE = "fed/nodes/node-1/items.csv"
BEST = "runs/flower/r/checkpoints/best.ckpt"


def ended(method: Mapping[str, Any], rounds: int = 20, steps: Sequence[object] = ()) -> None:
    """A run over a network, to its end, and the same simulated."""
    terms = deployed(method, {"rounds": rounds}, steps=steps)
    federate(terms, "r", Here(terms).exchange([]))
    simulated()


def export(output: str, *options: str, checkpoint: str = BEST) -> int:
    return main(["export", "--ckpt_path", checkpoint, "--output", output, *options])


@pytest.mark.parametrize("method", [CGFEDCO, FEDGF], ids=["CGFedCo", "FedGF"])
def test_what_serves_people_is_that_of_the_simulation_without_any_interaction(method: Mapping[str, Any]) -> None:
    ended(method)
    assert export("here", checkpoint="simulated/checkpoints/best.ckpt") == 0
    own = [*Path("fed/nodes").rglob("interactions.*"), *Path("fed/nodes").rglob("users.csv")]
    for path in own:
        path.unlink()
    items = pl.read_csv(CATALOGUE, infer_schema=False)["item"]
    pl.DataFrame({"id": items, "title": "title of " + items}).write_csv("titles.csv")
    assert export("served", "--catalogue", CATALOGUE, "--items", "titles.csv") == 0

    found, expected = Recommender.load("served"), Recommender.load("here")
    assert found.ids == expected.ids
    for history in ([], found.ids[3:9], [found.ids[20], "odd"]):
        one, other = found.recommend(history, 12), expected.recommend(history, 12)
        assert (one.items, one.scores, one.unknown) == (other.items, other.scores, other.unknown)
        assert one.titles == [f"title of {item}" for item in one.items]

    assert export("there.safetensors", "--server", "--catalogue", CATALOGUE) == 0
    assert export("here.safetensors", "--server", checkpoint="simulated/checkpoints/best.ckpt") == 0
    there, here = read_server("there.safetensors"), read_server("here.safetensors")
    assert (there.item_ids, there.clients) == (here.item_ids, here.clients)
    assert all(there.state[name].equal(value) for name, value in here.state.items())


@pytest.mark.parametrize(
    "words",
    [
        "export --output served",
        "recommend --have 3",
        "recommend --user 1",
        "recommend --histories fed/nodes/node-0/interactions.csv",
        "test",
        "test --data.path fed/nodes/node-0/interactions.csv",
        "validate",
        "fit",
        "fit --update_from",
    ],
)
def test_commands_that_need_data_say_that_these_are_on_nodes(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    terms = deployed(PFEDREC, {"rounds": 1})
    federate(terms, "r", Here(terms).exchange([]))
    given = [*words.split(), BEST] if "update_from" in words else [*words.split(), "--ckpt_path", BEST]
    assert main(given) == 2
    told = capsys.readouterr().err
    assert "is of a run over a network, whose interactions and clients are on their nodes" in told
    assert "cgfedrec export --catalogue items.csv" in told
    assert "'resume=\"r\"'" in told


def test_what_does_not_fit_a_run_over_a_network_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    ended(PFEDREC, rounds=1)
    Path("other.csv").write_text("item\n" + "\n".join(reversed(Path(CATALOGUE).read_text().split()[1:])) + "\n")
    for options, why in {
        ("--catalogue", CATALOGUE): "clients of PFedRec score with what they have trained themselves",
        ("--catalogue", CATALOGUE, "--client", "3"): "a client's state is on its node",
        ("--catalogue", "other.csv"): "other.csv has other items than the run, or in another order",
        ("--catalogue", "none.csv"): "--catalogue: no file none.csv",
        ("--catalogue", CATALOGUE, "--method.dim", "9"): "method.dim: the checkpoint has 8",
    }.items():
        assert export("served", *options) == 2
        assert why in capsys.readouterr().err
        assert not Path("served").exists()
    assert export("served", "--catalogue", CATALOGUE, checkpoint="simulated/checkpoints/best.ckpt") == 2
    assert "--catalogue: this run has its data" in capsys.readouterr().err


def test_a_run_over_a_network_that_holds_nothing_out_is_served_too() -> None:
    masked = {"class_path": "SecureSums", "init_args": {"least_clients": 5, "neighbours": 6}}
    method = {**CGFEDCO, "init_args": {"read_by": "rho 0.5, beta 0.1"}}
    terms = deployed(method, {"rounds": 20}, steps=[masked], split="none")
    federate(terms, "r", Here(terms).exchange([]))
    assert export("served", "--catalogue", CATALOGUE) == 0
    assert Recommender.load("served").recommend([3, 4], 5).source == "history"
