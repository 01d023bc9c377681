"""A folder of `.npz` shards: `source-*.npz` and `test-*.npz` with x and y, `target-*.npz` with x."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grl.datasets.errors import BadData, DataError
from grl.datasets.npz import Archive
from grl.datasets.samples import Part, Samples
from grl.datasets.store import Store
from grl.datasets.task import Labels, Task, make_task

__all__ = ["load_shards"]


def load_shards(folder: str, store: Store, bad: BadData) -> Task:
    """Return the task in a folder of shards, taken in the order of their names.

    Args:
        folder: its path.
        store: where the inputs are kept.
        bad: what to do with a shard that cannot be used.

    Returns:
        The task; it has the target's labels if every shard of the target has a y.

    Raises:
        DataError: there are no shards of a domain, none that can be used, or one that cannot.
    """
    inputs: dict[str, Samples] = {}
    labels: dict[str, Labels] = {}
    for split in ("source", "target", "test"):
        paths = sorted(str(path) for path in Path(folder).glob(f"{split}-*.npz"))
        if not paths and split == "test":
            continue
        if not paths:
            raise DataError(f"{folder}: no {split}-*.npz; expected shards of source and of target.")
        shape = inputs["source"].shape[1:] if inputs else None
        parts: list[Part] = []
        found: list[Labels | None] = []
        for path in paths:
            try:
                part, shape, y = _read(path, store, shape, labelled=split != "target")
            except DataError as error:
                bad.meet(error)
                continue
            parts.append(part)
            found.append(y)
        if not parts:
            raise DataError(f"{folder}: no {split}-*.npz can be used; the last one: {bad.skipped[-1]}")
        assert shape is not None
        inputs[split] = Samples(parts, shape)
        known = [y for y in found if y is not None]
        if len(known) == len(found):
            labels[split] = np.concatenate(known)
    return make_task(
        folder,
        inputs,
        labels,
        where={split: f"{folder}: y of {split}-*.npz" for split in labels},
        layout=".npz shards",
        skipped=bad.skipped,
    )


def _read(
    path: str, store: Store, shape: tuple[int, ...] | None, *, labelled: bool
) -> tuple[Part, tuple[int, ...], Labels | None]:
    with Archive(path) as archive, store.all_or_nothing():
        for key in ("x", "y") if labelled else ("x",):
            if key not in archive.keys:
                raise DataError(f"{path}: the key {key!r} is missing; expected {'x and y' if labelled else 'x'}.")
        with archive.open("x") as stored:
            part = stored.samples(store, shape)
        if "y" not in archive.keys:
            return part, stored.shape[1:], None
        with archive.open("y") as labels:
            return part, stored.shape[1:], labels.labels(part.rows)
