"""One domain-adaptation experiment, framework-free: the same weights, batches, λ and learning rates for any backend."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

import grl
from grl.architecture import Architecture, initial_weights
from grl.batches import batches, fingerprint, stream
from grl.checkpoint import CheckpointError, check_weights, load_weights
from grl.config import Config, ConfigError
from grl.datasets import DataError, Task, load_path, load_task
from grl.faults import FILES, Fault, FaultError, StoppedError, save_fault
from grl.log import Log
from grl.loop import run_steps
from grl.parity import DomainGradientReport
from grl.processes import ALONE, Processes, ProcessLostError, launched
from grl.result import Result, Snapshot, Update, look, prepare_directory, save
from grl.resume import Checkpoint, Done, check_state, load_checkpoint, remove_checkpoint, save_checkpoint
from grl.scores import score

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "FaultError",
    "ProcessLostError",
    "Processes",
    "Result",
    "Snapshot",
    "StoppedError",
    "Update",
    "batches",
    "build_trainer",
    "join",
    "load_checkpoint",
    "load_data",
    "load_weights",
    "prepare_directory",
    "report_gradients",
    "save",
    "train",
    "versions",
]

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
        resume: where to go on, from `load_checkpoint`: then with its settings, but for backend, device and on_nan.
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
        raise ConfigError(
            f"checkpoint_every: got {config.checkpoint_every} without `out`; accepted is both, or neither."
        )
    with processes.agree(ConfigError, CheckpointError, DataError):
        task = load_data(config) if task is None else task
        trainer = build_trainer(task, config, processes)
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
        **({"skipped_steps": done.skipped} if config.on_nan == "skip" else {}),
        **score(trainer, task, config),
        "history": history,
    }
    return Result(config, task, metrics, trainer.weights(), before, look(trainer, task))


@contextmanager
def join(config: Config) -> Iterator[Processes]:
    """Join the other processes of a run, if the environment says that there are any; leave them at the end.

    Args:
        config: the settings, which are the same in all but for paths; backend, device and timeout are read.

    Yields:
        The processes, to give to `train`; a process on its own gets `ALONE`.

    Raises:
        ConfigError: the environment is another framework's, is not complete, or the settings differ.
        ProcessLostError: another process does not come; or one has ended, or keeps this one waiting, in the block.
        ImportError: the backend is not installed.

    Example:
        >>> with join(Config(backend="torch")) as processes:
        ...     processes.index, processes.count
        (0, 1)
    """
    framework, _, count = launched()
    if framework is None:
        yield ALONE
        return
    if framework != config.backend:
        how = {"torch": "torchrun", "jax": "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or srun"}
        raise ConfigError(
            f"backend: got {config.backend!r} in one of {count} processes that are started for {framework!r}; accepted"
            f" is {framework!r}, or a start by {how[config.backend]}."
        )
    with _backend(config, "distributed").join(config) as processes:
        processes.check_same("settings", repr(replace(config, data=None, start=_digest(config.start))))
        yield processes


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


def build_trainer(task: Task, config: Config, processes: Processes = ALONE) -> Any:
    """Return the backend's `Trainer` at the weights that the run starts from.

    Args:
        task: the data.
        config: the settings.
        processes: those that train together.

    Returns:
        A `grl.torch_impl.training.Trainer`, or JAX's.

    Raises:
        ConfigError, CheckpointError, ImportError: as `train` does.
    """
    if config.method == "target" and task.y_target is None:
        raise ConfigError(f"{task.name}: the method 'target' trains on labelled target data, and there is no y_target.")
    architecture = _architecture(task, config)
    weights = initial_weights(architecture, config.seed)
    if config.start is not None:
        expected, weights = weights, load_weights(config.start)
        check_weights(config.start, weights, expected)
    try:
        return _backend(config).Trainer(architecture, config, weights, processes)
    except LookupError as error:  # the one that a backend raises for a device it does not find
        raise ConfigError(str(error.args[0])) from error


def _architecture(task: Task, config: Config) -> Architecture:
    sizes = config.channels, config.hidden, config.label_hidden, config.domain_hidden
    try:
        return Architecture(task.sample_shape, task.num_classes, *sizes)
    except ValueError as error:
        raise ConfigError(f"{task.name}: {error}") from error


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
    state = {} if resume is None else trainer.state()  # all processes put it together
    writes = out if processes.index == 0 else None
    with ExitStack() as opened:
        with processes.agree(ConfigError, CheckpointError):
            if resume is not None:
                check_state(resume, state, data)
                trainer.load_state(resume.state)
                done, history = resume.done, resume.history
            elif writes is not None:
                _clear(writes)
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
            with processes.agree(ConfigError):
                if writes is not None:
                    save_fault(_of_all(error.fault, task, config, processes), writes)
            raise FaultError(error.fault, out) from None
    return done, log.records


def _of_all(fault: Fault, task: Task, config: Config, processes: Processes) -> Fault:
    """Return a fault with the whole batch, and what the reversal does to it, where a process has seen its part."""
    if processes.count == 1:
        return fault
    batch = next(batches(task, config, fault.step - 1))
    alone = _backend(config).Trainer(_architecture(task, config), config, fault.weights)
    report = alone.report_gradients(*batch, fault.coeff) if config.method == "dann" else None
    return replace(fault, batch=batch, report=report)


def _is_due(step: int, config: Config) -> bool:
    every = config.checkpoint_every
    return every is not None and (step % every == 0 or step == config.steps)


def _clear(out: Folder) -> None:
    """Remove what an earlier run has left of what this one may not write."""
    remove_checkpoint(out)
    for name in FILES:
        (Path(out) / name).unlink(missing_ok=True)


def _backend(config: Config, room: str = "training") -> Any:
    extra = config.backend
    try:
        return importlib.import_module(f"grl.{extra}_impl.{room}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "jax", "jaxlib", "flax", "optax"):
            raise
        raise ImportError(f'the backend {extra!r} needs {error.name}: pip install "grl[{extra}]"') from error


def versions(config: Config) -> dict[str, str]:
    """Return the versions of the packages that the figures of a run depend on."""
    own = {"grl": grl.__version__, "python": platform.python_version(), "numpy": np.__version__}
    return {**own, **_backend(config).versions()}


def _digest(path: str | None) -> str | None:
    try:
        return None if path is None else sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None  # refused where it is loaded
