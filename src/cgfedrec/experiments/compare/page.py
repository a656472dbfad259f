"""A comparison as one HTML page, with charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from cgfedrec.experiments.compare.curve import Curve
from cgfedrec.experiments.compare.epsilon import at_ticks, told
from cgfedrec.experiments.compare.plan import Plan
from cgfedrec.experiments.compare.results import Results, Table
from cgfedrec.experiments.compare.words import (
    LEAK,
    LEVEL,
    TESTS,
    ends_kind,
    finding,
    is_best,
    listed,
    p_value,
    protocol_name,
    spending,
    spent,
    with_epsilon,
)
from cgfedrec.pages.plot import Figure, Line, chart
from cgfedrec.pages.render import page
from cgfedrec.run.console import metric_name
from cgfedrec.units import nbytes

MUTED = -1
"""The style of controls."""


def html(results: Results) -> str:
    """The whole report as one page that needs nothing else."""
    plan = results.plan
    return page(
        "compare.html.j2",
        plan=plan,
        sections=[_section(results, table) for table in results.tables],
        test=TESTS[plan.test],
        missing={name: why for table in results.tables for name, why in table.missing.items()},
        metric_name=metric_name,
        p_value=p_value,
        is_best=is_best,
        ends_kind=ends_kind,
        spending=spending,
        spent=spent,
        LEVEL=LEVEL,
    )


def _section(results: Results, table: Table) -> dict[str, Any]:
    """What the template needs for one data set."""
    plan, facts = results.plan, results.plan.facts[table.data]
    leak = ""
    if facts.protocol.leaks:
        leak = LEAK.format(control=plan.control)
    return {
        "table": table,
        "facts": facts,
        "protocol": protocol_name(facts),
        "leak": leak,
        "finding": finding(plan, table),
        "charts": figures(plan, table),
        "settings": {row.method: plan.settings.get((table.data, row.method)) for row in table.rows},
    }


def figures(plan: Plan, table: Table) -> list[Figure]:
    """Validation accuracy against rounds and against bytes, test accuracy against epsilon; or at each cut in time."""
    facts = plan.facts[table.data]
    federated = [name for name, kind in plan.kinds.items() if kind == "federated"]
    style = dict.fromkeys(plan.kinds, MUTED) | {name: place for place, name in enumerate(federated)}
    if table.cuts:
        return [_over_cuts(plan, table)]
    trained = {name: curve for name, curve in table.curves.items() if plan.kinds[name] != "centralised"}
    by_budget = [_over_budgets(plan, table, style)] if table.budgets else []
    if not trained:
        return by_budget
    y = metric_name(facts.monitor)
    over = "mean of one seed"
    if len(plan.seeds) > 1:
        over = f"mean of {len(plan.seeds)} seeds, as far as all went; band: lowest to highest seed"
    leaks = ""
    if facts.protocol.leaks:
        leaks = " † The protocol leaks."
    best = {row.method: row.best_round for row in table.rows}
    named = {row.method: with_epsilon(row) for row in table.rows}
    against_rounds = chart(
        [_line(name, style[name], curve, curve.rounds, best[name]) for name, curve in trained.items()],
        "round",
        y,
        f"{y} against rounds on {table.data}",
        levels=[(name, MUTED, value) for name, value in table.levels.items()],
    )
    dotted = f"; dotted: {listed(list(table.levels))}, of everyone's data" if table.levels else ""
    marks = "marks: each method's best round, as in the table"
    found = [Figure("rounds", Markup(against_rounds), f"{y} against rounds; {over}; {marks}{dotted}.{leaks}")]
    # What sends nothing has no place on a logarithmic axis, and is drawn as a level.
    sent = {name: curve for name, curve in trained.items() if min(curve.bytes) > 0}
    silent = {name: curve for name, curve in trained.items() if name not in sent}
    if sent:
        corners = [(trained[name].bytes[i], trained[name].values[i]) for name, i in table.front if name in sent]
        against_bytes = chart(
            [_line(named[name], style[name], curve, curve.bytes, best[name]) for name, curve in sent.items()],
            "bytes up and down, all clients together (logarithmic)",
            y,
            f"{y} against measured bytes on {table.data}, with the Pareto front",
            log=True,
            levels=[(name, style[name], max(curve.values)) for name, curve in silent.items()],
            front=corners,
            x_format=lambda value: nbytes(value, 0),
        )
        dotted = ""
        if silent:
            dotted = f"; dotted: {listed(list(silent))}, which sends nothing, at its best round"
        caption = f"{y} against the packed length of all messages; heavy dashes: the Pareto front{dotted}.{leaks}"
        if any(named[name] != name for name in sent):
            caption += " ε: what a method spends of a budget of differential privacy."
        found.append(Figure("bytes", Markup(against_bytes), caption))
    return found + by_budget


def _over_budgets(plan: Plan, table: Table, style: Mapping[str, int]) -> Figure:
    """The first test metric against epsilon, with no noise at the right end, and its caption."""
    y = f"test {metric_name(plan.metrics[0])}"
    ticks, none = at_ticks([epsilon for one in table.budgets for epsilon in one.epsilons if epsilon is not None])
    lines = [
        Line(
            name=one.name,
            style=style[one.name],
            xs=[none if epsilon is None else epsilon for epsilon in one.epsilons],
            ys=one.values,
            low=one.low,
            high=one.high,
            dots=True,
        )
        for one in table.budgets
    ]
    levels = [row for row in table.rows if row.kind != "federated"]
    drawn = chart(
        lines,
        "epsilon (logarithmic)",
        y,
        f"{y} against epsilon on {table.data}",
        log=True,
        levels=[(row.method, MUTED, row.metrics[plan.metrics[0]].mean) for row in levels],
        x_ticks=ticks,
        x_format=lambda value: told(None if value == none else value),
    )
    over = "one seed"
    if len(plan.seeds) > 1:
        over = f"mean of {len(plan.seeds)} seeds; band: lowest to highest seed"
    caption = f"{y} against epsilon, {spending(table)}; {over}; right end: no noise"
    if levels:
        caption += f"; dotted: {listed([row.method for row in levels])}"
    for one in table.budgets:
        shares = listed([f"{share:.0%} at {told(epsilon)}" for epsilon, share in one.kept]) if one.kept else ""
        caption += f". {one.name} keeps {shares}" if shares else ""
    leaks = " † The protocol leaks." if plan.facts[table.data].protocol.leaks else ""
    return Figure("epsilon", Markup(drawn), f"{caption}.{leaks}")


def _over_cuts(plan: Plan, table: Table) -> Figure:
    """The first metric at each cut of a rolling evaluation, with its caption."""
    style = {name: place for place, name in enumerate(table.cuts)}
    y = f"test {metric_name(plan.metrics[0])}"
    lines = [
        Line(name, style[name], curve.rounds, curve.values, curve.low, curve.high) for name, curve in table.cuts.items()
    ]
    drawn = chart(lines, "cut in time", y, f"{y} at each cut in time on {table.data}")
    cases = [int(number) for curve in list(table.cuts.values())[:1] for number in curve.bytes]
    told = f"{y} at each cut that is reported; {min(cases):,} to {max(cases):,} cases at one."
    return Figure("cuts", Markup(drawn), told)


def _line(name: str, style: int, curve: Curve, xs: Sequence[float], best: float | None) -> Line:
    """A curve with its mark at the round that is nearest to the best one, of which the table tells the mean."""
    mark = curve.best
    if best is not None:
        mark = min(range(len(curve.rounds)), key=lambda place: abs(curve.rounds[place] - best))
    return Line(name, style, xs, curve.values, curve.low, curve.high, mark)
