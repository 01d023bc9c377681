"""`measure_reversal` and `assert_reverses`: layers that are right, and each way to be wrong, with its verdict."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from grl.parity import assert_reverses, measure_reversal
from tests.support.installed import HAS_FLAX, needs_flax, needs_jax, needs_torch


class Torch:
    """Layers in PyTorch; `Jax` has the same names."""

    def __init__(self) -> None:
        import torch

        from grl import torch_impl

        self.torch, self.impl = torch, torch_impl
        self.detach = torch.Tensor.detach
        self.half, self.bfloat = torch.float16, torch.bfloat16

    def array(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        values = np.random.default_rng(1).normal(size=shape)
        return self.torch.tensor(values, dtype=dtype or self.torch.float32)

    def rule(self, backward: Callable[[Any], Any]) -> Callable[[Any], Any]:
        class Rule(self.torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Any) -> Any:
                return x.view_as(x)

            @staticmethod
            def backward(ctx: Any, cotangent: Any) -> Any:
                return backward(cotangent)

        return Rule.apply

    def module_with_backward(self) -> Any:
        class Reverse(self.torch.nn.Module):
            def forward(self, x: Any) -> Any:
                return x

            def backward(self, cotangent: Any) -> Any:
                return -cotangent

        return Reverse()

    def linear(self) -> Any:
        return self.torch.nn.Linear(3, 3)

    def clip(self, x: Any) -> Any:
        return self.torch.clamp(x, -1.0, 1.0)


class Jax:
    """Layers in JAX; `Torch` has the same names."""

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp

        from grl import jax_impl

        self.jax, self.jnp, self.impl = jax, jnp, jax_impl
        self.detach = jax.lax.stop_gradient
        self.half, self.bfloat = jnp.float16, jnp.bfloat16

    def array(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        return self.jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype or self.jnp.float32)

    def rule(self, backward: Callable[[Any], Any]) -> Callable[[Any], Any]:
        rule = self.jax.custom_vjp(lambda x: x)
        rule.defvjp(lambda x: (x, None), lambda _, cotangent: (backward(cotangent),))
        return rule

    def module_with_backward(self) -> Any:
        from flax import nnx

        class Reverse(nnx.Module):
            def __call__(self, x: Any) -> Any:
                return x

            def backward(self, cotangent: Any) -> Any:
                return -cotangent

        return Reverse()

    def linear(self) -> Any:
        from flax import nnx

        return nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def clip(self, x: Any) -> Any:
        return self.jnp.clip(x, -1.0, 1.0)


@pytest.fixture(
    params=[
        pytest.param(Torch, id="torch", marks=needs_torch),
        pytest.param(Jax, id="jax", marks=needs_jax),
    ]
)
def side(request: pytest.FixtureRequest) -> Any:
    return request.param()


def needs_modules(side: Any) -> None:
    if isinstance(side, Jax) and not HAS_FLAX:
        pytest.skip("needs Flax")


# Layers that are right.


@pytest.mark.parametrize("coeff", [1.0, 0.5, 0.1, 1e-3, 40.0])
@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (2, 3, 5)])
def test_the_factor_is_minus_lambda_exactly(side: Any, coeff: float, shape: tuple[int, ...]):
    seen = measure_reversal(lambda x: side.impl.gradient_reversal(x, coeff), side.array(shape))
    assert (seen.verdict, seen.identity, seen.cause) == ("reversed", True, "")
    assert seen.factor == -np.float32(coeff)


@pytest.mark.parametrize("dtype", ["half", "bfloat"])
@pytest.mark.parametrize("coeff", [1.0, 0.1, 3.0])
def test_sixteen_bits_are_no_reason_for_another_verdict(side: Any, dtype: str, coeff: float):
    x = side.array((4, 3), getattr(side, dtype))
    layer = functools.partial(side.impl.gradient_reversal, coeff=coeff)
    assert measure_reversal(layer, x).verdict == "reversed"
    assert_reverses(layer, x, coeff=coeff)


@pytest.mark.parametrize("coeff", [1e-4, 1e-3, 1e-2, 100.0, 1e4])
def test_sixteen_bits_have_room_for_large_and_small_lambdas(side: Any, coeff: float):
    layer = functools.partial(side.impl.gradient_reversal, coeff=coeff)
    assert measure_reversal(layer, side.array((4, 3), side.half)).verdict == "reversed"
    assert_reverses(layer, side.array((4, 3), side.half), coeff=coeff)
    with pytest.raises(AssertionError, match=r"\(expected: factor "):
        assert_reverses(layer, side.array((4, 3), side.half), coeff=1.1 * coeff)


def test_lambda_may_be_an_array_of_any_kind(side: Any):
    layer = functools.partial(side.impl.gradient_reversal, coeff=0.5)
    coeffs = [side.array((), side.bfloat) * 0 + 0.5]
    if isinstance(side, Torch):
        coeffs.append(side.torch.tensor(0.5, requires_grad=True))
    for coeff in coeffs:
        assert_reverses(layer, side.array((4, 3)), coeff=coeff)


@needs_torch
def test_a_backward_pass_in_place_does_not_change_the_measure():
    side = Torch()
    layer = side.rule(lambda cotangent: cotangent.mul_(-0.5))
    assert measure_reversal(layer, side.array((4, 3), side.torch.float64)).factor == -0.5


def test_modules_are_measured_as_functions_are(side: Any):
    needs_modules(side)
    layer = side.impl.GRL(0.5)
    assert str(measure_reversal(layer, side.array((4, 3)))) == (
        "reversed: the gradient reaches x with its sign reversed (factor −0.5)."
    )
    assert_reverses(layer, side.array((4, 3)), coeff=0.5)


@needs_flax
def test_linen_modules_are_measured_when_bound():
    from grl.jax_impl import linen

    assert measure_reversal(functools.partial(linen.GRL(0.25).apply, {}), Jax().array((3,))).factor == -0.25
    with pytest.raises(TypeError, match=r"layer: got a Linen module without variables; expected functools.partial"):
        measure_reversal(linen.GRL(0.25), Jax().array((3,)))


@pytest.mark.parametrize(("shape", "by"), [((4,), "sample"), ((4, 3), "element")])
def test_one_lambda_for_each_sample_or_element_is_reported_so(side: Any, shape: tuple[int, ...], by: str):
    coeff = np.linspace(0.0, 2.0, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    layer = functools.partial(side.impl.gradient_reversal, coeff=coeff)
    seen = measure_reversal(layer, side.array((4, 3)))
    assert (seen.verdict, seen.factor) == ("reversed", None)
    np.testing.assert_array_equal(seen.factors, -coeff)
    assert str(seen) == f"reversed: the gradient reaches x with its sign reversed (factors from −2 to 0, by {by})."
    assert_reverses(layer, side.array((4, 3)), coeff=coeff)
    with pytest.raises(AssertionError, match=rf"factors from −2 to 0, by {by}\) \(expected: factor −1\)"):
        assert_reverses(layer, side.array((4, 3)), coeff=1.0)


def test_nothing_is_left_behind_in_x_or_in_the_layer(side: Any):
    needs_modules(side)
    x = side.array((4, 3))
    layer = side.linear()
    measure_reversal(layer, x)
    if isinstance(side, Torch):
        assert not x.requires_grad
        assert x.grad is layer.weight.grad is None


# Layers that are wrong, each with its verdict and its words.

_DOUBLED = "the layer is skipped, its backward pass is never called, or the sign is applied twice"
BROKEN: dict[str, tuple[Callable[[Any], Callable[[Any], Any]], str]] = {
    "no layer": (
        lambda side: lambda x: x,
        f"not reversed: the gradient reaches x unchanged (factor +1): {_DOUBLED}.",
    ),
    "two layers": (
        lambda side: lambda x: side.impl.gradient_reversal(side.impl.gradient_reversal(x)),
        f"not reversed: the gradient reaches x unchanged (factor +1): {_DOUBLED}.",
    ),
    "two layers, λ = 2": (
        lambda side: lambda x: side.impl.gradient_reversal(side.impl.gradient_reversal(x, 2.0), 2.0),
        "not reversed: the gradient reaches x without its sign reversed (factor +4):"
        " λ is negative, or the sign is applied twice.",
    ),
    "negative λ": (
        lambda side: lambda x: side.impl.gradient_reversal(x, -0.5),
        "not reversed: the gradient reaches x without its sign reversed (factor +0.5):"
        " λ is negative, or the sign is applied twice.",
    ),
    "cut off": (
        lambda side: side.detach,
        "blocked: no gradient reaches x (factor 0): λ is 0, or x is cut off (detach, no_grad, stop_gradient).",
    ),
    "λ = 0": (
        lambda side: lambda x: side.impl.gradient_reversal(x, 0.0),
        "blocked: no gradient reaches x (factor 0): λ is 0, or x is cut off (detach, no_grad, stop_gradient).",
    ),
    "NaN": (
        lambda side: side.rule(lambda cotangent: cotangent * float("nan")),
        "not finite: NaN or infinity reaches x from a finite gradient.",
    ),
    "clipping": (
        lambda side: side.rule(lambda cotangent: side.clip(-cotangent)),
        "not linear: what reaches x is not proportional to the gradient that comes in:"
        " something clips, normalises or rounds within the backward pass.",
    ),
    "clipping at a norm that is seldom met": (
        lambda side: side.rule(lambda cotangent: -cotangent * (100.0 / ((cotangent**2).sum() + 1e4) ** 0.5)),
        "not linear: what reaches x is not proportional to the gradient that comes in:"
        " something clips, normalises or rounds within the backward pass.",
    ),
    "large gradients alone shrunk": (
        lambda side: side.rule(lambda cotangent: -cotangent / (1 + (cotangent / 1e5) ** 2) ** 0.5),
        "not linear: what reaches x is not proportional to the gradient that comes in:"
        " something clips, normalises or rounds within the backward pass.",
    ),
    "small gradients alone shrunk": (
        lambda side: side.rule(lambda cotangent: -(cotangent**3) / (cotangent**2 + 1e-9)),
        "not linear: what reaches x is not proportional to the gradient that comes in:"
        " something clips, normalises or rounds within the backward pass.",
    ),
    "sign of the gradient alone": (
        lambda side: side.rule(lambda cotangent: -cotangent / abs(cotangent)),
        "not linear: what reaches x is not proportional to the gradient that comes in:"
        " something clips, normalises or rounds within the backward pass.",
    ),
    "forward not the identity": (
        lambda side: lambda x: side.impl.gradient_reversal(x) * 2.0,
        "reversed: the gradient reaches x with its sign reversed (factor −2); the output is not x.",
    ),
    "elements mixed": (
        lambda side: side.rule(lambda cotangent: -(cotangent + cotangent.mean())),
        "not reversed: the gradient reaches x without its sign reversed:"
        " elements of the gradient are mixed with one another, as a layer with weights does.",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_layer_gets_its_verdict_and_its_cause(side: Any, name: str):
    make, sentence = BROKEN[name]
    assert str(measure_reversal(make(side), side.array((4, 3)))) == sentence


@pytest.mark.parametrize("name", BROKEN)
def test_no_broken_layer_passes_the_assertion(side: Any, name: str):
    make, _ = BROKEN[name]
    for coeff in (None, 1.0, 2.0):
        with pytest.raises(AssertionError, match=r"\(expected: [^\n]+\)\.$"):
            assert_reverses(make(side), side.array((4, 3)), coeff=coeff)


def test_a_backward_method_on_a_module_is_named_as_the_cause(side: Any):
    needs_modules(side)
    framework = {Torch: "PyTorch", Jax: "JAX"}[type(side)]
    sentence = f"Reverse has a method `backward`, which {framework} never calls on a Module"
    seen = measure_reversal(side.module_with_backward(), side.array((4, 3)))
    assert (seen.verdict, seen.factor, seen.identity, seen.cause) == ("not reversed", 1.0, True, sentence)
    with pytest.raises(AssertionError) as error:
        assert_reverses(side.module_with_backward(), side.array((4, 3)), coeff=0.5)
    assert str(error.value) == (f"the gradient reaches x unchanged (factor +1): {sentence} (expected: factor −0.5).")


def test_the_assertion_says_what_was_seen_and_what_was_expected(side: Any):
    x, reverse = side.array((4, 3)), side.impl.gradient_reversal
    with pytest.raises(AssertionError) as error:
        assert_reverses(lambda x: x, x, coeff=0.5)
    assert str(error.value) == f"the gradient reaches x unchanged (factor +1): {_DOUBLED} (expected: factor −0.5)."
    with pytest.raises(AssertionError) as error:
        assert_reverses(lambda x: reverse(x, 1.0), x, coeff=0.5)
    assert str(error.value) == ("the gradient reaches x with its sign reversed (factor −1) (expected: factor −0.5).")
    with pytest.raises(AssertionError, match=r"the output is not x \(expected: factor −1, and the output equal to x\)"):
        assert_reverses(lambda x: reverse(x, 1.0) + 1.0, x, coeff=1.0)
    assert_reverses(lambda x: reverse(x, 0.0), x, coeff=0.0)
    assert_reverses(lambda x: x, x, coeff=-1.0)


# How they refuse.


def test_arrays_of_neither_framework_are_refused(side: Any):
    accepted = "expected a torch tensor or a JAX array of real floats"
    with pytest.raises(TypeError, match=rf"^x: got a numpy.ndarray; {accepted}\.$"):
        measure_reversal(side.impl.gradient_reversal, np.ones(3))
    with pytest.raises(TypeError, match=rf"^x: got a builtins.list; {accepted}\.$"):
        measure_reversal(side.impl.gradient_reversal, [1.0])
    integers = side.array((3,)) > 0
    with pytest.raises(TypeError, match=rf"^x: got a [\w.]+ of [\w.]*bool; {accepted}\.$"):
        measure_reversal(side.impl.gradient_reversal, integers)


def test_what_is_no_layer_is_refused(side: Any):
    x = side.array((4, 3))
    with pytest.raises(ValueError, match=r"^x: got the shape \(0, 3\); expected one with elements\.$"):
        measure_reversal(side.impl.gradient_reversal, x[:0])
    with pytest.raises(TypeError, match=r"^layer: returned a tuple; expected a "):
        measure_reversal(lambda x: (x, x), x)
    with pytest.raises(ValueError, match=r"^layer: returned the shape \(4,\); expected that of x, \(4, 3\)\.$"):
        measure_reversal(lambda x: x.sum(1), x)
