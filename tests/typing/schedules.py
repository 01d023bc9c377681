"""Schedules: a Python float for a Python or NumPy step, a JAX scalar for a JAX step."""

from __future__ import annotations

from typing import assert_type

import numpy as np
from jax import Array

from grl import ConstantSchedule, DannSchedule, LinearSchedule
from grl.schedules import Schedule


def python_steps(step: int) -> None:
    assert_type(ConstantSchedule(0.3)(step), float)
    assert_type(LinearSchedule(100)(step), float)
    assert_type(LinearSchedule(100, start=-1.0, end=1.0)(np.int64(3)), float)
    assert_type(DannSchedule(100, gamma=10.0, low=0.0, high=1.0)(step), float)


def jax_steps(step: Array) -> None:
    assert_type(ConstantSchedule(0.3)(step), Array)
    assert_type(LinearSchedule(100)(step), Array)
    assert_type(DannSchedule(100)(step), Array)


def schedules_of_any_kind() -> None:
    schedules: list[Schedule] = [DannSchedule(100), LinearSchedule(100), ConstantSchedule(1.0), lambda step: 0.1 * step]
    assert_type(DannSchedule(100).total_steps, int)
    assert_type(schedules[0], Schedule)


def refused() -> None:
    # A checker that accepted one of these lines would report its comment as unused.
    DannSchedule("100")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    DannSchedule(100)("3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
