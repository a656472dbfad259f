"""Do CGFedRec's labels help? `configs/cgfedrec.yaml` against its controls, over generator seeds.

    python -m benchmarks.labels [--seeds 5]

CGFedRec on the embedded data; the same aligned against prototypes; the same with its labels permuted at random; Local
with the same client; and popularity. Strict protocol, full ranking, test at the best validation round, as
`cgfedrec fit` reports it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.progress import track
from rich.table import Table

import cgfedrec

CONFIG = Path(__file__).parents[1] / "configs" / "cgfedrec.yaml"
METRICS = ("test/ndcg@10", "test/hr@10")


def settings() -> dict[str, dict[str, object]]:
    """The methods, as overrides of `CONFIG`."""
    import yaml

    client = yaml.safe_load(CONFIG.read_text())["method"]["init_args"]
    shared = ("dim", "optimizer", "lr_eta", "init_scale", "head")
    local = {"class_path": "cgfedrec.methods.Local", "init_args": {name: client[name] for name in shared}}
    return {
        "CGFedRec": {},
        "CGFedRec, prototypes": {"method": {"init_args": {"contrast": "prototypes"}}},
        "labels permuted": {"method": {"init_args": {"labels": "permuted"}}},
        "Local": {"method": local},
    }


def main() -> None:
    """Train all and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    results: dict[str, list[tuple[float, ...]]] = {}
    jobs = [(name, override, seed) for name, override in settings().items() for seed in seeds]
    with tempfile.TemporaryDirectory() as directory:
        for name, override, seed in track(jobs, "runs"):
            common = {"seed_everything": seed, "logger": None, "run_dir": str(Path(directory) / f"{name}-{seed}")}
            summary = cgfedrec.fit(str(CONFIG), override, common).summary
            results.setdefault(name, []).append(tuple(summary[metric] for metric in METRICS))
            if name == "CGFedRec":
                popular = tuple(summary[f"popularity/{metric}"] for metric in METRICS)
                results.setdefault("popularity", []).append(popular)
    table = Table("method", *METRICS, "NDCG@10 of each seed", title=f"embedded data, strict, full, {len(seeds)} seeds")
    for name, values in results.items():
        means = (f"{mean(value):.3f}" for value in zip(*values, strict=True))
        table.add_row(name, *means, " ".join(f"{value[0]:.3f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
