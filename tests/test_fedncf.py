from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch

import cgfedrec.kit.network
from cgfedrec.client import Batch
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError
from cgfedrec.kit.network import filled, layers_of
from cgfedrec.methods import FedNCF
from cgfedrec.methods.fedncf import FedNCFClient
from cgfedrec.testing import Conformance, ran, same, trained
from cgfedrec.wire.messages import Upload


class TestFedNCF(Conformance):
    uploads: ClassVar[set[str]] = {"table", "network"}
    odd: ClassVar[dict[str, Any]] = {"dim": 5, "hidden": (13, 3)}
    good: ClassVar[dict[str, Any]] = {
        "dim": 16,
        "hidden": (16, 8),
        "local_epochs": 2,
        "optimizer": partial(torch.optim.Adam, lr=0.05),
    }

    def method(self, **settings: Any) -> FedNCF:
        tiny: dict[str, Any] = {"dim": 8, "hidden": (8, 4), "init_scale": 0.1}
        return FedNCF(**tiny | settings)

    def test_chunks_of_the_catalogue_change_no_score(
        self, data: FederatedDataModule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = trained(self.method(), data, 5)
        users = torch.tensor([3, 1])
        whole = loop.score(users)
        monkeypatch.setattr(cgfedrec.kit.network, "SCORED_AT_ONCE", 14)
        torch.testing.assert_close(loop.score(users), whole)

    def test_rows_that_are_not_filled_up_do_not_depend_on_where_it_ran(
        self, long_data: FederatedDataModule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As those of a method that knows nothing of vectors: a cohort is aligned, wherever the store has it."""
        monkeypatch.setattr(cgfedrec.kit.network, "VECTOR", 1)
        method = self.method(dim=33, hidden=(17,))
        assert method.client(10, 0).start(torch.arange(1))["network"].shape[1] % 16
        memory = ran(method, long_data, [("memory", 1, 0)], {})
        same(ran(method, long_data, [("disk", 1, 0)], {}), memory)


def test_the_loss_and_its_gradient_are_those_of_neumf() -> None:
    """Against one client's model as `torch.nn` writes it, in float64."""
    torch.manual_seed(0)
    client = FedNCF(dim=3, hidden=(5, 4)).client(6, 0)
    assert isinstance(client, FedNCFClient)
    users = torch.arange(2)
    client.load(users, {name: torch.randn(value.shape) * 0.5 for name, value in client.start(users).items()})
    batch = Batch(
        torch.tensor([[0, 2, 2, 4], [1, 3, 0, 0]]),
        torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]]),
        torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0]]),
        torch.tensor([4.0, 2.0]),
        torch.tensor([True, True]),
    )
    output = client.training_step(batch, 0)
    output.loss.sum().backward()
    for row, length in enumerate((4, 2)):
        first, second, logit = torch.nn.Linear(6, 5), torch.nn.Linear(5, 4), torch.nn.Linear(3 + 4, 1)
        given = layers_of(client.private()["network"][row : row + 1].double(), client.shapes)
        for layer, (weight, bias) in zip((first, second, logit), given, strict=True):
            layer.weight.data, layer.bias.data = weight[0].T, bias[0, 0]
        user, table = (client.private()[name][row].double().requires_grad_() for name in ("user", "table"))
        rows = table[batch.items[row, :length]]
        hidden = torch.cat((user[3:].expand(length, -1), rows[:, 3:]), dim=1)
        hidden = second(first(hidden).relu()).relu()
        scores = logit(torch.cat((user[:3] * rows[:, :3], hidden), 1)).squeeze(1).sigmoid()
        loss = torch.nn.functional.binary_cross_entropy(scores, batch.targets[row, :length].double())
        loss.backward()
        assert output.loss[row].item() == pytest.approx(loss.item(), abs=1e-5)
        expected = torch.cat(
            [torch.cat((one.weight.grad.T.flatten(), one.bias.grad)) for one in (first, second, logit)]  # type: ignore[union-attr, arg-type]
        )
        gradients = {"user": user.grad, "table": table.grad, "network": filled(expected, client.shapes)}
        for name, ours in client.named_parameters():
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad.to_dense()[row].double(), gradients[name], rtol=1e-5, atol=1e-6)


def test_the_published_network_starts_xavier_uniform_and_alike() -> None:
    client = FedNCF().client(10, 0)
    assert isinstance(client, FedNCFClient)
    start = client.start(torch.arange(3))
    assert client.shapes == [(128, 64), (64, 32), (32, 16), (80, 1)]
    assert start["user"].shape == (3, 128)
    assert start["table"].shape == (3, 10, 128)
    assert start["table"].std().item() == pytest.approx(0.01, rel=0.1)
    assert (start["network"] == start["network"][0]).all()
    for (weight, bias), (inside, out) in zip(layers_of(start["network"], client.shapes), client.shapes, strict=True):
        bound = (6 / (out + inside)) ** 0.5
        assert 0.8 * bound < weight.abs().max() <= bound
        assert (bias == 0).all()


def test_all_but_the_user_vectors_is_averaged_and_comes_down() -> None:
    method = FedNCF(dim=2, hidden=(3,))
    server, client = method.server(4, 0), method.client(4, 0)
    users = torch.arange(3)
    client.load(users, {name: torch.randn(value.shape) for name, value in client.start(users).items()})
    assert client.upload().values["network"].shape == (3, (4 + 1) * 3 + (2 + 3 + 1))
    upload = Upload(client.users, {name: value.clone() for name, value in client.upload().values.items()})
    user = client.user.detach().clone()
    server.aggregate(server.reduce(upload))
    server.update(users, 1)
    client.receive(server.broadcast(users, 2), 2)
    for name, value in upload.values.items():
        mean = value.double().mean(0).float().expand_as(value)
        mean = filled(mean, client.shapes) if name == "network" else mean  # type: ignore[arg-type]
        torch.testing.assert_close(client.private()[name], mean, rtol=0, atol=0)
    assert client.user.equal(user)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match=r"method\.hidden"):
        FedNCF(hidden=())
