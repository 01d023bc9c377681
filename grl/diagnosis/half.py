"""The two halves of the diagnosis, one for each framework, and the interface that both have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeGuard

from grl.arrays import Array
from grl.diagnosis.records import Case, FloatLimits, Loss, LossGradients, Pullback

__all__ = ["Half", "half_of", "half_of_array"]


class Half(Protocol):
    """What the diagnosis needs of a framework; `torch_gradients` and `jax_gradients` are such modules."""

    NAME: str

    def is_real_float(self, x: Any) -> bool:
        """Return whether an array holds real floats."""

    def limits(self, x: Any) -> FloatLimits:
        """Return the spacing and the range of an array's floats."""

    def numbers(self, array: Any) -> Array:
        """Return an array's values, in float64."""

    def pull_back(self, layer: Callable[[Any], Any], x: Any) -> Pullback:
        """Call a layer once and return its derivative."""

    def parts(self, model: Any) -> Iterator[tuple[str, object]]:
        """Yield a module and all modules in it, with their names."""

    def names(self, model: Any, frozen: bool = False) -> list[str]:
        """Return the names of all parameters that are trained, or of those that are not."""

    def is_function(self, layer: object) -> TypeGuard[Callable[..., object]]:
        """Return whether a layer is a function, which is found where it is a global."""

    def gradients(
        self, loss: Loss, case: Case, scales: Sequence[float] = (1.0,), factor: float | None = None
    ) -> LossGradients:
        """Return a loss and its gradients, with the reversal bypassed by a factor or as it is."""

    def passes_reversal(self, loss: Loss, case: Case) -> bool:
        """Return whether a loss's gradient passes the reversal."""


def half_of(backend: str) -> Half:
    """Return the half of the diagnosis that belongs to a framework.

    Args:
        backend: "torch" or "jax".
    """
    if backend == "torch":
        from grl.diagnosis import torch_gradients

        return torch_gradients
    from grl.diagnosis import jax_gradients

    return jax_gradients


def half_of_array(value: object) -> Half | None:
    """Return the half of the framework that an array belongs to, or None. Imports no framework that is not in use."""
    for backend, kind in (("torch", "Tensor"), ("jax", "Array")):
        if isinstance(value, getattr(sys.modules.get(backend), kind, ())):
            return half_of(backend)
    return None
