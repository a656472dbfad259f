"""Each client's own multi-layer perceptron on [user vector ; item embedding]: what the neural methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cgfedrec.kit.rows import baddbmm
from cgfedrec.memory import VECTOR
from cgfedrec.method import MOST_DIM

MOST_LAYERS = 32
"""Hidden layers of a network."""

SCORED_AT_ONCE = 2**16
"""Items, over all clients of a cohort, whose hidden layers are held at a time in scoring."""

Layer = tuple[Tensor, Tensor]
"""Every client's weight, `[clients, in, out]`, and bias, `[clients, 1, out]`."""


def not_layers(option: str, sizes: Sequence[int]) -> str | None:
    """The problem with sizes of hidden layers, of which there must be one or more."""
    fit = 0 < len(sizes) <= MOST_LAYERS and min(sizes) >= 1 and max(sizes) <= MOST_DIM
    return None if fit else f"{option}: {sizes} must be from 1 to {MOST_LAYERS} sizes, each from 1 to {MOST_DIM:,}"


def num_weights(shapes: Sequence[tuple[int, int]]) -> int:
    """How many weights and biases layers have; ``shapes`` are the numbers that each takes in and puts out."""
    return sum((inside + 1) * out for inside, out in shapes)


def row_length(shapes: Sequence[tuple[int, int]]) -> int:
    """How long one client's row is in the parameter that holds its layers, `[clients, row_length]`.

    It holds their weights and biases, and zeros up to a multiple of `VECTOR`. Matrix products may round by where an
    operand begins in memory. With rows of such a length, every client's layers begin at a place of the same kind.
    """
    return -(-num_weights(shapes) // VECTOR) * VECTOR


def filled(weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Clients' weights, `[clients, weights]` or `[weights]`, filled up with zeros to `row_length`."""
    return F.pad(weights, (0, row_length(shapes) - num_weights(shapes)))


def layers_of(network: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Layer]:
    """The layers of every client, as views of the one parameter that holds them all.

    They lie in one parameter so that an optimiser moves them in one operation.

    Args:
        network: `[clients, row_length]`: of each layer the weight, `[in, out]`, and then the bias; then zeros.
        shapes: What each layer takes in and puts out.

    Returns:
        Of each layer the weights, `[clients, in, out]`, and the biases, `[clients, 1, out]`.
    """
    lengths = [num_weights([shape]) for shape in shapes]
    *parts, _ = network.split([*lengths, network.shape[1] - sum(lengths)], dim=1)
    # a bias is one more row of its weight, [clients, in + 1, out]
    both = (part.view(-1, inside + 1, out) for part, (inside, out) in zip(parts, shapes, strict=True))
    return [(one[:, :-1], one[:, -1:]) for one in both]


def perceptron(layers: Sequence[Layer], user: Tensor, rows: Tensor) -> Tensor:
    """What the last layer puts out for every item, with ReLU between layers and none after the last.

    Args:
        layers: The first one takes in a user vector and, behind it, an item embedding.
        user: `[clients, dim]`.
        rows: Of the item table, `[clients, items, dim]`.

    Returns:
        `[clients, items, out]`
    """
    (weight, bias), *others = layers
    # What the first layer makes of the user is the same for all items: it is computed once, as part of the bias.
    of_user, of_item = weight.chunk(2, dim=1)  # [clients, dim, out] each
    hidden = baddbmm(baddbmm(bias, user[:, None], of_user), rows, of_item)  # [clients, items, out]
    for weight, bias in others:
        hidden = baddbmm(bias, hidden.relu(), weight)
    return hidden


@torch.no_grad()
def score_in_chunks(logits: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
    """The scores of all items, some items at a time, so that hidden layers of the whole catalogue are never in memory.

    Args:
        logits: Scores some rows of the table, `[clients, some, dim]` to `[clients, some]`.
        table: `[clients, items, dim]`.

    Returns:
        `[clients, items]`
    """
    at_once = max(1, SCORED_AT_ONCE // max(1, len(table)))  # a process may have no client to score
    return torch.cat([logits(rows) for rows in table.split(at_once, dim=1)], dim=1)
