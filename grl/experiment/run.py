"""One domain-adaptation experiment, framework-free: the same weights, batches, λ and learning rates for any backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from grl.datasets import DataError, Task, load_path, load_task
from grl.diagnosis.gradient_report import DomainGradientReport
from grl.experiment.backend import build_architecture, build_trainer, import_backend, versions
from grl.experiment.batching import batches, fingerprint, stream
from grl.experiment.checkpoint import (
    Checkpoint,
    Done,
    check_network,
    check_state,
    remove_checkpoint,
    save_checkpoint,
)
from grl.experiment.config import Config, ConfigError
from grl.experiment.faults import FILES, Fault, FaultError, StoppedError, save_fault
from grl.experiment.files import EVENTS
from grl.experiment.log import Log
from grl.experiment.loop import run_steps
from grl.experiment.processes import ALONE, Processes
from grl.experiment.result import Result, Update, look
from grl.experiment.scores import score
from grl.weights_file import CheckpointError

__all__ = ["load_data", "report_gradients", "train"]

Folder = str | PathLike[str]


def train(
    config: Config,
    *,
    task: Task | None = None,
    progress: Callable[[Update], None] | None = None,
    out: Folder | None = None,
    resume: Checkpoint | None = None,
    stop: Callable[[], bool] | None = None,
    processes: Processes = ALONE,
) -> Result:
    """Run an experiment from its seed, or from a checkpoint, to its scores.

    `source-only` trains on the labelled source and never sees the target; `dann` adds the domain classifier behind the
    gradient reversal; `target` trains on the labelled target, an upper bound. Where there is no adaptation, the domain
    classifier stays as it was drawn and its loss and accuracy are None.

    Args:
        config: the settings.
        task: the data; by default what the settings name.
        progress: called every few steps.
        out: a directory that is there, for what is written while the run goes on: metrics.jsonl, event files and
            checkpoints. What an earlier run has left of these there goes.
        resume: where to go on, from `load_checkpoint`: then with its settings, but for backend, device and on_nan. The
            file that its run has started from is not read again; `before` is then the model at the checkpoint.
        stop: asked every few steps whether to end the run, with a checkpoint.
        processes: those that train together, each with the same settings (see `join`).

    Returns:
        The metrics, the weights and what a picture needs; in each process the same. The scores are the last step's.

    Raises:
        ConfigError: the data do not fit the method or the network, there is no such device, or a file cannot be
            written.
        CheckpointError: the weights or the checkpoint to start from cannot be used, or none can be written.
        DataError: the data cannot be used.
        FaultError: a loss is not finite, and the settings do not say to go on; `out` has nan-report.json.
        StoppedError: `stop` has said so.
        ImportError: the backend is not installed; the message names the extra that brings it.
        ProcessLostError: another process has ended, or has kept this one waiting for too long.
    """
    if config.checkpoint_every is not None and out is None:
        raise ConfigError(f"checkpoint_every: got {config.checkpoint_every} without `out`; expected both, or neither.")
    with processes.agree(ConfigError, CheckpointError, DataError, ImportError):
        task = load_data(config) if task is None else task
        weights = None
        if resume is not None:
            check_network(resume, build_architecture(task, config).shapes())
            weights = None if config.start is None else resume.weights()
        trainer = build_trainer(task, config, processes, weights)
    before = look(trainer, task)
    done, history = _run(trainer, task, config, out, resume, progress, stop, processes)
    metrics = {
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
        **({"skipped_steps": done.skipped} if config.on_nan == "skip" or done.skipped else {}),
        **score(trainer, task, config),
        "history": history,
    }
    return Result(config, task, metrics, trainer.weights(), before, look(trainer, task))


def report_gradients(config: Config, *, task: Task | None = None) -> DomainGradientReport:
    """Return whether the reversal works in the model of a run: on its first batch, at the λ that its schedule ends at.

    Args:
        config: the settings; the method is "dann".
        task: the data; by default what the settings name.

    Returns:
        The verdict with its figures (see `grl.parity.domain_gradient_report`).

    Raises:
        ConfigError, CheckpointError, DataError, ImportError: as `train` does.
    """
    task = load_data(config) if task is None else task
    trainer = build_trainer(task, config)
    return trainer.report_gradients(*next(batches(task, config)), config.coeff(config.steps))  # type: ignore[no-any-return]


def load_data(config: Config, follow: Callable[[int], None] | None = None) -> Task:
    """Return the data that the settings name; raises as `load_task` and `load_path` do.

    Args:
        config: the settings.
        follow: called now and then with the number of bytes of the user's own data that have been read through.
    """
    if config.data is None:
        return load_task(config.task)
    return load_path(config.data, memory=config.data_memory, on_bad_data=config.on_bad_data, follow=follow)


def _run(
    trainer: Any,
    task: Task,
    config: Config,
    out: Folder | None,
    resume: Checkpoint | None,
    progress: Callable[[Update], None] | None,
    stop: Callable[[], bool] | None,
    processes: Processes,
) -> tuple[Done, list[dict[str, Any]]]:
    """Run the steps that are left; return how far the run is then, and its history."""
    done, data = Done(), fingerprint(task, config)
    history: Sequence[dict[str, Any]] = ()
    processes.check_same("data", str(data))
    processes.check_same(
        "weights to go on from", "none" if resume is None else f"step {resume.done.step}: {resume.digest()}"
    )
    state = {} if resume is None else trainer.state()  # all processes put it together
    writes = out if processes.index == 0 else None
    with ExitStack() as opened:
        with processes.agree(ConfigError, CheckpointError, ImportError):
            if writes is not None and config.tensorboard:
                import_module("grl.experiment.events")  # while nothing is gone yet: TensorBoard may not be there
            if resume is not None:
                check_state(resume, state, data)
                trainer.load_state(resume.state)
                done, history = resume.done, resume.history
            if writes is not None:
                _clear(writes, keep_run=resume is not None and resume.is_in(writes))
            log = opened.enter_context(Log(writes, history, config.tensorboard))
        saved = done.step or None
        try:
            for chunk in run_steps(trainer, stream(task, config, done.step, processes), config, done):
                done = chunk.done
                asked = any(processes.exchange("stop" if stop is not None and stop() else ""))
                due = out is not None and (asked or _is_due(done.step, config))
                state = trainer.state() if due else {}
                with processes.agree(ConfigError, CheckpointError):
                    every = config.log_every
                    log.append([r for r in chunk.records if r["step"] % every == 0 or r["step"] == config.steps])
                    if due and writes is not None:
                        log.sync()
                        kept = Checkpoint(config, done, data, versions(config), state, tuple(log.records))
                        save_checkpoint(writes, kept, log.digest)
                saved = done.step if due else saved
                if progress is not None:
                    accuracy = chunk.accuracy
                    progress(
                        Update(**chunk.records[-1], steps=config.steps, source_accuracy=accuracy, checkpoint=saved)
                    )
                if asked:
                    raise StoppedError(done.step, config.steps, out)
        except FaultError as error:
            fault = error.fault
            with processes.agree(ConfigError):
                if processes.count > 1:
                    fault = _of_all(fault, task, config)
                if writes is not None:
                    save_fault(fault, writes)
            raise FaultError(fault, out) from None
    return done, log.records


def _of_all(fault: Fault, task: Task, config: Config) -> Fault:
    """Return a fault of several processes with the whole batch, and what the reversal does to it."""
    batch = next(batches(task, config, fault.step - 1))
    alone = import_backend(config).Trainer(build_architecture(task, config), config, fault.weights)
    report = alone.report_gradients(*batch, fault.coeff) if config.method == "dann" else None
    return replace(fault, batch=batch, report=report)


def _is_due(step: int, config: Config) -> bool:
    every = config.checkpoint_every
    return every is not None and (step % every == 0 or step == config.steps)


def _clear(out: Folder, keep_run: bool) -> None:
    """Remove what an earlier run has left of what this one may not write; of the run that goes on, its fault alone."""
    left = [Path(out) / name for name in FILES]
    if not keep_run:
        remove_checkpoint(out)
        left += Path(out).glob(f"{EVENTS}*")
    for path in left:
        path.unlink(missing_ok=True)
