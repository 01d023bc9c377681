"""The lines that `grl train` prints before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from grl.datasets import Task
from grl.experiment import report_gradients, versions
from grl.experiment.checkpoint import Checkpoint
from grl.experiment.config import Config

__all__ = ["describe_data", "describe_resumption", "describe_reversal"]


def describe_data(task: Task) -> Iterator[str]:
    """Yield the number of samples in a folder of the user's, their layout, and the first one that was left out."""
    if task.layout and Path(task.name).is_dir():
        inputs = {"source": task.x_source, "target": task.x_target, "test": task.x_test}
        counts = ", ".join(f"{len(x):,} {split}" for split, x in inputs.items() if x is not None)
        yield f"{task.name}: {task.layout}: {counts} samples of shape {task.sample_shape}, {task.num_classes} classes"
    if task.skipped:
        yield f"Left out: {len(task.skipped)}, the first: {task.skipped[0]}"


def describe_resumption(checkpoint: Checkpoint, config: Config) -> str:
    """Return where a run goes on, and why its bits may differ from those of a run that was not interrupted.

    Args:
        checkpoint: where it goes on.
        config: the settings from there on.
    """
    line = f"Going on from {checkpoint.folder}, at step {checkpoint.done.step} of {config.steps}"
    if config.backend != checkpoint.config.backend:
        return f"{line}, written by {checkpoint.config.backend}: {config.backend} rounds differently."
    installed = versions(config)
    changed = [
        f"{name} {version} (now {installed.get(name)})"
        for name, version in checkpoint.versions.items()
        if version != installed.get(name)
    ]
    return f"{line}, written with {', '.join(changed)}: the last bits may differ." if changed else f"{line}."


def describe_reversal(config: Config, task: Task) -> str:
    """Return the verdict on the gradient reversal at the schedule's last λ; the first λ may be 0.

    Raises:
        ConfigError, WeightsFileError, ImportError: the model of the run cannot be built.
    """
    report = report_gradients(config, task=task)
    return f"Reversal at the schedule's last λ, {config.coeff(config.steps):.4g}: {report}"
