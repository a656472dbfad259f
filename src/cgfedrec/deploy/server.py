"""What Flower starts on the server: a `ServerApp`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums by several threads would depend on how many they are

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cgfedrec.deploy.exchange import Exchange
from cgfedrec.deploy.network import federate
from cgfedrec.deploy.settings import Terms
from cgfedrec.errors import InputError, RunError
from cgfedrec.settings.trust import import_paths

app = ServerApp()


class RunEndedError(Exception):
    """Ends a run for the reason that its message gives. Flower shows the traceback of what ends a run: it has none."""

    # Context managers on its way set it, too.
    __traceback__ = property(lambda self: None, lambda self, traceback: None)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train over a network, as the configuration of the run says."""
    torch.set_num_threads(1)
    terms = Terms.of(context.run_config)
    run = terms.run(context.run_id)
    exchange = Exchange(grid, run, terms.wait, terms.absent, say)
    try:
        # Whoever starts the run wrote its settings.
        federate(terms, run, exchange, tuple(import_paths(terms.settings)))
    except (InputError, RunError) as error:
        raise RunEndedError(str(error)) from None


def say(text: str) -> None:
    """Print a line at once: ``flwr log`` shows it."""
    print(text, flush=True)
