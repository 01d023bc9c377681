"""Why two frameworks diverge in float32: the training's own chaos, or a setting?

`python -m benchmarks.rounding` trains the same network on the same batches in float64 and, in both frameworks, in
float32; once more with every initial weight moved by a unit in its last place; and in PyTorch without oneDNN, and with
noise on the images. How far each is from its float64 run tells what rounding does by itself and what a library adds.
Five minutes on two cores.

What a library can add: max-pooling gives the gradient to the first of equal maxima, and images with a constant
background have many. oneDNN's convolutions round equal patches differently in different places, so that the largest of
them is another one, and the gradient of what lies before goes elsewhere at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from grl.cli.progress import make_console
from grl.datasets import Task
from grl.experiment import batches, build_trainer, load_data
from grl.experiment.config import Config
from grl.files import replacing

Losses = NDArray[np.float64]
ULP = 2.0**-23  # of a float32, relative, at most
STEPS = (1, 3, 10, 20, 50, 100)
NOISE = 0.02
RATES = {"sgd": 1e-2, "adam": 2e-3}
_AT_ONCE = 10


def losses(config: Config, steps: int, moved: float = 0.0, noise: float = 0.0) -> Losses:
    """Return label and domain loss of each step, (steps, 2).

    Args:
        config: the settings, of a run that may well be longer.
        steps: how many steps to train.
        moved: the share of itself by which every initial weight is moved, up or down at random.
        noise: the standard deviation of what is added to the images: with it no two of their patches are equal.
    """
    task = _with_noise(load_data(config), noise)
    trainer = build_trainer(task, config)
    if moved:
        signs = np.random.default_rng(1)
        weights = {name: w * (1 + moved * signs.choice([-1, 1], w.shape)) for name, w in trainer.weights().items()}
        trainer = build_trainer(task, config, weights=weights)
    stream, found = batches(task, config), []
    for start in range(0, steps, _AT_ONCE):
        of_chunk = range(start, start + _AT_ONCE)
        x, y, x_target = (np.stack(arrays) for arrays in zip(*islice(stream, _AT_ONCE), strict=True))
        coeffs, rates = (np.array([of(step) for step in of_chunk]) for of in (config.coeff, config.rates))
        label, domain, _ = trainer.run(x, y, x_target, coeffs, rates)
        found.append(np.stack([label, domain], 1))
    return np.concatenate(found)[:steps].astype(np.float64)


def _with_noise(task: Task, size: float) -> Task:
    generator = np.random.default_rng(2)
    noisy = [x + size * generator.standard_normal(x.shape, dtype=x.dtype) for x in (task.x_source, task.x_target)]
    return replace(task, x_source=noisy[0], x_target=noisy[1])


def largest_so_far(one: Losses, other: Losses) -> Losses:
    """Return, by step, the largest relative difference of a loss up to there."""
    gaps: Losses = np.maximum.accumulate((np.abs(one - other) / np.abs(other)).max(1))
    return gaps


@contextmanager
def without_onednn() -> Iterator[None]:
    """Make PyTorch use its own convolutions."""
    import torch

    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # a property, for mypy an attribute
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def measure(optimizer: str, tell: Callable[[str], None], steps: int = STEPS[-1]) -> dict[str, dict[int, float]]:
    """Return, by run, the distance of its losses from PyTorch's in float64, up to each of the steps `STEPS`."""

    def of(backend: str, dtype: str = "float32", **changes: float) -> Losses:
        config = Config(
            backend=backend, optimizer=optimizer, learning_rate=RATES[optimizer], dtype=dtype, method="dann"
        )
        return losses(config, steps, **changes)

    runs = {
        "JAX, float64": lambda: of("jax", "float64"),
        "JAX": lambda: of("jax"),
        "JAX, weights moved by an ULP": lambda: of("jax", moved=ULP),
        "PyTorch": lambda: of("torch"),
        "PyTorch, weights moved by an ULP": lambda: of("torch", moved=ULP),
        "PyTorch without oneDNN": without_onednn()(lambda: of("torch")),
        "PyTorch, noise on the images": lambda: of("torch", noise=NOISE),
    }
    tell(f"{optimizer}: PyTorch, float64")
    exact, found = of("torch", "float64"), {}
    for name, run in runs.items():
        tell(f"{optimizer}: {name}")
        gaps = largest_so_far(run(), of("torch", "float64", noise=NOISE) if "noise" in name else exact)
        found[name] = {step: float(gaps[step - 1]) for step in STEPS if step <= steps}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and write; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounding", description=__doc__)
    name = Path(__file__).parent / "results" / f"rounding-{date.today()}.json"
    parser.add_argument("--out", type=Path, default=name, help="the JSON file (default: in benchmarks/results)")
    out: Path = parser.parse_args(arguments).out
    console = make_console()
    records: list[dict[str, Any]] = []
    table = Table(title="largest relative distance of a loss from the float64 run, up to step …; mnist-mnistm")
    table.add_column("optimiser")
    table.add_column("run, in float32 unless said")
    for step in STEPS:
        table.add_column(str(step), justify="right", no_wrap=True)
    for optimizer in RATES:
        with console.status(optimizer) as status:
            measured = measure(optimizer, status.update)
        for run, gaps in measured.items():
            records.append({"optimizer": optimizer, "run": run, "gaps": gaps})
            table.add_row(optimizer, run, *(f"{gap:.0e}" for gap in gaps.values()))
    console.print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    console.print(str(out), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
