"""What an experiment asks of a backend: a model in training that takes and returns NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np

from grl.arrays import Array, Weights
from grl.datasets import Samples
from grl.diagnosis.gradient_report import DomainGradientReport
from grl.experiment.architecture import Architecture
from grl.experiment.config import Config
from grl.experiment.processes import ALONE, Processes

__all__ = [
    "BLOCK",
    "Backend",
    "Batch",
    "BuildTrainer",
    "Prediction",
    "ProcessesOfBackend",
    "StepRecords",
    "Trainer",
    "predict",
    "predictions",
]

BLOCK = 500
"""The number of samples that are predicted at once. It bounds the memory that scores and pictures take."""


class Batch(NamedTuple):
    """The samples of one step.

    Args:
        x: labelled inputs (B, ...).
        y: their labels (B,).
        x_target: target inputs (B, ...); (0, ...) unless the method is "dann".
    """

    x: Array
    y: Array
    x_target: Array


class StepRecords(NamedTuple):
    """The figures of k steps over the whole batch, each (k,) and from before the update.

    Args:
        label_loss: the mean cross entropy.
        domain_loss: the mean binary cross entropy; NaN without adaptation.
        accuracy: the share of correct classes in the labelled batch.
    """

    label_loss: Array
    domain_loss: Array
    accuracy: Array


class Prediction(NamedTuple):
    """The outputs of a model in evaluation mode.

    Args:
        features: (N, D).
        class_logits: (N, num_classes).
        domain_logits: (N,).
    """

    features: Array
    class_logits: Array
    domain_logits: Array


class Trainer(Protocol):
    """A model in training. All processes of a run call every method together."""

    @property
    def processes(self) -> Processes:
        """The processes that train together."""

    @property
    def devices(self) -> int:
        """The number of devices that share a batch, over all processes."""

    def run(self, x: Array, y: Array, x_target: Array, coeffs: Array, rates: Array) -> StepRecords:
        """Train for k steps.

        Args:
            x: (k, B, ...) labelled inputs. Each of several processes passes its share of every batch.
            y: (k, B) their labels.
            x_target: (k, B, ...) target inputs; ignored unless the method is "dann".
            coeffs: (k,) λ of each step.
            rates: (k, 2) learning rates of the feature extractor and of the classifiers.
        """

    def report_gradients(self, x: Array, y: Array, x_target: Array, coeff: float) -> DomainGradientReport:
        """Report whether the reversal works in this model, with λ = coeff, on one batch. The model does not change."""

    def predict(self, x: Array) -> Prediction:
        """Return the outputs for inputs (N, ...) in evaluation mode, computed at once: N is at most about `BLOCK`."""

    def weights(self) -> Weights:
        """Return the current weights by their PyTorch names, each a contiguous copy."""

    def state(self) -> Weights:
        """Return a copy of every array that a step changes.

        These are the weights (`model/NAME`), the optimiser's moments (`exp_avg/NAME`, …) and Adam's `step`; see
        `grl.experiment.checkpoint_checks.state_shapes`.
        """

    def load_state(self, state: Weights) -> None:
        """Continue from a state of the same network and optimiser, from either backend.

        Raises:
            CheckpointError: a name is missing or unknown, or a shape differs.
        """

    def mark(self) -> None:
        """Remember the present state, on the device, for `rewind`. A later mark replaces it."""

    def rewind(self) -> None:
        """Return to the state at the last `mark`."""

    def is_finite(self) -> bool:
        """Return whether all weights and statistics are finite."""


class BuildTrainer(Protocol):
    """The class of a trainer, as a function."""

    def __call__(
        self, architecture: Architecture, config: Config, weights: Weights, processes: Processes = ALONE
    ) -> Trainer:
        """Return a trainer.

        Args:
            architecture: the network.
            config: the run's settings; device, dtype, method, sharding and the optimiser's are read.
            weights: the initial weights, by their PyTorch names.
            processes: the processes that train together.

        Raises:
            ConfigError: there is no such device, or the batch has no equal shares for the devices.
            CheckpointError: a weight is missing or unknown, or its shape differs.
        """


class Backend(Protocol):
    """The module of a backend that trains."""

    @property
    def Trainer(self) -> BuildTrainer:  # noqa: N802  # the name of a class
        """The backend's trainer."""

    @property
    def versions(self) -> Callable[[], dict[str, str]]:
        """A function that returns the versions of the packages that the figures depend on."""


class ProcessesOfBackend(Protocol):
    """The module of a backend through which a process joins the others of its run."""

    @property
    def join(self) -> Callable[[Config], AbstractContextManager[Processes]]:
        """A function that joins the processes, and leaves them at the end of the block."""


def predictions(trainer: Trainer, x: Array | Samples) -> Iterator[Prediction]:
    """Yield the outputs for inputs (N, ...), `BLOCK` samples at a time."""
    for start in range(0, len(x), BLOCK):
        yield trainer.predict(x[start : start + BLOCK])


def predict(trainer: Trainer, x: Array | Samples) -> Prediction:
    """Return the outputs for inputs (N, ...), with the memory of one block besides them."""
    blocks = list(predictions(trainer, x))
    features, class_logits, domain_logits = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    return Prediction(features, class_logits, domain_logits)
