"""How a run ends before its last step: on request, or at a loss that is not finite."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from grl.arrays import Weights
from grl.diagnosis.gradient_report import DomainGradientReport
from grl.errors import GrlError
from grl.experiment.config import ConfigError
from grl.experiment.files import FAULT_BATCH, FAULT_FILES, FAULT_REPORT, FAULT_WEIGHTS
from grl.experiment.trainer import Batch
from grl.files import replacing
from grl.weights_file import save_weights

__all__ = ["Fault", "FaultError", "StoppedError", "save_fault"]


class StoppedError(GrlError):
    """A run ended on request. The message is one sentence: at which step, and how to resume.

    Args:
        step: the number of steps done.
        steps: the total number of steps.
        folder: the directory of its checkpoint, or None.
    """

    def __init__(self, step: int, steps: int, folder: str | PathLike[str] | None) -> None:
        resume = "" if folder is None else f", with a checkpoint: grl train --resume {fspath(folder)}"
        super().__init__(f"stopped at step {step} of {steps}{resume}")


@dataclass(frozen=True)
class Fault:
    """A step that would have ruined the weights, and the model before it.

    Args:
        step: its number, counted from 1.
        batch: the samples of the step.
        coeff: λ.
        rates: the learning rates of the feature extractor and of the classifiers.
        label_loss: the label loss before the update.
        domain_loss: the domain loss before the update; NaN without adaptation.
        weights: the weights before the update.
        report: the effect of the reversal on the gradients of this batch; None without adaptation.
    """

    step: int
    batch: Batch
    coeff: float
    rates: tuple[float, float]
    label_loss: float
    domain_loss: float
    weights: Weights
    report: DomainGradientReport | None

    def __str__(self) -> str:
        losses = {"label": self.label_loss}
        if self.report is not None:
            losses["domain"] = self.domain_loss
        wrong = [f"the {name} loss is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
        return f"step {self.step}: {' and '.join(wrong) or 'the losses are finite, but not the weights after it'}"


class FaultError(GrlError):
    """A run has come to a step that would ruin its weights. The message is one sentence.

    Args:
        fault: the step.
        folder: the directory of its files, or None.
    """

    def __init__(self, fault: Fault, folder: str | PathLike[str] | None = None) -> None:
        self.fault = fault
        files = ""
        if folder is not None:
            files = f"; its batch, gradients and weights are in {fspath(folder)}: {', '.join(FAULT_FILES)}"
        advice = "try a lower --learning-rate, --clip-norm 1, or --on-nan skip to continue without such steps."
        super().__init__(f"{fault}{files}; {advice}")


def save_fault(fault: Fault, out: str | PathLike[str]) -> None:
    """Write nan-batch.npz, nan-report.json and nan-weights.safetensors, each completely or not at all.

    Args:
        fault: the step.
        out: the run's directory.

    Raises:
        ConfigError: the files cannot be written.
    """
    folder = Path(out)
    content = {
        "step": fault.step,
        "what": str(fault),
        "label_loss": str(fault.label_loss),  # text: JSON has neither NaN nor infinity
        "domain_loss": None if fault.report is None else str(fault.domain_loss),
        "coeff": fault.coeff,
        "rates": fault.rates,
        "reversal": None if fault.report is None else fault.report.to_dict(),
    }
    try:
        with replacing(folder / FAULT_BATCH) as temporary:
            np.savez(temporary, x=fault.batch.x, y=fault.batch.y, x_target=fault.batch.x_target)
        with replacing(folder / FAULT_REPORT) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        save_weights(folder / FAULT_WEIGHTS, fault.weights)
    except OSError as error:
        raise ConfigError(f"{fspath(out)}: cannot be written: {error.strerror}.") from error
