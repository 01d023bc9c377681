"""The strategies draw what they promise: every special value, every kind of λ, and only shapes that are accepted."""

from typing import Any

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from grl.coefficient import aligned_shape
from grl.parity import strategies
from tests.support import layer_forms, oracle


@pytest.mark.parametrize("dtype", oracle.REAL)
def test_special_bits_hold_every_kind_of_value(dtype: str) -> None:
    patterns = np.array(strategies.special_bits(dtype), dtype=oracle.UNSIGNED[dtype])
    values = oracle.decode(patterns, dtype).astype(np.float64)
    tiny = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}[dtype]
    for sign in (False, True):
        mine = values[np.signbit(values) == sign]
        assert (mine == 0).any()
        assert np.isinf(mine).any()
        assert np.isnan(mine).any()
        assert (np.abs(mine) == 1).any()
        assert (np.abs(mine) == tiny).any()
        assert ((np.abs(mine) > 0) & (np.abs(mine) < tiny)).any()


def _holds(dtype: str, what: str, bits: np.ndarray) -> bool:
    values = oracle.decode(bits, dtype)
    return {
        "NaN": np.isnan(values).any(),
        "inf": np.isinf(values).any(),
        "−0": ((values == 0) & np.signbit(values)).any(),
        "subnormal": ((values != 0) & (np.abs(values) < (2.0**-14 if dtype == "float16" else 2.0**-126))).any(),
    }[what]


@pytest.mark.parametrize("what", ["NaN", "inf", "−0", "subnormal"])
@pytest.mark.parametrize("dtype", oracle.REAL)
def test_arrays_reach_every_special_value(dtype: str, what: str) -> None:
    find(strategies.arrays(dtype, (5,)), lambda bits: _holds(dtype, what, bits))


@given(data=st.data())
def test_arrays_have_the_shape_and_no_signalling_nan(data: st.DataObject) -> None:
    dtype, shape = data.draw(strategies.dtypes()), data.draw(strategies.shapes())
    bits = data.draw(strategies.arrays(dtype, shape))
    assert bits.shape == shape
    assert bits.dtype == oracle.UNSIGNED[dtype]
    assert np.array_equal(strategies.quieted(bits, dtype), bits)


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_every_kind_of_coefficient_is_drawn(kind: str) -> None:
    find(strategies.coefficients((2, 3)), lambda coeff: coeff.kind == kind)


@given(data=st.data())
def test_coefficients_fit_their_shape_and_are_exact(data: st.DataObject) -> None:
    shape = data.draw(strategies.shapes())
    coeff = data.draw(strategies.coefficients(shape))
    native: Any = coeff.native
    assert np.array_equal(np.float64(native), coeff.values)  # λ is exact in its own dtype
    kinds: dict[str, Any] = {"int": int, "float": float, "numpy scalar": np.generic}
    assert isinstance(native, kinds.get(coeff.kind, np.ndarray))
    assert aligned_shape(np.shape(native), shape) == coeff.aligned(shape).shape
    assert np.broadcast_shapes(coeff.aligned(shape).shape, shape) == shape
    assert np.array_equal(eval(repr(coeff), {"np": np, "inf": np.inf}), native)


def test_every_pattern_appears_once() -> None:
    for dtype in ("float16", "bfloat16"):
        patterns = strategies.every_pattern(dtype)
        finite = patterns[~oracle.is_nan(patterns, dtype)]
        assert np.unique(finite).size == finite.size == 2**16 - 2 * (2 ** strategies.MANTISSA_BITS[dtype] - 1)


@pytest.mark.parametrize("form", layer_forms.FORMS, ids=str)
@given(data=st.data())
def test_snippet_of_a_failure_runs_and_shows_the_same(form: layer_forms.LayerForm, data: st.DataObject) -> None:
    dtype, shape = data.draw(strategies.dtypes()), (2, 3)
    x, g = data.draw(strategies.arrays(dtype, shape)), data.draw(strategies.arrays(dtype, shape))
    coeff = data.draw(strategies.coefficients(shape))
    text = layer_forms.snippet(form, dtype, x, g, coeff, "gradient")
    lines = [line.removeprefix("    ") for line in text.splitlines() if line.startswith("    ")]
    names: dict[str, Any] = {"print": lambda *args, **kwargs: None, "inf": np.inf}
    exec("\n".join(lines), names)
    value, result = form.gradient(x, g, dtype, coeff.native)
    assert np.array_equal(names["value"], value)
    assert np.array_equal(names["result"], result)
    assert np.array_equal(names["expected"], form.expected(g, dtype, coeff.aligned(shape)))


def test_a_failure_carries_its_snippet() -> None:
    form = layer_forms.FORMS[0]
    coeff = strategies.Coefficient("float", np.array(0.5))
    bits = np.zeros((2,), dtype=np.uint32)
    with (
        pytest.raises(AssertionError) as caught,
        layer_forms.reproduced_by(form, "float32", bits, bits, coeff, "gradient"),
    ):
        layer_forms.assert_reversed(form, "float32", bits, bits, coeff, bits, bits)  # +0, where −λ·0 is −0
    assert "2 of 2 gradients wrong" in str(caught.value)
    assert "coeff = 0.5" in caught.value.__notes__[0]
    assert "dtype=np.uint32" in caught.value.__notes__[0]
