"""The terms of the benchmarks: a form reverses a gradient; a backend turns it into calls and checks their results.

`forms_torch` and `forms_jax` have the forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.timing import Call

__all__ = ["MEASURES", "Backend", "TimedForm", "WrongResultError", "shape_of"]

MEASURES = ("forward", "backward", "both")
"""One call in a graph that will be differentiated; the pull-back of one gradient; the two in one go."""


class WrongResultError(ArithmeticError):
    """A form returned something other than x or −λ·g."""


@dataclass(frozen=True)
class TimedForm:
    """One way of reversing a gradient, or one floor under all of them.

    Args:
        name: with its mode: "gradient_reversal", "gradient_reversal, compiled", "custom_vjp, jit".
        kind: "ours", "peer" or "floor".
        make: λ -> (function, further arguments), so that function(x, *further arguments) is the call of the user.
        mode: how it runs: "eager", "compiled", "cuda graph", "jit".
        measures: those of `MEASURES` that it has.
        factor: what its gradient is to be multiplied by: λ -> −λ, or λ -> 1 for an identity.
        direct: the function is no layer: it takes the gradient itself (a multiply, a copy).
        headline: stands for its kind where there is no time for all.
    """

    name: str
    kind: str
    make: Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]
    mode: str = "eager"
    measures: Sequence[str] = MEASURES
    factor: Callable[[Any], Any] = lambda coeff: -coeff
    direct: bool = False
    headline: bool = False


class Backend(Protocol):
    """One framework on one device."""

    name: str

    @property
    def forms(self) -> Sequence[TimedForm]:
        """Ours, peers and floors."""

    def inputs(self, size: int, dtype: str, count: int) -> list[tuple[Any, Any]]:
        """Return so many pairs (x, g) of so many bytes each, random, at least two-dimensional."""

    def coefficient(self, kind: str, rows: int) -> Any:
        """Return λ as a "number", a "tensor" or one value per "sample"."""

    def calls(self, form: TimedForm, inputs: Sequence[tuple[Any, Any]], coeff: Any, measure: str) -> list[Call]:
        """Return the calls to time, one for each clock."""

    def check(self, form: TimedForm, inputs: Sequence[tuple[Any, Any]], coeff: Any, measure: str, call: Call) -> None:
        """Make the call on memory poisoned with NaN; raise `WrongResultError` if the result is wrong."""

    def floor(self, form: TimedForm, measure: str) -> tuple[str, str] | None:
        """Return the form and the measure of the floor that this one is divided by."""

    def start(self) -> None:
        """Forget what earlier groups compiled."""


def shape_of(elements: int) -> tuple[int, int]:
    """Return (samples, features), about square, like a batch of features."""
    rows = 1 << ((elements.bit_length() - 1) // 2)
    return rows, elements // rows
