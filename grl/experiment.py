"""One domain-adaptation experiment, framework-free: the same weights, batches, λ and learning rates for any backend."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import grl
from grl.architecture import Architecture, initial_weights
from grl.checkpoint import CheckpointError, check_weights, load_weights
from grl.config import Config, ConfigError
from grl.datasets import Samples, Task, load_path, load_task
from grl.datasets.ahead import ahead
from grl.faults import FILES, FaultError, StoppedError, save_fault
from grl.log import Log
from grl.loop import CHUNK, run_steps
from grl.parity import DomainGradientReport
from grl.result import Result, Snapshot, Update, look, prepare_directory, save
from grl.resume import Checkpoint, Done, check_state, load_checkpoint, remove_checkpoint, save_checkpoint
from grl.scores import score

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "FaultError",
    "Result",
    "Snapshot",
    "StoppedError",
    "Update",
    "batches",
    "build_trainer",
    "load_checkpoint",
    "load_data",
    "load_weights",
    "prepare_directory",
    "report_gradients",
    "save",
    "train",
    "versions",
]

Array = NDArray[Any]
Folder = str | PathLike[str]


def train(
    config: Config,
    *,
    task: Task | None = None,
    progress: Callable[[Update], None] | None = None,
    out: Folder | None = None,
    resume: Checkpoint | None = None,
    stop: Callable[[], bool] | None = None,
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

    Returns:
        The metrics, the weights and what a picture needs. The scores are the last step's.

    Raises:
        ConfigError: the data do not fit the method or the network, there is no such device, or a file cannot be
            written.
        CheckpointError: the weights or the checkpoint to start from cannot be used, or none can be written.
        DataError: the data cannot be used.
        FaultError: a loss is not finite, and the settings do not say to go on; `out` has nan-report.json.
        StoppedError: `stop` has said so.
        ImportError: the backend is not installed; the message names the extra that brings it.
    """
    if config.checkpoint_every is not None and out is None:
        raise ConfigError(
            f"checkpoint_every: got {config.checkpoint_every} without `out`; accepted is both, or neither."
        )
    task = load_data(config) if task is None else task
    trainer = build_trainer(task, config)
    before = look(trainer, task)
    done, history = _run(trainer, task, config, out, resume, progress, stop)
    metrics = {
        "backend": config.backend,
        "versions": versions(config),
        "device": config.device,
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


def build_trainer(task: Task, config: Config) -> Any:
    """Return the backend's `Trainer` at the weights that the run starts from.

    Args:
        task: the data.
        config: the settings.

    Returns:
        A `grl.torch_impl.training.Trainer`, or JAX's.

    Raises:
        ConfigError, CheckpointError, ImportError: as `train` does.
    """
    if config.method == "target" and task.y_target is None:
        raise ConfigError(f"{task.name}: the method 'target' trains on labelled target data, and there is no y_target.")
    try:
        architecture = Architecture(
            task.sample_shape,
            task.num_classes,
            config.channels,
            config.hidden,
            config.label_hidden,
            config.domain_hidden,
        )
    except ValueError as error:
        raise ConfigError(f"{task.name}: {error}") from error
    weights = initial_weights(architecture, config.seed)
    if config.start is not None:
        expected, weights = weights, load_weights(config.start)
        check_weights(config.start, weights, expected)
    try:
        return _backend(config).Trainer(architecture, config, weights)
    except LookupError as error:  # the one that a backend raises for a device it does not find
        raise ConfigError(str(error.args[0])) from error


def batches(task: Task, config: Config, start: int = 0) -> Iterator[tuple[Array, Array, Array]]:
    """Yield the endless batches of a run: the same for both backends, drawn with NumPy from the seed.

    Each domain runs through shuffles of its own, one after the other, so the shorter one cycles.

    Args:
        task: the data.
        config: the settings; method, batch size and seed are read.
        start: the step of the first one. Those before it are drawn again, but not fetched: 10 ns a sample, which is
            less than a thousandth of what training on it took, and needs no more state than the step's number.

    Yields:
        labelled inputs (B, ...), their labels (B,), and target inputs (B, ...), of which there are none (0, ...) unless
        the method is "dann".
    """
    x, y = (task.x_target, task.y_target) if config.method == "target" else (task.x_source, task.y_source)
    assert y is not None
    labelled = _shuffles(len(x), config.batch_size, [config.seed, 1], start)
    unlabelled = _shuffles(len(task.x_target), config.batch_size, [config.seed, 2], start)
    for chosen, of_target in zip(labelled, unlabelled, strict=True):
        yield x[chosen], y[chosen], task.x_target[of_target if config.method == "dann" else slice(0)]


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


def _run(
    trainer: Any,
    task: Task,
    config: Config,
    out: Folder | None,
    resume: Checkpoint | None,
    progress: Callable[[Update], None] | None,
    stop: Callable[[], bool] | None,
) -> tuple[Done, list[dict[str, Any]]]:
    """Run the steps that are left; return how far the run is then, and its history."""
    done, data = Done(), _fingerprint(task, config)
    history: Sequence[dict[str, Any]] = ()
    if resume is not None:
        check_state(resume, trainer.state(), data)
        trainer.load_state(resume.state)
        done, history = resume.done, resume.history
    elif out is not None:
        _clear(out)
    saved = done.step or None
    with Log(out, history, config.tensorboard) as log:
        try:
            for chunk in run_steps(trainer, _stream(task, config, done.step), config, done):
                done = chunk.done
                log.append([r for r in chunk.records if r["step"] % config.log_every == 0 or r["step"] == config.steps])
                asked = stop is not None and stop()
                if out is not None and (asked or _is_due(done.step, config)):
                    log.sync()
                    state = trainer.state()
                    kept = Checkpoint(config, done, data, versions(config), state, tuple(log.records))
                    save_checkpoint(out, kept, log.digest)
                    saved = done.step
                if progress is not None:
                    accuracy = chunk.accuracy
                    progress(
                        Update(**chunk.records[-1], steps=config.steps, source_accuracy=accuracy, checkpoint=saved)
                    )
                if asked:
                    raise StoppedError(done.step, config.steps, out)
        except FaultError as error:
            if out is not None:
                save_fault(error.fault, out)
                raise FaultError(error.fault, out) from None
            raise
    return done, log.records


def _stream(task: Task, config: Config, start: int) -> Iterator[tuple[Array, Array, Array]]:
    """The batches of the steps from `start` on, read ahead where they come from files: a thread costs arrays more."""
    stream = islice(batches(task, config, start), config.steps - start)
    return ahead(stream, CHUNK) if isinstance(task.x_source, Samples) else stream


def _is_due(step: int, config: Config) -> bool:
    every = config.checkpoint_every
    return every is not None and (step % every == 0 or step == config.steps)


def _fingerprint(task: Task, config: Config) -> dict[str, Any]:
    """What a checkpoint knows its data by: sizes, and the first batch, which is of any part of them."""
    digest = sha256()
    for array in next(batches(task, config)):
        digest.update(np.ascontiguousarray(array).tobytes())
    sizes = {"source": len(task.x_source), "target": len(task.x_target), "sample_shape": [*task.sample_shape]}
    return {**sizes, "num_classes": task.num_classes, "first_batch_sha256": digest.hexdigest()}


def _clear(out: Folder) -> None:
    """Remove what an earlier run has left of what this one may not write."""
    remove_checkpoint(out)
    for name in FILES:
        (Path(out) / name).unlink(missing_ok=True)


def _backend(config: Config) -> Any:
    extra = config.backend
    try:
        return importlib.import_module(f"grl.{extra}_impl.training")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "jax", "jaxlib", "flax", "optax"):
            raise
        raise ImportError(f'the backend {extra!r} needs {error.name}: pip install "grl[{extra}]"') from error


def versions(config: Config) -> dict[str, str]:
    """Return the versions of the packages that the figures of a run depend on."""
    own = {"grl": grl.__version__, "python": platform.python_version(), "numpy": np.__version__}
    return {**own, **_backend(config).versions()}
