from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from cgfedrec.data import FederatedDataModule
from cgfedrec.method import Method
from cgfedrec.methods import CoFedRec
from cgfedrec.methods.cofedrec import GroupServer, before_elbow, similar
from cgfedrec.processes import Processes
from cgfedrec.structure.clusters import Clustering
from cgfedrec.structure.contrast import contrast
from cgfedrec.testing import Conformance, trained
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.wire import Wire


class TestCoFedRec(Conformance):
    uploads: ClassVar = {"table"}
    wrong: ClassVar = {"clusters": 1}
    good: ClassVar = {"dim": 16, "clusters": 8, "lr_eta": 200.0}

    def method(self, **settings: Any) -> Method:
        return CoFedRec(**{"dim": 8, "clusters": 6, "reg": 0.05, "lr_eta": 1.0} | settings)

    def test_a_group_and_no_one_else_starts_from_its_mean_table(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(), data, 5, rounds=2)
        everyone = torch.arange(data.num_users)
        broadcast = loop.server.broadcast(everyone, 3)
        assert broadcast is not None
        assert broadcast.own is not None
        group = broadcast.own.clients
        assert 1 < len(group) < data.num_users
        before = {name: rows.clone() for name, rows in loop.clients.store.read(everyone).items()}
        with loop.clients.workers.one() as worker:
            loop.clients.store.load(worker.client, everyone.flip(0))
            worker.client.receive(broadcast, 3)
            after = worker.client.private()["table"].flip(0)
        outside = ~torch.isin(everyone, group)
        assert after[outside].equal(before["table"][outside])
        mean = before["table"][group].double().mean(0).float()
        torch.testing.assert_close(after[group], mean.expand(len(group), -1, -1), rtol=0, atol=0)
        sent = Upload(group, {"table": mean.expand(len(group), -1, -1)})
        assert Wire().down(broadcast, len(everyone))[1] == len(everyone) * len(broadcast.pack()) + sum(
            map(len, sent.pack())
        )

    def test_the_table_s_loss_is_cross_entropy_and_alignment(self, data: FederatedDataModule) -> None:
        loop = trained(self.method(reg=0.5), data, 5, rounds=2)
        users = next(iter(data.cohorts(torch.arange(data.num_users), 3)))
        batch = data.draw(users, 3, 1)[0]
        with loop.clients.workers.one() as worker:
            client = worker.client
            loop.clients.store.load(client, users)
            client.receive(loop.server.broadcast(users, 3), 3)
            own = {name: value.double() for name, value in client.private().items()}
            client.training_step(batch, 0)
            output = client.training_step(batch, 1)
        rows = torch.stack([table[items] for table, items in zip(own["table"], batch.items, strict=True)])
        scores = ((rows * own["head_weight"][:, None]).sum(2) + own["head_bias"][:, None]).sigmoid()
        likelihood = torch.where(batch.targets == 1, scores, 1 - scores)
        loss = -(likelihood.log() * batch.weights).sum(1) + 0.5 * contrast(own["table"], loop.server.labels)  # type: ignore[arg-type]
        torch.testing.assert_close(output.loss.detach().double(), loss, rtol=1e-5, atol=0)


def test_a_group_is_cut_at_the_elbow() -> None:
    """Angles to client 2: the sums of cosines fall 1.99, 1.97, 1.94, then to 0.3 and below."""
    angles = torch.tensor([0.1, 1.4, 0.0, 0.25, 1.5, 0.2, 1.45, 1.57])
    rows = torch.stack((angles.cos(), angles.sin()), dim=1)[:, None].repeat(1, 2, 1) * torch.tensor([1.0, 7.0])[:, None]
    assert similar(rows, 2).tolist() == [True, False, True, True, False, True, False, False]
    assert similar(rows[:1], 0).tolist() == [True]
    assert similar(rows[:1].repeat(5, 1, 1), 3).all()


@pytest.mark.parametrize(
    ("falling", "before"),
    [([9, 8, 7, 1, 0, 0, 0], 3), ([9, 1, 1, 1, 1], 1), ([9, 9, 9, 9, 0], 4), ([5, 5, 5], 3), ([5, 1], 2), ([], 0)],
)
def test_the_elbow_is_farthest_from_the_chord(falling: list[int], before: int) -> None:
    assert before_elbow(torch.tensor(falling, dtype=torch.float64)) == before


def test_a_group_s_table_waits_until_its_client_takes_part() -> None:
    """With equal tables all of a round's participants are a group; each round's table is another multiple."""
    server = GroupServer(6, 4, Clustering(2, "full"), seed=0)
    base, users = torch.randn(6, 4), torch.arange(7)
    waiting = []
    for round, (start, end) in enumerate([(0, 4), (3, 7), (0, 2), (2, 3)], 1):
        server.aggregate(Upload(users[start:end], {"table": round * base.expand(end - start, -1, -1)}))
        server.gather(Processes())
        assert server.update(users[start:end], round)["group/clients"] == end - start
        broadcast = server.broadcast(users, round + 1)
        assert broadcast is not None
        assert broadcast.own is not None
        rounds = (broadcast.own.values["table"] / base).mean((1, 2)).round().int().tolist()
        waiting.append(dict(zip(broadcast.own.clients.tolist(), rounds, strict=True)))
    assert waiting == [
        {0: 1, 1: 1, 2: 1, 3: 1},
        {0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 2, 6: 2},
        {0: 3, 1: 3, 2: 1, 3: 2, 4: 2, 5: 2, 6: 2},
        {0: 3, 1: 3, 2: 4, 3: 2, 4: 2, 5: 2, 6: 2},
    ]
    assert len(server.groups.rows) == 3
