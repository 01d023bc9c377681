"""How well the experiments adapt: every task, method, backend and seed, at the recommended settings.

`python -m benchmarks.reach` writes the figures that the README quotes; it takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rich.table import Table

from grl.backends import installed_backends
from grl.cli.progress import Follower, make_console
from grl.datasets import TASKS
from grl.experiment import load_data, train
from grl.experiment.config import Config
from grl.experiment.demo import DEMO_METHODS
from grl.files import replacing

KEPT = (
    "task",
    "backend",
    "method",
    "seed",
    "steps",
    "seconds",
    "source_accuracy",
    "target_accuracy",
    "domain_accuracy",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen configurations, and write the results after every run; return the exit status."""
    options = _parse(arguments)
    console = make_console()
    runs: list[dict[str, Any]] = []
    with Follower(console) as follower:
        for config in _configs(options):
            label = f"{config.task}, {config.method}, {config.backend}, seed {config.seed}"
            result = train(config, task=load_data(config), progress=follower.run(label, config.steps))
            runs.append({name: result.metrics[name] for name in (*KEPT, "proxy_a_distance", "versions")})
            _write(options.out, runs)
    console.print(_table(runs))
    console.print(str(options.out), soft_wrap=True)
    return 0


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, by task and backend, the means over the seeds and the smallest gain by adaptation over the seeds.

    Args:
        runs: records with `task`, `backend`, `method`, `seed`, `seconds` and `target_accuracy`. A seed counts once both
            of its methods have run.
    """
    summary = []
    for task, backend in dict.fromkeys((run["task"], run["backend"]) for run in runs):
        of = {(r["method"], r["seed"]): r for r in runs if (r["task"], r["backend"]) == (task, backend)}
        seeds = [seed for method, seed in of if method == "dann" and ("source-only", seed) in of]
        if not seeds:
            continue
        plain, adapted = ([of[method, seed]["target_accuracy"] for seed in seeds] for method in DEMO_METHODS)
        gains = [b - a for a, b in zip(plain, adapted, strict=True)]
        summary.append(
            {
                "task": task,
                "backend": backend,
                "seeds": len(seeds),
                "source_only": statistics.mean(plain),
                "dann": statistics.mean(adapted),
                "mean_gain": statistics.mean(gains),
                "smallest_gain": min(gains),
                "seconds": statistics.mean(of["dann", seed]["seconds"] for seed in seeds),
            }
        )
    return summary


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reach", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="the tasks (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0 (default: 5)")
    parser.add_argument("--steps", type=int, help="updates of each run (default: the recommended ones)")
    name = Path(__file__).parent / "results" / f"reach-{date.today()}.json"
    parser.add_argument(
        "--out", type=Path, default=name, help="the JSON file (default: benchmarks/results/reach-DATE.json)"
    )
    return parser.parse_args(arguments)


def _configs(options: argparse.Namespace) -> Iterator[Config]:
    for task in options.tasks:
        for seed in range(options.seeds):
            for backend in installed_backends(training=True):
                for method in DEMO_METHODS:
                    yield Config.recommended(task, backend=backend, method=method, seed=seed, steps=options.steps)


def _write(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    machine = {"processor": platform.processor() or platform.machine(), "system": platform.platform()}
    content = {"date": str(date.today()), "machine": machine, "summary": summarise(runs), "runs": list(runs)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _table(runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="target test accuracy, means over the seeds")
    for name in ("task", "backend"):
        table.add_column(name)
    for name in ("seeds", "source-only", "DANN", "mean gain", "smallest gain", "seconds a DANN run"):
        table.add_column(name, justify="right")
    for row in summarise(runs):
        figures = (f"{row[name]:.3f}" for name in ("source_only", "dann", "mean_gain", "smallest_gain"))
        table.add_row(row["task"], row["backend"], str(row["seeds"]), *figures, f"{row['seconds']:.0f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
