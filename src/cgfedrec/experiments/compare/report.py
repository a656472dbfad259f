"""A comparison as people read it: on the terminal, as one HTML page, and as a table for a paper."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed

from cgfedrec.experiments.compare.markup import latex, markdown
from cgfedrec.experiments.compare.page import figures, html
from cgfedrec.experiments.compare.results import Results
from cgfedrec.experiments.compare.words import cells, columns, ends_kind, note, protocol_name
from cgfedrec.files import write_atomically
from cgfedrec.pages.render import alone

SHOWN = 2
"""How many metrics fit a terminal; the files have all."""


def write_report(results: Results) -> list[Path]:
    """Write ``report.html``, ``table.md``, ``table.tex`` and each chart as an SVG for a paper."""
    texts = {"report.html": html(results), "table.md": markdown(results), "table.tex": latex(results)}
    for table in results.tables:
        texts |= {f"{table.data}-{one.name}.svg": alone(one.svg) for one in figures(results.plan, table)}
    for name, text in texts.items():
        write_atomically(results.plan.directory / name, text)
    return [results.plan.directory / name for name in texts]


def show(console: Console, results: Results) -> None:
    """Print a table for each data set: the columns that fit a terminal, and how to read them."""
    plan = results.plan
    for table in results.tables:
        facts = plan.facts[table.data]
        printed = Printed(title=f"{table.data}: {protocol_name(facts)}", title_justify="left")
        heads = columns(plan, table)
        wanted = {
            "method",
            *heads[1 : 1 + min(SHOWN, len(plan.metrics))],
            *(h for h in heads if " over " in h),
            "p",
            "epsilon",
            "bytes",
        }
        shown = [place for place, head in enumerate(heads) if head in wanted]
        widest = max((len(word) for row in table.rows for word in row.method.split()), default=6)
        for place in shown:
            if place == 0:  # names of methods are broken between words and not within them
                printed.add_column(heads[place], justify="left", min_width=widest, overflow="fold")
            else:
                printed.add_column(heads[place], justify="right", min_width=7, overflow="fold")
        for row in table.rows:
            texts = cells(plan, table, row)
            printed.add_row(*(texts[place] for place in shown), end_section=ends_kind(table, row))
        console.print(printed)
        console.print(f"{note(plan, table)}\n", highlight=False)
