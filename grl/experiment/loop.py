"""The steps of a run, framework-free: in chunks, and never past one that would ruin the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from grl.arrays import Array
from grl.experiment.checkpoint import Done
from grl.experiment.config import Config
from grl.experiment.faults import Fault, FaultError

__all__ = ["CHUNK", "Chunk", "chunk", "run_steps"]

CHUNK = 10  # steps a call of the backend: enough to hide what a call costs, few enough for a progress bar


@dataclass(frozen=True)
class Chunk:
    """A few steps that were run.

    Args:
        done: how far the run is after them.
        records: one for each step: `step`, `label_loss`, `domain_loss` and `coeff`, as in the history.
        accuracy: the share of right classes in their labelled batches.
    """

    done: Done
    records: list[dict[str, Any]]
    accuracy: float


def chunk(start: int, config: Config) -> range:
    """Return the steps that are run together, from `start` on.

    Where they end follows from the step's number and the settings alone: a run that was interrupted calls the same
    compiled programs on the same steps as one that was not. A checkpoint is always at the end of one, and of two
    lengths at most all are but the last.

    Example:
        >>> [chunk(step, Config(steps=60, checkpoint_every=25)) for step in (0, 10, 20, 25, 28, 50)]
        [range(0, 10), range(10, 20), range(20, 25), range(25, 35), range(28, 35), range(50, 60)]
    """
    every = config.checkpoint_every or config.steps
    since = start % every
    return range(start, min(start - since + min(since // CHUNK * CHUNK + CHUNK, every), config.steps))


def run_steps(
    trainer: Any, stream: Iterator[tuple[Array, Array, Array]], config: Config, done: Done
) -> Iterator[Chunk]:
    """Train from where a run is to its last step.

    Args:
        trainer: a backend's, in the state after the steps that are done.
        stream: the batches from there on.
        config: the settings.
        done: how far the run is.

    Yields:
        what was run; the trainer is then in the state after it, and all its weights are finite.

    Raises:
        FaultError: a loss is not finite, or the weights would not be, and the settings say to stop there. The trainer
            is in the state before that step.
    """
    since = time.perf_counter() - done.seconds
    while done.step < config.steps:
        steps = chunk(done.step, config)
        x, y, x_target = (np.stack(arrays) for arrays in zip(*islice(stream, len(steps)), strict=True))
        coeffs = np.array([config.coeff(step) for step in steps])
        rates = np.array([config.rates(step) for step in steps])
        found, skipped = _run(trainer, config, steps, (x, y, x_target, coeffs, rates))
        label_losses, domain_losses, accuracies = found
        records = [
            {
                "step": step + 1,
                "label_loss": _finite(label_loss),
                "domain_loss": _finite(domain_loss),
                "coeff": float(coeff),
            }
            for step, label_loss, domain_loss, coeff in zip(steps, label_losses, domain_losses, coeffs, strict=True)
        ]
        done = Done(steps.stop, time.perf_counter() - since, done.skipped + skipped)
        yield Chunk(done, records, float(np.mean(accuracies)))


def _run(trainer: Any, config: Config, steps: range, arrays: Sequence[Array]) -> tuple[Sequence[Array], int]:
    """Run steps; return what `Trainer.run` does, and how many of them were skipped.

    Whether all is well is asked once a chunk, so that a run in which all is well pays nothing for it. If it is not, the
    chunk is undone, and its steps are run again one by one.
    """
    mark = trainer.mark()
    found = trainer.run(*arrays)
    if _is_well(trainer, config, found):
        return found, 0
    trainer.rewind(mark)
    one_by_one, skipped = [], 0
    for i, step in enumerate(steps):
        mark = trainer.mark()
        found = trainer.run(*(array[i : i + 1] for array in arrays))
        if not _is_well(trainer, config, found):
            trainer.rewind(mark)
            if config.on_nan == "stop":
                raise FaultError(_describe(trainer, config, step, [array[i] for array in arrays], found))
            skipped += 1
        one_by_one.append(found)
    return [np.concatenate(parts) for parts in zip(*one_by_one, strict=True)], skipped


def _is_well(trainer: Any, config: Config, found: Sequence[Array]) -> bool:
    losses = found[:2] if config.method == "dann" else found[:1]
    return bool(np.isfinite(losses).all()) and trainer.is_finite()


def _describe(trainer: Any, config: Config, step: int, arrays: Sequence[Array], found: Sequence[Array]) -> Fault:
    x, y, x_target, coeff, rates = arrays
    report = None
    if config.method == "dann" and trainer.processes.count == 1:  # of several each knows its part of the batch alone
        with np.errstate(all="ignore"):
            report = trainer.report_gradients(x, y, x_target, float(coeff))
    return Fault(
        step=step + 1,
        batch=(x, y, x_target),
        coeff=float(coeff),
        rates=(float(rates[0]), float(rates[1])),
        label_loss=float(found[0][0]),
        domain_loss=float(found[1][0]),
        weights=trainer.weights(),
        report=report,
    )


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None  # JSON knows neither NaN nor infinity
