"""From the settings to the backend that trains: its modules, its `Trainer`, and the versions of its packages.

Only this file picks a backend by its name. mypy checks here that both backends implement the same protocols.
"""

from __future__ import annotations

import platform

import numpy as np

import grl
from grl.arrays import Weights
from grl.datasets import Task
from grl.experiment.architecture import Architecture, initial_weights
from grl.experiment.config import Config, ConfigError
from grl.experiment.processes import ALONE, Processes
from grl.experiment.trainer import Backend, ProcessesOfBackend, Trainer
from grl.weights_file import check_weights, load_weights

__all__ = ["build_architecture", "build_trainer", "import_backend", "import_processes", "versions"]


def build_trainer(task: Task, config: Config, processes: Processes = ALONE, weights: Weights | None = None) -> Trainer:
    """Return the backend's trainer at the weights that the run starts from.

    Args:
        task: the data.
        config: the settings.
        processes: the processes that train together.
        weights: the weights to start from, instead of those that the settings name.

    Raises:
        ConfigError, CheckpointError, WeightsFileError, ImportError: as `grl.experiment.train` does.
    """
    if config.method == "target" and task.y_target is None:
        raise ConfigError(f"{task.name}: the method 'target' trains on labelled target data, and there is no y_target.")
    architecture = build_architecture(task, config)
    if weights is None:
        weights = initial_weights(architecture, config.seed)
        if config.start is not None:
            expected, weights = weights, load_weights(config.start)
            check_weights(config.start, weights, expected)
    return import_backend(config.backend).Trainer(architecture, config, weights, processes)


def build_architecture(task: Task, config: Config) -> Architecture:
    """Return the network for the data, with the sizes in the settings.

    Raises:
        ConfigError: the images are too small for the network, or the batches are.
    """
    sizes = config.channels, config.hidden, config.label_hidden, config.domain_hidden
    try:
        architecture = Architecture(task.sample_shape, task.num_classes, *sizes)
    except ValueError as error:
        raise ConfigError(f"{task.name}: {error}") from error
    if config.batch_size == 1 and architecture.is_image and architecture.feature_map == (1, 1):
        # A channel with a single value is its own mean: batch norm would remove everything that the image says.
        raise ConfigError(
            f"batch_size: got 1 for {task.name}, whose last feature map is of 1×1; expected an integer from 2, as"
            " batch norm needs more than one value of each channel."
        )
    return architecture


def import_backend(name: str) -> Backend:
    """Return the module of a backend that trains.

    Args:
        name: one of `grl.experiment.config.BACKENDS`.

    Raises:
        ImportError: the backend is not installed; the message names the extra that installs it.
    """
    try:
        if name == "torch":
            from grl.experiment.trainers import torch_trainer

            return torch_trainer
        from grl.experiment.trainers import jax_trainer

        return jax_trainer
    except ModuleNotFoundError as error:
        _refuse_missing(name, error)
        raise


def import_processes(name: str) -> ProcessesOfBackend:
    """Return the module of a backend that joins processes; arguments and errors are those of `import_backend`."""
    try:
        if name == "torch":
            from grl.experiment.trainers import torch_processes

            return torch_processes
        from grl.experiment.trainers import jax_processes

        return jax_processes
    except ModuleNotFoundError as error:
        _refuse_missing(name, error)
        raise


def versions(config: Config) -> dict[str, str]:
    """Return the versions of the packages that the figures of a run depend on, by name.

    Args:
        config: the settings of the run; their backend is imported.
    """
    common = {"grl": grl.__version__, "python": platform.python_version(), "numpy": np.__version__}
    return {**common, **import_backend(config.backend).versions()}


def _refuse_missing(name: str, error: ModuleNotFoundError) -> None:
    """Name the extra that installs a missing package of the backend; leave any other error to the caller."""
    if (error.name or "").partition(".")[0] in ("torch", "jax", "jaxlib", "flax", "optax"):
        raise ImportError(f'the backend {name!r} needs {error.name}: pip install "grl[{name}]"') from error
