"""What a deployment cannot promise, though its settings say so."""

from __future__ import annotations

from cgfedrec.method import Method
from cgfedrec.wire.secure.step import masking
from cgfedrec.wire.wire import Wire


def no_privacy(method: Method, wire: Wire, participants: int, clients: int) -> str | None:
    """Why ``method.privacy`` would not hold against the server of a federation over a network, if that is so.

    Noise hides people in the sum over all of them. A server that sees less of it than that sees less noise.

    Args:
        method: As given.
        wire: As given.
        participants: How many clients take part in a round.
        clients: How many there are.
    """
    if getattr(method, "privacy", None) is None or (masking(wire) is not None and participants == clients):
        return None
    if masking(wire) is None:
        return (
            "method.privacy: over a network the server would see each client's message, which has only its own part of "
            "the noise; let clients mask them: wire.steps '[{class_path: SecureSums}]'"
        )
    return (
        f"method.privacy: over a network each round's part of a sum is opened, and that of {participants:,} of "
        f"{clients:,} clients has only their part of the noise; let all take part in each round (loop.participants)"
    )
