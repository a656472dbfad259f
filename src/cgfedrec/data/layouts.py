"""Named layouts: how the files of public data sets are laid out, by the public descriptions of these files.

A name stands for values of the options ``data.format.*``, and for nothing else. Whatever is said of an option beside a
name, or by whoever outranks the one who says the name, wins over them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LayoutName = Literal[
    "movielens-100k",
    "movielens-1m",
    "movielens-csv",
    "hetrec-movielens",
    "hetrec-lastfm",
    "recbole",
    "amazon-csv",
    "amazon-2018-csv",
    "amazon-2023-csv",
    "amazon-json",
    "amazon-2023-json",
    "yelp-json",
    "gowalla",
    "netflix",
    "retailrocket",
    "yoochoose",
]
"""The layouts that have a name."""


@dataclass(frozen=True)
class Layout:
    """How the files of one data set are laid out.

    Args:
        values: Of the options ``data.format.*`` that are not at their defaults.
        begins: What the first line reads like.
        goes_on: What all lines behind it read like, where that is needed to tell this layout from others.
    """

    values: Mapping[str, object]
    begins: re.Pattern[str]
    goes_on: re.Pattern[str] | None = None


def _of_rows(row: str, columns: tuple[int, int, int | None, int], **values: object) -> Layout:
    """A file without names of columns.

    Args:
        row: A regular expression of every line.
        columns: The positions of user, item, rating and time.
        values: More options.
    """
    names = ("user_column", "item_column", "rating_column", "timestamp_column")
    places = dict(zip(names, columns, strict=True))
    return Layout({"header": False, **places, **values}, re.compile(row), re.compile(row))


def _of_names(header: str, columns: tuple[str, str, str | None, str | None], **values: object) -> Layout:
    """A file whose first line holds the names of the columns; arguments as of `_of_rows`."""
    names = ("user_column", "item_column", "rating_column", "timestamp_column")
    return Layout({**dict(zip(names, columns, strict=True)), **values}, re.compile(header))


def _of_json(columns: tuple[str, str, str, str]) -> Layout:
    """A file with a line of JSON for each interaction; arguments as of `_of_rows`."""
    keys = "".join(f'(?=.*"{name}":)' for name in columns)
    return _of_names(rf"\{{{keys}.*", columns, kind="json")


_ASIN, _REVIEWER = "[0-9A-Z]{10}", "A[0-9A-Z]{9,20}"
LAYOUTS: Mapping[LayoutName, Layout] = {
    "movielens-100k": _of_rows(r"\d+\t\d+\t\d(\.\d)?\t\d{9,10}", (0, 1, 2, 3), separator="\t"),
    "movielens-1m": _of_rows(r"\d+::\d+::\d(\.\d)?::\d{9,10}", (0, 1, 2, 3), separator="::"),
    "movielens-csv": _of_names(
        "userId,movieId,rating,timestamp", ("userId", "movieId", "rating", "timestamp"), separator=","
    ),
    "hetrec-movielens": _of_names(
        "userID\tmovieID\trating\ttimestamp", ("userID", "movieID", "rating", "timestamp"), separator="\t"
    ),
    "hetrec-lastfm": _of_names("userID\tartistID\tweight", ("userID", "artistID", "weight", None), separator="\t"),
    "recbole": _of_names(
        r"(?=.*\buser_id:token)(?=.*\bitem_id:token).*",
        ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
        separator="\t",
    ),
    "amazon-csv": _of_rows(rf"{_REVIEWER},{_ASIN},[1-5]\.0,\d{{9,10}}", (0, 1, 2, 3), separator=","),
    "amazon-2018-csv": _of_rows(rf"{_ASIN},{_REVIEWER},[1-5]\.0,\d{{9,10}}", (1, 0, 2, 3), separator=","),
    "amazon-2023-csv": _of_names(
        "user_id,parent_asin,rating,timestamp", ("user_id", "parent_asin", "rating", "timestamp"), separator=","
    ),
    "amazon-json": _of_json(("reviewerID", "asin", "overall", "unixReviewTime")),
    "amazon-2023-json": _of_json(("user_id", "parent_asin", "rating", "timestamp")),
    "yelp-json": _of_json(("user_id", "business_id", "stars", "date")),
    "gowalla": _of_rows(r"\d+\t\d{4}-\d\d-\d\dT[\d:]+Z\t[-.\d]+\t[-.\d]+\t\w+", (0, 4, None, 1), separator="\t"),
    "netflix": Layout(
        {"kind": "netflix", "rating_column": "rating", "timestamp_column": "date"},
        re.compile(r"\d+:"),
        re.compile(r"\d+:|\d+,[1-5],\d{4}-\d\d-\d\d"),
    ),
    "retailrocket": _of_names(
        "timestamp,visitorid,event,itemid,transactionid", ("visitorid", "itemid", None, "timestamp"), separator=","
    ),
    "yoochoose": _of_rows(r"\d+,\d{4}-\d\d-\d\dT[\d:.]+Z,\d+,\w+", (0, 2, None, 1), separator=","),
}
"""Each by its name. Where one line reads like two of them, the first one is meant."""
