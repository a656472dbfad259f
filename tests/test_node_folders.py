"""The folders of nodes: the ids that stand in their files, and who may read these."""

# ruff: noqa: E402

from __future__ import annotations

import os
import warnings
from pathlib import Path

import polars as pl
import pytest
import tomli

for name in ("flwr", "cryptography", "tomli"):
    pytest.importorskip(name, reason="pip install 'cgfedrec[flower]'")


from cgfedrec.deploy.network import federate
from cgfedrec.deploy.node import Node
from cgfedrec.deploy.parcels import DONE
from cgfedrec.deploy.settings import Terms
from cgfedrec.deploy.write import deploy
from cgfedrec.errors import Notice
from cgfedrec.settings.sources import said
from tests.here import PFEDREC, Here, deployed
from tests.test_deploy import ask
from tests.test_masked import STEP

MIXED = ["0451526538", "080442957X", "7", "07", "B000FA64PK", *map(str, range(100, 106))]
NUMBERS = ["7", *map(str, range(100, 106))]
ZEROS = ["07", "0451526538", "7", *map(str, range(100, 103))]


def shared_out(*catalogues: list[str]) -> list[Node]:
    """A node for each of some lists of items, with three users who have all of them but two."""
    rows = [
        (f"u{3 * node + one}", item, place)
        for node, items in enumerate(catalogues)
        for one in range(3)
        for place, item in enumerate(items[one : len(items) - 2 + one])
    ]
    table = pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row")
    table.write_csv("people.csv")
    options = ["--data.path", "people.csv", "--data.negatives", "1", "--logger", "null", "--method", "PFedRec"]
    deploy(said(options=options), len(catalogues), Path("fed"))
    terms = Terms.of(tomli.loads(Path("fed/app/pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"])
    nodes = [Node(Path(f"fed/nodes/node-{number}"), terms, "r") for number in range(len(catalogues))]
    for node in nodes:
        answer = node.answer(ask(terms, "who"))
        assert (answer.text("status"), answer.head["clients"]) == (DONE, node.data.here.tolist()), answer.head
        # Every interaction is that of the file, by the numbers that all nodes share.
        read, numbers = node.data.read(), {number: user for user, number in node.folder.numbers(terms.clients).items()}
        users = [numbers[one] for one in read.users.tolist()]
        items = node.folder.items.to_numpy()[read.items].tolist()
        expected = {row[:2] for row in rows if row[0] in numbers.values()}
        assert set(zip(users, items, strict=True)) == expected
        assert len(users) == len(expected)
    return nodes


def test_a_node_may_have_numbers_alone_where_others_have_text() -> None:
    """ISBN and ASIN: each node has the same catalogue, whatever its own items look like."""
    nodes = shared_out(MIXED, NUMBERS, ZEROS)
    assert [node.data.item_ids.to_list() for node in nodes] == 3 * [sorted({*MIXED, *NUMBERS, *ZEROS})]


def test_what_is_written_otherwise_is_another_item() -> None:
    node, *_ = shared_out(["07", "008", *NUMBERS[1:]], ["B000FA64PK", *NUMBERS[1:]])
    path = node.folder.interactions
    rows = pl.read_csv(path, infer_schema=False)
    rows = rows.filter(pl.col("item") != "008").with_columns(pl.col("item").replace("07", "7"))
    path.write_text(rows.write_csv())
    answer = Node(node.folder.path, node.terms, "r").answer(ask(node.terms, "who"))
    assert f"{path}: item 7 is not in {node.folder.path / 'items.csv'}" in answer.text("why")


def test_where_all_items_are_numbers_they_stay_numbers() -> None:
    nodes = shared_out(NUMBERS, [str(one) for one in range(97, 104)])
    numbers = sorted({*map(int, NUMBERS), *range(97, 104)})
    assert [node.data.item_ids.to_list() for node in nodes] == 2 * [numbers]


def test_a_secret_that_others_can_read_is_told() -> None:
    node, *_ = shared_out(NUMBERS, NUMBERS)
    path = node.folder.path / "secret"
    path.chmod(0o640)
    with pytest.warns(Notice, match=f"{path}: others on this machine can read it"):
        node.folder.secret()
    path.chmod(0o600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        node.folder.secret()


def test_what_is_private_is_for_its_owner_alone() -> None:
    """Also where files are open to others by default; checkpoints of other runs are as open as that."""
    before = os.umask(0o022)
    try:
        terms = deployed(PFEDREC, {"rounds": 1}, steps=[STEP])
        for number in range(2):
            Path(f"fed/nodes/node-{number}/secret").unlink()  # the test's own; a node draws one
        federate(terms, "r", Here(terms).exchange())
    finally:
        os.umask(before)
    for folder in Path("fed/nodes").iterdir():
        modes = {path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777 for path in folder.rglob("*")}
        assert modes == {
            "interactions.csv": 0o600,
            "users.csv": 0o600,
            "items.csv": 0o644,
            "secret": 0o600,
            ".lock": 0o644,
            "state": 0o700,
            "state/r.ckpt": 0o600,
            "state/r.secrets": 0o600,
        }
        assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in Path("runs/flower/r/checkpoints").iterdir()} == {0o644}
    assert Path("fed/app/pyproject.toml").stat().st_mode & 0o777 == 0o644
