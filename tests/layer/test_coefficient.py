"""What λ may be: one rule, the same in both backends, the same sentence where it refuses."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from grl.coefficient import ACCEPTED, aligned_shape, finite_number
from tests.support import oracle
from tests.support.installed import HAS_JAX, HAS_TORCH, needs_jax, needs_torch
from tests.support.layer_forms import FORMS, LAYERS, Layer, LayerForm

if HAS_TORCH:
    import torch

    from grl.torch_impl import GradientReverseFunction
if HAS_JAX:
    import jax
    import jax.numpy as jnp

TYPE_ERRORS = {
    "bool": (True, "coeff: got True of type bool; expected {}."),
    "numpy bool": (np.True_, "coeff: got np.True_ of type bool; expected {}."),
    "str": ("1.0", "coeff: got '1.0' of type str; expected {}."),
    "complex": (1j, "coeff: got 1j of type complex; expected {}."),
    "numpy complex": (np.complex64(1), "coeff: got np.complex64(1+0j) of type complex64; expected {}."),
    "list": ([0.5], "coeff: got [0.5] of type list; expected {}."),
    "tuple": ((0.5,), "coeff: got (0.5,) of type tuple; expected {}."),
    "decimal": (Decimal("0.5"), "coeff: got Decimal('0.5') of type Decimal; expected {}."),
    "array of bool": (np.array(True), "coeff: got an array of dtype bool, which is not real; expected {}."),
    "array of complex": (np.array(1j), "coeff: got an array of dtype complex128, which is not real; expected {}."),
}
NOT_FINITE = {
    "nan": (float("nan"), "nan"),
    "inf": (float("inf"), "inf"),
    "-inf": (float("-inf"), "-inf"),
    "numpy nan": (np.float32("nan"), "np.float32(nan)"),
    "numpy inf": (np.float16("inf"), "np.float16(inf)"),
    "huge int": (10**400, str(10**400)),
}
# (shape of λ, shape of x) that no rule gives a meaning
WRONG_SHAPES = [
    ((2,), (3,)),
    ((2,), (3, 2)),  # NumPy would broadcast along the last axis
    ((3, 1), (3,)),
    ((2, 3), (3,)),
    ((2, 3), (3, 2)),
    ((3, 2), (1, 2)),  # would enlarge x
    ((0,), (3, 2)),
    ((4, 1, 1), (2, 3, 3)),
]
# (shape of λ, shape of x, shape in which it multiplies)
RIGHT_SHAPES = [
    ((), (3,), ()),
    ((), (), ()),
    ((3,), (3,), (3,)),
    ((1,), (3,), ()),  # one element of any shape is a scalar
    ((1,), (), ()),
    ((1,), (3, 2), ()),
    ((1, 1, 1), (2, 3), ()),
    ((3,), (3, 2), (3, 1)),
    ((3,), (3, 3), (3, 1)),  # per sample, never the last axis
    ((2,), (2, 3, 4, 5), (2, 1, 1, 1)),
    ((2, 3), (2, 3), (2, 3)),
    ((1, 3), (2, 3), (1, 3)),
    ((2, 1), (2, 3), (2, 1)),
    ((1, 1), (2, 3), ()),
    ((0,), (0, 3), (0, 1)),
    ((0, 3), (0, 3), (0, 3)),
]


def _x(form: LayerForm | Layer, shape: tuple[int, ...]) -> Any:
    return form.backend.array(np.ones(shape, dtype=np.float32).view(np.uint32), "float32")


def _array(form: LayerForm | Layer, value: Any) -> Any:
    """A NumPy array as an array of the backend, in the dtype that it has there."""
    return form.backend.coefficient(value)


@pytest.mark.parametrize("kind", TYPE_ERRORS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_wrong_type_is_a_type_error_with_the_same_sentence(form: LayerForm, kind: str) -> None:
    coeff, sentence = TYPE_ERRORS[kind]
    with pytest.raises(TypeError) as caught:
        form.reverse(_x(form, (2,)), _array(form, coeff))
    # JAX without x64 has no complex128; PyTorch says `torch.` before its dtypes.
    message = str(caught.value).replace("dtype torch.", "dtype ").replace("complex64, which", "complex128, which")
    assert message == sentence.format(ACCEPTED)


@pytest.mark.parametrize("form", [f for f in FORMS if "call" not in f.name], ids=str)
def test_none_is_a_type_error(form: LayerForm) -> None:  # in a layer's call it stands for the layer's own λ
    with pytest.raises(TypeError, match="coeff: got None of type NoneType; expected a finite real number"):
        form.reverse(_x(form, (2,)), None)


@pytest.mark.parametrize("kind", NOT_FINITE)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_number_that_is_not_finite_is_a_value_error(form: LayerForm, kind: str) -> None:
    coeff, shown = NOT_FINITE[kind]
    with pytest.raises(ValueError, match="is not finite") as caught:
        form.reverse(_x(form, (2,)), coeff)
    assert str(caught.value) == f"coeff: got {shown}, which is not finite; expected {ACCEPTED}."


@pytest.mark.parametrize(("coeff_shape", "x_shape"), WRONG_SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_wrong_shape_is_a_value_error_naming_both(
    form: LayerForm, coeff_shape: tuple[int, ...], x_shape: tuple[int, ...]
) -> None:
    expected = f"coeff: got shape {coeff_shape} for x of shape {x_shape}; expected {ACCEPTED}."
    expected += " Nothing is broadcast silently."
    for coeff in (np.ones(coeff_shape, dtype=np.float32), _array(form, np.ones(coeff_shape, dtype=np.float32))):
        with pytest.raises(ValueError, match="Nothing is broadcast silently") as caught:
            form.reverse(_x(form, x_shape), coeff)
        assert str(caught.value) == expected


@pytest.mark.parametrize(("coeff_shape", "x_shape", "aligned"), RIGHT_SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_right_shape_scales_what_it_says(form: LayerForm, coeff_shape: Any, x_shape: Any, aligned: Any) -> None:
    coeff = np.arange(1, 1 + np.prod(coeff_shape), dtype=np.float32).reshape(coeff_shape)
    g = np.ones(x_shape, dtype=np.float32).view(np.uint32)
    _, gradient = form.gradient(g, g, "float32", coeff)
    expected = np.broadcast_to(-coeff.reshape(aligned), x_shape)
    assert np.array_equal(gradient.view(np.float32), expected)
    assert aligned_shape(coeff_shape, x_shape) == aligned


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_refused_although_nothing_differentiates(form: LayerForm) -> None:
    x = _x(form, (2,))
    if form.backend.BACKEND == "torch":
        with torch.no_grad(), pytest.raises(ValueError, match="not finite"):
            form.reverse(x, float("nan"))
    else:
        with pytest.raises(ValueError, match="not finite"):
            form.reverse(x, float("nan"))


@pytest.mark.parametrize(
    "coeff",
    [1, -3, 0.5, Fraction(1, 3), np.float16(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5),
     np.int8(-3), np.uint8(3), np.int64(3)],
    ids=lambda c: type(c).__name__,
)  # fmt: skip
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_real_number_is_taken_at_its_value(form: LayerForm, coeff: Any) -> None:
    g = np.float32([1.0, 0.0, -2.0]).view(np.uint32)
    _, gradient = form.gradient(g, g, "float32", coeff)
    assert oracle.same_bits(gradient, form.expected(g, "float32", float(coeff)), "float32").all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "uint8"])
@pytest.mark.parametrize("as_numpy", [True, False], ids=["numpy", "native"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_0d_array_of_any_real_dtype(form: LayerForm, as_numpy: bool, dtype: str) -> None:
    g = np.float32([1.0, 0.0, -2.0]).view(np.uint32)
    coeff = np.array(3, dtype=dtype)
    reverse = (lambda x, _: form.reverse(x, coeff)) if as_numpy else form.reverse
    _, gradient = form.backend.gradient(reverse, g, g, "float32", coeff)
    assert oracle.same_bits(gradient, form.expected(g, "float32", 3.0), "float32").all()


@pytest.mark.parametrize("x_dtype", oracle.REAL)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradient_has_the_dtype_of_x_whatever_that_of_the_coefficient(form: LayerForm, x_dtype: str) -> None:
    bits = np.zeros(2, dtype=oracle.UNSIGNED[x_dtype])
    for coeff_dtype in ("float16", "float32", "float64", "int32"):
        for shape in ((), (2,)):
            form.gradient(bits, bits, x_dtype, np.ones(shape, dtype=coeff_dtype))  # asserts the dtype


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_value_of_an_array_is_not_looked_at(form: LayerForm) -> None:
    # An array may live on a device: to check its value would synchronise. The gradient shows what it holds.
    g = np.float32([1.0]).view(np.uint32)
    _, gradient = form.gradient(g, g, "float32", np.array(np.nan, dtype=np.float32))
    assert np.isnan(gradient.view(np.float32)).all()


LARGE = {
    "as it is": np.array([2.0**31, 1.0]),
    "64-bit integers": np.array([2**31, 1]),
    "unsigned": np.array([2**31, 1], np.uint64),
    "another byte order": np.array([2.0**31, 1.0], ">f4"),
    "long double": np.array([2.0**31, 1.0], np.longdouble),
    "backwards": np.array([1.0, 2.0**31])[::-1],
    "read-only": np.broadcast_to(np.array([[2.0**31], [1.0]]), (2, 3)),
}


def gradient_of_ones(form: LayerForm, shape: tuple[int, ...], coeff: Any) -> list[Any]:
    """The gradient of the sum of a float32 x, with λ as the user hands it over."""
    if form.backend.BACKEND == "torch":
        x = torch.ones(shape, requires_grad=True)
        form.reverse(x, coeff).sum().backward()
        return x.grad.tolist()
    return jax.grad(lambda x: form.reverse(x, coeff).sum())(jnp.ones(shape)).tolist()


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_numpy_array_of_any_real_dtype_and_layout_is_taken_at_its_value(form: LayerForm, kind: str) -> None:
    """JAX by itself would make integers of 32 bits of those of 64, and −λ another sign or zero."""
    coeff = LARGE[kind]
    expected = -np.broadcast_to(coeff.astype(np.float64).reshape(2, -1), (2, 3))
    assert gradient_of_ones(form, (2, 3), coeff) == expected.tolist()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_numpy_array_that_float32_cannot_hold_is_infinite_there(form: LayerForm) -> None:
    assert gradient_of_ones(form, (1,), np.array([1e300])) == [-np.inf]


@pytest.mark.skipif(not (HAS_TORCH and HAS_JAX), reason="needs both frameworks")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_array_of_the_other_framework_is_refused(form: LayerForm) -> None:

    coeff = jnp.float32(0.5) if form.backend.BACKEND == "torch" else torch.tensor(0.5)
    with pytest.raises(TypeError, match=r"^coeff: got "):
        form.reverse(_x(form, (2,)), coeff)


@pytest.mark.parametrize("form", [f for f in FORMS if f.name != "Function"], ids=str)
def test_per_sample_coefficient_goes_to_every_leaf(form: LayerForm) -> None:
    coeff = np.float32([1.0, 2.0])
    x = {"a": _x(form, (2, 3)), "b": _x(form, (2, 1, 2))}
    form.reverse(x, coeff)
    with pytest.raises(ValueError, match=r"got shape \(2,\) for x of shape \(3, 2\)"):
        form.reverse({**x, "c": _x(form, (3, 2))}, coeff)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer_refuses_when_it_is_made(layer: Layer) -> None:
    for coeff in (None, "1.0", True, 1j, [0.5]):
        with pytest.raises(TypeError, match=r"^coeff: got "):
            layer(coeff)
    for coeff in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^coeff: got .*, which is not finite"):
            layer(coeff)


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.name != "linen"], ids=str)
def test_layer_refuses_when_it_is_set_and_keeps_its_value(layer: Layer) -> None:
    made = layer(0.25)
    with pytest.raises(TypeError, match=r"^coeff: got '1.0'"):
        made.coeff = "1.0"
    with pytest.raises(ValueError, match=r"^coeff: got nan"):
        made.coeff = float("nan")
    assert made.coeff == 0.25


@needs_jax
@pytest.mark.parametrize("form", [f for f in FORMS if f.backend.BACKEND == "jax"], ids=str)
def test_traced_coefficient_of_the_wrong_kind_is_refused_while_tracing(form: LayerForm) -> None:

    reverse = jax.jit(lambda x, coeff: form.reverse(x, coeff))
    with pytest.raises(ValueError, match="Nothing is broadcast silently"):
        reverse(jnp.ones((3, 2)), jnp.ones(2))
    with pytest.raises(TypeError, match="which is not real"):
        reverse(jnp.ones(3), jnp.array(True))


@needs_torch
def test_an_instance_of_the_function_is_refused_because_apply_would_not_see_its_coefficient() -> None:
    """PyTorch before 1.3 wrote `GradReverse(0.5).apply(x)`."""
    with pytest.raises(TypeError, match=r"expected GradientReverseFunction\.apply\(x, coeff\)\.$"):
        GradientReverseFunction(0.5)


def test_the_rule_knows_no_framework() -> None:
    assert finite_number(np.float32(0.1)) == float(np.float32(0.1))
    with pytest.raises(TypeError, match=r"^gamma: got 'a' of type str; expected a number"):
        finite_number("a", "gamma", "a number")
