"""What a comparison of two trainings found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np

from grl.port.causes.cause import Cause
from grl.port.report import valid

__all__ = ["Gaps", "TrainingReport"]


@dataclass(frozen=True)
class Gaps:
    """How far two trainings are apart after each step: the norm of the difference, relative to the norm.

    Args:
        single: PyTorch and JAX, as the models are.
        double: PyTorch and JAX in float64.
        rounding: the models as they are and in float64, the larger of both frameworks: what rounding has grown to.
        chaos: PyTorch in float64, and the same from weights moved by an ULP: what rounding grows to in float64.
    """

    single: list[float]
    double: list[float]
    rounding: list[float]
    chaos: list[float]


@dataclass(frozen=True)
class TrainingReport:
    """What `compare_training` found; `str` of it is a sentence.

    Args:
        steps: how many there were.
        bug_step: the step, from 1, after which the two are apart by more than rounding; None if they never are.
        causes: of that, likeliest first.
        reason: the first divergence in that step, in words.
        losses: by "torch", "jax", "torch float64" and "jax float64", of each step before its update.
        gaps: by "losses", "parameters" and "statistics".
        notes: what was taken for granted.
    """

    steps: int
    bug_step: int | None
    causes: tuple[Cause, ...]
    reason: str
    losses: dict[str, list[float]]
    gaps: dict[str, Gaps]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether all that parts the two is rounding."""
        return self.bug_step is None

    @property
    def verdict(self) -> str:
        """Either "rounding" or "bug from step k"."""
        return "rounding" if self.bug_step is None else f"bug from step {self.bug_step}"

    @property
    def growth(self) -> float:
        """By which factor the parameters of the models as they are part in a step, on average; 1 if they do not."""
        gaps = np.array([gap for gap in self.gaps["parameters"].single if 0 < gap < np.inf])
        return float((gaps[-1] / gaps[0]) ** (1 / (len(gaps) - 1))) if len(gaps) > 1 else 1.0

    def __str__(self) -> str:
        gaps = self.gaps["parameters"]
        apart = f"after {self.steps} steps the parameters are {gaps.single[-1]:.2g} apart"
        if self.bug_step is None:
            return (
                f"rounding: {apart}, of which float32 explains {gaps.rounding[-1]:.2g} (in float64 they are "
                f"{gaps.double[-1]:.2g} apart)."
            )
        return (
            f"{self.verdict}: {apart}, and {gaps.double[-1]:.2g} in float64, where rounding explains "
            f"{gaps.chaos[-1]:.2g}. {self.reason}"
        )

    def show(self) -> None:
        """Print a table of a few steps and the sentence; needs rich."""
        from rich.console import Console

        from grl.port.pictures import training_table

        console = Console(highlight=False)
        console.print(training_table(self))
        for line in (*self.notes, str(self)):
            console.print(f"{line[0].upper()}{line[1:].removesuffix('.')}.", markup=False)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write all of it to a JSON file; numbers that are not finite become null."""
        causes = [{"identifier": str(cause), "sentence": cause.sentence} for cause in self.causes]
        data: dict[str, Any] = asdict(self) | {"verdict": self.verdict, "agrees": self.agrees, "causes": causes}
        with open(fspath(path), "w", encoding="utf-8") as file:
            json.dump(valid(data), file, indent=1)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw how far the trainings are apart by step, with the growth of rounding; needs matplotlib.

        Raises:
            WriteError: the file cannot be written.
        """
        from grl.port.pictures import draw_training

        draw_training(self, path)
