"""What a report says, whatever it is rendered as: cells, names, notes, and what was found."""

from __future__ import annotations

from collections.abc import Sequence

from cgfedrec.data.arguments import EMBEDDED
from cgfedrec.evaluation.intervals import Interval
from cgfedrec.experiments.compare.epsilon import told
from cgfedrec.experiments.compare.job import Facts
from cgfedrec.experiments.compare.plan import Plan
from cgfedrec.experiments.compare.results import LEAST_SEEDS, Row, Table
from cgfedrec.run.console import metric_name
from cgfedrec.units import nbytes

TESTS = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}
LEVEL = 0.05
"""Below which a corrected p-value is marked."""
NAMED = 5
"""Methods that a sentence names one by one."""


def columns(plan: Plan, table: Table) -> list[str]:
    """The heads of a table's columns: the method's name first, then each metric of the plan."""
    leak = leak_mark(plan.facts[table.data])
    return [
        "method",
        *(f"{metric_name(name)}{leak}" for name in plan.metrics),
        *(f"published {metric_name(name)}{leak}" for name in plan.metrics if is_published(table, name)),
        f"{metric_name(plan.metrics[0])}{leak} over {plan.control}",
        "p",
        *(["epsilon"] if table.budgets else []),
        "best round",
        "bytes",
        "seconds",
    ]


def leak_mark(facts: Facts) -> str:
    """What stands behind figures that a leak has raised; nothing elsewhere."""
    if facts.protocol.leaks:
        return " †"
    return ""


def cells(plan: Plan, table: Table, row: Row) -> list[str]:
    """A row as text, in the order of `columns`; nothing where there is no figure."""
    name = row.method
    if row.front:
        name += " ◆"
    if row.method == table.reference:
        name += " (ref.)"
    if row.seeds < len(plan.seeds):
        name += f" ({row.seeds} of {len(plan.seeds)} seeds)"
    over_control = ""
    if row.over_control is not None:
        over_control = f"{row.over_control.mean:+.4f} ±{row.over_control.half or 0:.4f}"
    sent = ""
    if row.bytes is not None:
        sent = nbytes(row.bytes)
    return [
        name,
        *(with_interval(row.metrics[metric]) for metric in plan.metrics),
        *(_figure(row.published.get(metric), 3) for metric in plan.metrics if is_published(table, metric)),
        over_control,
        p_value(row.p),
        *([spent(row)] if table.budgets else []),
        _figure(row.best_round, 0),
        sent,
        _figure(row.seconds, 1),
    ]


def note(plan: Plan, table: Table) -> str:
    """How to read a table, in a few lines."""
    facts, n = plan.facts[table.data], len(plan.seeds)
    first = metric_name(plan.metrics[0])
    spread = "one seed, so no interval"
    if n > 1:
        spread = f"mean of {n} seeds, and an interval needs {LEAST_SEEDS}"
    if n >= LEAST_SEEDS:
        spread = f"mean ± 95% t-interval over {n} seeds"
    measured = (
        f"{facts.held_out:,} held-out items of {facts.users:,} users; test metrics of the round that is best by "
        f"{metric_name(facts.monitor)}"
    )
    if facts.split == "rolling":
        measured = (
            f"{facts.held_out:,} cases, users at cuts in time who are asked for their next item; settings are those "
            f"that are best by {metric_name(facts.monitor)} at earlier cuts. Users stands for cases in what follows"
        )
    lines = [
        f"{protocol_name(facts)}; {measured}; {spread}.",
        f"Over {plan.control}: the mean difference of users' {first} (averaged over seeds) from the control in which "
        "nobody collaborates, ± 95% over users.",
    ]
    if table.reference:
        lines.append(
            f"p: {TESTS[plan.test]} of users' {first} (averaged over seeds) against {table.reference}, Holm-corrected."
        )
    if facts.path == EMBEDDED and n > 1:
        lines.append("Each seed draws the embedded data anew: popularity differs too, and a user is another one.")
    if table.budgets:
        lines.append(f"epsilon: {spending(table)}.")
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
    ranking = "full ranking"
    if protocol.ranking != "full":
        ranking = f"{protocol.num_candidates} sampled candidates"
    return f"{protocol.name} protocol{leak_mark(facts)}, {ranking}"


def with_interval(value: Interval, plus_minus: str = " ±") -> str:
    """The mean and, where there are several seeds, the half-width of its interval."""
    if value.half is None:
        return f"{value.mean:.4f}"
    return f"{value.mean:.4f}{plus_minus}{value.half:.4f}"


def p_value(p: float | None) -> str:
    """A p-value as it is printed; a star where it is below the level."""
    if p is None:
        return ""
    if p < 0.001:
        return "<0.001*"
    if p < LEVEL:
        return f"{p:.3f}*"
    return f"{p:.3f}"


def spent(row: Row) -> str:
    """A method's epsilon; nothing where there is nobody from whom it would protect."""
    return told(row.epsilon) if row.kind == "federated" else ""


def with_epsilon(row: Row) -> str:
    """A method's name in a chart, with its epsilon where it does not say that."""
    if row.epsilon is None or f"epsilon {told(row.epsilon)}" in row.method:
        return row.method
    return f"{row.method}, ε {told(row.epsilon)}"


def spending(table: Table) -> str:
    """What an epsilon in a table is."""
    deltas = sorted({f"{row.delta:.1e}" for row in table.rows if row.delta is not None})
    what = "what a run has spent of a budget of differential privacy, for a person's whole history"
    return f"{what}, at delta {listed(deltas)}"


def ends_kind(table: Table, row: Row) -> bool:
    """Whether those that see everyone's data begin after this row."""
    place = table.rows.index(row)
    return place + 1 < len(table.rows) and row.kind != "centralised" and table.rows[place + 1].kind == "centralised"


def is_best(table: Table, row: Row, metric: str) -> bool:
    """Whether a method keeps data private, and no other that does has more of a metric."""
    private = [other.metrics[metric].mean for other in table.rows if other.kind != "centralised"]
    return row.kind != "centralised" and row.metrics[metric].mean == max(private)


def is_published(table: Table, metric: str) -> bool:
    """Whether papers report a metric for any method of a table, so that it has a column."""
    return any(metric in row.published for row in table.rows)


def _figure(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}"


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
        names = listed([row.method for row in unlike])
        said += f" {names} cannot be told from {table.reference} on these users (corrected p of {LEVEL} or more)."
    popular = next((row for row in table.rows if row.method == "Popularity"), None)
    if popular is not None:
        above = [r.method for r in private if r.metrics[first].mean > popular.metrics[first].mean]
        exceeded = "nothing private exceeds"
        if above:
            exceeded = f"{listed(above)} {'exceeds' if len(above) == 1 else 'exceed'}"
        said += f" Popularity has {with_interval(popular.metrics[first])}, which {exceeded}."
    return said


def listed(names: Sequence[str]) -> str:
    """Names of methods in a sentence, one or more; how many there are where they are too many to name."""
    if len(names) > NAMED:
        return f"{len(names)} methods"
    if len(names) == 1:
        return names[0]
    comma = ", "
    if any("," in name for name in names):
        comma = "; "
    return f"{comma.join(names[:-1])} and {names[-1]}"
