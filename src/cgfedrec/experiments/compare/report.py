"""A comparison as people read it: on the terminal, as one HTML page, and as a table for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.console import Console
from rich.table import Table as Printed

from cgfedrec import __version__
from cgfedrec.experiments.compare.plan import Facts, Plan
from cgfedrec.experiments.compare.plot import Line, chart
from cgfedrec.experiments.compare.results import Curve, Results, Row, Table
from cgfedrec.experiments.compare.statistics import Interval
from cgfedrec.files import write_atomically
from cgfedrec.run.console import METRICS
from cgfedrec.units import nbytes

TESTS = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}
LEVEL = 0.05
"""Below which a corrected p-value is marked."""
NAMED = 5
"""Methods that a sentence names one by one."""
SHOWN = 2
"""How many metrics fit a terminal; the files have all."""
MUTED = -1
"""The style of controls."""
_TEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}"})


def write_report(results: Results) -> list[Path]:
    """Write ``report.html``, ``table.md`` and ``table.tex``."""
    texts = {"report.html": html(results), "table.md": markdown(results), "table.tex": latex(results)}
    for name, text in texts.items():
        write_atomically(results.plan.directory / name, text)
    return [results.plan.directory / name for name in texts]


def show(console: Console, results: Results) -> None:
    """Print a table for each data set."""
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
            "bytes",
        }
        shown = [place for place, head in enumerate(heads) if head in wanted]
        widest = max((len(word) for row in table.rows for word in row.method.split()), default=6)
        for place in shown:
            printed.add_column(
                heads[place], justify="right" if place else "left", min_width=7 if place else widest, overflow="fold"
            )
        for row in table.rows:
            texts = cells(plan, table, row)
            printed.add_row(*(texts[place] for place in shown), end_section=ends_kind(table, row))
        console.print(printed)
        console.print(f"{note(plan, table)}\n", highlight=False)


def columns(plan: Plan, table: Table) -> list[str]:
    """The heads of a table's columns."""
    leak = " †" if plan.facts[table.data].protocol.leaks else ""
    return [
        "method",
        *(f"{metric_name(name)}{leak}" for name in plan.metrics),
        *(f"published {metric_name(name)}{leak}" for name in plan.metrics if _is_published(table, name)),
        f"{metric_name(plan.metrics[0])}{leak} over {plan.control}",
        "p",
        "best round",
        "bytes",
        "seconds",
    ]


def cells(plan: Plan, table: Table, row: Row) -> list[str]:
    """A row as text, in the order of `columns`."""
    seeds = f" ({row.seeds} of {len(plan.seeds)} seeds)" if row.seeds < len(plan.seeds) else ""
    reference = " (ref.)" if row.method == table.reference else ""
    return [
        f"{row.method}{' ◆' if row.front else ''}{reference}{seeds}",
        *(with_interval(row.metrics[name]) for name in plan.metrics),
        *(_figure(row.published.get(name)) for name in plan.metrics if _is_published(table, name)),
        "" if row.over_control is None else f"{row.over_control.mean:+.4f} ±{row.over_control.half or 0:.4f}",
        p_value(row.p),
        "" if row.best_round is None else f"{row.best_round:.0f}",
        "" if row.bytes is None else nbytes(row.bytes),
        "" if row.seconds is None else f"{row.seconds:.1f}",
    ]


def note(plan: Plan, table: Table) -> str:
    """How to read a table, in a few lines."""
    facts, n = plan.facts[table.data], len(plan.seeds)
    first = metric_name(plan.metrics[0])
    spread = f"mean ± 95% t-interval over {n} seeds" if n > 1 else "one seed, so no interval"
    lines = [
        f"{protocol_name(facts)}; {facts.held_out:,} held-out items of {facts.users:,} users; test metrics of the "
        f"round that is best by {metric_name(facts.monitor)}; {spread}.",
        f"Over {plan.control}: the mean difference of users' {first} (averaged over seeds) from the control in which "
        "nobody collaborates, ± 95% over users.",
    ]
    if table.reference:
        lines.append(
            f"p: {TESTS[plan.test]} of users' {first} (averaged over seeds) against {table.reference}, Holm-corrected."
        )
    lines.append("◆: some round of it is on the Pareto front of measured bytes and validation accuracy.")
    if facts.protocol.leaks:
        lines.append(LEAK.format(control=plan.control))
    lines += [f"{name}: {why}" for name, why in table.missing.items()]
    return "\n".join(lines)


