"""What a person reads of a model beside its accuracy: on the terminal and in reports."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rich.console import Console
from rich.table import Table

from cgfedrec.evaluation.beyond import GROUPS
from cgfedrec.run.console import NEWCOMERS, TITLES, metric_name

OF_LISTS = {
    "novelty": "novelty@{k} (bits)",
    "diversity": "diversity@{k}",
    "coverage": "coverage@{k}",
    "gini": "Gini of exposure@{k}",
}
GROUPS_SHOWN = {
    "users/few": "users of few items",
    "users/some": "users of some items",
    "users/many": "users of many items",
    "items/head": "head items",
    "items/tail": "tail items",
}


def titled(names: Collection[str], metric: str) -> dict[str, str]:
    """The title of each test metric that is told beside accuracy, in the order in which they are shown.

    Args:
        names: Of test metrics, such as ``novelty@10``.
        metric: That of the groups, such as ``ndcg@10``.
    """
    found: dict[str, str] = {}
    for short, title in OF_LISTS.items():
        found |= {name: title.format(k=name.partition("@")[2]) for name in names if name.startswith(f"{short}@")}
    found |= {f"{metric}/{group}": f"{metric_name(metric)}, {title}" for group, title in GROUPS_SHOWN.items()}
    return {name: title for name, title in found.items() if name in names}


def show_beyond(console: Console, metrics: Mapping[str, float], metric: str) -> None:
    """A table of what test metrics tell beside accuracy, with that of popularity beside it; nothing without any.

    Args:
        console: Where to.
        metrics: Of a test, and as ``newcomers/...`` of people who were not in training.
        metric: That of the groups, such as ``ndcg@10``.
    """
    columns = {prefix: title for prefix, title in TITLES.items() if prefix != "val/"}
    columns |= {f"{NEWCOMERS}{prefix}": f"newcomers, {title}" for prefix, title in columns.items()}
    told = {prefix: within(metrics, prefix) for prefix in columns}
    named = titled({name for values in told.values() for name in values}, metric)
    if not named:
        return
    present = [prefix for prefix, values in told.items() if values]
    table = Table("beyond accuracy", *(columns[prefix] for prefix in present))
    for name, title in named.items():
        cells = (told[prefix].get(name) for prefix in present)
        table.add_row(title, *("" if cell is None else f"{cell:.4f}" for cell in cells))
    console.print(table)
    for prefix, who in (("", ""), (NEWCOMERS, "newcomers: ")):
        if sizes := within(metrics, f"{prefix}{GROUPS}"):
            console.print(f"{who}{groups_told(sizes)}", highlight=False, soft_wrap=True)


def groups_told(sizes: Mapping[str, float]) -> str:
    """Who is in each group, in a sentence: ``sizes`` by name, without what stands before each."""
    bounds = [f"up to {sizes[f'users/{name}/most']:,.0f}" for name in ("few", "some") if f"users/{name}/most" in sizes]
    having = "in thirds at each cut by the items that they have"  # where each cut has its own bounds
    if bounds:
        having = f"who have {', '.join([*bounds, 'more'])} items"
    users = " / ".join(f"{sizes[f'users/{name}']:,.0f}" for name in ("few", "some", "many"))
    head, tail = (f"{sizes[f'items/{name}']:,.0f}" for name in ("head", "tail"))
    return (
        f"groups: {users} users, {having} in training; {head} of the held-out "
        f"items are in the head, the fifth of the catalogue that most users have, and {tail} in the tail"
    )


def within(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Those whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
