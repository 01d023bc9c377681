"""What a run of either model leaves behind: NumPy arrays by the place in the model that they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from grl.arrays import Array

__all__ = ["LOSS", "OUTPUT", "Array", "Dropout", "Key", "Recording"]


Key = tuple[str, int]
"""A layer's name, and which of its calls it was: a layer may run more than once in a forward pass."""

OUTPUT: Key = ("output", -1)
LOSS: Key = ("loss", -1)


class Dropout(NamedTuple):
    """A dropout that was active.

    Args:
        rate: with which a number becomes 0.
        shape: of what it was applied to; () within an attention or a recurrent layer.
        whole: whether it drops channels, and not single numbers.
    """

    rate: float
    shape: tuple[int, ...] = ()
    whole: bool = False


@dataclass
class Recording:
    """One forward and backward pass, and where there is an optimiser a step.

    Args:
        activations: by call, in the order in which the calls ended: the arrays that the layer returned (while a model
            is traced, what stands for them); last the model's output and the loss.
        parameters: the names of all that take a gradient.
        gradients: by parameter.
        statistics: by running statistic, after the pass.
        updates: by parameter: what the optimiser's step added to it.
        dropouts: those that were active, in the order of their calls.
        narrow: whether a run in float64 computes something in a narrower format all the same.
        reversals: how many layers with a backward rule of their own the gradient went through.
    """

    activations: dict[Key, list[Any]] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)
    gradients: dict[str, Array] = field(default_factory=dict)
    statistics: dict[str, Array] = field(default_factory=dict)
    updates: dict[str, Array] = field(default_factory=dict)
    dropouts: list[Dropout] = field(default_factory=list)
    reversals: int = 0
    narrow: bool = False

    def record(self, name: str, arrays: list[Any]) -> Key:
        """Keep what a call of a layer returned; return the call."""
        key = (name, sum(known == name for known, _ in self.activations))
        self.activations[key] = arrays
        return key