LEAK = (
    "† The reference protocol leaks: training negatives avoid the held-out items, so that a model which learns nothing "
    "about taste finds them. Only what a method scores above {control} can come from collaboration; nothing here is "
    "comparable with the strict protocol."
)


def protocol_name(facts: Facts) -> str:
    """Such as ``strict protocol, full ranking``."""
    protocol = facts.protocol
    ranking = "full ranking" if protocol.ranking == "full" else f"{protocol.num_candidates} sampled candidates"
    return f"{protocol.name} protocol{' †' if protocol.leaks else ''}, {ranking}"


def metric_name(name: str) -> str:
    """``val/ndcg@10`` as a reader knows it."""
    stage, _, metric = name.rpartition("/")
    short, _, k = metric.partition("@")
    return f"{'validation ' if stage == 'val' else ''}{METRICS.get(short, short)}@{k}"


def with_interval(value: Interval, plus_minus: str = " ±") -> str:
    """The mean and, where there are several seeds, the half-width of its interval."""
    return f"{value.mean:.4f}" + (f"{plus_minus}{value.half:.4f}" if value.half is not None else "")


def p_value(p: float | None) -> str:
    """A p-value as it is printed; a star where it is below the level."""
    if p is None:
        return ""
    star = "*" if p < LEVEL else ""
    return f"<0.001{star}" if p < 0.001 else f"{p:.3f}{star}"


def ends_kind(table: Table, row: Row) -> bool:
    """Whether those that see everyone's data begin after this row."""
    place = table.rows.index(row)
    return place + 1 < len(table.rows) and row.kind != "centralised" and table.rows[place + 1].kind == "centralised"


def is_best(table: Table, row: Row, metric: str) -> bool:
    """Whether no method that keeps data private has more."""
    private = [other.metrics[metric].mean for other in table.rows if other.kind != "centralised"]
    return row.kind != "centralised" and row.metrics[metric].mean == max(private)


def _is_published(table: Table, metric: str) -> bool:
    return any(metric in row.published for row in table.rows)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def markdown(results: Results) -> str:
    """A table for each data set, in GitHub's Markdown."""
    plan, parts = results.plan, []
    for table in results.tables:
        heads = columns(plan, table)
        lines = [
            f"### {table.data}: {protocol_name(plan.facts[table.data])}",
            "",
            "| " + " | ".join(heads) + " |",
            "|" + "|".join(["---"] + ["---:"] * (len(heads) - 1)) + "|",
        ]
        for row in table.rows:
            texts = [text.replace("|", "\\|") for text in cells(plan, table, row)]
            texts[1] = f"**{texts[1]}**" if is_best(table, row, plan.metrics[0]) else texts[1]
            lines.append("| " + " | ".join(texts) + " |")
        parts.append("\n".join([*lines, "", note(plan, table).replace("\n", "  \n")]))
    return "\n\n".join(parts) + "\n"


def latex(results: Results) -> str:
    """A table for each data set, for a paper that loads booktabs and amssymb."""
    plan, parts = results.plan, []
    for table in results.tables:
        heads = columns(plan, table)
        lines = [
            "% \\usepackage{booktabs, amssymb}",
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{_tex(table.data)}. {_tex(note(plan, table)).replace(chr(10), ' ')}}}",
            f"  \\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            "    \\toprule",
            "    " + " & ".join(_tex(head) for head in heads) + " \\\\",
            "    \\midrule",
        ]
        for row in table.rows:
            texts = [_tex(text) for text in cells(plan, table, row)]
            for place, metric in enumerate(plan.metrics, 1):
                texts[place] = f"\\textbf{{{texts[place]}}}" if is_best(table, row, metric) else texts[place]
            lines.append("    " + " & ".join(texts) + " \\\\")
            if ends_kind(table, row):
                lines.append("    \\midrule")
        parts.append("\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}"]))
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    """Text with what LaTeX would take for commands made harmless, and our signs as it writes them."""
    safe = text.replace("\\", "/").translate(_TEX)
    signs = {"±": "$\\pm$", "◆": "$\\blacklozenge$", "†": "$^\\dagger$", "<": "$<$", ">": "$>$", "*": "$^{*}$"}
    for sign, written in signs.items():
        safe = safe.replace(sign, written)
    return safe


