"""The demo without its pictures: the same methods, from the same start, in every framework that is installed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

from grl.experiment.config import Config
from grl.experiment.result import Result, Update
from grl.experiment.run import load_data, train
from grl.files import replacing

__all__ = ["METHODS", "figures", "largest_gap", "loss_gaps", "run_demo", "save_figures"]

METHODS = ("source-only", "dann")


def run_demo(
    backends: Sequence[str],
    *,
    task: str = "mnist-mnistm",
    steps: int,
    seed: int,
    follow: Callable[[Config], Callable[[Update], None]] | None = None,
) -> list[Result]:
    """Run source-only and DANN in each backend, all from the same weights and on the same batches.

    Args:
        backends: "torch", "jax" or both.
        task: a name of `grl.datasets.TASKS`.
        steps: updates of each run.
        seed: draws the weights and the batches.
        follow: called with a run's settings before it starts; what it returns is called with the run's updates.

    Returns:
        The results, by method and within it by backend. Every step is in their history.

    Raises:
        ConfigError: a setting cannot be used.
        ImportError: a backend is not installed.
    """
    settings = {"steps": steps, "seed": seed, "log_every": 1}
    configs = [
        Config.recommended(task, backend=backend, method=method, **settings)
        for method in METHODS
        for backend in backends
    ]
    data = load_data(configs[0])
    return [train(config, task=data, progress=None if follow is None else follow(config)) for config in configs]


def loss_gaps(results: Sequence[Result]) -> dict[str, dict[int, float]]:
    """Return, by method and step, the larger of the two losses' |loss in PyTorch − loss in JAX|.

    Args:
        results: runs that differ in backend and method alone. A method that only one backend ran is left out, and so
            is a step at which a loss was not finite.
    """
    return {
        method: dict(_gaps(*histories))
        for method in dict.fromkeys(result.config.method for result in results)
        if len(histories := [r.metrics["history"] for r in results if r.config.method == method]) == 2
    }


def _gaps(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    for a, b in zip(one, other, strict=True):
        pairs = [(a[name], b[name]) for name in ("label_loss", "domain_loss")]
        gaps = [abs(x - y) for x, y in pairs if x is not None and y is not None]
        if gaps:
            yield a["step"], max(gaps)


def largest_gap(results: Sequence[Result], steps: int | None = None) -> float | None:
    """Return the largest of `loss_gaps`, over the first so many steps or all of them; None with a single backend."""
    gaps = loss_gaps(results).values()
    return max((gap for of in gaps for step, gap in of.items() if steps is None or step <= steps), default=None)


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """Return what demo.json holds: `runs`, the metrics of each run without its history, and `largest_loss_gap`."""
    runs = [{name: value for name, value in r.metrics.items() if name != "history"} for r in results]
    return {"runs": runs, "largest_loss_gap": largest_gap(results)}


def save_figures(results: Sequence[Result], path: str | PathLike[str]) -> None:
    """Write demo.json, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(figures(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")
