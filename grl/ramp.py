"""λ's state machine, once for every layer: a coefficient, the schedule that ramps it, and a step count.

Framework-free. A layer says where its two numbers live (buffers in PyTorch, Variables in Flax). This module says what
happens to them when λ is set and when a step is taken.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from grl.schedules import Schedule

__all__ = ["Ramp", "coeff_at"]

C = TypeVar("C")
"""λ in the types of one framework."""


def coeff_at(given: C | Schedule, step: Any) -> C:
    """Return λ at `step`: what a schedule gives, or the coefficient itself.

    Args:
        given: λ, or a schedule `step -> λ`.
        step: the step count, in the type in which the schedule takes it.

    Returns:
        λ, unchecked.

    Example:
        >>> coeff_at(0.5, 3), coeff_at(lambda step: step / 4, 3)
        (0.5, 0.75)
    """
    return given(step) if callable(given) else given


class Ramp(Generic[C]):
    """A layer with a coefficient λ that a schedule may ramp; the base of both frameworks' `GRL`.

    A layer defines the four methods that read and write λ and the step count.
    """

    _schedule: Schedule | None

    @property
    def coeff(self) -> C:
        """λ as it is now. Setting it to a number ends a schedule; setting a schedule starts it at the step count."""
        return self._read_coeff()

    @coeff.setter
    def coeff(self, value: C | Schedule) -> None:
        self._set(value, self._read_step())

    def step(self) -> None:
        """Advance the step count by one, and λ with it if the layer has a schedule. Nothing else advances them."""
        count = self._read_step() + 1
        if self._schedule is not None:
            self._write_coeff(coeff_at(self._schedule, count))
        self._write_step(count)

    def _set(self, given: C | Schedule, step: Any) -> None:
        self._write_coeff(coeff_at(given, step))
        self._schedule = given if callable(given) else None

    def _shown(self) -> str:
        """λ for `repr`, and the schedule with its step count if there is one."""
        schedule = f", schedule={self._schedule}, step={self._read_step()}" if self._schedule is not None else ""
        return f"coeff={self._read_coeff()}{schedule}"

    def _read_coeff(self) -> C:
        raise NotImplementedError

    def _write_coeff(self, value: C) -> None:
        raise NotImplementedError

    def _read_step(self) -> Any:
        raise NotImplementedError

    def _write_step(self, count: Any) -> None:
        raise NotImplementedError
