"""The batches of a run, drawn with NumPy from the seed: the same in both frameworks and for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import islice

import numpy as np

from grl.arrays import Array
from grl.datasets import Samples, Task
from grl.datasets.prefetch import prefetch
from grl.experiment.config import Config
from grl.experiment.loop import CHUNK
from grl.experiment.processes import ALONE, Processes
from grl.experiment.trainer import Batch

__all__ = ["batches", "fingerprint", "stream"]


def batches(task: Task, config: Config, start: int = 0, processes: Processes = ALONE) -> Iterator[Batch]:
    """Yield the endless batches of a run.

    Each domain goes through shuffles of its own, one after the other, so the smaller domain repeats sooner.

    Args:
        task: the data.
        config: the settings; method, batch size and seed are read.
        start: the step of the first batch. The batches before it are drawn again but not fetched. This costs 10 ns a
            sample, less than a thousandth of training on it, and needs no state besides the step's number.
        processes: the processes that train together; each gets its share of the same batches.

    Yields:
        Labelled inputs (B, ...), their labels (B,), and target inputs (B, ...), of which there are none (0, ...) unless
        the method is "dann". B is the batch size, or this process's share of it.
    """
    x, y = (task.x_target, task.y_target) if config.method == "target" else (task.x_source, task.y_source)
    assert y is not None
    labelled = _shuffles(len(x), config.batch_size, [config.seed, 1], start)
    unlabelled = _shuffles(len(task.x_target), config.batch_size, [config.seed, 2], start)
    share = processes.part(config.batch_size)
    for labelled_rows, target_rows in zip(labelled, unlabelled, strict=True):
        rows = labelled_rows[share]
        x_target = task.x_target[target_rows[share] if config.method == "dann" else slice(0)]
        yield Batch(x[rows], y[rows], x_target)


def stream(task: Task, config: Config, start: int, processes: Processes) -> Iterator[Batch]:
    """Yield the batches of the steps from `start` to the last one, read ahead if they come from files.

    For data in memory, a thread would only cost time. The arguments are those of `batches`.
    """
    remaining = islice(batches(task, config, start, processes), config.steps - start)
    return prefetch(remaining, CHUNK) if isinstance(task.x_source, Samples) else remaining


def fingerprint(task: Task, config: Config) -> dict[str, object]:
    """Return what identifies the data in a checkpoint: the sizes, and the first batch, drawn from all of the data."""
    digest = sha256()
    for array in next(batches(task, config)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "source": len(task.x_source),
        "target": len(task.x_target),
        "sample_shape": [*task.sample_shape],
        "num_classes": task.num_classes,
        "first_batch_sha256": digest.hexdigest(),
    }


def _shuffles(size: int, batch_size: int, seed: list[int], start: int) -> Iterator[Array]:
    """Yield the rows of each batch from step `start` on: consecutive pieces of one shuffle after the other."""
    generator = np.random.default_rng(seed)
    rounds, used = divmod(start * batch_size, size)
    for _ in range(rounds):
        generator.permutation(size)
    waiting = generator.permutation(size)[used:]
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, generator.permutation(size)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
