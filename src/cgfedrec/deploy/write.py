"""Writes what a deployment needs: the folder of a Flower app, and one for each node, from the data of a config."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w
import yaml
from numpy.typing import NDArray

from cgfedrec import __version__
from cgfedrec.data.interactions import Interactions
from cgfedrec.data.module import FederatedDataModule
from cgfedrec.deploy.owndata import ITEMS, USERS, catalogue_of
from cgfedrec.deploy.promises import no_privacy
from cgfedrec.deploy.settings import no_split
from cgfedrec.errors import InputError, check, no_count
from cgfedrec.files import no_folder, write_atomically
from cgfedrec.method import Method
from cgfedrec.settings.layers import UNLOGGED
from cgfedrec.settings.parser import dump, instantiate, parse
from cgfedrec.settings.sources import Said
from cgfedrec.wire.secure.step import masking

APP, NODES = "app", "nodes"
"""The folders of the Flower app and of all nodes, below that of the deployment."""
LAYOUT = {"rating_column": "rating", "threshold": 0.5}
"""How the interactions of nodes are laid out, where it is not the default."""


def deploy(given: Said, nodes: int, output: Path) -> str:
    """Write a deployment.

    Args:
        given: What is said of the run.
        nodes: How many there are to be. Each gets as many clients as the others, or one more.
        output: Its folder, which must not be there yet, or be empty.

    Returns:
        The commands with which it is started.

    Raises:
        InputError: for what cannot be used; nothing has been written then.
    """
    used = None
    if output.is_dir() and any(output.iterdir()):
        used = f"--output: {output} is not empty; choose another"
    check(no_count("--nodes", nodes), no_folder("--output", output), used)
    settings = parse(given)
    check("callbacks: a federation over a network calls none" if settings.callbacks else None)
    parts = instantiate(settings)
    check(
        no_split(parts.data.split),
        None if isinstance(parts.method, Method) else "method: a reference sees everyone's data: none can be deployed",
    )
    extras = "flower" if masking(parts.wire) is None else "flower,secure"
    data: FederatedDataModule = parts.data
    data.attach(parts.protocol, settings.seed_everything)
    data.setup()
    if nodes > data.num_users:
        raise InputError(f"--nodes: {nodes} is more than the {data.num_users} clients of the data")
    check(no_privacy(parts.method, parts.wire, parts.loop.sampling.number(data.num_users), data.num_users))
    parts.method.check(data)
    parts.method.server(data.num_items, 0)  # which refuses what cannot work with so many items
    text = settings_of(dump(settings), data)
    output.parent.mkdir(parents=True, exist_ok=True)
    # All or nothing: it is written beside its place, and renamed.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as beside:
        whole = Path(beside) / "whole"
        app = {"tool": _tool(text, data, nodes), "project": _project(extras)}
        write_atomically(whole / APP / "pyproject.toml", tomli_w.dumps(app, multiline_strings=True))
        read_in = data.read()
        for number, clients in enumerate(np.array_split(np.arange(data.num_users), nodes)):
            write_node(whole / NODES / f"node-{number}", data, read_in, clients)
        if output.is_dir():
            output.rmdir()
        shutil.move(whole, output)
    return commands(output, nodes)


def settings_of(config: str, data: FederatedDataModule) -> str:
    """The settings that all share, as YAML: those of a config, for interactions as nodes have them."""
    tree: dict[str, Any] = yaml.safe_load(config)
    layout: dict[str, object] = dict(LAYOUT)
    if not data.has_times:
        layout["timestamp_column"] = None
    tree["data"]["init_args"] |= {"path": None, "format": layout}
    tree["data"]["init_args"].pop("items", None)  # titles are shown to people, and no node shows any
    tree |= UNLOGGED
    return yaml.safe_dump(tree, sort_keys=False)


def write_node(folder: Path, data: FederatedDataModule, read_in: Interactions, clients: NDArray[np.int64]) -> None:
    """Write the folder of a node, which is for its owner alone: the catalogue, whom it has, and their interactions.

    Args:
        folder: Of the node.
        data: Of all, set up.
        read_in: As they were read.
        clients: Their numbers, `[clients]`.
    """
    users = data.user_ids[clients.tolist()]
    table = {
        "user": read_in.user_ids[read_in.users.tolist()],
        "item": read_in.item_ids[read_in.items.tolist()],
        "rating": read_in.positive.astype(np.int8),
    }
    if read_in.times is not None:
        table["timestamp"] = read_in.times
    interactions = pl.DataFrame(table).filter(
        pl.col("user").is_in(users.implode()), pl.col("item").is_in(data.item_ids.implode())
    )
    write_atomically(folder / "interactions.csv", interactions.write_csv(), private=True)
    write_atomically(folder / USERS, pl.DataFrame({"user": users, "number": clients}).write_csv(), private=True)
    write_atomically(folder / ITEMS, pl.DataFrame({"item": data.item_ids}).write_csv())


def _tool(text: str, data: FederatedDataModule, nodes: int) -> Mapping[str, Any]:
    config = {
        "rounds": int(yaml.safe_load(text)["loop"]["rounds"]),
        "nodes": nodes,
        "clients": data.num_users,
        "items": data.num_items,
        "catalogue": catalogue_of(data.item_ids),
        "start": 600.0,
        "wait": 3600.0,
        "absent": 300.0,
        "folder": "runs/flower",
        "resume": "",
        "settings": text,
    }
    components = {"serverapp": "cgfedrec.deploy.server:app", "clientapp": "cgfedrec.deploy.client:app"}
    return {"flwr": {"app": {"publisher": "cgfedrec", "components": components, "config": config}}}


def _project(extras: str) -> Mapping[str, Any]:
    return {
        "name": "cgfedrec-federation",
        "version": "1.0.0",
        "description": "A federation of cgfedrec; all code is in the installed package.",
        "license": {"text": "Apache-2.0"},
        "dependencies": [f"cgfedrec[{extras}]=={__version__}"],
    }


def commands(output: Path, nodes: int) -> str:
    """How a deployment is started, line by line, for people to read and copy."""
    python = Path(sys.executable).name
    names = " ".join(f"node-{number}" for number in range(nodes))
    lines = [
        f"{output / APP} is the app, and {output / NODES} has a folder for each node, to be carried to its machine.",
        "Put the server's name or address in place of server.example; docs/deploy.md says more.",
        f"On one machine it is 127.0.0.1, a node's folder is {output.absolute() / NODES / 'node-0'},",
        "and each SuperNode needs a --port of its own.",
        "",
        "# 1. On the server: certificates, and a key for each node. A node gets keys/ca.crt and its own key.",
        f"{python} -m cgfedrec.deploy.certificates server.example keys {names}",
        "",
        "# 2. On the server: the SuperLink. Nodes and flwr talk to it on port 8000.",
        "FLWR_TELEMETRY_ENABLED=0 flower-superlink --host 0.0.0.0 --port 8000 --ssl-ca-certfile keys/ca.crt \\",
        "    --ssl-certfile keys/server.crt --ssl-keyfile keys/server.key --enable-supernode-auth \\",
        "    --disable-runtime-dependency-installation",
        "",
        "# 3. On the server, elsewhere: tell flwr of it, once, and register the nodes' public keys",
        "mkdir -p ~/.flwr && cat >> ~/.flwr/config.toml <<EOF",
        "[superlink.federation]",
        'address = "server.example:8000"',
        'root-certificates = "$PWD/keys/ca.crt"',
        "EOF",
        f"for node in {names}; do flwr supernode register keys/$node.pub federation; done",
        "",
        "# 4. On each node, here node-0: its SuperNode",
        "FLWR_TELEMETRY_ENABLED=0 flower-supernode --superlink server.example:8000 --root-certificates keys/ca.crt \\",
        "    --auth-supernode-private-key keys/node-0 --node-config \"folder='$PWD/node-0'\"",
        "",
        "# 5. On the server: the run",
        f"flwr run {output / APP} federation --stream",
    ]
    return "\n".join(lines)
