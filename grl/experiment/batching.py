"""The batches of a run: drawn with NumPy from the seed, and so the same in both frameworks and for any processes."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np

from grl.arrays import Array
from grl.datasets import Samples, Task
from grl.datasets.ahead import ahead
from grl.experiment.config import Config
from grl.experiment.loop import CHUNK
from grl.experiment.processes import ALONE, Processes

__all__ = ["batches", "fingerprint", "stream"]

Batch = tuple[Array, Array, Array]


def batches(task: Task, config: Config, start: int = 0, processes: Processes = ALONE) -> Iterator[Batch]:
    """Yield the endless batches of a run.

    Each domain runs through shuffles of its own, one after the other, so the shorter one cycles.

    Args:
        task: the data.
        config: the settings; method, batch size and seed are read.
        start: the step of the first one. Those before it are drawn again, but not fetched: 10 ns a sample, which is
            less than a thousandth of what training on it took, and needs no more state than the step's number.
        processes: those that train together: each gets its part of the same batches.

    Yields:
        labelled inputs (B, ...), their labels (B,), and target inputs (B, ...), of which there are none (0, ...) unless
        the method is "dann". B is the batch size, or this process's share of it.
    """
    x, y = (task.x_target, task.y_target) if config.method == "target" else (task.x_source, task.y_source)
    assert y is not None
    labelled = _shuffles(len(x), config.batch_size, [config.seed, 1], start)
    unlabelled = _shuffles(len(task.x_target), config.batch_size, [config.seed, 2], start)
    part = processes.part(config.batch_size)
    for chosen, of_target in ((one[part], other[part]) for one, other in zip(labelled, unlabelled, strict=True)):
        yield x[chosen], y[chosen], task.x_target[of_target if config.method == "dann" else slice(0)]


def stream(task: Task, config: Config, start: int, processes: Processes) -> Iterator[Batch]:
    """Yield the batches of the steps from `start` on, read ahead where they come from files.

    A thread would only slow down what is in memory. For the arguments see `batches`.
    """
    left = islice(batches(task, config, start, processes), config.steps - start)
    return ahead(left, CHUNK) if isinstance(task.x_source, Samples) else left


def fingerprint(task: Task, config: Config) -> dict[str, Any]:
    """Return what a checkpoint knows its data by: sizes, and the first batch, which is of any part of them."""
    digest = sha256()
    for array in next(batches(task, config)):
        digest.update(np.ascontiguousarray(array).tobytes())
    sizes = {"source": len(task.x_source), "target": len(task.x_target), "sample_shape": [*task.sample_shape]}
    return {**sizes, "num_classes": task.num_classes, "first_batch_sha256": digest.hexdigest()}


def _shuffles(size: int, batch_size: int, seed: list[int], start: int) -> Iterator[Array]:
    generator = np.random.default_rng(seed)
    rounds, into = divmod(start * batch_size, size)
    for _ in range(rounds):
        generator.permutation(size)
    waiting = generator.permutation(size)[into:]
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, generator.permutation(size)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
