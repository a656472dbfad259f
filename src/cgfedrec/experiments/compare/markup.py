"""A comparison's tables as text: in Markdown, and in LaTeX for a paper."""

from __future__ import annotations

from collections.abc import Iterator

from cgfedrec.experiments.compare.results import Results, Table
from cgfedrec.experiments.compare.words import cells, columns, ends_kind, is_best, note, protocol_name

_TEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}"})


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
            if is_best(table, row, plan.metrics[0]):
                texts[1] = f"**{texts[1]}**"  # metrics stand right behind the name
            lines.append("| " + " | ".join(texts) + " |")
        lines += ["", note(plan, table).replace("\n", "  \n")]
        if table.beyond.titles:
            lines += ["", *_beyond(table)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _beyond(table: Table) -> Iterator[str]:
    """The lines of what a table's methods are like beside accurate."""
    yield "| beyond accuracy | " + " | ".join(table.beyond.titles.values()) + " |"
    yield "|---" + "|---:" * len(table.beyond.titles) + "|"
    for method, values in table.beyond.by_method.items():
        texts = [method.replace("|", "\\|"), *(f"{values[n]:.4f}" if n in values else "" for n in table.beyond.titles)]
        yield "| " + " | ".join(texts) + " |"
    yield ""
    yield f"{table.beyond.groups}."


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
                if is_best(table, row, metric):
                    texts[place] = f"\\textbf{{{texts[place]}}}"
            lines.append("    " + " & ".join(texts) + " \\\\")
            if ends_kind(table, row):
                lines.append("    \\midrule")
        parts.append("\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}"]))
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    """Text in which nothing is a command to LaTeX, and our signs are written as LaTeX knows them."""
    # A backslash has no short escape that works everywhere, and stands in no name that can be a folder.
    safe = text.replace("\\", "/").translate(_TEX)
    signs = {"±": "$\\pm$", "◆": "$\\blacklozenge$", "†": "$^\\dagger$", "<": "$<$", ">": "$>$", "*": "$^{*}$"}
    for sign, written in signs.items():
        safe = safe.replace(sign, written)
    return safe
