"""Gradient reversal as a layer: an `nnx.Module` that holds λ and, if wanted, the schedule that ramps it."""

from __future__ import annotations

from typing import Any

import numpy as np

from grl.jax_impl._flax import nnx
from grl.jax_impl.function import _as_coefficient, gradient_reversal

__all__ = ["GRL", "ReversalState"]


class ReversalState(nnx.Variable[Any]):
    """The kind of Flax variable that λ and the step count are: no parameter, so no optimiser touches them."""


class GRL(nnx.Module):
    """Gradient reversal layer: y = x forward, x̄ = −λ·ȳ backward, with λ kept in the layer.

    λ is state (`ReversalState`), not structure: `nnx.jit` traces once over any ramp. It is kept as a 64-bit float;
    `nnx.jit`, which writes all state back, leaves a JAX array of float32 (float64 with x64) with the same effect, and
    from then on a schedule is computed in that precision too. There are no parameters.

    Args:
        coeff: λ (see `gradient_reversal`), or a schedule `step -> λ` such as `grl.DannSchedule(total_steps)`.

    Raises:
        TypeError, ValueError: λ is not acceptable.

    Example:
        >>> from grl import DannSchedule
        >>> layer = GRL(DannSchedule(total_steps=100))
        >>> layer.coeff
        0.0
        >>> for _ in range(50):
        ...     layer.step()
        >>> round(layer.coeff, 3)
        0.987

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """

    port_kind = "GRL"  # `grl.weights` pairs a layer with one of the same kind

    def __init__(self, coeff: Any = 1.0) -> None:
        self._step = ReversalState(np.int32(0))
        self._coeff = ReversalState(np.float64(0.0))
        self.coeff = coeff

    def __call__(self, x: Any, coeff: Any = None, reverse: bool = True) -> Any:
        """Return `x`; its gradient is multiplied by −λ on the way back.

        Args:
            x: an array or a pytree of arrays, any shapes.
            coeff: λ for this call only; the layer's own by default.
            reverse: False passes values and gradients on as they are.

        Returns:
            `x`, as `gradient_reversal` returns it.

        Raises:
            TypeError, ValueError: as `gradient_reversal` does.
        """
        if not reverse:
            return x
        return gradient_reversal(x, self._coeff.get_value() if coeff is None else coeff)

    @property
    def coeff(self) -> Any:
        """λ as it is now. Setting it to a number ends a schedule; setting a schedule starts one at the step count."""
        coeff = self._coeff.get_value()
        return float(coeff) if isinstance(coeff, np.floating) else coeff

    @coeff.setter
    def coeff(self, value: Any) -> None:
        self._schedule = value if callable(value) else None
        self._coeff.set_value(_as_coefficient(value(self._step.get_value()) if callable(value) else value))

    def step(self) -> None:
        """Advance the step count by one, and λ with it if a schedule gives it. Nothing else does."""
        self._step.set_value(self._step.get_value() + np.int32(1))
        if self._schedule is not None:
            self._coeff.set_value(_as_coefficient(self._schedule(self._step.get_value())))

    def state_variables(self) -> dict[str, ReversalState]:
        """Return λ and the step count under their names in PyTorch's `state_dict`: "coeff" and "step"."""
        return {"coeff": self._coeff, "step": self._step}

    def __repr__(self) -> str:
        schedule = f", schedule={self._schedule}, step={self._step.get_value()}" if self._schedule is not None else ""
        return f"GRL(coeff={self.coeff}{schedule})"

    __str__ = __repr__
