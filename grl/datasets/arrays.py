"""The user's own arrays by name: `x_source`, `y_source`, `x_target` and, to be scored, `x_test`, `y_test`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from grl.datasets.errors import DataError
from grl.datasets.samples import Samples
from grl.datasets.store import Store
from grl.datasets.stored import Stored
from grl.datasets.task import Labels, Task, make_task

__all__ = ["Arrays", "load_arrays"]


class Arrays(Protocol):
    """What holds arrays by name: an `.npz` archive, or a folder of `.npy` files."""

    name: str
    """The path."""
    keys: frozenset[str]
    """What there is."""
    layout: str
    """What they stand in, in words."""

    def where(self, key: str) -> str:
        """How a message calls an array."""

    def open(self, key: str) -> AbstractContextManager[Stored]:
        """Read the header of an array.

        Raises:
            DataError: it is no array of plain numbers, or unreadable.
        """


def load_arrays(arrays: Arrays, store: Store) -> Task:
    """Return the task in these arrays; keys, shapes and dtypes are those of `load_npz`.

    Args:
        arrays: what holds them.
        store: where they are kept.

    Raises:
        DataError: an array is missing, or not as described.
    """
    for key in ("x_source", "y_source", "x_target"):
        if key not in arrays.keys:
            raise DataError(f"{arrays.name}: the key {key!r} is missing; expected x_source, y_source and x_target.")
    for present, absent in (("x_test", "y_test"), ("y_test", "x_test")):
        if present in arrays.keys and absent not in arrays.keys:
            raise DataError(f"{arrays.name}: {present!r} comes without {absent!r}; a score needs both.")
    inputs: dict[str, Samples] = {}
    labels: dict[str, Labels] = {}
    for split in ("source", "target", "test"):
        if f"x_{split}" in arrays.keys:
            with arrays.open(f"x_{split}") as stored:
                part = stored.samples(store, inputs["source"].shape[1:] if inputs else None)
                inputs[split] = Samples([part], stored.shape[1:])
        if f"y_{split}" in arrays.keys:
            with arrays.open(f"y_{split}") as stored:
                labels[split] = stored.labels(len(inputs[split]))
    where = {split: arrays.where(f"y_{split}") for split in labels}
    return make_task(arrays.name, inputs, labels, where=where, layout=arrays.layout)
