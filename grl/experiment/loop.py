"""The steps of a run, framework-free: in chunks, and never past a step that would ruin the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from grl.arrays import Array
from grl.experiment.checkpoint import Done
from grl.experiment.config import Config
from grl.experiment.faults import Fault, FaultError
from grl.experiment.record import Record
from grl.experiment.trainer import Batch, StepRecords, Trainer

__all__ = ["CHUNK", "Chunk", "chunk", "run_steps"]

CHUNK = 10
"""The steps of one call of the backend: enough to hide the cost of a call, and few enough for a progress bar."""


@dataclass(frozen=True)
class Chunk:
    """A few steps that were run.

    Args:
        done: how far the run is after them.
        records: the record of each step, as in the history.
        accuracy: the share of correct classes in their labelled batches.
    """

    done: Done
    records: list[Record]
    accuracy: float


def chunk(start: int, config: Config) -> range:
    """Return the steps that are run together, from `start` on.

    The end of a chunk depends only on the step's number and the settings. A resumed run therefore calls the same
    compiled programs on the same steps as a run without interruption. Every checkpoint is at the end of a chunk, and
    all chunks but the last have one of at most two lengths.

    Example:
        >>> [chunk(step, Config(steps=60, checkpoint_every=25)) for step in (0, 10, 20, 25, 28, 50)]
        [range(0, 10), range(10, 20), range(20, 25), range(25, 35), range(28, 35), range(50, 60)]
    """
    every = config.checkpoint_every or config.steps
    since_checkpoint = start % every
    whole_chunks = since_checkpoint // CHUNK * CHUNK
    end = start - since_checkpoint + min(whole_chunks + CHUNK, every)
    return range(start, min(end, config.steps))


def run_steps(trainer: Trainer, stream: Iterator[Batch], config: Config, done: Done) -> Iterator[Chunk]:
    """Train from the present step of a run to its last one.

    Args:
        trainer: a trainer in the state after the steps that are done.
        stream: the batches of the remaining steps.
        config: the settings.
        done: how far the run has come.

    Yields:
        The chunks. After each, the trainer is in the state after it, and all its weights are finite.

    Raises:
        FaultError: a loss or the weights would not be finite, and the settings say to stop there. The trainer is in
            the state before that step.
    """
    started = time.perf_counter() - done.seconds
    while done.step < config.steps:
        steps = chunk(done.step, config)
        inputs = _inputs(stream, config, steps)
        figures, skipped = _run(trainer, config, steps, inputs)
        records = [
            Record(step=step + 1, label_loss=_finite(label_loss), domain_loss=_finite(domain_loss), coeff=float(coeff))
            for step, label_loss, domain_loss, coeff in zip(
                steps, figures.label_loss, figures.domain_loss, inputs.coeffs, strict=True
            )
        ]
        done = Done(steps.stop, time.perf_counter() - started, done.skipped + skipped)
        yield Chunk(done, records, float(np.mean(figures.accuracy)))


class _Inputs(NamedTuple):
    """The arguments of `Trainer.run` for k steps, each (k, ...)."""

    x: Array
    y: Array
    x_target: Array
    coeffs: Array
    rates: Array

    def step(self, index: int) -> _Inputs:
        """Return the arguments of one of the steps, each (1, ...)."""
        return _Inputs(*(array[index : index + 1] for array in self))


def _inputs(stream: Iterator[Batch], config: Config, steps: range) -> _Inputs:
    x, y, x_target = (np.stack(arrays) for arrays in zip(*islice(stream, len(steps)), strict=True))
    coeffs = np.array([float(config.ramp(step)) for step in steps])
    rates = np.array([config.rates(step) for step in steps])
    return _Inputs(x, y, x_target, coeffs, rates)


def _run(trainer: Trainer, config: Config, steps: range, inputs: _Inputs) -> tuple[StepRecords, int]:
    """Run steps; return their figures, and how many of them were skipped.

    Finiteness is checked once per chunk, so a healthy run pays nothing. If a chunk fails, it is undone, and its steps
    are run again one by one.
    """
    trainer.mark()
    figures = trainer.run(*inputs)
    if _is_healthy(trainer, config, figures):
        return figures, 0
    trainer.rewind()
    one_by_one, skipped = [], 0
    for index, step in enumerate(steps):
        trainer.mark()
        figures = trainer.run(*inputs.step(index))
        if not _is_healthy(trainer, config, figures):
            trainer.rewind()
            if config.on_nan == "stop":
                raise FaultError(_describe(trainer, config, step, inputs.step(index), figures))
            skipped += 1
        one_by_one.append(figures)
    return StepRecords(*(np.concatenate(arrays) for arrays in zip(*one_by_one, strict=True))), skipped


def _is_healthy(trainer: Trainer, config: Config, figures: StepRecords) -> bool:
    losses = [figures.label_loss]
    if config.method == "dann":
        losses.append(figures.domain_loss)
    return bool(np.isfinite(losses).all()) and trainer.is_finite()


def _describe(trainer: Trainer, config: Config, step: int, inputs: _Inputs, figures: StepRecords) -> Fault:
    """Return the fault of one step; the trainer is in the state before it."""
    batch, coeff = Batch(inputs.x[0], inputs.y[0], inputs.x_target[0]), float(inputs.coeffs[0])
    report = None
    if config.method == "dann" and trainer.processes.count == 1:  # each of several processes has its share only
        with np.errstate(all="ignore"):
            report = trainer.report_gradients(*batch, coeff)
    extractor_rate, classifier_rate = inputs.rates[0]
    return Fault(
        step=step + 1,
        batch=batch,
        coeff=coeff,
        rates=(float(extractor_rate), float(classifier_rate)),
        label_loss=float(figures.label_loss[0]),
        domain_loss=float(figures.domain_loss[0]),
        weights=trainer.weights(),
        report=report,
    )


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None  # JSON has neither NaN nor infinity
