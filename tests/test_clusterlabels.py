"""Cluster labels: the paper's own client, on one label an item from the sums."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from cgfedrec.data import FederatedDataModule
from cgfedrec.data.own import Own
from cgfedrec.errors import InputError
from cgfedrec.loop import FederatedLoop
from cgfedrec.methods import CGFedCo, CGFedRec
from cgfedrec.structure import ClusterLabels
from cgfedrec.structure.clusterlabels import ClusterLabelsClient
from cgfedrec.structure.contrast import contrast
from cgfedrec.testing import Conformance, trained
from cgfedrec.train import train
from cgfedrec.wire.values import Labels
from tests.sums import opened_after_fit, server_of, small_data

COUNTED = 3
"""Rounds before clients train: bounds, sketch, labels."""
SMALL: dict[str, Any] = {"clusters": 8, "rounds": 3, "dim": 8}


def method(**settings: Any) -> CGFedCo:
    return CGFedCo(columns=8, structure=ClusterLabels(**SMALL | settings))


class TestClusterLabels(Conformance):
    uploads: ClassVar = {"bounds", "sketch", "labels"}
    rounds: ClassVar = 6
    wrong: ClassVar = {"columns": 0}
    odd: ClassVar = {"dim": 7, "clusters": 7}

    def method(self, **settings: Any) -> CGFedCo:
        columns = settings.pop("columns", 8)
        return CGFedCo(columns=columns, structure=ClusterLabels(**SMALL | settings))


@pytest.fixture
def data() -> FederatedDataModule:
    return small_data()


def client_of(loop: FederatedLoop) -> ClusterLabelsClient:
    with loop.clients.workers.one() as worker:
        client = worker.client
    assert isinstance(client, ClusterLabelsClient)
    return client


def scarce_items(data: FederatedDataModule) -> Tensor:
    """Which items have no row, `[items]`, bool."""
    scarce = torch.from_numpy(data.training_matrix().sum(0) < 3)
    assert scarce.any()
    return scarce


def test_only_items_with_rows_are_aligned(data: FederatedDataModule) -> None:
    """What the alignment adds to the table's loss is the contrast of the items with labels, and pulls no other."""
    loop = trained(method(reg=0.5), data, 100, rounds=COUNTED + 1)
    client, scarce = client_of(loop), scarce_items(loop.data)
    users = next(loop.data.cohorts(torch.arange(loop.data.num_users), 5))
    client.load(users, loop.clients.store.read(users))
    client.own = Own(loop.data, users, loop.round + 1, 1)
    client.receive(loop.server.broadcast(users, loop.round + 1), loop.round + 1)
    labels = client.kept["structure"]["labels"]
    assert isinstance(labels, Labels)
    with_rows = client.known.the_rows.items
    assert with_rows.sort().values.equal((~scarce).nonzero().squeeze(1))
    (batch, *_) = client.train_batches()
    output = client.training_step(batch, 1)
    expected = contrast(client.aligned.table[:, with_rows], labels.values)
    torch.testing.assert_close(output.reported["alignment"], expected.detach())
    alone = super(type(client.aligned), client.aligned).training_step(batch, 1)
    torch.testing.assert_close(output.loss - alone.loss, 0.5 * expected)
    (pull,) = torch.autograd.grad((output.loss - alone.loss).sum(), client.aligned.table)
    # But for rounding, since the rest of the loss cancels.
    assert pull[:, scarce].abs().max() < 1e-7
    assert pull[:, ~scarce].abs().amax(2).gt(1e-5).float().mean() > 0.9


def test_a_client_trains_as_that_of_the_paper_does(data: FederatedDataModule) -> None:
    """With the same settings and labels, from the same start, it ends a round with the same table and head."""
    loop = trained(method(), data, 100, rounds=COUNTED)
    paper = CGFedRec(clusters=8, dim=8)
    theirs = trained(paper, data, 100, rounds=1)
    users = next(loop.data.cohorts(torch.arange(loop.data.num_users), 5))
    own = Own(loop.data, users, COUNTED + 1, paper.local_epochs)
    with theirs.clients.workers.one() as worker:
        aligned = worker.client
        start = client_of(loop).start(users)
        theirs_too = {name: value for name, value in start.items() if "." in name}
        aligned.load(users, {name.removeprefix("aligned."): value.clone() for name, value in theirs_too.items()})
        aligned.own = own
        aligned.labelled = server_of(loop).known.the_rows.items
        structure = server_of(loop).broadcast(users, COUNTED + 1).kept["structure/1"].values
        aligned.labels = structure["labels"].values  # type: ignore[assignment, union-attr]
        train(theirs.fabric, worker, aligned.batches())
        expected = {name: value.clone() for name, value in aligned.private().items()}
    whole = trained(method(), data, 100, rounds=COUNTED + 1)
    stored = whole.clients.store.read(users)
    for name, value in expected.items():
        torch.testing.assert_close(stored[f"aligned.{name}"], value.detach())
    assert not stored["aligned.table"].equal(start["aligned.table"].expand_as(stored["aligned.table"]))


def test_a_client_passes_over_its_samples_as_often_as_it_is_told(data: FederatedDataModule) -> None:
    one, two = (trained(method(local_epochs=epochs), data, 100, rounds=COUNTED + 1) for epochs in (1, 2))
    users = torch.arange(40)
    assert not one.clients.store.read(users)["aligned.table"].equal(two.clients.store.read(users)["aligned.table"])


def test_nothing_goes_up_while_clients_train(data: FederatedDataModule) -> None:
    loop = trained(method(), data, 7, rounds=99)
    assert loop.round == COUNTED + 3
    counted, *training = (entry["bytes/up"] for entry in loop.history[COUNTED - 1 :])
    assert counted > 0
    assert training == [counted] * 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"clusters": 1},
        {"rounds": 0},
        {"local_epochs": 0},
        {"reg": -1.0},
        {"temperature": 0.0},
        {"dim": 0},
        {"table_lr": 0.0},
        {"optimizer": partial(torch.optim.LBFGS, lr=0.1)},
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], data: FederatedDataModule) -> None:
    with pytest.raises(InputError, match=rf"method\.structure\.{next(iter(wrong))}"):
        trained(method(**wrong), data, 5)


def test_it_is_named_on_the_command_line_and_a_checkpoint_of_it_is_trusted() -> None:
    loop = opened_after_fit("ClusterLabels", "--method.structure.dim", "4")
    structure = server_of(loop).structure
    assert isinstance(structure, ClusterLabels)
    assert structure.dim == 4
    assert loop.server.finished
