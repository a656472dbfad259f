"""What a rolling evaluation measures at all of its cuts together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cgfedrec.evaluation.beyond import GROUPS

MEASURED = ("test/", "popularity/test/", "bytes/", GROUPS)
"""How those numbers of a summary begin that are averaged over the cases of all cuts."""


def pooled(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the cases of all cuts: of metrics, and of the bytes of a training; and how large groups are in all."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for one in summaries for name in one if name.startswith(MEASURED)):
        if name.startswith(GROUPS):
            if not name.endswith("/most"):  # each cut has bounds of its own
                found[name] = sum(one[name] for one in summaries)
            continue
        # A metric of a group is a mean over those who are in it; the others are means over all cases.
        group = GROUPS + "/".join(name.split("/")[-2:])
        weighed = [(one[name], one.get(group, one["cases"])) for one in summaries if name in one]
        found[name] = sum(value * weight for value, weight in weighed) / sum(weight for _, weight in weighed)
    return found
