"""One domain-adaptation experiment, framework-free: the same weights, batches, λ and learning rates for any backend."""

from __future__ import annotations

import hashlib
import importlib
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import grl
from grl.architecture import Architecture, initial_weights
from grl.checkpoint import CheckpointError, check_weights, load_weights
from grl.config import Config, ConfigError
from grl.datasets import DataError, Task, load_npz, load_task
from grl.parity import DomainGradientReport
from grl.processes import ALONE, Processes, ProcessLostError, launched
from grl.result import Result, Snapshot, Update, prepare_directory, save
from grl.scores import accuracy, domain_accuracy, proxy_a_distance

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "ProcessLostError",
    "Processes",
    "Result",
    "Snapshot",
    "Update",
    "batches",
    "build_trainer",
    "join",
    "load_data",
    "load_weights",
    "prepare_directory",
    "report_gradients",
    "save",
    "train",
]

Array = NDArray[Any]
_CHUNK = 10  # steps a call of the backend: enough to hide what a call costs, few enough for a progress bar


def train(
    config: Config,
    *,
    task: Task | None = None,
    progress: Callable[[Update], None] | None = None,
    processes: Processes = ALONE,
) -> Result:
    """Run an experiment from its seed to its scores.

    `source-only` trains on the labelled source and never sees the target; `dann` adds the domain classifier behind the
    gradient reversal; `target` trains on the labelled target, an upper bound. Where there is no adaptation, the domain
    classifier stays as it was drawn and its loss and accuracy are None.

    Args:
        config: the settings.
        task: the data; by default what the settings name.
        progress: called every few steps.
        processes: those that train together, each with the same settings (see `join`).

    Returns:
        The metrics, the weights and what a picture needs; in each process the same. The scores are the last step's.

    Raises:
        ConfigError: the data do not fit the method or the network, or there is no such device.
        CheckpointError: the weights to start from cannot be used.
        DataError: the data cannot be used.
        ImportError: the backend is not installed; the message names the extra that brings it.
        ProcessLostError: another process has ended, or has kept this one waiting for too long.
    """
    with processes.agree(ConfigError, CheckpointError, DataError):
        task = load_data(config) if task is None else task
        trainer = build_trainer(task, config, processes)
    before = _look(trainer, task)
    started = time.perf_counter()
    history = list(_loop(trainer, task, config, progress, processes))
    seconds = time.perf_counter() - started
    metrics = {
        "backend": config.backend,
        "versions": _versions(config),
        "device": config.device,
        "devices": trainer.devices,
        "task": task.name,
        "method": config.method,
        "seed": config.seed,
        "steps": config.steps,
        "seconds": round(seconds, 3),
        **_scores(trainer, task, config),
        "history": history,
    }
    return Result(config, task, metrics, trainer.weights(), before, _look(trainer, task))


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


def load_data(config: Config) -> Task:
    """Return the data that the settings name; raises as `load_task` and `load_npz` do."""
    return load_task(config.task) if config.data is None else load_npz(config.data)


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
        return _backend(config).Trainer(architecture, config, weights, processes)
    except LookupError as error:  # the one that a backend raises for a device it does not find
        raise ConfigError(str(error.args[0])) from error


def batches(task: Task, config: Config, processes: Processes = ALONE) -> Iterator[tuple[Array, Array, Array]]:
    """Yield the endless batches of a run: the same for both backends, drawn with NumPy from the seed.

    Each domain runs through shuffles of its own, one after the other, so the shorter one cycles.

    Args:
        task: the data.
        config: the settings; method, batch size and seed are read.
        processes: those that train together: each gets its part of the same batches.

    Yields:
        labelled inputs (B, ...), their labels (B,), and target inputs (B, ...), of which there are none (0, ...) unless
        the method is "dann". B is the batch size, or this process's share of it.
    """
    x, y = (task.x_target, task.y_target) if config.method == "target" else (task.x_source, task.y_source)
    assert y is not None
    labelled = _shuffles(len(x), config.batch_size, [config.seed, 1])
    unlabelled = _shuffles(len(task.x_target), config.batch_size, [config.seed, 2])
    part = processes.part(config.batch_size)
    for chosen, of_target in ((one[part], other[part]) for one, other in zip(labelled, unlabelled, strict=True)):
        yield x[chosen], y[chosen], task.x_target[of_target if config.method == "dann" else slice(0)]


