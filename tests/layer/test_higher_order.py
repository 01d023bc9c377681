"""The declared Jacobian −λ·I holds at every order and in every mode; λ itself never gets a gradient."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.installed import HAS_JAX, HAS_TORCH, needs_torch
from tests.support.layer_forms import FORMS, FORWARD_MODE_FORMS, LayerForm

TORCH_FORMS = [form for form in FORMS if form.backend.BACKEND == "torch"]
JAX_FORMS = [form for form in FORMS if form.backend.BACKEND == "jax"]
COEFFS = (0.5, -2.0, 1.0, 0.0, 0.3)
X = np.array([0.3, -1.2, 2.0])

if HAS_TORCH:
    import torch
if HAS_JAX:
    import jax
    import jax.numpy as jnp


def _quartic(x: Any) -> Any:
    return (x * x * x * x).sum()


def _derivative(order: int, x: np.ndarray) -> np.ndarray:
    factor = np.prod([4, 3, 2, 1][:order])
    return factor * x ** (4 - order)


def _torch_reverse(reverse: Callable[..., Any], x: Any, order: int) -> Any:
    """Derivative of this order, each by backward through the last."""
    x = torch.tensor(x, requires_grad=True)
    value = _quartic(reverse(x))
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    return value.detach()


def _jax_derivative(function: Callable[..., Any], order: int) -> Callable[..., Any]:
    for _ in range(order):
        function = jax.grad(lambda x, f=function: f(x).sum())
    return function


@pytest.mark.parametrize("coeff", COEFFS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_reverse_over_reverse(form: LayerForm, order: int, coeff: float) -> None:
    expected = (-coeff) ** order * _derivative(order, X)
    if form.backend.BACKEND == "torch":
        result = _torch_reverse(lambda x: form.reverse(x, coeff), X, order)
    else:
        with jax.enable_x64(True):
            function = _jax_derivative(lambda x: _quartic(form.reverse(x, coeff)), order)
            result = function(jnp.asarray(X))
            assert np.allclose(jax.jit(function)(jnp.asarray(X)), expected, rtol=1e-14, atol=0)
    assert np.allclose(result, expected, rtol=1e-14, atol=0)


def _directional(form: LayerForm, coeff: Any) -> dict[str, Callable[[], Any]]:
    """Second derivative along ones, for every way to mix the modes."""
    if form.backend.BACKEND == "torch":
        x = torch.tensor(X)

        def f(x: Any) -> Any:
            return _quartic(form.reverse(x, coeff))

        def reverse_then_dual() -> Any:
            with torch.autograd.forward_ad.dual_level():
                primal = x.clone().requires_grad_()
                dual = torch.autograd.forward_ad.make_dual(primal, torch.ones_like(x))
                (gradient,) = torch.autograd.grad(f(dual), dual, create_graph=True)
                return torch.autograd.forward_ad.unpack_dual(gradient).tangent.detach()

        return {
            "func: reverse over reverse": lambda: torch.func.jacrev(torch.func.grad(f))(x).sum(-1),
            "func: forward over reverse": lambda: torch.func.jvp(torch.func.grad(f), (x,), (torch.ones_like(x),))[1],
            "func: reverse over forward": lambda: torch.func.grad(
                lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]
            )(x),
            "func: hessian": lambda: torch.func.hessian(f)(x).sum(-1),
            "func: forward over forward": lambda: torch.func.jacfwd(torch.func.jacfwd(f))(x).sum(-1),
            "autograd.functional.hessian": lambda: torch.autograd.functional.hessian(f, x).sum(-1),
            "dual numbers over backward": reverse_then_dual,
        }
    x = jnp.asarray(X)

    def f(x: Any) -> Any:
        return _quartic(form.reverse(x, coeff))

    ways: dict[str, Callable[[], Any]] = {
        "reverse over reverse": lambda: jax.jacrev(jax.grad(f))(x).sum(-1),
        "forward over reverse": lambda: jax.jvp(jax.grad(f), (x,), (jnp.ones_like(x),))[1],
        "hessian": lambda: jax.hessian(f)(x).sum(-1),
        "compiled hessian": lambda: jax.jit(jax.hessian(f))(x).sum(-1),
        "remat": lambda: jax.jacrev(jax.grad(jax.checkpoint(f)))(x).sum(-1),
    }
    if form in FORWARD_MODE_FORMS:
        ways |= {
            "reverse over forward": lambda: jax.grad(lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1])(x),
            "forward over forward": lambda: jax.jacfwd(jax.jacfwd(f))(x).sum(-1),
        }
    return ways


@pytest.mark.parametrize("coeff", [0.5, -2.0, 0.3])
@pytest.mark.parametrize("kind", ["number", "array", "per element"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_second_derivative_is_coeff_squared_in_every_mix_of_modes(form: LayerForm, kind: str, coeff: float) -> None:
    expected = coeff**2 * _derivative(2, X)
    native: Any = {"number": coeff, "array": np.array(coeff), "per element": np.full(3, coeff)}[kind]

    def check() -> None:
        for way, second in _directional(form, form.backend.coefficient(native)).items():
            assert np.allclose(second(), expected, rtol=1e-13, atol=0), way

    if form.backend.BACKEND == "jax":
        with jax.enable_x64(True):
            check()
    else:
        check()


@pytest.mark.parametrize("form", [f for f in JAX_FORMS if f not in FORWARD_MODE_FORMS], ids=str)
def test_custom_vjp_refuses_forward_mode(form: LayerForm) -> None:
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: form.reverse(x, 0.5), (jnp.ones(2),), (jnp.ones(2),))


@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_taylor_mode_is_refused_since_it_knows_no_custom_rules(form: LayerForm) -> None:
    from jax.experimental.jet import jet

    with pytest.raises(NotImplementedError, match=r"ignores custom derivative rules .* jax#40747"):
        jet(lambda x: form.reverse(x, 0.5), (jnp.ones(2),), ((jnp.ones(2), jnp.zeros(2)),))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch.func.linearize's own
@pytest.mark.parametrize("form", FORWARD_MODE_FORMS, ids=str)
def test_forward_mode_is_linear_in_every_transformation(form: LayerForm) -> None:
    if form.backend.BACKEND == "torch":
        x, ones = torch.ones(3), torch.ones(3)
        jacobians = [
            torch.func.jvp(lambda x: form.reverse(x, 0.5), (x,), (ones,))[1],
            torch.func.jacfwd(lambda x: form.reverse(x, 0.5))(x).sum(-1),
            torch.func.linearize(lambda x: form.reverse(x, 0.5), x)[1](ones),
        ]
        with torch.autograd.forward_ad.dual_level():
            dual = form.reverse(torch.autograd.forward_ad.make_dual(x, ones), 0.5)
            jacobians.append(torch.autograd.forward_ad.unpack_dual(dual).tangent)
    else:
        x, ones = jnp.ones(3), jnp.ones(3)
        jacobians = [
            jax.jvp(lambda x: form.reverse(x, 0.5), (x,), (ones,))[1],
            jax.jacfwd(lambda x: form.reverse(x, 0.5))(x).sum(-1),
            jax.linearize(lambda x: form.reverse(x, 0.5), x)[1](ones),
        ]
    for jacobian in jacobians:
        assert np.array_equal(jacobian, np.full(3, -0.5, dtype=np.float32))


# No gradient to λ


@pytest.mark.parametrize("shape", [(), (3,), (1,)], ids=str)
@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_gives_the_coefficient_none(form: LayerForm, shape: tuple[int, ...]) -> None:
    coeff = torch.full(shape, 0.5, requires_grad=True)
    x = torch.ones(3, requires_grad=True)
    loss = _quartic(form.reverse(x, coeff))
    first, to_coeff = torch.autograd.grad(loss, (x, coeff), create_graph=True, allow_unused=True)
    assert to_coeff is None
    assert torch.equal(first, torch.full((3,), -2.0))
    # Nor by way of the gradient, in which λ is a factor.
    second, to_coeff = torch.autograd.grad(first.sum(), (x, coeff), allow_unused=True)
    assert to_coeff is None
    assert torch.equal(second, torch.full((3,), 3.0))


@pytest.mark.parametrize("shape", [(), (3,), (1,)], ids=str)
@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_func_gives_the_coefficient_zero(form: LayerForm, shape: tuple[int, ...]) -> None:
    x, coeff = torch.ones(3), torch.full(shape, 0.5)

    def first(x: Any, coeff: Any) -> Any:
        return torch.func.grad(lambda x: _quartic(form.reverse(x, coeff)))(x).sum()

    for function in (lambda x, coeff: _quartic(form.reverse(x, coeff)), first):
        to_x, to_coeff = torch.func.grad(function, argnums=(0, 1))(x, coeff)
        assert torch.equal(to_coeff, torch.zeros(shape))
        assert not torch.equal(to_x, torch.zeros(3))
        _, tangent = torch.func.jvp(lambda coeff, function=function: function(x, coeff), (coeff,), (coeff,))
        assert tangent == 0


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_forward_mode_gives_the_coefficient_nothing(form: LayerForm) -> None:
    x, coeff = torch.ones(3), torch.tensor(0.5)
    _, tangent = torch.func.jvp(form.reverse, (x, coeff), (torch.ones(3), torch.tensor(7.0)))
    assert torch.equal(tangent, torch.full((3,), -0.5))
    gradient = torch.func.grad(lambda coeff: _quartic(form.reverse(x, coeff)))(coeff)
    assert gradient == 0


@pytest.mark.parametrize("shape", [(), (3,), (1,)], ids=str)
@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_jax_gives_the_coefficient_zero(form: LayerForm, shape: tuple[int, ...]) -> None:
    x, coeff = jnp.ones(3), jnp.full(shape, 0.5)

    def first(x: Any, coeff: Any) -> Any:
        return jax.grad(lambda x: _quartic(form.reverse(x, coeff)))(x).sum()

    for function in (lambda x, coeff: _quartic(form.reverse(x, coeff)), first):
        to_x, to_coeff = jax.grad(function, argnums=(0, 1))(x, coeff)
        assert np.array_equal(to_coeff, np.zeros(shape, dtype=np.float32))
        assert not np.array_equal(to_x, np.zeros(3))


@pytest.mark.parametrize("form", [f for f in JAX_FORMS if f in FORWARD_MODE_FORMS], ids=str)
def test_jax_forward_mode_gives_the_coefficient_nothing(form: LayerForm) -> None:
    _, tangent = jax.jvp(form.reverse, (jnp.ones(3), jnp.float32(0.5)), (jnp.ones(3), jnp.float32(7.0)))
    assert np.array_equal(tangent, np.full(3, -0.5, dtype=np.float32))


@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_jax_integer_coefficient_has_no_gradient_and_raises_nothing(form: LayerForm) -> None:
    gradient = jax.jit(lambda x, coeff: jax.grad(lambda x: form.reverse(x, coeff).sum())(x))(jnp.ones(3), jnp.int32(2))
    assert np.array_equal(gradient, np.full(3, -2.0, dtype=np.float32))


@needs_torch
@pytest.mark.parametrize("form", [form for form in TORCH_FORMS if form.name != "Function"], ids=str)
def test_torch_compiled_for_others_and_then_given_dual_numbers(form: LayerForm) -> None:
    """A graph would run on them operator by operator, and it holds none for the rule."""
    x = torch.tensor([0.3, -1.2])
    program = torch.compile(lambda x: form.reverse(x, 0.37), backend="aot_eager")
    whole = torch.compile(lambda x: form.reverse(x, 0.37), backend="aot_eager", fullgraph=True)
    assert torch.equal(program(x), x)
    assert torch.equal(whole(x), x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones(2))
        tangent = torch.autograd.forward_ad.unpack_dual(program(dual)).tangent
        with pytest.raises(torch._dynamo.exc.Unsupported, match="would not reverse dual numbers"):
            whole(dual)
    assert tangent is not None
    assert tangent.tolist() == pytest.approx([-0.37, -0.37])


@needs_torch
@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_compiled_integers_are_a_ramp_too_and_nan_is_refused(form: LayerForm) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    program = torch.compile(lambda x, coeff: form.reverse(x, coeff).sum(), backend=counter, fullgraph=True)
    for coeff in range(-3, 4):
        x = torch.zeros(2, requires_grad=True)
        (gradient,) = torch.autograd.grad(program(x, coeff), x)
        assert gradient.tolist() == [-coeff, -coeff]
    assert counter.frame_count <= 2
    with pytest.raises(Exception, match="coeff: got nan"):
        program(torch.zeros(2, requires_grad=True), float("nan"))
