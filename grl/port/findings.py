"""What the comparisons found: a row for each array, the first divergence, and how far two trainings are apart."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from grl.port.causes.cause import Cause
from grl.port.runs.recording import Key

__all__ = ["Divergence", "Findings", "Gaps", "Row", "TrainingFindings", "valid"]


@dataclass(frozen=True)
class Row:
    """One array on both sides.

    Args:
        kind: "activation", "gradient", "update" (what the optimiser's step adds to a parameter) or "statistic".
        key: its name in PyTorch, and for a layer the number of the call.
        where: its name, or both names if they differ.
        absolute: the largest difference in the models' own precision.
        relative: the same, relative to `scale`.
        ulp: the same, in units in the last place.
        rounding: the larger distance of the two models from their own float64 runs.
        scale: the largest number of the array, on either side and in either precision.
        real: the largest difference in float64.
        agrees: whether rounding explains `real`.
        allowed: the largest difference in float64 that rounding explains.
    """

    kind: str
    key: Key
    where: str
    absolute: float
    relative: float
    ulp: float
    rounding: float
    scale: float
    real: float
    agrees: bool
    allowed: float


@dataclass(frozen=True)
class Divergence:
    """The first place where the two models diverge.

    Args:
        where: the layer or the parameter, with both names if they differ; "a → b" for operations between two layers.
        kind: "activation", "gradient" (also for the optimiser's step) or "statistic".
        difference: the largest absolute difference, in float64.
        causes: the likeliest cause first; empty if no experiment explains the difference.
        in_update: whether the optimiser's step differs while the gradient agrees.
        in_range: whether the two agree in float64, but only one side is finite in the models' own precision.
    """

    where: str
    kind: str
    difference: float
    causes: tuple[Cause, ...]
    in_update: bool = False
    in_range: bool = False

    def __str__(self) -> str:
        what = "optimiser's step" if self.in_update else self.kind
        place = f"the {what} differs first at {self.where}"
        if self.in_range and not math.isinf(self.difference):
            return f"{place}: in the models' own precision only one side is finite."
        size = f"by {self.difference:.3g} in float64"
        if math.isinf(self.difference):
            size = "in its shape, or in which of its numbers are infinite or NaN"
        why = " ".join(cause.sentence for cause in self.causes) or "No experiment explains it."
        return f"{place}, {size}. {why}"


@dataclass(frozen=True)
class Findings:
    """The content of a `ParityReport`, whose arguments are the same."""

    rows: tuple[Row, ...]
    first_divergence: Divergence | None
    notes: tuple[str, ...]
    unmatched_torch: tuple[str, ...]
    unmatched_nnx: tuple[str, ...]
    frozen: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing differs by more than rounding."""
        return self.first_divergence is None

    def __str__(self) -> str:
        if self.first_divergence is not None:
            words = str(self.first_divergence)
        else:
            words = f"no divergence: {len(self.rows)} arrays differ by no more than rounding."
        return f"{words} {self.uncompared}".rstrip()

    @property
    def uncompared(self) -> str:
        """What was not compared, in words; "" if everything was."""
        reasons = (
            (self.unmatched_torch, "of the PyTorch model without a counterpart"),
            (self.unmatched_nnx, "of the nnx model without a counterpart"),
            (self.frozen, "with a gradient on one side alone"),
        )
        phrases = [f"{', '.join(names)} ({reason})" for names, reason in reasons if names]
        return f"Not compared: {'; '.join(phrases)}." if phrases else ""

    def to_dict(self) -> dict[str, object]:
        """Return all of it as JSON holds it; numbers that are not finite become None."""
        data: dict[str, object] = asdict(self) | {"agrees": self.agrees}
        if self.first_divergence is not None:
            causes = {"causes": _causes(self.first_divergence.causes)}
            data["first_divergence"] = asdict(self.first_divergence) | causes
        return {key: valid(value) for key, value in data.items()}


@dataclass(frozen=True)
class Gaps:
    """How far two trainings are apart after each step: the norm of the difference, relative to the norm.

    Args:
        single: PyTorch and JAX, each in its model's own precision.
        double: PyTorch and JAX in float64.
        rounding: a model in its own precision and in float64, the larger gap of both frameworks: the growth of
            float32's rounding.
        chaos: PyTorch in float64, and the same from weights moved by one unit in the last place: the growth of
            float64's rounding.
    """

    single: list[float]
    double: list[float]
    rounding: list[float]
    chaos: list[float]


@dataclass(frozen=True)
class TrainingFindings:
    """The content of a `TrainingReport`, whose arguments are the same."""

    steps: int
    bug_step: int | None
    causes: tuple[Cause, ...]
    reason: str
    losses: dict[str, list[float]]
    gaps: dict[str, Gaps]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether rounding explains every gap."""
        return self.bug_step is None

    @property
    def verdict(self) -> str:
        """Either "rounding" or "bug from step k"."""
        return "rounding" if self.bug_step is None else f"bug from step {self.bug_step}"

    @property
    def growth(self) -> float:
        """The factor by which the gap of the parameters grows in a step, on average, in the models' own precision."""
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

    def to_dict(self) -> dict[str, object]:
        """Return all of it as JSON holds it; numbers that are not finite become None."""
        data: dict[str, object] = asdict(self)
        data |= {"verdict": self.verdict, "agrees": self.agrees, "causes": _causes(self.causes)}
        return {key: valid(value) for key, value in data.items()}


def _causes(causes: tuple[Cause, ...]) -> list[dict[str, str]]:
    return [{"identifier": str(cause), "sentence": cause.sentence} for cause in causes]


def valid(value: object) -> object:
    """Return a value as JSON can hold it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: valid(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [valid(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
