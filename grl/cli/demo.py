"""`grl demo`: source-only and DANN, in both frameworks, from the same start on the same images."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from grl.checkpoint import replacing
from grl.cli.progress import showing
from grl.config import BACKENDS, Config, ConfigError

__all__ = ["demo"]

_METHODS = ("source-only", "dann")


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Receives demo.json and demo.png.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Updates of each run.")] = 600,
    seed: Annotated[int, typer.Option(help="Draws weights and batches.")] = 0,
) -> None:
    """Train source-only and DANN on real images in both frameworks, and compare.

    The images are MNIST digits (source, labelled) and digits blended with photographs (target, unlabelled).
    """
    from grl.experiment import load_data, prepare_directory, train
    from grl.report import draw_demo, loss_gaps

    backends = [backend for backend in BACKENDS if importlib.util.find_spec(backend) is not None]
    if not backends:
        raise ConfigError('no framework is installed: pip install "grl[torch]" or "grl[jax]".')
    settings = {"steps": steps, "seed": seed, "log_every": min(10, steps)}
    configs = [
        Config.recommended("mnist-mnistm", backend=backend, method=method, **settings)
        for method in _METHODS
        for backend in backends
    ]
    prepare_directory(out)
    console = Console()
    if len(backends) == 1:
        console.print(f"Only {backends[0]} is installed, so there is no second framework to compare it with.")
    task = load_data(configs[0])
    results = []
    for config in configs:
        with showing(f"{config.backend:5} {config.method:11}", console) as progress:
            results.append(train(config, task=task, progress=progress))
    gaps = [float(np.nanmax(values)) for _, values in loss_gaps(results).values()]
    runs = [{key: value for key, value in r.metrics.items() if key != "history"} for r in results]
    figures = {"runs": runs, "largest_loss_gap": max(gaps, default=None)}
    with replacing(out / "demo.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    draw_demo(results, out / "demo.png")
    console.print(_table(figures))
    console.print(f"written: {out}/demo.json, {out}/demo.png", soft_wrap=True)


def _table(figures: dict[str, Any]) -> Table:
    gap = figures["largest_loss_gap"]
    caption = None if gap is None else f"largest gap between the backends' losses: {gap:.2g}"
    table = Table(title="MNIST → MNIST over photographs", caption=caption)
    for column in ("backend", "method", "source accuracy", "target accuracy", "proxy A-distance", "seconds"):
        table.add_column(column, justify="left" if column in ("backend", "method") else "right")
    for run in figures["runs"]:
        distance = run["proxy_a_distance"]
        table.add_row(
            run["backend"],
            run["method"],
            f"{run['source_accuracy']:.3f}",
            f"{run['target_accuracy']:.3f}",
            "—" if distance is None else f"{distance:.2f}",
            f"{run['seconds']:.1f}",
        )
    return table
