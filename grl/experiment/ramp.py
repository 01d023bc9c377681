"""The schedule of λ as a setting names it."""

from __future__ import annotations

from grl.experiment.setting import ConfigError, shown
from grl.schedules import ConstantSchedule, DannSchedule, LinearSchedule

__all__ = ["Ramp", "parse_ramp"]

Ramp = ConstantSchedule | DannSchedule | LinearSchedule
"""A schedule that a setting can name; each is frozen, and a pure function step -> λ."""


def parse_ramp(text: str, steps: int) -> Ramp:
    """Return the schedule that a text names.

    Args:
        text: "dann[:GAMMA]", "linear[:START:END]" (0 to 1 by default) or "constant[:VALUE]" (1 by default).
        steps: the number of steps of the run; λ reaches its last value there.

    Raises:
        ConfigError: the text names no schedule, or one of its numbers is not finite.

    Example:
        >>> parse_ramp("linear:0:0.5", steps=100)(50)
        0.25
    """
    kind, *parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
        if kind == "dann" and len(numbers) <= 1:
            return DannSchedule(steps, *numbers)
        if kind == "linear" and len(numbers) in (0, 2):
            return LinearSchedule(steps, *(numbers or (0.0, 1.0)))
        if kind == "constant" and len(numbers) <= 1:
            return ConstantSchedule(*(numbers or (1.0,)))
    except ValueError:
        pass  # a part is not a number, or the schedule refuses it: the sentence below covers both
    raise ConfigError(f"schedule: got {shown(text)}; expected dann[:GAMMA], linear[:START:END] or constant[:VALUE].")
