"""The user's own arrays by name: `x_source`, `y_source`, `x_target` and, for scoring, `x_test`, `y_test`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from grl.datasets.errors import DataError
from grl.datasets.samples import Samples
from grl.datasets.store import Store
from grl.datasets.stored_array import StoredArray
from grl.datasets.task import SPLITS, Split, Task, make_task

__all__ = ["Arrays", "load_arrays"]


class Arrays(Protocol):
    """Arrays by name: an `.npz` archive, or a folder of `.npy` files."""

    name: str
    """The path."""
    keys: frozenset[str]
    """The names of the arrays."""
    layout: str
    """The kind of archive or folder, in words."""

    def describe(self, key: str) -> str:
        """Return an array's name for a message."""

    def open(self, key: str) -> AbstractContextManager[StoredArray]:
        """Read the header of an array.

        Raises:
            DataError: it cannot be read, or is no array of plain numbers.
        """


def load_arrays(arrays: Arrays, store: Store) -> Task:
    """Return the task that these arrays make up; `load_npz` describes their keys, shapes and dtypes.

    Args:
        arrays: the arrays.
        store: keeps the inputs.

    Raises:
        DataError: an array is missing or not as described.
    """
    for key in ("x_source", "y_source", "x_target"):
        if key not in arrays.keys:
            raise DataError(f"{arrays.name}: the key {key!r} is missing; expected x_source, y_source and x_target.")
    for present, absent in (("x_test", "y_test"), ("y_test", "x_test")):
        if present in arrays.keys and absent not in arrays.keys:
            raise DataError(f"{arrays.name}: {present!r} comes without {absent!r}; a score needs both.")
    splits: dict[str, Split] = {}
    for split in SPLITS:
        x, y = f"x_{split}", f"y_{split}"
        if x not in arrays.keys:
            continue
        with arrays.open(x) as stored:
            part = stored.samples(store, splits["source"].inputs.shape[1:] if splits else None)
            inputs = Samples([part], stored.shape[1:])
        labels = None
        if y in arrays.keys:
            with arrays.open(y) as stored:
                labels = stored.labels(len(inputs))
        splits[split] = Split(inputs, labels, arrays.describe(y))
    return make_task(arrays.name, splits, layout=arrays.layout)
