"""Each client's own multi-layer perceptron on [user vector ; item embedding]: what the neural methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cgfedrec.kit.rows import VECTOR, baddbmm
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
    """Weights and biases of layers that take in and put out so much."""
    return sum((inside + 1) * out for inside, out in shapes)


def row_length(shapes: Sequence[tuple[int, int]]) -> int:
    """What the layers of one client take in the parameter that holds them: their weights, and zeros up to a multiple
    of `VECTOR`, so that all clients' begin alike: matrix products may round by where an operand begins in memory.
    """
    return -(-num_weights(shapes) // VECTOR) * VECTOR


def filled(weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Clients' weights, `[clients, weights]` or `[weights]`, filled up with zeros to `row_length`."""
    return F.pad(weights, (0, row_length(shapes) - num_weights(shapes)))


def layers_of(network: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Layer]:
    """The layers that one parameter holds one after another, so that an optimiser moves them in one operation.

    Args:
        network: `[clients, row_length]`: of each layer the weight, `[in, out]`, and then the bias; then zeros.
        shapes: What each layer takes in and puts out.
    """
    lengths = [num_weights([shape]) for shape in shapes]
    *parts, _ = network.split([*lengths, network.shape[1] - sum(lengths)], dim=1)
    both = (part.view(-1, inside + 1, out) for part, (inside, out) in zip(parts, shapes, strict=True))
    return [(one[:, :-1], one[:, -1:]) for one in both]


def perceptron(layers: Sequence[Layer], user: Tensor, rows: Tensor) -> Tensor:
    """What the last layer puts out, with ReLU between layers and none after it.

    Args:
        layers: The first one takes in a user vector beside an item embedding.
        user: `[clients, dim]`.
        rows: Of the item table, `[clients, items, dim]`.

    Returns:
        `[clients, items, out]`
    """
    (weight, bias), *others = layers
    # What the first layer makes of the user is the same for all items: it is computed once, as part of the bias.
    of_user, of_item = weight.chunk(2, dim=1)
    hidden = baddbmm(baddbmm(bias, user[:, None], of_user), rows, of_item)
    for weight, bias in others:
        hidden = baddbmm(bias, hidden.relu(), weight)
    return hidden


@torch.no_grad()
def score_in_chunks(logits: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
    """Logits of all items, `[clients, items]`, from those of some rows of the ``table`` `[clients, items, dim]`."""
    return torch.cat([logits(rows) for rows in table.split(max(1, SCORED_AT_ONCE // len(table)), dim=1)], dim=1)
