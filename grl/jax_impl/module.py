"""Gradient reversal as a layer: an `nnx.Module` that keeps λ and, if wanted, the schedule that ramps it."""

from __future__ import annotations

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from grl.jax_impl._flax import nnx
from grl.jax_impl.coefficient import Coefficient, as_coefficient
from grl.jax_impl.function import gradient_reversal
from grl.ramp import Ramp
from grl.schedules import Schedule

__all__ = ["GRL", "ReversalState"]

T = TypeVar("T")


class ReversalState(nnx.Variable[Any]):
    """The kind of Flax variable that λ and the step count are: no parameter, so no optimiser touches them."""


class GRL(Ramp[Coefficient], nnx.Module):
    """Gradient reversal layer: y = x forward, x̄ = −λ·ȳ backward, with λ kept in the layer.

    λ and the step count are state (`ReversalState`), not structure: `nnx.jit` traces once over any ramp. λ is kept as a
    64-bit float. `nnx.jit`, which writes all state back, leaves a JAX array of float32 (float64 with x64) with the same
    effect; from then on a schedule is computed in that precision too. There are no parameters.

    `jax.grad` over the whole `nnx.state` of a model raises JAX's TypeError about the integer step count: differentiate
    with respect to the parameters alone, by `nnx.grad` or `nnx.split(model, nnx.Param, ...)`. An average over the whole
    state (`optax.incremental_update`) may leave a step count that is no integer: the next `step` starts at its floor.

    Args:
        coeff: λ (see `gradient_reversal`), or a schedule `step -> λ` such as `grl.DannSchedule(total_steps)`.

    Raises:
        TypeError: λ is a bool, a string, None or complex.
        ValueError: λ is not finite.

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

    def __init__(self, coeff: Coefficient | Schedule = 1.0) -> None:
        """Make a layer.

        Args:
            coeff: λ, or a schedule `step -> λ`.
        """
        # NumPy arrays, not NumPy numbers: Orbax restores into no number.
        self._step = ReversalState(np.zeros((), np.int32))
        self._coeff = ReversalState(np.zeros((), np.float64))
        self._set(coeff, np.int32(0))

    def __call__(self, x: T, coeff: Coefficient | None = None, reverse: bool = True) -> T:
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
        y: T = gradient_reversal(x, self._read_coeff() if coeff is None else coeff)
        return y

    def state_variables(self) -> dict[str, ReversalState]:
        """Return the Variables of λ and of the step count under the names that both backends have for them."""
        return {"coeff": self._coeff, "step": self._step}

    def _read_coeff(self) -> Coefficient:
        coeff: Any = self._coeff.get_value()
        return float(coeff) if isinstance(coeff, np.floating | np.ndarray) and np.ndim(coeff) == 0 else coeff

    def _write_coeff(self, value: Coefficient) -> None:
        coeff = as_coefficient(value)
        self._coeff.set_value(np.asarray(coeff) if isinstance(coeff, np.floating) else coeff)

    def _read_step(self) -> Any:
        count = self._step.get_value()
        if jnp.issubdtype(jnp.result_type(count), jnp.floating):  # averaged, as all of a state may be
            count = jnp.floor(count).astype(jnp.int32) if isinstance(count, Array) else np.int32(np.floor(count))
        return count[()] if isinstance(count, np.ndarray) else count

    def _write_step(self, count: Any) -> None:
        self._step.set_value(np.asarray(count) if isinstance(count, np.integer) else count)

    def __repr__(self) -> str:
        return f"GRL({self._shown()})"

    __str__ = __repr__
