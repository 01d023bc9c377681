"""What a domain-adaptation task is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DataError", "Floats", "Labels", "Task"]

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


class DataError(ValueError):
    """The data cannot be used. The message is one sentence: what came, and what is expected."""


@dataclass(frozen=True)
class Task:
    """Labelled source, unlabelled target, and a labelled target test set that only the final score reads.

    Args:
        name: the task's name, or the path of the file that it came from.
        x_source: (N, C, H, W) images or (N, D) vectors, float32.
        y_source: (N,) class labels 0 … num_classes − 1, int64.
        x_target: (M, ...) inputs of the same sample shape, float32.
        x_test: (K, ...) inputs of the target domain to score, or None.
        y_test: (K,) their labels, or None.
        y_target: (M,) the labels of `x_target`, or None. Only `method="target"`, the upper bound, reads them.
        num_classes: the number of classes.
    """

    name: str
    x_source: Floats
    y_source: Labels
    x_target: Floats
    x_test: Floats | None
    y_test: Labels | None
    y_target: Labels | None
    num_classes: int

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (C, H, W), or (D,)."""
        return self.x_source.shape[1:]
