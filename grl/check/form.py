"""The terms of the matrix: a form of a layer, a transformation, and the cell where they meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "STATUSES",
    "Call",
    "Cell",
    "Form",
    "Layer",
    "LayerCall",
    "NotApplicableError",
    "Transformation",
    "WrongError",
    "transformation",
]

STATUSES = ("ok", "refuses", "n/a", "WRONG")

Layer: TypeAlias = Callable[[Any], Any]
"""A function of x, of either framework."""

LayerCall: TypeAlias = Callable[[Any, Any], Any]
"""A function of (x, λ), of either framework."""

Call: TypeAlias = Callable[..., Any]
"""A function or class with any arguments: a user's, or one that a framework returns."""


class WrongError(AssertionError):
    """Under a transformation, a layer returned something else than the declared Jacobian and raised nothing."""


class NotApplicableError(Exception):
    """The question does not arise: the form has no such argument, or the machine has no such device."""


@dataclass(frozen=True)
class Form:
    """One way to write a gradient reversal layer.

    Args:
        name: what the table calls it.
        backend: "torch" or "jax".
        make: λ -> layer; the layer maps x to x.
        call: (x, λ) -> x, or None if λ is fixed when the layer is made.
        linen: λ -> the layer as a Flax Linen module, if it is one; `make` then applies it.
    """

    name: str
    backend: str
    make: Callable[[float], Layer]
    call: LayerCall | None = None
    linen: Callable[[float], Any] | None = None

    def reverse(self, x: Any, coeff: Any) -> Any:
        """Call the layer with a λ for this call only. Raises `NotApplicableError` if the layer takes none."""
        if self.call is None:
            raise NotApplicableError("λ is no argument of the call")
        return self.call(x, coeff)

    def ways(self, coeff: float) -> Iterator[tuple[str, Layer]]:
        """Yield the layer with this λ: given when it is made and, if it takes one, in the call. Each can lose it."""
        yield "when the layer is made", self.make(coeff)
        if self.call is not None:
            yield "in the call", lambda x: self.reverse(x, coeff)


@dataclass(frozen=True)
class Cell:
    """The result of one form under one transformation.

    Args:
        backend: "torch" or "jax".
        form: the form's name.
        transformation: the transformation's name.
        status: "ok"; "refuses", an exception was raised; "n/a", the question does not arise; "WRONG", a wrong result.
        reason: why it refuses or does not apply; what was expected and what came, where it is wrong; else empty.
    """

    backend: str
    form: str
    transformation: str
    status: str
    reason: str


@dataclass(frozen=True)
class Transformation:
    """One row of the matrix.

    Args:
        name: what the table calls it.
        examine: a function of a form. It raises `WrongError`, `NotApplicableError` or what the framework raises;
            otherwise the cell is ok.
    """

    name: str
    examine: Callable[[Form], None]


def transformation(name: str) -> Callable[[Callable[[Form], None]], Transformation]:
    """Return the decorator that makes a function of a form the transformation of this name."""
    return lambda examine: Transformation(name, examine)
