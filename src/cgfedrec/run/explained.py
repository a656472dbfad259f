"""What to say of a training that ends with an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import RunError
from cgfedrec.run.training import Training
from cgfedrec.wire.messages import NotFiniteError


@contextmanager
def explained(training: Training, data: FederatedDataModule, checkpoints: Path) -> Iterator[None]:
    """Say of what ends training in which round it was, and what may help.

    Args:
        training: That the body does.
        data: On which it trains.
        checkpoints: Where the last good one is, if there is one.

    Raises:
        RunError: in place of what it explains.
    """
    try:
        yield
    except NotFiniteError as error:
        clients = ", ".join(str(data.user_ids[client]) for client in error.clients[:5])
        if len(error.clients) > 5:
            clients += " and others"
        told = (
            f"round {training.round}, client {clients}: the {error.what} is not finite; a lower learning rate "
            "or alignment may help. "
        )
        if checkpoints.exists():
            told += f"The last good checkpoint is in {checkpoints}"
        raise RunError(told) from error
    except MemoryError as error:
        raise RunError(
            f"round {training.round}: no memory is left; smaller method.dim, data.batch_size, "
            "loop.cohort_size or method.local_epochs need less"
        ) from error
