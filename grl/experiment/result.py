"""What an experiment gives: figures, weights, what a picture needs; and the files that keep them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from grl.arrays import Array, Weights
from grl.datasets import Task
from grl.experiment.config import Config, ConfigError
from grl.files import replacing
from grl.weights_file import save_weights

__all__ = ["Result", "Snapshot", "Update", "look", "prepare_directory", "save"]


@dataclass(frozen=True)
class Update:
    """What a progress callback receives, every few steps.

    Args:
        step: the number of steps done.
        steps: the number of steps in all.
        label_loss: the mean cross entropy of the latest labelled batch; None once it is not finite.
        domain_loss: the mean binary cross entropy over the latest 2·B samples, ln 2 at chance; None without adaptation.
        coeff: λ of the latest step.
        source_accuracy: the share of right classes in the labelled batches since the last update.
        checkpoint: the step of the newest checkpoint, if there is one.
    """

    step: int
    steps: int
    label_loss: float | None
    domain_loss: float | None
    coeff: float
    source_accuracy: float
    checkpoint: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """What a model makes of the data at one moment, for pictures. All arrays NumPy's.

    Args:
        source_features: (n, D) of up to 500 source samples, evenly spaced in `x_source`.
        target_features: (m, D) of up to 500 target samples, evenly spaced in `x_test`, or in `x_target` without that.
        source_labels: (n,).
        target_labels: (m,), to colour a picture with, or None.
        boundary: for vectors of two dimensions and two classes: x axis (a,), y axis (b,), P(class 1) (b, a); else None.
    """

    source_features: Array
    target_features: Array
    source_labels: Array
    target_labels: Array | None
    boundary: tuple[Array, Array, Array] | None


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        config: its settings.
        task: its data.
        metrics: what metrics.json holds.
        weights: the trained weights, by PyTorch's names and layouts.
        before: the model at its initial weights.
        after: the model at its trained weights.
    """

    config: Config
    task: Task
    metrics: dict[str, Any]
    weights: Weights
    before: Snapshot
    after: Snapshot


def look(trainer: Any, task: Task, largest: int = 500) -> Snapshot:
    """Return what a model makes of the data now.

    Args:
        trainer: a backend's.
        task: the data.
        largest: the number of samples of each domain.
    """
    boundary = None
    if task.sample_shape == (2,) and task.num_classes == 2:
        many = task.excerpt(4 * largest)
        points = np.concatenate([many.x_source, many.x_target if many.x_test is None else many.x_test])
        margin = 0.1 * np.ptp(points, axis=0)
        across, up = np.linspace(points.min(0) - margin, points.max(0) + margin, 120, dtype=np.float32).T
        grid = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
        logits = trainer.predict(grid)[1].astype(np.float64)
        odds = np.clip(logits[:, 0] - logits[:, 1], -500, 500)
        boundary = (across, up, (1 / (1 + np.exp(odds))).reshape(len(up), len(across)))
    few = task.excerpt(largest)
    x_target, y_target = (few.x_target, few.y_target) if few.x_test is None else (few.x_test, few.y_test)
    return Snapshot(
        source_features=trainer.predict(few.x_source)[0],
        target_features=trainer.predict(x_target)[0],
        source_labels=few.y_source,
        target_labels=y_target,
        boundary=boundary,
    )


def save(result: Result, out: str | PathLike[str]) -> None:
    """Write config.json, metrics.json and model.safetensors, each whole or not at all.

    Args:
        result: a finished run.
        out: the directory; made if it is not there.

    Raises:
        ConfigError: the directory cannot be written.
    """
    prepare_directory(out)
    try:
        for name, content in (("config.json", asdict(result.config)), ("metrics.json", result.metrics)):
            with replacing(Path(out) / name) as temporary:
                temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        save_weights(Path(out) / "model.safetensors", result.weights)
    except OSError as error:
        raise ConfigError(f"{fspath(out)}: cannot be written: {error.strerror}.") from error


def prepare_directory(out: str | PathLike[str]) -> None:
    """Make a directory, with its parents, and make sure that a file can be written there.

    Args:
        out: the directory.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        probe = Path(out) / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{fspath(out)}: cannot be written: {error.strerror}.") from error
