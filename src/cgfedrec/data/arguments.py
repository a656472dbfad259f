"""The arguments of the data, before anything is read: what is wrong with them, and where the data come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cgfedrec.data.layout import Format
from cgfedrec.data.split import NEEDS_TIME, SplitName
from cgfedrec.errors import no_count

EMBEDDED = "embedded data"
"""What `origin` calls the embedded data set."""


def argument_problems(
    path: str | None,
    format: Format,
    split: SplitName,
    temporal_fractions: tuple[float, float],
    min_interactions: int,
    counts: Mapping[str, int],
) -> Iterator[str | None]:
    """What is wrong with the arguments of a `cgfedrec.data.FederatedDataModule`, which say what they are.

    Those in ``counts``, by name, are numbers from 1.
    """
    if path == "":  # which the system takes for the current folder
        yield "data.path: is empty; give the path of a file, or null for the embedded data set"
    first, second = temporal_fractions
    if not 0 < first < second < 1:
        yield f"data.temporal_fractions: {first}, {second} must rise between 0 and 1"
    # Two of a user's items are held out, and one at least is trained on.
    fewest = 3 if split in ("leave_one_out", "random") else 1
    if min_interactions < fewest:
        yield f"data.min_interactions: {min_interactions} is below {fewest}, which split {split} needs"
    else:
        yield no_count("data.min_interactions", min_interactions)
    for name, count in counts.items():
        yield no_count(f"data.{name}", count)
    if path is not None and format.timestamp_column is None and split in NEEDS_TIME:
        yield f"data.format.timestamp_column: split {split} needs times; choose the split random or none"


def is_embedded(path: str | None, kind: str) -> bool:
    """Whether the data are the embedded data set. Arguments are those of `origin`."""
    return not path and _name(kind) == "FederatedDataModule"


def origin(path: str | None, kind: str) -> str:
    """Where the data come from, as people are told.

    Args:
        path: ``data.path``.
        kind: The class of the data module, by its name or where it is imported from. One that somebody has written
            may read anything.
    """
    if is_embedded(path, kind):
        return EMBEDDED
    return path or f"data module {_name(kind)}"


def _name(kind: str) -> str:
    return kind.rpartition(".")[2]
