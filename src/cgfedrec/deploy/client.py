"""What Flower starts on a node: a `ClientApp`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from cgfedrec.deploy.node import Node
from cgfedrec.deploy.parcels import FAILED, Parcel, declined
from cgfedrec.deploy.settings import Terms
from cgfedrec.errors import InputError

app = ClientApp()


@app.query("who")
@app.query("keys")
@app.query("shares")
@app.query("train")
@app.query("unmask")
@app.query("evaluate")
def answer(message: Message, context: Context) -> Message:
    """Do what the server asks."""
    torch.set_num_threads(1)
    try:
        terms = Terms.of(context.run_config)
        trusted = tuple(filter(None, str(context.node_config.get("trust", "")).split(",")))
        if "folder" not in context.node_config:
            raise InputError("this node has no folder: start flower-supernode with --node-config \"folder='...'\"")
        node = Node(Path(str(context.node_config["folder"])), terms, terms.run(context.run_id), trusted)
        answered = node.answer(Parcel.of(message.content))
    except (InputError, ValueError) as error:
        answered = declined(FAILED, str(error))
    if answered.text("status") == FAILED:  # the server is told; here it is whoever looks after the node
        print(f"error: {answered.text('why')}", flush=True)
    return Message(answered.records(), reply_to=message)
