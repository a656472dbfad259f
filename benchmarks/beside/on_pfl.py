"""A piece of work on pfl-research, in its own environment: python on_pfl.py FOLDER ROUNDS.

Clients train one after another by `SimulatedBackend`. What is private lies in pfl's own store of users' states.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.data.user_state import InMemoryUserStateStorage
from pfl.exception import UserNotFoundError
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from plain import Net, Work, now, peak
from torch import Tensor


class Shared(PyTorchModel):
    """A model of which the item table alone is sent, and whose network makes its own optimiser."""

    def __init__(self, net: Net) -> None:
        net.loss = net.metrics = None  # asked for; but `step` is how it trains, and nothing is evaluated
        central = torch.optim.SGD([net.table], lr=1.0)  # moves on by the mean of what clients changed
        super().__init__(net, local_optimizer_create=None, central_optimizer=central)
        self._variable_map = {"table": net.table}

    def new_local_optimizer(self, learning_rate: float, **kwargs: Any) -> torch.optim.Optimizer:
        return self.pytorch_model.optimizer()


class Personal(FederatedAveraging):
    """Federated averaging of clients that keep something to themselves."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work, self.states = work, InMemoryUserStateStorage()

    def get_next_central_contexts(self, *args: Any) -> Any:
        contexts, model, metrics = super().get_next_central_contexts(*args)
        if contexts is not None:  # it would evaluate in the first round
            contexts = tuple(dataclasses.replace(one, do_evaluation=False) for one in contexts)
        return contexts, model, metrics

    def train_one_user(self, initial_model_state: Any, model: Shared, user_dataset: Any, central_context: Any) -> Any:
        user, net = user_dataset.user_id, model.pytorch_model
        try:
            private = self.states.load_state(user)
        except UserNotFoundError:
            private = self.work.private(user)
        net.put(private)
        model.do_multiple_epochs_of(user_dataset, central_context.model_train_params, step)
        self.states.save_state(net.private(), user)
        return model.get_model_difference(initial_model_state), Metrics()


def step(net: Net, optimizer: torch.optim.Optimizer, batch: list[Tensor], *_: Any) -> None:
    """One batch, as pfl calls for it."""
    net.step(optimizer, *batch)


class Watch(TrainingProcessCallback):
    """Notes when rounds end, and the tables then."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self.tables: list[Tensor] = []

    def on_train_begin(self, *, model: Shared) -> Metrics:
        self.times.append(now())
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Metrics, model: Shared, **_: Any) -> tuple[bool, Metrics]:
        self.times.append(now())
        self.tables.append(model.pytorch_model.table.detach().clone())
        return False, Metrics()


def main() -> None:
    """Do it, and write what it took."""
    work = Work(sys.argv[1], int(sys.argv[2]))
    settings = work.settings
    torch.set_num_threads(settings.threads)
    net = work.net()
    net.put({"table": work.arrays["table"]})
    watch = Watch()

    def dataset(user: int) -> PyTorchTensorDataset:
        round = len(watch.tables) + 1
        return PyTorchTensorDataset(work.samples(user, round), user_id=user)

    users = FederatedDataset(dataset, get_user_sampler("minimize_reuse", list(range(settings.users))))
    Personal(work).run(
        NNAlgorithmParams(work.rounds, 10**9, settings.users, None),
        SimulatedBackend(users, None, [WeightByUser()]),
        Shared(net),
        NNTrainHyperParams(settings.batch_size, 1, settings.rate),
        callbacks=[watch],
        send_metrics_to_platform=False,
    )
    work.write("pfl-research", watch.times, watch.tables, peak())


if __name__ == "__main__":
    main()
