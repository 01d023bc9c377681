"""From the settings to the backend that trains: its modules, its `Trainer`, and the versions of its packages."""

from __future__ import annotations

import importlib
import platform
from typing import Any

import numpy as np

import grl
from grl.arrays import Weights
from grl.datasets import Task
from grl.experiment.architecture import Architecture, initial_weights
from grl.experiment.config import Config, ConfigError
from grl.experiment.processes import ALONE, Processes
from grl.weights_file import check_weights, load_weights

__all__ = ["build_architecture", "build_trainer", "import_backend", "versions"]


def build_trainer(task: Task, config: Config, processes: Processes = ALONE, weights: Weights | None = None) -> Any:
    """Return the backend's `Trainer` at the weights that the run starts from.

    Args:
        task: the data.
        config: the settings.
        processes: those that train together.
        weights: what to start from instead of what the settings say.

    Returns:
        A `grl.experiment.trainers.torch_trainer.Trainer`, or JAX's.

    Raises:
        ConfigError, CheckpointError, ImportError: as `train` does.
    """
    if config.method == "target" and task.y_target is None:
        raise ConfigError(f"{task.name}: the method 'target' trains on labelled target data, and there is no y_target.")
    architecture = build_architecture(task, config)
    if weights is None:
        weights = initial_weights(architecture, config.seed)
        if config.start is not None:
            expected, weights = weights, load_weights(config.start)
            check_weights(config.start, weights, expected)
    try:
        return import_backend(config).Trainer(architecture, config, weights, processes)
    except LookupError as error:  # the one that a backend raises for a device it does not find
        raise ConfigError(str(error.args[0])) from error


def build_architecture(task: Task, config: Config) -> Architecture:
    """Return the network for the data, of the sizes in the settings.

    Raises:
        ConfigError: the images, or the batches of them, are too small for it.
    """
    sizes = config.channels, config.hidden, config.label_hidden, config.domain_hidden
    try:
        architecture = Architecture(task.sample_shape, task.num_classes, *sizes)
    except ValueError as error:
        raise ConfigError(f"{task.name}: {error}") from error
    if config.batch_size == 1 and architecture.is_image and architecture.feature_map == (1, 1):
        raise ConfigError(  # with one value of a channel, it is its own mean: nothing of the image would be left
            f"batch_size: got 1 for {task.name}, whose last feature map is of 1×1; expected an integer from 2, as"
            " batch norm needs more than one value of each channel."
        )
    return architecture


def import_backend(config: Config, room: str = "trainer") -> Any:
    """Return the module of the backend that has this name there.

    Raises:
        ImportError: the backend is not installed; the message names the extra that brings it.
    """
    extra = config.backend
    try:
        return importlib.import_module(f"grl.experiment.trainers.{extra}_{room}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "jax", "jaxlib", "flax", "optax"):
            raise
        raise ImportError(f'the backend {extra!r} needs {error.name}: pip install "grl[{extra}]"') from error


def versions(config: Config) -> dict[str, str]:
    """Return the versions of the packages that the figures of a run depend on."""
    own = {"grl": grl.__version__, "python": platform.python_version(), "numpy": np.__version__}
    return {**own, **import_backend(config).versions()}
