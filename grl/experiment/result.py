"""The results of an experiment: its figures, its weights, the data for pictures, and the files that hold them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from grl.arrays import Weights
from grl.datasets import Task
from grl.experiment.config import Config, ConfigError
from grl.experiment.files import CONFIG, METRICS, WEIGHTS
from grl.experiment.snapshot import Snapshot
from grl.files import replacing
from grl.weights_file import save_weights

__all__ = ["Result", "Update", "prepare_directory", "save"]


@dataclass(frozen=True)
class Update:
    """The argument of a progress callback, every few steps.

    Args:
        step: the number of steps done.
        steps: the total number of steps.
        label_loss: the mean cross entropy of the latest labelled batch; None if it is not finite.
        domain_loss: the mean binary cross entropy over the latest 2·B samples, ln 2 at chance; None without adaptation.
        coeff: λ of the latest step.
        source_accuracy: the share of correct classes in the labelled batches since the last update.
        checkpoint: the step of the newest checkpoint; None if there is none.
    """

    step: int
    steps: int
    label_loss: float | None
    domain_loss: float | None
    coeff: float
    source_accuracy: float
    checkpoint: int | None = None


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        config: its settings.
        task: its data.
        metrics: the content of metrics.json.
        weights: the trained weights, with PyTorch's names and layouts.
        before: the model at its initial weights.
        after: the model at its trained weights.
    """

    config: Config
    task: Task
    metrics: dict[str, Any]
    weights: Weights
    before: Snapshot
    after: Snapshot


def save(result: Result, out: str | PathLike[str]) -> None:
    """Write config.json, metrics.json and model.safetensors, each completely or not at all.

    Args:
        result: a finished run.
        out: the directory; created if it does not exist.

    Raises:
        ConfigError: the directory cannot be written.
    """
    prepare_directory(out)
    try:
        for name, content in ((CONFIG, asdict(result.config)), (METRICS, result.metrics)):
            with replacing(Path(out) / name) as temporary:
                temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        save_weights(Path(out) / WEIGHTS, result.weights)
    except OSError as error:
        raise ConfigError(f"{fspath(out)}: cannot be written: {error.strerror}.") from error


def prepare_directory(out: str | PathLike[str]) -> None:
    """Create a directory, with its parents, and check that a file can be written there.

    Args:
        out: the directory.

    Raises:
        ConfigError: the directory cannot be created or written.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        probe = Path(out) / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{fspath(out)}: cannot be written: {error.strerror}.") from error
