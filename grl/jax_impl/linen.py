"""Gradient reversal as a layer for Flax's older API: a Linen module. `grl.jax_impl.GRL` is the nnx one."""

from __future__ import annotations

from typing import Any, TypeVar

import jax.numpy as jnp

from grl.jax_impl._flax import linen
from grl.jax_impl.coefficient import Coefficient, as_coefficient
from grl.jax_impl.function import gradient_reversal
from grl.ramp import coeff_at
from grl.schedules import Schedule

__all__ = ["GRL"]

T = TypeVar("T")


class GRL(linen.Module):
    """Gradient reversal layer: y = x forward, x̄ = −λ·ȳ backward.

    A number λ is part of the module, so a new one is a new trace under `jax.jit`: to ramp λ, either pass it to the
    call as a traced `coeff`, or give a schedule. With a schedule the layer keeps its step count in the variable
    collection "reversal"; without variables (`layer.apply({}, x)`) it stands at step 0. There are no parameters.

    Args:
        coeff: λ (see `gradient_reversal`), or a schedule `step -> λ` such as `grl.DannSchedule(total_steps)`.

    Raises:
        TypeError: λ is a bool, a string, None or complex.
        ValueError: λ is not finite.

    Example:
        >>> import jax
        >>> from grl import LinearSchedule
        >>> layer = GRL(LinearSchedule(total_steps=10))
        >>> variables = layer.init(jax.random.key(0), jnp.ones(3))
        >>> _, variables = layer.apply(variables, method="step", mutable=["reversal"])
        >>> jax.grad(lambda x: layer.apply(variables, x).sum())(jnp.ones(3)).round(3)
        Array([0.8, 0.8, 0.8], dtype=float32)

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """

    coeff: Coefficient | Schedule = 1.0

    def __post_init__(self) -> None:
        if not callable(self.coeff):
            as_coefficient(self.coeff)
        super().__post_init__()

    @linen.compact
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
        step = self._step_count() if callable(self.coeff) else 0
        if not reverse:
            return x
        chosen = coeff_at(self.coeff, step) if coeff is None else coeff
        y: T = gradient_reversal(x, chosen)  # type: ignore[arg-type]  # a schedule's λ is checked there
        return y

    @linen.compact
    def step(self) -> None:
        """Advance the step count: `_, changed = layer.apply(variables, method="step", mutable=["reversal"])`."""
        if callable(self.coeff):
            self.put_variable("reversal", "step", self._step_count() + 1)

    def _step_count(self) -> Any:
        if self.is_initializing() or self.has_variable("reversal", "step"):
            return self.variable("reversal", "step", lambda: jnp.int32(0)).value
        return 0
