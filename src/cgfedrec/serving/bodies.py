"""What goes into a request and what comes out, as the OpenAPI description has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, create_model

from cgfedrec.serving.limits import Limits


def _whole(value: object) -> object:
    """To JSON 7.0 is a whole number too."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Whole = Annotated[StrictInt, BeforeValidator(_whole)]
Id = Whole | StrictStr
Time = Whole | Annotated[StrictFloat, Field(allow_inf_nan=False)]


class Timed(BaseModel):
    """An item of a history, and when that was."""

    model_config = ConfigDict(extra="forbid")
    item: Id
    timestamp: Time = Field(description="In any unit. Of two at the same time, the first in the list is the later one.")


class Asked(BaseModel):
    """A history, of which nothing is kept or logged."""

    model_config = ConfigDict(extra="forbid")
    history: list[Id] | list[Timed]
    top_k: int = 10
    exclude: list[Id] = []


def asked(limits: Limits) -> type[Asked]:
    """`Asked` within limits."""
    ids = Annotated[list[Id], Field(max_length=limits.max_history)]
    timed = Annotated[list[Timed], Field(max_length=limits.max_history)]
    most = limits.max_top_k
    fields: dict[str, Any] = {
        "history": (ids | timed, Field(description="Item ids, the oldest first; or items with times, in any order.")),
        "top_k": (
            Annotated[StrictInt, Field(ge=1, le=most), BeforeValidator(_whole)],
            Field(min(10, most), description="Fewer come where the catalogue ends."),
        ),
        "exclude": (ids, Field([], description="Ids that are not to be recommended, beside those of the history.")),
    }
    model = create_model("Asked", __base__=Asked, __doc__=Asked.__doc__, **fields)
    model.model_config["json_schema_extra"] = {"examples": [{"history": [50, 181, 222], "top_k": 5}]}
    model.model_rebuild(force=True)
    return model


class Item(BaseModel):
    """A recommended item."""

    item: int | str
    score: float = Field(description="Only the order counts.")
    title: str | None


class Answer(BaseModel):
    """The best items, the best first."""

    items: list[Item]
    source: Literal["history", "popularity"] = Field(
        description="``popularity`` where the history has no item that is known."
    )
    unknown: list[int | str] = Field(description="Ids that were given and that the catalogue does not have.")
    version: str = Field(description="Of the export that answered.")


class Health(BaseModel):
    """What answers."""

    status: Literal["ok"]
    version: str = Field(description="Of the export.")
    method: str
    reading: str
    round: int
    items: int
    problem: str | None = Field(description="Why what stands in the folder now is not used, if it is not.")


class Problems(BaseModel):
    """Why a request was refused: all that is wrong with it."""

    problems: list[str]