def html(results: Results) -> str:
    """The whole report as one page that needs nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {
        "metric_name": metric_name,
        "p_value": p_value,
        "nbytes": nbytes,
        "is_best": is_best,
        "ends_kind": ends_kind,
        "LEVEL": LEVEL,
    }
    plan = results.plan
    sections = [_section(results, table) for table in results.tables]
    template = environment.get_template("report.html.j2")
    return template.render(
        plan=plan,
        sections=sections,
        test=TESTS[plan.test],
        version=__version__,
        missing={name: why for table in results.tables for name, why in table.missing.items()},
    )


def _section(results: Results, table: Table) -> dict[str, Any]:
    plan, facts = results.plan, results.plan.facts[table.data]
    return {
        "table": table,
        "facts": facts,
        "protocol": protocol_name(facts),
        "leak": LEAK.format(control=plan.control) if facts.protocol.leaks else "",
        "finding": finding(plan, table),
        "charts": _charts(plan, table),
        "settings": {row.method: plan.settings.get((table.data, row.method)) for row in table.rows},
    }


def finding(plan: Plan, table: Table) -> str:
    """What a table says, in a sentence or two."""
    private = [row for row in table.rows if row.kind != "centralised"]
    if not private:
        return "No run has finished."
    first, best = plan.metrics[0], private[0]
    said = f"{best.method} has the highest {metric_name(first)} of what keeps data private: "
    said += with_interval(best.metrics[first])
    control = next((row for row in private if row.method == plan.control), None)
    if control is not None and control is not best:
        said += f"; {plan.control}, where nobody collaborates, has {with_interval(control.metrics[first])}"
    unlike = [row for row in private if row.p is not None and row.p >= LEVEL]
    said += "."
    if unlike and table.reference:
        names = _and([row.method for row in unlike])
        said += f" {names} cannot be told from {table.reference} on these users (corrected p of {LEVEL} or more)."
    popular = next((row for row in table.rows if row.method == "Popularity"), None)
    if popular is not None:
        above = [r.method for r in private if r.metrics[first].mean > popular.metrics[first].mean]
        said += f" Popularity has {with_interval(popular.metrics[first])}, which "
        said += f"{_and(above)} {'exceeds' if len(above) == 1 else 'exceed'}." if above else "nothing private exceeds."
    return said


def _and(names: Sequence[str]) -> str:
    if len(names) > NAMED:
        return f"{len(names)} methods"
    comma = "; " if any("," in name for name in names) else ", "
    return names[0] if len(names) == 1 else f"{comma.join(names[:-1])} and {names[-1]}"


def _charts(plan: Plan, table: Table) -> list[tuple[Markup, str]]:
    """Validation accuracy against rounds and against bytes, each with its caption."""
    facts = plan.facts[table.data]
    federated = [name for name, kind in plan.kinds.items() if kind == "federated"]
    style = {name: federated.index(name) if name in federated else MUTED for name in plan.kinds}
    trained = {name: curve for name, curve in table.curves.items() if plan.kinds[name] != "centralised"}
    if not trained:
        return []
    y = metric_name(facts.monitor)
    seeds = f"{len(plan.seeds)} seeds, as far as all went; band: lowest to highest seed"
    over = "mean of " + (seeds if len(plan.seeds) > 1 else "one seed")
    leaks = " † The protocol leaks." if facts.protocol.leaks else ""
    against_rounds = chart(
        [_line(name, style[name], curve, curve.rounds) for name, curve in trained.items()],
        "round",
        y,
        f"{y} against rounds on {table.data}",
    )
    figures = [(Markup(against_rounds), f"{y} against rounds; {over}; marks: each method's best round.{leaks}")]
    sent = {name: curve for name, curve in trained.items() if min(curve.bytes) > 0}
    silent = {name: curve for name, curve in trained.items() if name not in sent}
    if sent:
        corners = [(trained[name].bytes[i], trained[name].values[i]) for name, i in table.front if name in sent]
        against_bytes = chart(
            [_line(name, style[name], curve, curve.bytes) for name, curve in sent.items()],
            "bytes up and down, all clients together (logarithmic)",
            y,
            f"{y} against measured bytes on {table.data}, with the Pareto front",
            log=True,
            levels=[(name, style[name], max(curve.values)) for name, curve in silent.items()],
            front=corners,
            x_format=lambda value: nbytes(value, 0),
        )
        dotted = f"; dotted: {_and(list(silent))}, which sends nothing, at its best round" if silent else ""
        caption = f"{y} against the packed length of all messages; heavy dashes: the Pareto front{dotted}.{leaks}"
        figures.append((Markup(against_bytes), caption))
    return figures


def _line(name: str, style: int, curve: Curve, xs: Sequence[float]) -> Line:
    return Line(name, style, xs, curve.values, curve.low, curve.high, curve.best)
