"""How fast is cgfedrec, and how does it grow?

    python -m benchmarks            a round of ML-100K against the plain way (minutes; `make bench`)
    python -m benchmarks --curves   cost curves on synthetic data (ten minutes)

Prints tables, writes them as CSV with plots, and puts together RESULTS.md from all that have been measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import curves, rounds, threads
from benchmarks.once import in_a_process


def machine() -> str:
    """What this ran on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = f"{torch.get_num_threads()} threads"
    return f"{model}, {os.cpu_count()} cores, {gpu}, torch {torch.__version__} with {threads}"


def plot_ratios(table: pl.DataFrame, path: Path) -> None:
    """Ratios as bars, with what is asked of them."""
    from matplotlib.figure import Figure

    compared = table.filter(pl.col("ratio").is_not_null()).reverse()
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(compared["what"], compared["ratio"])
    axes.bar_label(bars, [f"{ratio:.0f}x" for ratio in compared["ratio"]], padding=3)
    axes.plot(compared["asked"], compared["what"], "k|", markersize=18, label="aimed at, at least")
    axes.set_xlabel("times as fast as the plain way")
    axes.set_title("ML-100K, 943 clients, 2 local epochs, one run", fontsize=10)
    axes.margins(x=0.15)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def markdown(table: pl.DataFrame) -> str:
    """A table in Markdown."""

    def cell(value: Any) -> str:
        return "" if value is None else value if isinstance(value, str) else f"{value:,.3g}"

    lines = [f"| {' | '.join(table.columns)} |", "|" + "---|" * table.width]
    return "\n".join(lines + [f"| {' | '.join(map(cell, row))} |" for row in table.iter_rows()])


def drawn(plot: Callable[[pl.DataFrame, Path], None], table: pl.DataFrame, path: Path) -> None:
    """Draw a plot; without the plots' library, say so, and leave none of an earlier measurement beside new figures."""
    try:
        plot(table, path)
    except ImportError as error:
        path.unlink(missing_ok=True)
        print(f"{path.name} is left out: {error}; pip install 'cgfedrec[notebooks]' brings it")


def show(table: pl.DataFrame, title: str) -> None:
    """Print a table."""
    printed = Table(*table.columns, title=title)
    for row in table.iter_rows():
        printed.add_row(*("" if cell is None else cell if isinstance(cell, str) else f"{cell:,.3g}" for cell in row))
    Console().print(printed)


def measure_rounds(data: Path, aligned: int, output: Path) -> None:
    """A round of ML-100K, and its memory: results.csv, parts.csv, memory.csv, ratios.png."""
    path = data / "ml-100k" / "ratings.csv"
    table, parts = rounds.compare(path, aligned)
    show(table, "ML-100K, 943 clients, 2 local epochs")
    show(parts, "where the threads' time goes")
    table.write_csv(output / "results.csv")
    parts.write_csv(output / "parts.csv")
    drawn(plot_ratios, table, output / "ratios.png")
    measure_memory(path, output)
    (output / "results_on.txt").write_text(machine())


def measure_memory(path: Path, output: Path) -> None:
    """Peak memory of two rounds of ML-100K in a process of its own: memory.csv, in MiB."""
    found = in_a_process(path=str(path), clusters=60, rounds=2)
    sizes = {name: found[name] / 2**20 for name in ("peak", "state", "imported")}
    sizes["rest"] = sizes["peak"] - sizes["state"] - sizes["imported"]
    memory = pl.DataFrame([sizes])
    show(memory, "memory of an aligned federation, MiB")
    memory.write_csv(output / "memory.csv")


def measure_curves(output: Path) -> None:
    """Cost curves: curves.csv, curves.png."""
    points = curves.measure()
    show(points, "cost of a round")
    points.write_csv(output / "curves.csv")
    (output / "curves_on.txt").write_text(machine())
    drawn(curves.plot, points, output / "curves.png")


def report(output: Path, warning: str | None) -> str:
    """RESULTS.md, from the tables that have been measured, with a warning where they were disturbed."""
    text = [
        "# Results",
        f"`python -m benchmarks`, on {(output / 'results_on.txt').read_text()}.",
        "Ratios within one run. Both ways end with the same parameters, which is checked. The plain aligned round is "
        "scaled up from a sample of clients by their local batches. `published_s` is what the published code takes on "
        "2 cores; `asked` the ratio aimed at. `round, prototypes` is compared with the plain exact round. The plain "
        "way gets one thread or all, whichever is faster in the same run (`plain_threads`).",
        *(["**" + warning + "**"] if warning else []),
        markdown(pl.read_csv(output / "results.csv")),
        "Seconds of all threads together in one round, negatives drawn before:",
        markdown(pl.read_csv(output / "parts.csv")),
        "Peak memory of an aligned federation in a process of its own, MiB: the whole, the clients' state, the "
        "libraries before anything is done, and the rest.",
        markdown(pl.read_csv(output / "memory.csv")),
    ]
    text += ["![ratios](ratios.png)"] if (output / "ratios.png").exists() else []
    if (output / "curves.csv").exists():
        points = pl.read_csv(output / "curves.csv")
        slopes = curves.exponents(points)
        text += [
            "## Cost curves",
            f"`python -m benchmarks --curves`, on {(output / 'curves_on.txt').read_text()}.",
            "Synthetic data, a process for each point, a round that aligns, only the last round evaluated. `peak` "
            "and `state` in MiB. The setting of each point is in `benchmarks/curves.py`.",
            markdown(points),
            "Exponents, fitted to the upper half of each curve; memory is what is above the smallest point:",
            markdown(slopes),
            "1 M users x 100 k items, d = 16, predicted from the largest number of items measured and its exponent:",
            markdown(curves.predict(points, slopes)),
        ]
        text += ["![cost curves](curves.png)"] if (output / "curves.png").exists() else []
    return "\n\n".join(text) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--aligned", type=int, default=24, help="clients that the plain way trains with alignment")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CGFEDREC_DATA", "../shared/data")))
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    parser.add_argument("--threads", type=int, default=threads.cores(), help="that ours computes on (%(default)s)")
    arguments = parser.parse_args()
    threads.use(arguments.threads)
    idle = threads.Others()
    time.sleep(1)
    if warning := idle.warning():
        print(f"before anything is measured: {warning}")
    others = threads.Others()
    if arguments.curves:
        measure_curves(arguments.output)
    else:
        measure_rounds(arguments.data, arguments.aligned, arguments.output)
    if warning := others.warning():
        print(warning)
    (arguments.output / "RESULTS.md").write_text(report(arguments.output, warning))


if __name__ == "__main__":
    main()
