"""One domain-adaptation experiment, framework-free: the same weights, batches, λ and learning rates for any backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grl.datasets import DataError, Task, load_path, load_task
from grl.diagnosis.gradient_report import DomainGradientReport
from grl.experiment.backend import build_architecture, build_trainer, versions
from grl.experiment.batching import batches, stream
from grl.experiment.checkpoint import Checkpoint, CheckpointError
from grl.experiment.checkpoint_checks import check_network
from grl.experiment.config import Config, ConfigError
from grl.experiment.faults import FaultError, StoppedError
from grl.experiment.keeper import Folder, Keeper, Run, start
from grl.experiment.loop import run_steps
from grl.experiment.processes import ALONE, Processes
from grl.experiment.result import Result, Update
from grl.experiment.scores import score
from grl.experiment.snapshot import take_snapshot
from grl.experiment.trainer import Trainer
from grl.weights_file import WeightsFileError

__all__ = ["load_data", "report_gradients", "train"]

Progress = Callable[[Update], None]
Stop = Callable[[], bool]


def train(
    config: Config,
    *,
    task: Task | None = None,
    progress: Progress | None = None,
    out: Folder | None = None,
    resume: Checkpoint | None = None,
    stop: Stop | None = None,
    processes: Processes = ALONE,
) -> Result:
    """Run an experiment from its seed, or from a checkpoint, to its scores.

    `source-only` trains on the labelled source and never sees the target. `dann` adds the domain classifier behind the
    gradient reversal. `target` trains on the labelled target, an upper bound. Without adaptation, the domain
    classifier keeps its initial weights, and its loss and accuracy are None.

    Args:
        config: the settings.
        task: the data; by default those that the settings name.
        progress: called every few steps.
        out: an existing directory for the files that a run writes while it trains: metrics.jsonl, event files and
            checkpoints. The run removes those of an earlier run.
        resume: a checkpoint to continue from, from `load_checkpoint`, with its settings except for backend, device and
            on_nan. The run does not read its start file again; `before` is then the model at the checkpoint.
        stop: called every few steps; if it returns True, the run ends with a checkpoint.
        processes: the processes that train together, each with the same settings (see `join`).

    Returns:
        The metrics, the weights and the data for pictures, the same in each process. The scores are those of the last
        step.

    Raises:
        ConfigError: the data do not fit the method or the network, there is no such device, or a file cannot be
            written.
        CheckpointError: the checkpoint does not fit the run, or none can be written.
        WeightsFileError: the file of weights to start from cannot be used.
        DataError: the data cannot be used.
        FaultError: a loss is not finite, and the settings do not say to skip it; `out` has nan-report.json.
        StoppedError: `stop` returned True.
        ImportError: the backend is not installed; the message names the extra that installs it.
        ProcessLostError: another process ended, or did not answer in time.
    """
    if config.checkpoint_every is not None and out is None:
        raise ConfigError(f"checkpoint_every: got {config.checkpoint_every} without `out`; expected both, or neither.")
    with processes.agree(ConfigError, CheckpointError, WeightsFileError, DataError, ImportError):
        task = load_data(config) if task is None else task
        weights = None
        if resume is not None:
            check_network(resume, build_architecture(task, config).shapes())
            weights = None if config.start is None else resume.weights()
        trainer = build_trainer(task, config, processes, weights)
    before = take_snapshot(trainer, task)
    with start(Run(config, task, out, processes), trainer, resume) as keeper:
        _train(trainer, keeper, progress, stop)
    return Result(config, task, _metrics(trainer, keeper), trainer.weights(), before, take_snapshot(trainer, task))


def report_gradients(config: Config, *, task: Task | None = None) -> DomainGradientReport:
    """Report whether the reversal works in the model of a run, on its first batch, at the last λ of its schedule.

    Args:
        config: the settings; the method is "dann".
        task: the data; by default those that the settings name.

    Returns:
        The verdict with its figures (see `grl.parity.domain_gradient_report`).

    Raises:
        ConfigError, CheckpointError, WeightsFileError, DataError, ImportError: as `train` does.
    """
    task = load_data(config) if task is None else task
    trainer = build_trainer(task, config)
    return trainer.report_gradients(*next(batches(task, config)), config.coeff(config.steps))


def load_data(config: Config, follow: Callable[[int], None] | None = None) -> Task:
    """Return the data that the settings name. It raises as `load_task` and `load_path` do.

    Args:
        config: the settings.
        follow: called from time to time with the number of bytes of the user's own data that have been read.
    """
    if config.data is None:
        return load_task(config.task)
    return load_path(config.data, memory=config.data_memory, on_bad_data=config.on_bad_data, follow=follow)


def _train(trainer: Trainer, keeper: Keeper, progress: Progress | None, stop: Stop | None) -> None:
    """Run the remaining steps. Files, progress and stopping are handled between chunks."""
    config, processes = keeper.run.config, keeper.run.processes
    remaining = stream(keeper.run.task, config, keeper.done.step, processes)
    try:
        for chunk in run_steps(trainer, remaining, config, keeper.done):
            stopping = any(processes.exchange("stop" if stop is not None and stop() else ""))
            keeper.keep(chunk, trainer, stopping=stopping)
            if progress is not None:
                last = chunk.records[-1]
                progress(
                    Update(
                        **last,
                        steps=config.steps,
                        source_accuracy=chunk.accuracy,
                        checkpoint=keeper.checkpoint_step,
                    )
                )
            if stopping:
                raise StoppedError(chunk.done.step, config.steps, keeper.run.out)
    except FaultError as error:
        raise keeper.fault(error.fault) from None


def _metrics(trainer: Trainer, keeper: Keeper) -> dict[str, Any]:
    """Return the content of metrics.json."""
    config, task, done = keeper.run.config, keeper.run.task, keeper.done
    metrics: dict[str, Any] = {
        "backend": config.backend,
        "versions": versions(config),
        "device": config.device,
        "devices": trainer.devices,
        "task": task.name,
        "method": config.method,
        "seed": config.seed,
        "steps": config.steps,
        "seconds": round(done.seconds, 3),
        "skipped_data": {"count": len(task.skipped), "first": list(task.skipped[:20])},
    }
    if config.on_nan == "skip" or done.skipped:
        metrics["skipped_steps"] = done.skipped
    return metrics | score(trainer, task, config) | {"history": keeper.records}
