"""What the README and the pages in ``docs/`` tell a reader to type, and a folder in which all of it can be typed."""

from __future__ import annotations

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import yaml

from cgfedrec.data import Synthetic
from tests.conftest import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
"""The text of each, by its path in the repository."""


class Block(NamedTuple):
    """A block of code of a page: its language, the file that it is said to be if it is one, and its text."""

    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    found = re.findall(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```$', PAGES[page], re.DOTALL | re.MULTILINE)
    return [Block(*one) for one in found]


def lines(page: str) -> list[list[str]]:
    """The words of every command of a page, without comments."""
    told = []
    for block in blocks(page):
        if block.language == "sh":
            text = re.sub(r"<<EOF$.*?^EOF$", "", block.text, flags=re.DOTALL | re.MULTILINE)
            told += text.replace("\\\n", " ").splitlines()
    return [words for line in told if (words := shlex.split(line, comments=True))]


def fewer(words: list[str]) -> list[str]:
    """The same command with fewer rounds, trials and cuts."""
    words = [str(min(int(word), MOST[before])) if before in MOST else word for before, word in pairwise(["", *words])]
    if words[:1] == ["fit"] and "rolling" in words:
        words += ["--data.rolling.cuts", "3"]
    return words


MOST = {"--loop.rounds": 6, "--trials": 2}
"""What the options of a command are cut to."""


def lay_out(place: Path) -> None:
    """Make a folder like a clone of the repository in which a reader works, with small tables for the large ones.

    Configs are those of the repository, but ask for less: fewer users, rounds, methods, seeds and cuts.
    """
    shutil.copytree(ROOT / "configs", place / "configs")
    for path in (place / "configs").rglob("*.yaml"):
        cut(path)
    table = interactions()
    table.write_csv(place / "ratings.csv")
    table[:-20].write_csv(place / "yesterday.csv")
    table.write_csv(place / "today.csv")
    table.with_columns(user="n" + pl.col("user")).write_csv(place / "new.csv")
    table.with_columns(user="o" + pl.col("user")).write_csv(place / "other.csv")
    table.select("item", title="item").unique(maintain_order=True).write_csv(place / "items.csv")
    table.rename({"user": "customer", "item": "sku", "timestamp": "bought_at"}).write_csv(place / "orders.csv")
    table.rename({"user": "user_id", "item": "item_id"}).write_csv(place / "lens.csv")
    rated = table.select(
        pl.col("user").str.slice(1).cast(int),
        pl.col("item").str.slice(1).cast(int),
        pl.lit(4).alias("rating"),
        "timestamp",
    )
    inter = rated.rename(dict(zip(rated.columns, RECBOLE, strict=True)))
    inter.write_csv(place / "ml-100k.inter", separator="\t")
    for file, separator in REAL.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        columns = rated.drop("rating") if file.endswith("listens.csv") else rated
        columns.write_csv(place / file, separator=separator, include_header=False)


REAL = {
    "data/ml-100k/u.data": "\t",
    "../shared/data/ml-100k/ratings.csv": ",",
    "../shared/data/filmtrust/ratings.tsv": "\t",
    "../shared/data/lastfm/listens.csv": ",",
}
"""Where commands and configs look for real data, and what separates its fields."""
RECBOLE = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")


def interactions() -> pl.DataFrame:
    """Interactions of some people, in the order of time."""
    data = Synthetic(users=60, items=260, groups=5, interactions=14).draw(0)
    assert data.times is not None
    columns = {"user": data.user_ids[data.users], "item": data.item_ids[data.items], "timestamp": data.times}
    table = pl.DataFrame(columns).sort("timestamp")
    return table.with_columns(pl.format("u{}", "user").alias("user"), pl.format("i{}", "item").alias("item"))


def cut(path: Path) -> None:
    """Let a config ask for little."""
    config = yaml.safe_load(path.read_text())
    data = (config.get("data") or {}).get("init_args") if isinstance(config.get("data"), dict) else None
    if data and data.get("split") == "rolling":
        data["rolling"] = {"cuts": 3}
    if data and data.get("synthetic", {}).get("users", 0) > 1000:
        data["synthetic"] |= {"users": 300, "items": 200, "groups": 10}
        config["loop"] |= {"participants": 50, "rounds": 2}
        config["method"]["init_args"]["clusters"] = 20
    if "methods" in config:
        config |= {"methods": few(config), "seeds": [0]}
        config.setdefault("base", {}).setdefault("loop", {}).update(LITTLE)
        config["base"]["logger"] = None
    path.write_text(yaml.safe_dump(config, sort_keys=False))


LITTLE = {"rounds": 2, "evaluate_every": 1}


def few(config: dict[str, Any]) -> dict[str, Any]:
    """Of the methods of a comparison the first, the one others are tested against, and those with published figures."""
    published = [name for one in config.get("published", {}).values() for name in one]
    chosen = {next(iter(config["methods"])), config.get("reference"), *published}
    methods = {}
    for name, method in config["methods"].items():
        if name in chosen:
            spelt = {"config": method} if isinstance(method, str) else method
            methods[name] = spelt | ({"loop": LITTLE} if "loop" in spelt else {})
    return methods
