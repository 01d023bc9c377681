"""Schedules: frozen, framework-free, clipped, exact at both ends, the same for Python, NumPy and JAX integers."""

import copy
import dataclasses
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grl
from grl.schedules import ConstantSchedule, DannSchedule, LinearSchedule
from tests.support.installed import HAS_JAX, needs_jax

if HAS_JAX:
    import jax
    import jax.numpy as jnp

values = st.floats(-100, 100)
totals = st.integers(1, 10**6)
steps = st.integers(-(2**31), 2**31 - 1)
schedules = st.one_of(
    st.builds(ConstantSchedule, values),
    st.builds(LinearSchedule, totals, values, values),
    st.builds(DannSchedule, totals, st.floats(-50, 50), values, values),
)


@given(total=totals, step=steps, start=values, end=values)
def test_linear_is_the_line_between_its_ends(total: int, step: int, start: float, end: float) -> None:
    progress = min(max(Fraction(step, total), Fraction(0)), Fraction(1))
    expected = (1 - progress) * Fraction(start) + progress * Fraction(end)
    assert LinearSchedule(total, start, end)(step) == pytest.approx(float(expected), rel=1e-14, abs=1e-13)


@given(total=totals, step=steps, gamma=st.floats(0, 50))
def test_dann_is_the_formula_of_the_paper(total: int, step: int, gamma: float) -> None:
    progress = min(max(step / total, 0.0), 1.0)
    paper = 2 / (1 + math.exp(-gamma * progress)) - 1
    assert DannSchedule(total, gamma)(step) == pytest.approx(paper, abs=4e-16)


@given(total=totals, step=steps, gamma=st.floats(0, 50), low=values, high=values)
def test_dann_is_scaled_between_low_and_high(total: int, step: int, gamma: float, low: float, high: float) -> None:
    unscaled = DannSchedule(total, gamma)(step)
    assert DannSchedule(total, gamma, low, high)(step) == pytest.approx(low + (high - low) * unscaled, abs=1e-12)


@given(schedule=schedules, step=steps)
def test_progress_is_clipped(schedule: Any, step: int) -> None:
    total = getattr(schedule, "total_steps", 1)
    assert schedule(-abs(step) - 1) == schedule(0)
    assert schedule(total + abs(step)) == schedule(total)


@given(total=totals, start=values, end=values, gamma=values)
def test_ends_are_exact(total: int, start: float, end: float, gamma: float) -> None:
    line = LinearSchedule(total, start, end)
    assert (line(0), line(total)) == (start, end)
    assert DannSchedule(total, gamma, start, end)(0) == start


@given(total=st.integers(1, 1000), first=st.integers(0, 1000), second=st.integers(0, 1000))
def test_ramps_rise(total: int, first: int, second: int) -> None:
    early, late = sorted((first, second))
    for schedule in (LinearSchedule(total), DannSchedule(total)):
        assert schedule(early) <= schedule(late)


def test_defaults_are_those_of_the_contract() -> None:
    assert LinearSchedule(10) == LinearSchedule(total_steps=10, start=-1.0, end=1.0)
    assert DannSchedule(10) == DannSchedule(total_steps=10, gamma=10.0, low=0.0, high=1.0)
    assert ConstantSchedule(0.3)(0) == ConstantSchedule(0.3)(10**9) == 0.3


def test_warm_start_of_the_transfer_learning_library_ends_at_0_46() -> None:
    assert DannSchedule(1000, gamma=1.0)(1000) == pytest.approx(0.4621171572600097, rel=1e-15)
    assert "0.46" in DannSchedule.__doc__


@given(schedule=schedules, step=st.integers(-200, 10**6))
def test_numpy_integers_are_taken_like_python_ones(schedule: Any, step: int) -> None:
    expected = schedule(step)
    assert type(expected) is float
    assert schedule(np.int64(step)) == schedule(np.int32(step)) == expected
    assert schedule(np.array(step)) == expected  # what a checkpoint gives back for a counter
    assert schedule(np.int8(100)) == schedule(100)  # no arithmetic in eight bits


