"""Refusals: what is wrong with a body, in words for whoever sends it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cgfedrec.serving.bodies import Asked, Timed

MOST = 20
"""Problems of a request that are told."""
SHOWN = 40
"""Letters of a key that are told."""
TYPE = "content-type: is not application/json; send the header 'content-type: application/json'"
MODELS = ("model_type", "model_attributes_type")
"""What pydantic calls something that is no object, where one is expected."""
KINDS = ("int_type", "string_type", "float_type", "finite_number")
"""What it calls something that is none of some kinds, once for each of them."""
NAMES = {*Asked.model_fields, *Timed.model_fields}


def problems_of(wrong: Iterable[Mapping[str, Any]], body: object) -> list[str]:
    """What is wrong with a body, each thing once, without what it holds but for the name of a key that is not known.

    Args:
        wrong: As pydantic found it.
        body: As it was read.
    """
    wrong = list(wrong)
    if any(one["loc"] == ("body",) and isinstance(one["input"], bytes) for one in wrong):  # it was not read as JSON
        return [TYPE]
    times = isinstance(body, dict) and isinstance(body.get("history"), list)
    times = times and any(isinstance(one, dict) for one in body["history"])  # type: ignore[index]
    return list(dict.fromkeys(_told(one) for one in wrong if _is_meant(one["loc"][1:], times)))[:MOST]


def _is_meant(where: tuple[int | str, ...], times: bool) -> bool:
    """Whether a problem is one of the kind of history that was sent: pydantic tells those of both."""
    if where[:1] != ("history",) or len(where) == 1:
        return True
    return (Timed.__name__ in str(where[1])) == times


def _told(error: Mapping[str, Any]) -> str:
    """What is wrong, and where."""
    where, kind, said = error["loc"][1:], error["type"], error["msg"]
    place = where
    if kind == "extra_forbidden":
        *place, key = where
        keys = (Timed if place else Asked).model_fields
        said = f"{str(key)[:SHOWN]!r} is not known; the keys are {', '.join(keys)}"
    elif kind in MODELS and where:
        said = "Input should have an item and a timestamp, as others of the history have"
    elif kind in MODELS:
        said = "Input should be an object with a history"
    elif kind in KINDS and where[-1] not in NAMES:
        said = f"Input should be {'a finite number' if where[-2] == 'timestamp' else 'an id: a whole number or a text'}"
    path = [str(part) for part in place if isinstance(part, int) or part in NAMES]
    return f"{'.'.join(path) or 'body'}: {said}"
