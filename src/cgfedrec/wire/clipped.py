"""Clipped uploads: a step of the wire that bounds how much a client can send, and a check that it did."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cgfedrec.errors import check, not_between, not_positive
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.wire import RefusedError, Step


class Clipped(Step):
    """Scales what a client sends so that its L2 norm is at most ``norm``, and refuses on the server what is larger.

    The norm is over all floating-point numbers of a client's upload together, or of each value by itself. Whole numbers
    have bounds of their own and stay as they are. Where a table is sent and not its change, the norm is that of the
    table. A server that sees sums alone cannot check single uploads: before `SecureSums` it bounds only those who keep
    to it.

    Args:
        norm: The bound.
        each: Whether each value has it by itself.
        slack: By what share a norm may be above the bound on the server: steps that come after this one may round.

    Raises:
        InputError: for bounds that are not positive.
    """

    before_sums = True

    def __init__(self, norm: float = 1.0, each: bool = False, slack: float = 1e-4) -> None:
        check(
            not_positive("wire.steps: Clipped.norm", norm),
            not_between("wire.steps: Clipped.slack", slack, 0),
        )
        self.norm, self.each, self.slack = norm, each, slack

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        """As of any step. What is not finite has no norm, and is sent as it is: the server refuses it."""
        values = dict(upload.values)
        for names, norms in self._norms(upload):
            factors = (self.norm / norms).clamp(max=1)  # [clients]; a norm of 0 makes infinity, and that 1
            for name in names:
                value = values[name]
                factor = factors.to(value.device, value.dtype).view(-1, *[1] * (value.ndim - 1))
                values[name] = torch.where(factor < 1, value * factor, value)
        return Upload(upload.clients, values, upload.sparse, upload.bounds)

    def reverse(self, upload: Upload, round: int) -> Upload:
        """As of any step.

        Raises:
            RefusedError: naming the clients whose upload is larger.
        """
        refused: dict[int, str] = {}
        for names, norms in self._norms(upload):
            for row in (norms > self.norm * (1 + self.slack)).nonzero().squeeze(1).tolist():
                why = f"the norm of {', '.join(names)} is {norms[row]:g}, and at most {self.norm:g} is taken"
                refused.setdefault(int(upload.clients[row]), why)
        if refused:
            raise RefusedError(refused)
        return upload

    def _norms(self, upload: Upload) -> list[tuple[list[str], Tensor]]:
        """Groups of values that share a bound, and the norm of each client, `[clients]`, float64."""
        squares: Mapping[str, Tensor] = {
            name: value.detach().flatten(1).double().square().sum(1).cpu()
            for name, value in upload.values.items()
            if value.dtype.is_floating_point
        }
        if self.each or not squares:
            return [([name], square.sqrt()) for name, square in squares.items()]
        return [(list(squares), torch.stack(list(squares.values())).sum(0).sqrt())]
