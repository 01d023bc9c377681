"""A folder of `.npz` shards: `source-*.npz` and `test-*.npz` with x and y, `target-*.npz` with x."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from grl.datasets.errors import BadData, DataError
from grl.datasets.npz import Archive
from grl.datasets.samples import Part, Samples
from grl.datasets.store import Store
from grl.datasets.task import SPLITS, Labels, Split, Task, make_task

__all__ = ["load_shards"]


class _Shard(NamedTuple):
    part: Part
    sample_shape: tuple[int, ...]
    labels: Labels | None


def load_shards(folder: str, store: Store, bad: BadData) -> Task:
    """Return the task in a folder of shards, taken in the order of their names.

    Args:
        folder: its path.
        store: keeps the inputs.
        bad: decides about a shard that cannot be used.

    Returns:
        The task. It has labels of the target if every shard of the target has a y.

    Raises:
        DataError: a domain has no shards, or none that can be used, or `bad` stops at one that cannot.
    """
    splits: dict[str, Split] = {}
    for split in SPLITS:
        paths = sorted(str(path) for path in Path(folder).glob(f"{split}-*.npz"))
        if not paths and split == "test":
            continue
        if not paths:
            raise DataError(f"{folder}: no {split}-*.npz; expected shards of source and of target.")
        shape = splits["source"].inputs.shape[1:] if splits else None
        shards: list[_Shard] = []
        for path in paths:
            try:
                shard = _read(path, store, shape, labelled=split != "target")
            except DataError as error:
                bad.handle(error)
                continue
            shape = shard.sample_shape
            shards.append(shard)
        if not shards:
            raise DataError(f"{folder}: no {split}-*.npz can be used; the last one: {bad.skipped[-1]}")
        inputs = Samples([shard.part for shard in shards], shards[0].sample_shape)
        labels = [shard.labels for shard in shards if shard.labels is not None]
        complete = np.concatenate(labels) if len(labels) == len(shards) else None
        splits[split] = Split(inputs, complete, f"{folder}: y of {split}-*.npz")
    return make_task(folder, splits, layout=".npz shards", skipped=bad.skipped)


def _read(path: str, store: Store, sample_shape: tuple[int, ...] | None, *, labelled: bool) -> _Shard:
    with Archive(path) as archive, store.all_or_nothing():
        for key in ("x", "y") if labelled else ("x",):
            if key not in archive.keys:
                raise DataError(f"{path}: the key {key!r} is missing; expected {'x and y' if labelled else 'x'}.")
        with archive.open("x") as stored:
            part, sample_shape = stored.samples(store, sample_shape), stored.shape[1:]
        if "y" not in archive.keys:
            return _Shard(part, sample_shape, None)
        with archive.open("y") as stored:
            return _Shard(part, sample_shape, stored.labels(part.rows))
