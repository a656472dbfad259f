"""A piece of work on Flower's simulation, in its own environment: python on_flower.py FOLDER ROUNDS.

`run_simulation` starts the same engine as `flwr run` does, without a SuperLink beside it that stays.
"""

from __future__ import annotations

import os
import sys

import flower_app
from flwr.simulation import run_simulation


def main() -> None:
    """Do it: as many clients at a time as there are to be threads."""
    os.environ[flower_app.TOLD] = os.pathsep.join(sys.argv[1:])
    settings = flower_app.work().settings
    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": settings.threads}}
    run_simulation(flower_app.server, flower_app.client, settings.users, backend_config=resources)


if __name__ == "__main__":
    main()