def _shuffles(size: int, batch_size: int, seed: list[int]) -> Iterator[Array]:
    generator = np.random.default_rng(seed)
    waiting = generator.permutation(size)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, generator.permutation(size)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _loop(
    trainer: Any, task: Task, config: Config, progress: Callable[[Update], None] | None, processes: Processes
) -> Iterator[dict[str, Any]]:
    """Train; yield the history."""
    stream = batches(task, config, processes)
    for start in range(0, config.steps, _CHUNK):
        steps = range(start, min(start + _CHUNK, config.steps))
        x, y, x_target = (np.stack(arrays) for arrays in zip(*islice(stream, len(steps)), strict=True))
        coeffs = np.array([config.coeff(step) for step in steps])
        rates = np.array([config.rates(step) for step in steps])
        label_losses, domain_losses, accuracies = trainer.run(x, y, x_target, coeffs, rates)
        for step, label_loss, domain_loss, coeff in zip(steps, label_losses, domain_losses, coeffs, strict=True):
            record: dict[str, Any] = {
                "step": step + 1,
                "label_loss": _finite(label_loss),
                "domain_loss": _finite(domain_loss),
                "coeff": float(coeff),
            }
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                yield record
        if progress is not None:
            progress(Update(steps=config.steps, source_accuracy=float(np.mean(accuracies)), **record))


def _scores(trainer: Any, task: Task, config: Config) -> dict[str, float | None]:
    source_features, source_classes, source_domains = trainer.predict(task.x_source)
    target_features, _, target_domains = trainer.predict(task.x_target)
    target_accuracy = None
    if task.x_test is not None and task.y_test is not None:
        target_accuracy = accuracy(trainer.predict(task.x_test)[1], task.y_test)
    return {
        "source_accuracy": accuracy(source_classes, task.y_source),
        "target_accuracy": target_accuracy,
        "domain_accuracy": domain_accuracy(source_domains, target_domains) if config.method == "dann" else None,
        "proxy_a_distance": proxy_a_distance(source_features, target_features, config.seed),
    }


def _look(trainer: Any, task: Task, largest: int = 500) -> Snapshot:
    x_target, y_target = (task.x_target, task.y_target) if task.x_test is None else (task.x_test, task.y_test)
    boundary = None
    if task.sample_shape == (2,) and task.num_classes == 2:
        points = np.concatenate([task.x_source, x_target])
        margin = 0.1 * np.ptp(points, axis=0)
        across, up = np.linspace(points.min(0) - margin, points.max(0) + margin, 120, dtype=np.float32).T
        grid = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
        logits = trainer.predict(grid)[1].astype(np.float64)
        odds = np.clip(logits[:, 0] - logits[:, 1], -500, 500)
        boundary = (across, up, (1 / (1 + np.exp(odds))).reshape(len(up), len(across)))
    # Evenly spaced: the first ones of a set sorted by class would be of one class.
    of_source, of_target = (
        np.linspace(0, len(x) - 1, min(len(x), largest), dtype=int) for x in (task.x_source, x_target)
    )
    return Snapshot(
        source_features=trainer.predict(task.x_source[of_source])[0],
        target_features=trainer.predict(x_target[of_target])[0],
        source_labels=task.y_source[of_source],
        target_labels=None if y_target is None else y_target[of_target],
        boundary=boundary,
    )


def _backend(config: Config, room: str = "training") -> Any:
    extra = config.backend
    try:
        return importlib.import_module(f"grl.{extra}_impl.{room}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "jax", "jaxlib", "flax", "optax"):
            raise
        raise ImportError(f'the backend {extra!r} needs {error.name}: pip install "grl[{extra}]"') from error


def _versions(config: Config) -> dict[str, str]:
    own = {"grl": grl.__version__, "python": platform.python_version(), "numpy": np.__version__}
    return {**own, **_backend(config).versions()}


def _digest(path: str | None) -> str | None:
    try:
        return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None  # refused where it is loaded


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None  # JSON knows neither NaN nor infinity
