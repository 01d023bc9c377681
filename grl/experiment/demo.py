"""The demo without its pictures: two methods, from the same initial weights, in every installed framework."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

from grl.experiment.config import Config
from grl.experiment.result import Result, Update
from grl.experiment.run import load_data, train
from grl.files import replacing

__all__ = ["DEMO_METHODS", "figures", "largest_gap", "loss_gaps", "run_demo", "save_figures"]

DEMO_METHODS = ("source-only", "dann")
"""The methods that the demo compares: those of `grl.experiment.config.METHODS` without target labels."""


def run_demo(
    backends: Sequence[str],
    *,
    task: str = "mnist-mnistm",
    steps: int,
    seed: int,
    follow: Callable[[Config], Callable[[Update], None]] | None = None,
) -> list[Result]:
    """Run source-only and DANN in each backend, all from the same initial weights and on the same batches.

    Args:
        backends: "torch", "jax" or both.
        task: a name of `grl.datasets.TASKS`.
        steps: the number of updates of each run.
        seed: draws the weights and the batches.
        follow: called with the settings of each run before it starts; it returns a function to call with each update.

    Returns:
        The results, ordered by method and then by backend. Their history has every step.

    Raises:
        ConfigError: a setting cannot be used.
        ImportError: a backend is not installed.
    """
    settings = {"steps": steps, "seed": seed, "log_every": 1}
    configs = [
        Config.recommended(task, backend=backend, method=method, **settings)
        for method in DEMO_METHODS
        for backend in backends
    ]
    data = load_data(configs[0])
    return [train(config, task=data, progress=None if follow is None else follow(config)) for config in configs]


def loss_gaps(results: Sequence[Result]) -> dict[str, dict[int, float]]:
    """Return, by method and step, the larger of |loss in PyTorch − loss in JAX| over the label and the domain loss.

    Args:
        results: runs that differ only in backend and method. A method that only one backend ran is left out, and so is
            a step at which a loss was not finite.
    """
    return {
        method: dict(_gaps(*histories))
        for method in dict.fromkeys(result.config.method for result in results)
        if len(histories := [r.metrics["history"] for r in results if r.config.method == method]) == 2
    }


def _gaps(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    for first_record, second_record in zip(first, second, strict=True):
        losses = [(first_record[name], second_record[name]) for name in ("label_loss", "domain_loss")]
        gaps = [abs(x - y) for x, y in losses if x is not None and y is not None]
        if gaps:
            yield first_record["step"], max(gaps)


def largest_gap(results: Sequence[Result], steps: int | None = None) -> float | None:
    """Return the largest of `loss_gaps`, over the first `steps` steps or all of them; None with a single backend."""
    gaps = [item for of_method in loss_gaps(results).values() for item in of_method.items()]
    return max((gap for step, gap in gaps if steps is None or step <= steps), default=None)


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """Return the content of demo.json: `runs`, the metrics of each without its history, and `largest_loss_gap`."""
    runs = [{name: value for name, value in r.metrics.items() if name != "history"} for r in results]
    return {"runs": runs, "largest_loss_gap": largest_gap(results)}


def save_figures(results: Sequence[Result], path: str | PathLike[str]) -> None:
    """Write demo.json, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(figures(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")
