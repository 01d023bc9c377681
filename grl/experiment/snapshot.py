"""A model's view of the data at one moment, for pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from grl.arrays import Array
from grl.datasets import Task
from grl.experiment.trainer import Trainer, predict

__all__ = ["Boundary", "Snapshot", "take_snapshot"]


class Boundary(NamedTuple):
    """The probability of class 1 on a grid of the plane.

    Args:
        x: the horizontal axis (a,).
        y: the vertical axis (b,).
        probability: (b, a).
    """

    x: Array
    y: Array
    probability: Array


@dataclass(frozen=True)
class Snapshot:
    """A model's view of the data at one moment, in NumPy arrays.

    Args:
        source_features: (n, D) of up to 500 source samples, evenly spaced in `x_source`.
        target_features: (m, D) of up to 500 target samples, evenly spaced in `x_test`, or in `x_target` without that.
        source_labels: (n,).
        target_labels: (m,), to colour a picture with, or None.
        boundary: x axis (a,), y axis (b,) and P(class 1) (b, a), for points of the plane in two classes; else None.
    """

    source_features: Array
    target_features: Array
    source_labels: Array
    target_labels: Array | None
    boundary: tuple[Array, Array, Array] | None


def take_snapshot(trainer: Trainer, task: Task, largest: int = 500) -> Snapshot:
    """Return the present model's view of the data.

    Args:
        trainer: the model.
        task: the data.
        largest: the number of samples of each domain.
    """
    is_planar = task.sample_shape == (2,) and task.num_classes == 2
    few = task.excerpt(largest)
    boundary = _boundary(trainer, task.excerpt(4 * largest)) if is_planar else None
    x_target, y_target = (few.x_target, few.y_target) if few.x_test is None else (few.x_test, few.y_test)
    return Snapshot(
        source_features=predict(trainer, few.x_source).features,
        target_features=predict(trainer, x_target).features,
        source_labels=few.y_source,
        target_labels=y_target,
        boundary=boundary,
    )


def _boundary(trainer: Trainer, task: Task) -> Boundary:
    """Return the probability of class 1 on a grid that covers the points, with a margin of a tenth on each side."""
    points = np.concatenate([task.x_source, task.x_target if task.x_test is None else task.x_test])
    margin = 0.1 * np.ptp(points, axis=0)
    x, y = np.linspace(points.min(0) - margin, points.max(0) + margin, 120, dtype=np.float32).T
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    logits = predict(trainer, grid).class_logits.astype(np.float64)
    log_odds_of_class_0 = np.clip(logits[:, 0] - logits[:, 1], -500, 500)
    return Boundary(x, y, (1 / (1 + np.exp(log_odds_of_class_0))).reshape(len(y), len(x)))
