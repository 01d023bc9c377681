"""What a comparison found: a row for each array, the first divergence, and the sentence on it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from typing import Any

from grl.port.causes.cause import Cause
from grl.port.runs.recording import Key

__all__ = ["Divergence", "ParityReport", "Row", "valid"]


@dataclass(frozen=True)
class Row:
    """One array on both sides.

    Args:
        kind: "activation", "gradient", "update" (what the optimiser's step adds to a parameter) or "statistic".
        key: its name in PyTorch, and of a layer which of its calls.
        where: its name; both names where they differ.
        absolute: the largest difference in the models' own precision.
        relative: the same relative to the largest number of the array, on either side and in either precision.
        ulp: the same in units in the last place.
        rounding: what rounding explains of it: how far the one side's numbers or the other's are from float64.
        scale: that number.
        real: the largest difference in float64.
        agrees: whether that is no more than rounding.
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


@dataclass(frozen=True)
class Divergence:
    """The first place where the two models part.

    Args:
        where: the layer or the parameter; both names where they differ; "a → b" for what lies between two layers.
        kind: "activation", "gradient" (also for what an optimiser's step makes of it) or "statistic".
        difference: the largest absolute difference, in float64.
        causes: likeliest first; empty if no experiment explains the difference.
        in_update: whether it is the optimiser's step that differs, and not the gradient itself.
        in_range: whether the two are the same in float64, but one side alone is finite in the models' own precision.
    """

    where: str
    kind: str
    difference: float
    causes: tuple[Cause, ...]
    in_update: bool = False
    in_range: bool = False

    def __str__(self) -> str:
        what = {"activation": "the activation", "gradient": "the gradient", "statistic": "the statistic"}[self.kind]
        if self.in_update:
            what = "the optimiser's step"
        why = " ".join(cause.sentence for cause in self.causes) or "No experiment explains it."
        size = f"by {self.difference:.3g} in float64"
        if math.isinf(self.difference):
            size = "in its shape, or in what of it is infinite or NaN"
        elif self.in_range:
            return f"{what} differs first at {self.where}: in the models' own precision one side alone is finite."
        return f"{what} differs first at {self.where}, {size}. {why}"


@dataclass(frozen=True)
class ParityReport:
    """What `compare` found; `str` of it is a sentence.

    Args:
        rows: activations in the order of execution, with the output and the loss; gradients as the backward pass
            reaches them; what the optimisers add; statistics.
        first_divergence: the first that differs by more than rounding; None if all agree.
        notes: what was taken for granted: the layout of images, dropouts that were switched off.
        unmatched_torch: names of PyTorch's parameters and statistics without a counterpart.
        unmatched_nnx: the same of nnx.
        frozen: names of PyTorch's parameters that take a gradient on one side alone.
    """

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
            return " ".join(filter(None, (str(self.first_divergence), self.uncompared)))
        words = f"no divergence: {len(self.rows)} arrays differ by no more than rounding."
        return " ".join(filter(None, (words, self.uncompared)))

    @property
    def uncompared(self) -> str:
        """What was not compared, in words; "" if everything was."""
        reasons = (
            (self.unmatched_torch, "of the PyTorch model without a counterpart"),
            (self.unmatched_nnx, "of the nnx model without a counterpart"),
            (self.frozen, "with a gradient on one side alone"),
        )
        parts = [f"{', '.join(names)} ({why})" for names, why in reasons if names]
        return f"Not compared: {'; '.join(parts)}." if parts else ""

    def show(self) -> None:
        """Print a table of all arrays and the sentence; needs rich."""
        from rich.console import Console

        from grl.port.pictures import table

        console = Console(highlight=False)
        console.print(table(self))
        sentence = str(self)
        for line in (*self.notes, sentence):
            text = line[0].upper() + line[1:].removesuffix(".") + "."
            console.print(text, markup=False, style="bold" if line is sentence else "")

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write all of it to a JSON file; numbers that are not finite become null."""
        with open(fspath(path), "w", encoding="utf-8") as file:
            json.dump(valid(self.as_data()), file, indent=1)

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        data = asdict(self) | {"agrees": self.agrees}
        if self.first_divergence is not None:
            causes = [{"identifier": str(c), "sentence": c.sentence} for c in self.first_divergence.causes]
            data["first_divergence"] = asdict(self.first_divergence) | {"causes": causes}
        return data

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the differences by depth, on a log scale, with what rounding explains; needs matplotlib.

        Raises:
            WriteError: the file cannot be written.
        """
        from grl.port.pictures import draw_parity

        draw_parity(self, path)


def valid(value: Any) -> Any:
    """Return what JSON can hold: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: valid(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [valid(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