@needs_jax
@given(schedule=schedules, step=st.integers(-200, 10**6))
def test_jax_integers_give_the_same_ramp(schedule: Any, step: int) -> None:
    eager, expected = schedule(jnp.int32(step)), schedule(step)
    assert isinstance(eager, jax.Array)
    assert eager.shape == ()
    assert float(eager) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    with jax.enable_x64(True):
        for traced in (jnp.int64(step), jnp.int32(step)):  # the second is a layer's step count
            found = schedule(traced)
            assert found.dtype == jnp.float64
            assert float(found) == pytest.approx(expected, rel=1e-13, abs=1e-12)


@needs_jax
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32"])
@pytest.mark.parametrize("schedule", [ConstantSchedule(0.5), LinearSchedule(300), DannSchedule(300)], ids=repr)
def test_traced_integer_of_any_width(schedule: Any, dtype: str) -> None:
    step = jnp.asarray(100, dtype=dtype)
    assert float(jax.jit(schedule)(step)) == pytest.approx(schedule(100), rel=1e-6)


@needs_jax
def test_schedule_stands_inside_scan() -> None:
    schedule = DannSchedule(50)
    _, ramp = jax.lax.scan(lambda step, _: (step + 1, schedule(step)), jnp.int32(0), length=60)
    assert np.allclose(ramp, [schedule(step) for step in range(60)], atol=1e-6)


@pytest.mark.parametrize("schedule", [ConstantSchedule(0.5), LinearSchedule(300), DannSchedule(300)], ids=repr)
def test_frozen_hashable_comparable_and_copied(schedule: Any) -> None:
    for field in dataclasses.fields(schedule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, field.name, 1.0)
    for other in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)), dataclasses.replace(schedule)):
        assert other == schedule
        assert hash(other) == hash(schedule)
    assert eval(repr(schedule), vars(grl)) == schedule


def test_numbers_become_64_bit_floats() -> None:
    assert type(ConstantSchedule(1).value) is float
    assert type(LinearSchedule(10, np.float32(0.1)).start) is float


@pytest.mark.parametrize("step", [0.5, 1.0, "1", None, True, np.float64(1), [1], 1j], ids=repr)
@pytest.mark.parametrize("schedule", [ConstantSchedule(0.5), LinearSchedule(300), DannSchedule(300)], ids=repr)
def test_step_that_is_no_integer_is_refused(schedule: Any, step: Any) -> None:
    with pytest.raises(TypeError, match=r"^step: got .* expected a Python, NumPy or JAX integer"):
        schedule(step)


@needs_jax
@pytest.mark.parametrize("schedule", [ConstantSchedule(0.5), LinearSchedule(300), DannSchedule(300)], ids=repr)
def test_jax_step_that_is_no_integer_scalar_is_refused(schedule: Any) -> None:
    for step in (jnp.float32(1), jnp.array(True), jnp.arange(3)):
        with pytest.raises(TypeError, match=r"^step: got "):
            schedule(step)
        with pytest.raises(TypeError, match=r"^step: got "):
            jax.jit(schedule)(step)


@pytest.mark.parametrize("make", [LinearSchedule, DannSchedule])
def test_total_steps_is_a_positive_integer(make: Any) -> None:
    for wrong in (0, -1, np.int64(0)):
        with pytest.raises(ValueError, match=r"^total_steps: got .*; expected a positive integer"):
            make(wrong)
    for wrong in (1.5, "10", None, True, 10.0):
        with pytest.raises(TypeError, match=r"^total_steps: got .*; expected a positive integer"):
            make(wrong)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda v: ConstantSchedule(v), "value"),
        (lambda v: LinearSchedule(10, v), "start"),
        (lambda v: LinearSchedule(10, 0.0, v), "end"),
        (lambda v: DannSchedule(10, v), "gamma"),
        (lambda v: DannSchedule(10, 1.0, v), "low"),
        (lambda v: DannSchedule(10, 1.0, 0.0, v), "high"),
    ],
    ids=["value", "start", "end", "gamma", "low", "high"],
)
def test_every_number_is_checked_and_named(make: Any, name: str) -> None:
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"^{name}: got .*not finite; expected a finite real number"):
            make(wrong)
    for wrong in ("1", None, True, 1j, [1.0]):
        with pytest.raises(TypeError, match=rf"^{name}: got .*; expected a finite real number"):
            make(wrong)
