"""What a domain-adaptation task is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from grl.datasets.errors import DataError
from grl.datasets.samples import Floats, Samples

__all__ = ["Labels", "Task", "make_task"]

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Labelled source, unlabelled target, and a labelled target test set that only the final score reads.

    Inputs are arrays, or `Samples` that are read from files when they are asked for.

    Args:
        name: the task's name, or the path of the data that it came from.
        x_source: (N, C, H, W) images or (N, D) vectors, float32.
        y_source: (N,) class labels 0 … num_classes − 1, int64.
        x_target: (M, ...) inputs of the same sample shape, float32.
        x_test: (K, ...) inputs of the target domain to score, or None.
        y_test: (K,) their labels, or None.
        y_target: (M,) the labels of `x_target`, or None. Only `method="target"`, the upper bound, reads them.
        num_classes: the number of classes.
        skipped: what was left out because it could not be used, one sentence each.
        layout: how a user's own data are laid out, in words.
    """

    name: str
    x_source: Floats | Samples
    y_source: Labels
    x_target: Floats | Samples
    x_test: Floats | Samples | None
    y_test: Labels | None
    y_target: Labels | None
    num_classes: int
    skipped: tuple[str, ...] = ()
    layout: str = ""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (C, H, W), or (D,)."""
        return self.x_source.shape[1:]

    def excerpt(self, largest: int) -> Task:
        """Return a task of at most so many samples of each array, evenly spaced, in memory."""

        def of(size: int) -> NDArray[np.int64]:  # the first ones of a set sorted by class would be of one class
            return np.linspace(0, size - 1, min(size, largest), dtype=int)

        arrays = {name: getattr(self, name) for name in vars(self) if name[:2] in ("x_", "y_")}
        few = {name: array[of(len(array))] for name, array in arrays.items() if array is not None}
        return replace(self, **few)


def make_task(
    name: str,
    inputs: dict[str, Samples],
    labels: dict[str, Labels],
    *,
    where: dict[str, str],
    layout: str,
    num_classes: int | None = None,
    skipped: list[str] | None = None,
) -> Task:
    """Put a user's arrays together, and make sure that they fit each other.

    Args:
        name: the path that they came from.
        inputs: by "source", "target" and perhaps "test".
        labels: by "source" and perhaps "target" and "test".
        where: how a message names the labels of each.
        layout: how they are laid out, in words.
        num_classes: the number of classes; by default the largest label of the source + 1.
        skipped: what was left out.

    Raises:
        DataError: there is one class alone, or a label that the source does not have.
    """
    if num_classes is None:
        num_classes = int(labels["source"].max()) + 1
    known = np.unique(labels["source"])
    low, high = known[0], known[-1]
    if low == high:
        raise DataError(f"{where['source']} holds the label {low} alone; expected at least two classes.")
    for split, y in labels.items():
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            wrong = unknown[-1]
            expected = f"{low} to {high}" + (f" without {wrong}" if low < wrong < high else "")
            raise DataError(f"{where[split]} holds the label {wrong}; expected y_source's, {expected}.")
    return Task(
        name=name,
        x_source=inputs["source"],
        y_source=labels["source"],
        x_target=inputs["target"],
        x_test=inputs.get("test"),
        y_test=labels.get("test"),
        y_target=labels.get("target"),
        num_classes=num_classes,
        skipped=tuple(skipped or ()),
        layout=layout,
    )
