"""What `cgfedrec deploy` starts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cgfedrec.errors import InputError
from cgfedrec.settings.sources import said


def start(options: Sequence[str], nodes: int, output: Path) -> str:
    """Write a deployment, as `cgfedrec.deploy.write.deploy` does, with settings as on the command line.

    Raises:
        InputError: for what cannot be used, and where Flower is missing; nothing has been written then.
    """
    if find_spec("flwr") is None:
        raise InputError("deploy: needs Flower: pip install 'cgfedrec[flower]'")
    from cgfedrec.deploy.write import deploy

    warnings.filterwarnings("ignore", module="lightning")
    return deploy(said(options=options), nodes, output)
