"""A domain-adaptation task: its arrays, and how a user's own are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from grl.datasets.errors import DataError
from grl.datasets.samples import Floats, Samples

__all__ = ["SPLITS", "Labels", "Split", "Task", "make_task"]

Labels = NDArray[np.int64]

SPLITS = ("source", "target", "test")
"""The sets of samples of a task. Only the test set may be missing."""


@dataclass(frozen=True)
class Task:
    """Labelled source, unlabelled target, and a labelled target test set that only the final score reads.

    Inputs are arrays, or `Samples`, which are read from files on demand.

    Args:
        name: the task's name, or the path of its data.
        x_source: (N, C, H, W) images or (N, D) vectors, float32.
        y_source: (N,) class labels 0 … num_classes − 1, int64.
        x_target: (M, ...) inputs of the same sample shape, float32.
        x_test: (K, ...) inputs of the target domain to score, or None.
        y_test: (K,) their labels, or None.
        y_target: (M,) the labels of `x_target`, or None. Only `method="target"`, the upper bound, reads them.
        num_classes: the number of classes.
        skipped: one sentence for each shard or image that could not be used.
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
        """Return a task in memory with at most `largest` samples of each array, evenly spaced."""

        def rows(size: int) -> NDArray[np.int64]:  # the first rows of a set sorted by class would all be of one class
            return np.linspace(0, size - 1, min(size, largest), dtype=int)

        arrays = {name: getattr(self, name) for name in vars(self) if name[:2] in ("x_", "y_")}
        few = {name: array[rows(len(array))] for name, array in arrays.items() if array is not None}
        return replace(self, **few)


class Split(NamedTuple):
    """The source, the target or the test set of a user's own data.

    Args:
        inputs: the samples.
        labels: (N,) their labels, or None.
        labels_name: the name of the labels for a message.
    """

    inputs: Samples
    labels: Labels | None
    labels_name: str


def make_task(
    name: str,
    splits: Mapping[str, Split],
    *,
    layout: str,
    num_classes: int | None = None,
    skipped: Sequence[str] = (),
) -> Task:
    """Return the task of a user's own arrays, once they are known to fit each other.

    Args:
        name: the path of the data.
        splits: by their names in `SPLITS`; "source" has labels.
        layout: how the data are laid out, in words.
        num_classes: the number of classes; by default the largest label of the source + 1.
        skipped: see `Task`.

    Raises:
        DataError: there is only one class, or a label that the source does not have.
    """
    source, target, test = splits["source"], splits["target"], splits.get("test")
    assert source.labels is not None
    known = np.unique(source.labels)
    low, high = known[0], known[-1]
    if low == high:
        raise DataError(f"{source.labels_name} holds the label {low} alone; expected at least two classes.")
    for split in splits.values():
        if split.labels is None:
            continue
        unknown = np.setdiff1d(split.labels, known)
        if len(unknown):
            wrong = int(unknown[-1])
            expected = f"{low} to {high}" + (f" without {wrong}" if low < wrong < high else "")
            raise DataError(f"{split.labels_name} holds the label {wrong}; expected y_source's, {expected}.")
    return Task(
        name=name,
        x_source=source.inputs,
        y_source=source.labels,
        x_target=target.inputs,
        x_test=None if test is None else test.inputs,
        y_test=None if test is None else test.labels,
        y_target=target.labels,
        num_classes=int(source.labels.max()) + 1 if num_classes is None else num_classes,
        skipped=tuple(skipped),
        layout=layout,
    )
