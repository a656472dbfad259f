"""Two files of interactions, compared as a run would that goes on from one with the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from cgfedrec.data.difference import Difference, diff
from cgfedrec.data.layout import Format
from cgfedrec.errors import check
from cgfedrec.run.update import is_too_much, warn_of_a_part
from cgfedrec.settings.opening import refuse_of_fit
from cgfedrec.settings.parser import instantiate, parse
from cgfedrec.settings.sources import said
from cgfedrec.structure.discovery import Discovery
from cgfedrec.structure.updating import ANEW

ALL_COUNT = (
    "all users of both files are counted; a run has other numbers where it leaves some out (data.min_interactions, "
    "data.min_users) or holds out some of their items (data.split)"
)
LEAST = Discovery.least_clients
"""Clients with changes, below which a run refuses to go on, unless it is told otherwise."""


def diff_files(old: str, new: str, options: Sequence[str]) -> Difference:
    """Compare two files.

    Args:
        old: The file as it was.
        new: The file as it is now.
        options: Of a run, as on the command line; of them the layout of files counts.

    Raises:
        InputError: where options or files cannot be used.
    """
    given = said(options=options)
    refuse_of_fit(given, "data diff")
    settings = parse(given)
    check(*_unheeded(given.options))
    layout: Format = instantiate(settings).data.format
    return diff(old, new, layout)


def _unheeded(options: Mapping[str, Any]) -> Iterator[str]:
    """The problem with each option of the command line that says nothing of the layout of files."""
    for group, value in options.items():
        if group != "data":
            yield f"{group}: data diff cannot heed it; it takes data.format.*"
        elif isinstance(value, dict):
            names = [*value.get("init_args", {}), *(name for name in value if name != "init_args")]
            yield from (
                f"data.{name}: data diff cannot heed it; it takes data.format.*" for name in names if name != "format"
            )


def show_difference(console: Console, found: Difference) -> None:
    """What is different, with examples, what was left out in reading, and what a run would make of it."""
    console.print(f"{found.old} -> {found.new}", highlight=False, soft_wrap=True)
    counts, examples = found.counts, found.examples()
    table = Table("", "count", Column("such as", overflow="fold"), title="what has changed", title_justify="left")
    for what, some in examples.items():
        name = what if "users" in what or "items" in what else f"interactions {what}"
        table.add_row(name, f"{counts[what]:,}", ", ".join(" has ".join(map(str, ids)) for ids in some))
    table.add_row("interactions unchanged", f"{counts['unchanged']:,}", "")
    console.print(table)
    then, now = found.reports
    table = Table("rows", "old", "new", title="what was read and left out", title_justify="left")
    for what in {**then, **now}:
        table.add_row("read" if what == "rows" else what, f"{then.get(what, 0):,}", f"{now.get(what, 0):,}")
    console.print(table)
    if found.days is None:
        told = "times tell no days, in one file or in both"
    else:
        told = f"{found.days:.1f} days between the latest times"
    console.print(told, highlight=False, soft_wrap=True)
    console.print(ALL_COUNT, highlight=False, soft_wrap=True)
    number, verdict = counts["changed users"], is_too_much(found.changes)
    if number < LEAST:
        verdict = (
            f"only {number} clients have changes, fewer than method.least_clients ({LEAST} by default): it will be "
            "refused, with exit code 3, until there are more"
        )
    elif verdict is None:
        verdict = (
            f"{found.share:.1%} of the interactions have changed, at most {ANEW:.0%}: {number:,} clients add what has "
            "changed"
        )
    console.print(f"fit --update_from: {verdict}", highlight=False, soft_wrap=True)
    warn_of_a_part(found.changes)
