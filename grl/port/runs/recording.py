"""How a model is to run, and what the run records: NumPy arrays by their place in the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from grl.arrays import Array

__all__ = ["LOSS", "OUTPUT", "Array", "Dropout", "Key", "Recording", "RunSettings", "next_call"]

Key = tuple[str, int]
"""A layer's name, and the number of the call: a layer may run more than once in a forward pass."""

OUTPUT: Key = ("output", -1)
LOSS: Key = ("loss", -1)


@dataclass(frozen=True)
class RunSettings:
    """How a copy of a model runs.

    Args:
        double: whether to compute in float64; the model's own precision otherwise.
        train: the mode; None: that of the model.
        watched: the names of the layers to record.
        without_dropout: whether dropout is off in any case.
    """

    double: bool
    train: bool | None
    watched: tuple[str, ...]
    without_dropout: bool = False


class Dropout(NamedTuple):
    """A dropout that was active.

    Args:
        rate: the probability with which a number becomes 0.
        shape: of its input; () within an attention or a recurrent layer.
        whole: whether it drops whole channels instead of single numbers.
    """

    rate: float
    shape: tuple[int, ...] = ()
    whole: bool = False


@dataclass
class Recording:
    """One forward and backward pass, and one step if there is an optimiser.

    Args:
        activations: by call, in the order in which the calls ended: the arrays that the layer returned; last the
            model's output and the loss.
        parameters: the names of all parameters that take a gradient.
        gradients: by parameter.
        statistics: by running statistic, after the pass.
        updates: by parameter: what the optimiser's step added to it.
        dropouts: the active ones, in the order of their calls.
        narrow: whether a run in float64 rounds something to a narrower format all the same.
        narrow_step: the same for the optimiser's step alone.
        reversals: how many layers with a backward rule of their own the gradient passed.
    """

    activations: dict[Key, list[Array]] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)
    gradients: dict[str, Array] = field(default_factory=dict)
    statistics: dict[str, Array] = field(default_factory=dict)
    updates: dict[str, Array] = field(default_factory=dict)
    dropouts: list[Dropout] = field(default_factory=list)
    reversals: int = 0
    narrow: bool = False
    narrow_step: bool = False

    def record(self, name: str, arrays: list[Array]) -> Key:
        """Keep what a call of a layer returned; return the call."""
        key = next_call(name, self.activations)
        self.activations[key] = arrays
        return key


def next_call(name: str, calls: Iterable[Key]) -> Key:
    """Return the next call of a layer after some calls."""
    return name, sum(known == name for known, _ in calls)
