"""Why two frameworks part in float32: the training's own chaos, or a setting?

`python -m benchmarks.rounding` trains the same network on the same batches in PyTorch and in JAX, and once more in
PyTorch with every initial weight moved by about a unit in its last place. If the frameworks part no faster than PyTorch
parts from itself, rounding is all that there is between them. Two minutes on two cores; needs both frameworks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from grl.architecture import Architecture
from grl.checkpoint import replacing
from grl.config import Config
from grl.experiment import batches, build_trainer, load_data

Losses = NDArray[np.float64]
ULP = {"float32": 2.0**-23, "float64": 2.0**-52}
STEPS = (1, 10, 20, 50, 100)
_AT_ONCE = 10


def losses(config: Config, steps: int, moved: float = 0.0) -> Losses:
    """Return label and domain loss of each step, (steps, 2).

    Args:
        config: the settings, of a run that may well be longer.
        steps: how many steps to train.
        moved: the share of itself by which every initial weight is moved, up or down at random.
    """
    task = load_data(config)
    trainer = build_trainer(task, config)
    if moved:
        signs = np.random.default_rng(1)
        weights = {name: w * (1 + moved * signs.choice([-1, 1], w.shape)) for name, w in trainer.weights().items()}
        trainer = type(trainer)(Architecture(task.sample_shape, task.num_classes), config, weights)
    stream, found = batches(task, config), []
    for start in range(0, steps, _AT_ONCE):
        of_chunk = range(start, start + _AT_ONCE)
        x, y, x_target = (np.stack(arrays) for arrays in zip(*islice(stream, _AT_ONCE), strict=True))
        coeffs, rates = (np.array([of(step) for step in of_chunk]) for of in (config.coeff, config.rates))
        label, domain, _ = trainer.run(x, y, x_target, coeffs, rates)
        found.append(np.stack([label, domain], 1))
    return np.concatenate(found)[:steps].astype(np.float64)


def largest_so_far(one: Losses, other: Losses) -> Losses:
    """Return, by step, the largest relative difference of a loss up to there."""
    gaps: Losses = np.maximum.accumulate((np.abs(one - other) / np.abs(other)).max(1))
    return gaps


def measure(optimizer: str, dtype: str) -> dict[str, dict[int, float]]:
    """Return the gaps between the frameworks, and between PyTorch and itself moved, at the steps `STEPS`."""
    rate = {"adam": 2e-3, "sgd": 1e-2}[optimizer]
    config = Config(backend="torch", optimizer=optimizer, learning_rate=rate, dtype=dtype)
    torch = losses(config, STEPS[-1])
    others = {
        "PyTorch and JAX": losses(replace(config, backend="jax"), STEPS[-1]),
        "PyTorch and itself, moved": losses(config, STEPS[-1], ULP[dtype]),
    }
    gaps = {name: largest_so_far(other, torch) for name, other in others.items()}
    return {name: {step: float(of[step - 1]) for step in STEPS} for name, of in gaps.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounding", description=__doc__)
    name = Path(__file__).parent / "results" / f"rounding-{date.today()}.json"
    parser.add_argument("--out", type=Path, default=name, help="the JSON file (default: in benchmarks/results)")
    out: Path = parser.parse_args(arguments).out
    table = Table(title="largest relative difference of a loss up to step …, mnist-mnistm")
    for heading in ("optimiser", "dtype", "between"):
        table.add_column(heading, no_wrap=True)
    for step in STEPS:
        table.add_column(str(step), justify="right")
    records: list[dict[str, Any]] = []
    console = Console()
    for optimizer in ("sgd", "adam"):
        for dtype in ULP:
            with console.status(f"{optimizer}, {dtype}"):
                for between, gaps in measure(optimizer, dtype).items():
                    records.append({"optimizer": optimizer, "dtype": dtype, "between": between, "gaps": gaps})
                    table.add_row(optimizer, dtype, between, *(f"{gap:.1e}" for gap in gaps.values()))
    console.print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    console.print(str(out), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
