"""How a run ends before its last step: asked to, or with a loss that is not finite."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from grl.arrays import Array, Weights
from grl.diagnosis.gradient_report import DomainGradientReport
from grl.errors import GrlError
from grl.experiment.config import ConfigError
from grl.files import replacing
from grl.weights_file import save_weights

__all__ = ["FILES", "Fault", "FaultError", "StoppedError", "save_fault"]

FILES = ("nan-batch.npz", "nan-report.json", "nan-weights.safetensors")
"""What is kept of a step whose loss is not finite."""


class StoppedError(GrlError):
    """A run was asked to end. The message is one sentence: where, and how it goes on.

    Args:
        step: the number of steps done.
        steps: the number of steps in all.
        folder: where its checkpoint is, or None.
    """

    def __init__(self, step: int, steps: int, folder: str | PathLike[str] | None) -> None:
        how = "" if folder is None else f", with a checkpoint: grl train --resume {fspath(folder)}"
        super().__init__(f"stopped at step {step} of {steps}{how}")


@dataclass(frozen=True)
class Fault:
    """A step that would have ruined the weights, and the model before it.

    Args:
        step: its number, counted from 1.
        batch: x, y and x_target of the step.
        coeff: λ.
        rates: the learning rates of the feature extractor and of the classifiers.
        label_loss: before the update.
        domain_loss: before the update; NaN without adaptation.
        weights: before the update.
        report: what the reversal does to the gradients of this batch; None without adaptation.
    """

    step: int
    batch: tuple[Array, Array, Array]
    coeff: float
    rates: tuple[float, float]
    label_loss: float
    domain_loss: float
    weights: Weights
    report: DomainGradientReport | None

    def __str__(self) -> str:
        adapts = self.report is not None
        losses = {"label": self.label_loss, **({"domain": self.domain_loss} if adapts else {})}
        wrong = [f"the {name} loss is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
        return f"step {self.step}: {' and '.join(wrong) or 'the losses are finite, but not the weights after it'}"


class FaultError(GrlError):
    """A run has come to a step that would ruin its weights. The message is one sentence.

    Args:
        fault: the step.
        folder: where its files are, or None.
    """

    def __init__(self, fault: Fault, folder: str | PathLike[str] | None = None) -> None:
        self.fault = fault
        kept = (
            "" if folder is None else f"; its batch, gradients and weights are in {fspath(folder)}: {', '.join(FILES)}"
        )
        super().__init__(
            f"{fault}{kept}; try a lower --learning-rate, --clip-norm 1, or --on-nan skip to go on without such steps."
        )


def save_fault(fault: Fault, out: str | PathLike[str]) -> None:
    """Write nan-batch.npz, nan-report.json and nan-weights.safetensors, each whole or not at all.

    Args:
        fault: the step.
        out: the run's directory.

    Raises:
        ConfigError: they cannot be written.
    """
    batch, report, weights = (Path(out) / name for name in FILES)
    x, y, x_target = fault.batch
    content = {
        "step": fault.step,
        "what": str(fault),
        "label_loss": str(fault.label_loss),  # text: JSON knows neither NaN nor infinity
        "domain_loss": None if fault.report is None else str(fault.domain_loss),
        "coeff": fault.coeff,
        "rates": fault.rates,
        "reversal": None if fault.report is None else fault.report.to_dict(),
    }
    try:
        with replacing(batch) as temporary:
            np.savez(temporary, x=x, y=y, x_target=x_target)
        with replacing(report) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        save_weights(weights, fault.weights)
    except OSError as error:
        raise ConfigError(f"{fspath(out)}: cannot be written: {error.strerror}.") from error
