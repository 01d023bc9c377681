"""Ramps of the coefficient λ over training: pure functions `step -> λ`, for either framework.

Every schedule is a frozen dataclass. Called with a Python or NumPy integer it returns a Python float; called with a
JAX integer, traced or not, it returns a JAX scalar, so that it can stand inside `jax.jit` and `jax.lax.scan`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from grl.coefficient import finite_number

if TYPE_CHECKING:
    from jax import Array

__all__ = ["ConstantSchedule", "DannSchedule", "LinearSchedule", "Schedule"]


class Schedule(Protocol):
    """`step -> λ`. Every class of this module is one, and so is any function of that form.

    Example:
        >>> halving: Schedule = lambda step: 0.5**step
        >>> halving(2)
        0.25
    """

    def __call__(self, step: Any, /) -> Any:
        """Return λ at `step`: an integer, or the JAX value that stands for one."""
        ...


class _TypedSchedule:
    """The types of a call: a Python float for a Python or NumPy step, a JAX scalar for a JAX step."""

    @overload
    def __call__(self, step: int | np.integer[Any]) -> float: ...
    @overload
    def __call__(self, step: Array) -> Array: ...
    def __call__(self, step: object) -> object:
        """Return λ at `step`, an integer that is 0 at the first step. Raises TypeError for anything else."""
        return self._at(step)

    def _at(self, step: object) -> object:
        raise NotImplementedError


@dataclass(frozen=True)
class ConstantSchedule(_TypedSchedule):
    """λ(step) = value.

    Args:
        value: λ, a finite real number.

    Raises:
        TypeError: `value` is no real number.
        ValueError: `value` is not finite.

    Example:
        >>> ConstantSchedule(0.3)(1000)
        0.3
    """

    value: float

    def __post_init__(self) -> None:
        _check_numbers(self, "value")

    def _at(self, step: object) -> object:
        return _mix(self.value, self.value, 0 * _progress(step, 1))


@dataclass(frozen=True)
class LinearSchedule(_TypedSchedule):
    """λ(step) = (1 − p)·start + p·end, with progress p = clip(step / total_steps, 0, 1).

    Args:
        total_steps: the number of steps after which λ stays at `end`; a positive integer.
        start: λ at step 0. The default −1 passes the gradient on, as a plain identity would.
        end: λ from `total_steps` on. The default 1 reverses.

    Raises:
        TypeError: `total_steps` is no integer, or another argument is no real number.
        ValueError: `total_steps` is below 1, or another argument is not finite.

    Example:
        >>> [LinearSchedule(4)(step) for step in range(6)]
        [-1.0, -0.5, 0.0, 0.5, 1.0, 1.0]
    """

    total_steps: int
    start: float = -1.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check_total_steps(self.total_steps)
        _check_numbers(self, "start", "end")

    def _at(self, step: object) -> object:
        return _mix(self.start, self.end, _progress(step, self.total_steps))


@dataclass(frozen=True)
class DannSchedule(_TypedSchedule):
    """λ(step) = low + (high − low)·tanh(γp/2), with progress p = clip(step / total_steps, 0, 1).

    tanh(γp/2) is the paper's 2/(1 + exp(−γp)) − 1. λ ends at low + (high − low)·tanh(γ/2): with γ = 10 that is
    0.9999 of the way to `high`, while γ = 1, the warm start of the Transfer-Learning-Library, ends at 0.46 of it.

    Args:
        total_steps: the number of steps of the ramp; a positive integer.
        gamma: γ, how fast λ rises; a finite number.
        low: λ at step 0.
        high: the λ that the ramp approaches.

    Raises:
        TypeError: `total_steps` is no integer, or another argument is no real number.
        ValueError: `total_steps` is below 1, or another argument is not finite.

    Example:
        >>> [round(DannSchedule(100)(step), 3) for step in (0, 10, 50, 100)]
        [0.0, 0.462, 0.987, 1.0]

    Reference:
        Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, section 5.2.2, arXiv:1505.07818.
    """

    total_steps: int
    gamma: float = 10.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_total_steps(self.total_steps)
        _check_numbers(self, "gamma", "low", "high")

    def _at(self, step: object) -> object:
        progress = _progress(step, self.total_steps)
        if isinstance(progress, float):
            return _mix(self.low, self.high, math.tanh(self.gamma * progress / 2))
        import jax.numpy as jnp

        return _mix(self.low, self.high, jnp.tanh(self.gamma * progress / 2))


def _mix(start: float, end: float, weight: Any) -> object:
    # Not start + weight·(end − start): this form meets both ends exactly.
    return (1 - weight) * start + weight * end


def _progress(step: Any, total_steps: int) -> Any:
    if isinstance(step, np.ndarray) and step.ndim == 0:  # as checkpoints return a counter
        step = step[()]
    if isinstance(step, int | np.integer) and not isinstance(step, bool):
        return min(max(int(step) / total_steps, 0.0), 1.0)
    if type(step).__module__.startswith("jax"):  # a caller with one of JAX's values has JAX
        import jax.numpy as jnp

        if jnp.ndim(step) == 0 and jnp.issubdtype(step.dtype, jnp.integer):
            # In 64 bits under x64: dividing an int32 step would give 32 bits even there.
            return jnp.clip(step.astype(jnp.result_type(float)) / total_steps, 0.0, 1.0)
    raise TypeError(f"step: got {step!r} of type {type(step).__name__}; expected a Python, NumPy or JAX integer.")


def _check_total_steps(total_steps: object) -> None:
    if isinstance(total_steps, bool) or not isinstance(total_steps, int | np.integer):
        raise TypeError(f"total_steps: got {total_steps!r}; expected a positive integer.")
    if total_steps < 1:
        raise ValueError(f"total_steps: got {total_steps}; expected a positive integer.")


def _check_numbers(schedule: object, *names: str) -> None:
    for name in names:
        number = finite_number(getattr(schedule, name), name, "a finite real number")
        object.__setattr__(schedule, name, number)  # the class is frozen; it keeps the 64-bit float
