"""The two halves of a Flower app, on its Message API. Flower's workers import this file, each of them once."""

from __future__ import annotations

import os
from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from plain import Work, now

TOLD = "PEERS_WORK"
"""The variable that tells where the work lies, and how many rounds there are to be."""

client, server = ClientApp(), ServerApp()


@cache
def work() -> Work:
    """Read once in each process."""
    folder, rounds = os.environ[TOLD].split(os.pathsep)
    found = Work(folder, int(rounds))
    torch.set_num_threads(1)  # of one client; as many train at a time as there are threads
    return found


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take the table, train it with what is private, and send it back."""
    user, net = int(context.node_config["partition-id"]), work().net()
    kept = context.state.get("private")
    net.put(work().private(user) if kept is None else kept.to_torch_state_dict())
    net.put(message.content["arrays"].to_torch_state_dict())
    net.train_epoch(*work().samples(user, int(message.content["config"]["server-round"])))
    context.state["private"] = ArrayRecord(net.private())
    content = {"arrays": ArrayRecord({"table": net.table.detach()}), "weight": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Federated averaging of all clients, each as heavy as any other."""
    times, tables = [], []

    def note(round: int, arrays: ArrayRecord) -> None:
        """Called before the first round and after each."""
        times.append(now())
        tables.append(arrays.to_torch_state_dict()["table"])

    users = work().settings.users  # for all of whom it waits: else it begins with those who are there already
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=users, min_available_nodes=users)
    start = ArrayRecord({"table": work().arrays["table"]})
    strategy.start(grid, start, num_rounds=work().rounds, timeout=3600, evaluate_fn=note)
    work().write("Flower", times, tables[1:])
