"""The records of a diagnosis: what is measured, and on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from grl.arrays import Array

__all__ = ["Case", "FloatLimits", "Loss", "LossGradients", "ParameterGradient", "Pullback"]

Loss = Callable[[Any, Any], Any]
"""A function of (model, batch) to a scalar of the model's framework."""


class FloatLimits(Protocol):
    """The spacing and the range of a float type, as `finfo` of each framework has them."""

    @property
    def eps(self) -> Any:
        """The spacing at 1."""

    @property
    def tiny(self) -> Any:
        """The smallest normal number."""

    @property
    def max(self) -> Any:
        """The largest number."""


class Pullback(NamedTuple):
    """One call of a layer.

    Args:
        is_identity: whether layer(x) is x bit for bit.
        pull: the function from a cotangent to x's gradient, in float64.
    """

    is_identity: bool
    pull: Callable[[Array], Array]


@dataclass(frozen=True)
class Case:
    """A model on one batch.

    Args:
        model: the model.
        batch: whatever the losses take.
        names: the parameters of the feature extractor.
        others: all other parameters that are trained.
        layer: the reversal, if it is not one of grl's: a name or object of a submodule, a class, or a function.
    """

    model: Any
    batch: Any
    names: tuple[str, ...]
    others: tuple[str, ...] = ()
    layer: Any = None


class LossGradients(NamedTuple):
    """A loss and its gradients.

    Args:
        value: the loss.
        gradients: its gradients by parameter, in float64: one dict for each scale of the loss.
        runs: how many derivatives were taken through a bypassed reversal; 0 where none is bypassed.
        by_hook: whether these were all of a tensor hook that reverses.
    """

    value: float
    gradients: tuple[dict[str, Array], ...]
    runs: int
    by_hook: bool = False


@dataclass(frozen=True)
class ParameterGradient:
    """The gradients of one parameter, or of all of them together.

    Args:
        name: the parameter's.
        ratio: c in ∂domain/∂θ with the layer = c · the same without it, −λ if all is well; None if both are 0.
        label_norm: the norm of the label loss's gradient.
        domain_norm: the norm of the domain loss's gradient, with the layer.
        cosine: of the angle between the two; None if one is 0.
    """

    name: str
    ratio: float | None
    label_norm: float
    domain_norm: float
    cosine: float | None
