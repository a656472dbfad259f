"""What a person reads of the data: users, items, interactions, what was left out, and what their times tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cgfedrec.data import FederatedDataModule
from cgfedrec.data.arguments import is_embedded, origin
from cgfedrec.data.recognising import recognised, unread_ratings
from cgfedrec.data.report import left_out
from cgfedrec.data.split import Part
from cgfedrec.settings.sources import Said

QUANTILES = (0, 0.25, 0.5, 0.75, 1)


def show_data(console: Console, data: FederatedDataModule, details: bool = False) -> None:
    """Users, items, interactions and what was left out; in ``details``, also how they are spread and split."""
    counts = data.interactions_per_user()
    total = int(counts.sum())
    density = total / (data.num_users * data.num_items)
    kind = type(data).__name__
    name = origin(data.path, kind)
    told = f"{name}: {data.num_users:,} users, {data.num_items:,} items, {total:,} interactions, density {density:.2%}"
    if dropped := left_out(data.report):
        told += f"; {dropped}"
    console.print(told, highlight=False, soft_wrap=True)
    if data.split == "leave_one_out" and data.days is not None and not is_embedded(data.path, kind):
        console.print(
            "their times are true: leave one out tests against what others did later, and so flatters recency; "
            "--data.split rolling does not",
            highlight=False,
            soft_wrap=True,
        )
    if not details:
        return
    if data.path and (hint := recognised(Path(data.path), data.format)):
        console.print(hint, highlight=False, soft_wrap=True)
    console.print(_times(data), highlight=False, soft_wrap=True)
    table = Table("", *(f"{q:.0%}" for q in QUANTILES), title="quantiles", title_justify="left")
    for what, values in (("interactions of a user", counts), ("users of an item", data.users_per_item())):
        table.add_row(what, *(f"{value:,.0f}" for value in np.quantile(values, QUANTILES)))
    console.print(table)
    table = Table("rows", "count", title="what was read and left out", title_justify="left")
    for what, count in data.report.items():
        table.add_row("read" if what == "rows" else what, f"{count:,}")
    for part in Part:
        table.add_row(f"for {part.name.lower()} ({data.split})", f"{data.part_size(part):,}")
    console.print(table)
    if data.split == "rolling" and data.cut is None:
        table = Table("cut", "from, in the file's time", "users asked", "", title="cuts in time", title_justify="left")
        for number, (time, asked) in enumerate(zip(data.cut_times, data.asked, strict=True), 1):
            what = "chooses settings" if data.rolling.chooses(number) else "reported"
            table.add_row(str(number), str(time), f"{asked:,}", what)
        console.print(table)


def tell_of_ratings(console: Console, data: FederatedDataModule, given: Said) -> None:
    """Say that a file's ratings are not read, unless somebody says so: that there are none is the default.

    Args:
        console: Where it is said.
        data: As read. A data module of one's own knows what it reads.
        given: What is said of the run.
    """
    said = given.who(("data", "init_args", "format", "rating_column"))
    if said is not None or not data.path or type(data) is not FederatedDataModule:
        return
    if hint := unread_ratings(Path(data.path), data.format):
        console.print(hint, highlight=False, soft_wrap=True)


def _times(data: FederatedDataModule) -> str:
    """What the times of the data tell."""
    if not data.has_times:
        return "times: there are none"
    if data.days is None:
        return "times: an order, such as 1, 2, 3; they tell what came first, and not when"
    return f"times: true; training spans {data.days.max() - data.days.min():,.1f} days"
