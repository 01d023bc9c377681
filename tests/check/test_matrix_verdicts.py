"""The instrument itself: layers that are broken on purpose are WRONG in the right cells, and in no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from grl.check import reference
from grl.check.check_layer import check_layer
from tests.support.installed import HAS_JAX, HAS_TORCH, needs_flax, needs_jax, needs_torch

if HAS_TORCH:
    import torch
    from torch._C._functorch import TransformType
    from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

    from grl.check import torch_derivatives, torch_tensors
if HAS_JAX:
    import jax
    import jax.numpy as jnp

    from grl.check import jax_derivatives
    from grl.jax_impl import gradient_reversal_jvp

Layer = Callable[[Any, Any], Any]
BESIDE = "beside the layer: f(x) + g(R(x))"


def assert_wrong(layer: Layer, backend: str, expected: set[str], among: list[str]) -> None:
    """A layer is WRONG under these transformations and under no other of some."""
    cells = check_layer(layer, backend=backend, transformations=among)
    assert {cell.transformation for cell in cells if cell.status == "WRONG"} == expected
    assert all(("expected" in cell.reason) == (cell.status == "WRONG") or "rounded" in cell.reason for cell in cells)


# PyTorch


def torch_layer(
    forward: Callable[[Any], Any] = lambda x: x.clone(),
    scale: Callable[[Any, Any], Any] = lambda g, coeff: g * -coeff,
    keep: bool = False,
    apart: bool = True,
) -> Layer:
    """A layer that is right but for what is said otherwise. `apart`: under vmap, each λ has a value of its own."""

    class Rule(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Any, coeff: Any) -> Any:
            y = forward(x)
            return torch.where(coeff == coeff, y, y) if apart and isinstance(coeff, torch.Tensor) else y

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, coeff = inputs
            ctx.coeff = coeff if isinstance(coeff, float) else coeff.clone()
            ctx.save_for_backward(*[x] * keep)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return scale(g, ctx.coeff), None

        @staticmethod
        def jvp(ctx: Any, tangent: Any, _: Any) -> Any:
            return scale(tangent, ctx.coeff)

    def layer(x: Any, coeff: Any) -> Any:
        if isinstance(coeff, torch.Tensor) and coeff.dim():
            raise ValueError("one λ alone")
        return Rule.apply(x, coeff)

    return layer


def torch_not_under_vmap() -> Layer:
    right = torch_layer()

    def layer(x: Any, coeff: Any) -> Any:
        vmapped = any(level.key() == TransformType.Vmap for level in retrieve_all_functorch_interpreters())
        return x if vmapped else right(x, coeff)

    return layer


def torch_second_order() -> Layer:
    class Scale(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(g: Any, coeff: Any) -> Any:
            return g * -coeff

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, h: Any) -> Any:
            return h.clone(), None  # and not −λ·h

        @staticmethod
        def jvp(ctx: Any, tangent: Any, _: Any) -> Any:
            return tangent.clone()

    return torch_layer(scale=lambda g, coeff: Scale.apply(g, coeff))


def torch_cells() -> list[str]:
    return [row.name for row in (*torch_derivatives.TRANSFORMATIONS, *torch_tensors.TRANSFORMATIONS)]


def torch_first_order() -> set[str]:
    """What shows a wrong factor; the others ask for values, shapes, memory or devices."""
    return set(torch_cells()) - {
        *("forward keeps the bits", "integers", "nothing is kept alive", "meta and fake tensors", "no gradient to λ"),
        *(("CUDA",) if not torch.cuda.is_available() else ()),
    }


VMAP = {
    *("func.vmap of grad", "func.vmap over λ", "func.grad of vmap over λ"),
    *("func.jacfwd", "func.hessian", "functional_call, per sample"),
}


@needs_torch
def test_torch_layer_that_is_right_is_nowhere_wrong() -> None:
    assert_wrong(torch_layer(), "torch", set(), torch_cells())


@needs_torch
def test_torch_no_reversal() -> None:
    assert_wrong(lambda x, coeff: x, "torch", torch_first_order(), torch_cells())


@needs_torch
def test_torch_wrong_scale() -> None:
    expected = torch_first_order() - {"per-sample λ"}  # it refuses that
    assert_wrong(torch_layer(scale=lambda g, coeff: g * -coeff * 1.5), "torch", expected, torch_cells())


@needs_torch
def test_torch_sign_applied_twice() -> None:
    expected = torch_first_order() - {"per-sample λ", "double backward", "func.hessian"}  # λ² has no sign
    assert_wrong(torch_layer(scale=lambda g, coeff: g * coeff), "torch", expected, torch_cells())


@needs_torch
def test_torch_reversal_lost_under_vmap() -> None:
    assert_wrong(torch_not_under_vmap(), "torch", VMAP, torch_cells())


@needs_torch
def test_torch_forward_is_not_the_identity() -> None:
    assert_wrong(torch_layer(forward=lambda x: x + 0), "torch", {"forward keeps the bits"}, torch_cells())  # −0 + 0 = 0
    (cell,) = check_layer(torch_layer(forward=lambda x: 1.01 * x), backend="torch", transformations=["eager"])
    assert cell.status == "WRONG"
    assert cell.reason.startswith("value: expected")


@needs_torch
def test_torch_coefficient_rounded() -> None:
    def to(dtype: Any, coeff: Any) -> Any:
        return torch.as_tensor(coeff).to(dtype)

    single = torch_layer(scale=lambda g, coeff: g * -to(torch.float32, coeff).to(torch.float64))
    assert_wrong(single, "torch", {"64 bits: λ is not rounded"}, torch_cells())
    gradients = torch_layer(scale=lambda g, coeff: (g.float() * -to(g.dtype, coeff).float()).to(g.dtype))
    among = ["16 bits: λ is not rounded", "eager", "double backward", "func.vmap of grad"]
    assert_wrong(gradients, "torch", {"16 bits: λ is not rounded"}, among)


@needs_torch
def test_torch_one_value_for_all_coefficients_under_vmap() -> None:
    assert_wrong(torch_layer(apart=False), "torch", {"func.grad of vmap over λ"}, torch_cells())


@needs_torch
def test_torch_in_place_operation_changes_x() -> None:
    layer = torch_layer(forward=lambda x: x.view_as(x))  # under torch.func, PyTorch forgets that it is a view
    among = ["func.grad, in-place operation afterwards", "in-place operation afterwards", "func.grad", "eager"]
    assert_wrong(layer, "torch", {"func.grad, in-place operation afterwards"}, among)


@needs_torch
def test_torch_input_kept_alive() -> None:
    assert_wrong(torch_layer(keep=True), "torch", {"nothing is kept alive"}, torch_cells())


@needs_torch
@pytest.mark.parametrize("kept", ["clone", "λ as large as x", "attribute", "closure"])
def test_torch_anything_of_the_size_of_x_kept_alive(kept: str) -> None:
    class Keeping(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, coeff: Any) -> Any:
            ctx.save_for_backward(
                *([x.clone()] * (kept == "clone") + [torch.full_like(x, 1.0)] * (kept == "λ as large as x"))
            )
            ctx.coeff, ctx.more = coeff, (x.clone(), None) if kept == "attribute" else None
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * -ctx.coeff, None

    def closing(x: Any, coeff: Any) -> Any:
        y = Keeping.apply(x, coeff)
        if y.requires_grad:
            y.register_hook(lambda g: g + 0 * x.detach().sum())
        return y

    layer = closing if kept == "closure" else Keeping
    assert_wrong(layer, "torch", {"nothing is kept alive"}, ["nothing is kept alive", "eager"])


@needs_torch
def test_torch_gradient_beside_the_layer_changed() -> None:
    class InPlace(torch.autograd.Function):
        @staticmethod
        def forward(x: Any, coeff: Any) -> Any:
            return x.view_as(x)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.coeff = inputs[1]

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g.mul_(-ctx.coeff), None

    def hook(x: Any, coeff: Any) -> Any:
        if x.requires_grad:
            x.register_hook(lambda g: -coeff * g)
        return x

    among = [BESIDE, "eager", "func.vjp", "complex", "64 bits: λ is not rounded"]
    constants = [array.copy() for array in (reference.X, reference.WEIGHTS, reference.FIRST)]
    assert_wrong(InPlace, "torch", {BESIDE}, among)
    assert_wrong(hook, "torch", {BESIDE}, among[:2])
    for array, before in zip((reference.X, reference.WEIGHTS, reference.FIRST), constants, strict=True):
        np.testing.assert_array_equal(array, before)  # what is right is measured by these afterwards
    assert_wrong(torch_layer(), "torch", set(), among)


@needs_torch
def test_torch_gradient_cut_in_silence() -> None:
    expected = {*torch_first_order(), "meta and fake tensors"}
    assert_wrong(lambda x, coeff: x.detach(), "torch", expected, torch_cells())
    assert_wrong(lambda x, coeff: x.detach(), "torch", PROGRAMS, list(PROGRAMS))


PROGRAMS = {"compile", "compile, autograd.grad inside", "compile, dynamic shapes"}


@needs_torch
def test_torch_zero_is_taken_for_no_coefficient_in_the_call() -> None:
    right = torch_layer()

    class Layer(torch.nn.Module):
        def __init__(self, coeff: float = 1.0) -> None:
            super().__init__()
            self.coeff = coeff

        def forward(self, x: Any, coeff: Any = None) -> Any:
            return right(x, coeff or self.coeff)

    assert_wrong(Layer, "torch", {"λ = 0, λ < 0"}, ["λ = 0, λ < 0", "eager", "compile, ramp of λ"])


@needs_torch
def test_torch_coefficient_rounded_in_one_dtype_or_where_it_is_made() -> None:
    right = torch_layer()

    class Layer(torch.nn.Module):
        def __init__(self, coeff: float = 1.0) -> None:
            super().__init__()
            self.coeff = torch.tensor(coeff)

        def forward(self, x: Any, coeff: Any = None) -> Any:
            return right(x, self.coeff.to(x.dtype) if coeff is None else coeff)

    half = torch_layer(
        scale=lambda g, coeff: (g.float() * -(coeff if g.dtype != torch.float16 else torch.as_tensor(coeff).half())).to(
            g.dtype
        )
    )
    for layer in (Layer, half):
        assert_wrong(layer, "torch", {"16 bits: λ is not rounded"}, ["16 bits: λ is not rounded", "eager"])


@needs_torch
def test_torch_second_order_wrong() -> None:
    assert_wrong(torch_second_order(), "torch", {"double backward", "func.hessian"}, torch_cells())


@needs_torch
def test_torch_coefficient_changed_before_backward() -> None:
    class Aliased(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, coeff: Any) -> Any:
            ctx.coeff = coeff
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * -ctx.coeff, None

    expected = {"λ changed before backward", "per-sample λ"}  # and it spreads λ along the wrong axis
    assert_wrong(Aliased, "torch", expected, torch_cells())


@needs_torch
def test_torch_gradient_to_the_coefficient() -> None:
    right = torch_layer()

    def leaking(x: Any, coeff: Any) -> Any:
        return right(x, coeff) + (coeff - torch.as_tensor(coeff).detach()) * x.detach()

    assert_wrong(leaking, "torch", {"no gradient to λ"}, ["no gradient to λ", "eager", "double backward"])


@needs_torch
def test_torch_reversal_lost_in_programs() -> None:
    from grl.torch_impl import gradient_reversal as right

    cases = {
        "compile": lambda x, coeff: x if torch.compiler.is_compiling() else right(x, coeff),
        "export": lambda x, coeff: x if torch.compiler.is_exporting() else right(x, coeff),
        "jit.trace": lambda x, coeff: x if torch.jit.is_tracing() else right(x, coeff),  # type: ignore[attr-defined]
        # A running sum is a kernel of its own.
        "compile, Inductor: no kernel more": lambda x, coeff: right(x, coeff) + 0 * x.cumsum(0),
    }
    for name, layer in cases.items():
        assert_wrong(layer, "torch", {name}, [name, "eager"])


# JAX


def jax_layer(
    forward: Callable[[Any], Any] = lambda x: x,
    scale: Callable[[Any, Any], Any] | None = None,
    again: Layer | None = None,
    keep: Callable[[Any, Any], Any] = lambda x, coeff: coeff,
    apart: bool = True,
) -> Layer:
    """A layer that is right, to be differentiated backward, but for what is said otherwise (`apart` as above)."""

    def multiply(g: Any, coeff: Any) -> Any:
        precision = jnp.float32 if g.dtype.itemsize < 4 else g.dtype
        return (g.astype(precision) * -coeff.astype(precision)).astype(g.dtype)

    def value(x: Any, coeff: Any) -> Any:
        y = forward(x)
        return jnp.where(coeff == coeff, y, y) if apart else y

    rule = jax.custom_vjp(value)
    rule.defvjp(
        lambda x, coeff: ((again or gradient_reversal_jvp)(value(x, coeff), coeff), (coeff, keep(x, coeff))),
        lambda kept, g: ((scale or multiply)(g, kept[0]), None),
    )

    def layer(x: Any, coeff: Any) -> Any:
        if jnp.ndim(coeff):
            raise ValueError("one λ alone")
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return rule(
            x,
            jnp.array(
                np.array(coeff) if isinstance(coeff, np.ndarray) else coeff,
                jnp.float64 if x.dtype == jnp.float64 else jnp.float32,
            ),
        )

    return layer


def jax_not_under_vmap() -> Layer:
    @jax.custom_batching.custom_vmap
    def factor(x: Any, coeff: Any) -> Any:
        return coeff

    @factor.def_vmap
    def _(size: int, batched: list[bool], x: Any, coeff: Any) -> tuple[Any, bool]:
        return -jnp.ones_like(coeff), batched[1]

    @jax.custom_vjp
    def rule(x: Any, coeff: Any) -> Any:
        return x

    rule.defvjp(lambda x, coeff: (x, factor(x, coeff)), lambda coeff, g: (g * -coeff, None))
    return lambda x, coeff: rule(x, jnp.asarray(coeff))


def jax_cells() -> list[str]:
    return [row.name for row in jax_derivatives.TRANSFORMATIONS]


def jax_first_order() -> set[str]:
    return set(jax_cells()) - {"forward keeps the bits", "integers", "nothing is kept alive", "no gradient to λ"}


FORWARD_MODE = {"jacfwd", "jvp", "linearize", "linear_transpose", "hvp, reverse over forward"}  # a custom_vjp refuses
SECOND_ORDER = {"double backward", "hessian", "hvp, forward over reverse", "hvp, reverse over reverse"}


@needs_jax
def test_jax_layer_that_is_right_is_nowhere_wrong() -> None:
    assert_wrong(jax_layer(), "jax", set(), jax_cells())


@needs_jax
def test_jax_no_reversal() -> None:
    assert_wrong(lambda x, coeff: x, "jax", jax_first_order(), jax_cells())


@needs_jax
def test_jax_wrong_scale() -> None:
    expected = jax_first_order() - FORWARD_MODE - {"per-sample λ"}
    assert_wrong(jax_layer(scale=lambda g, coeff: g * (-1.5 * coeff).astype(g.dtype)), "jax", expected, jax_cells())


@needs_jax
def test_jax_reversal_lost_under_vmap() -> None:
    cells = ["eager", "vjp", "jacrev", "vmap of grad", "vmap over λ", "per-sample gradients of a model"]
    expected = {"vmap of grad", "vmap over λ", "per-sample gradients of a model"}
    assert_wrong(jax_not_under_vmap(), "jax", expected, cells)


@needs_jax
def test_jax_forward_is_not_the_identity() -> None:
    assert_wrong(jax_layer(forward=lambda x: x + 0), "jax", {"forward keeps the bits"}, jax_cells())  # −0 + 0 = 0
    (cell,) = check_layer(jax_layer(forward=lambda x: 1.01 * x), backend="jax", transformations=["eager"])
    assert cell.status == "WRONG"
    assert cell.reason.startswith("value: expected")


@needs_jax
def test_jax_coefficient_rounded() -> None:
    layer = jax_layer(scale=lambda g, coeff: g * -coeff.astype(g.dtype))
    assert_wrong(layer, "jax", {"16 bits: λ is not rounded"}, jax_cells())
    layer = jax_layer(scale=lambda g, coeff: g * -coeff.astype(jnp.float32).astype(g.dtype))
    among = ["64 bits: λ is not rounded", "eager", "double backward", "vmap of grad"]
    assert_wrong(layer, "jax", {"64 bits: λ is not rounded"}, among)


@needs_jax
def test_jax_one_value_for_all_coefficients_under_vmap() -> None:
    assert_wrong(jax_layer(apart=False), "jax", {"grad of vmap over λ"}, jax_cells())


@needs_jax
def test_jax_input_kept_alive() -> None:
    assert_wrong(jax_layer(keep=lambda x, coeff: x), "jax", {"nothing is kept alive"}, jax_cells())


@needs_jax
def test_jax_second_order_wrong() -> None:
    assert_wrong(jax_layer(again=lambda x, coeff: x), "jax", SECOND_ORDER, jax_cells())


@needs_jax
def test_jax_gradient_beside_the_layer_changed() -> None:
    assert_wrong(lambda x, coeff: x, "jax", {BESIDE, "eager"}, [BESIDE, "eager"])


@needs_jax
def test_jax_gradient_cut_in_silence() -> None:
    (cell,) = check_layer(lambda x, coeff: jax.lax.stop_gradient(x), backend="jax", transformations=["eager"])
    assert cell.status == "WRONG"
    assert cell.reason.endswith("got 0 everywhere, as where x is cut off")


@needs_flax
def test_jax_zero_is_taken_for_no_coefficient_in_the_call() -> None:
    from flax import nnx

    class Layer(nnx.Module):
        def __init__(self, coeff: float = 1.0) -> None:
            self.coeff = coeff

        def __call__(self, x: Any, coeff: Any = None) -> Any:
            return gradient_reversal_jvp(x, coeff or self.coeff)

    assert_wrong(Layer, "jax", {"λ = 0, λ < 0"}, ["λ = 0, λ < 0", "eager"])


@needs_flax
def test_jax_coefficient_rounded_in_one_dtype_or_where_it_is_made() -> None:
    from flax import nnx

    class Layer(nnx.Module):
        def __init__(self, coeff: float = 1.0) -> None:
            self.coeff = coeff

        def __call__(self, x: Any, coeff: Any = None) -> Any:
            return gradient_reversal_jvp(x, jnp.asarray(self.coeff).astype(x.dtype) if coeff is None else coeff)

    def scale(g: Any, coeff: Any) -> Any:
        rounded = coeff.astype(g.dtype).astype(coeff.dtype) if g.dtype == jnp.float16 else coeff
        return (g.astype(coeff.dtype) * -rounded).astype(g.dtype)

    for layer in (Layer, jax_layer(scale=scale)):
        assert_wrong(layer, "jax", {"16 bits: λ is not rounded"}, ["16 bits: λ is not rounded", "eager"])


@needs_jax
def test_jax_coefficients_of_samples_spread_along_the_wrong_axis() -> None:
    @jax.custom_vjp
    def rule(x: Any, coeff: Any) -> Any:
        return x

    rule.defvjp(lambda x, coeff: (rule(x, coeff), coeff), lambda coeff, g: (-coeff * g, None))
    assert_wrong(lambda x, coeff: rule(x, coeff), "jax", {"per-sample λ"}, ["per-sample λ", "eager"])


@needs_jax
def test_jax_with_one_device_nothing_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    cells = check_layer(lambda x, coeff: x, backend="jax", transformations=["sharded arrays", "shard_map"])
    assert [cell.status for cell in cells] == ["n/a", "n/a"]


@needs_jax
def test_jax_reversal_lost_in_forward_mode_and_transposition() -> None:
    @jax.custom_jvp
    def rule(x: Any, coeff: Any) -> Any:
        return x

    @rule.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return gradient_reversal_jvp(*primals), -primals[1] * tangents[0]

    layer = lambda x, coeff: rule(x, coeff)
    assert_wrong(layer, "jax", {"linear_transpose"}, ["linear_transpose", "jvp", "hessian", "eager"])


@needs_jax
def test_jax_coefficient_changed_before_backward() -> None:
    @jax.custom_vjp
    def rule(x: Any, coeff: Any) -> Any:
        return x

    rule.defvjp(lambda x, coeff: (gradient_reversal_jvp(x, coeff), coeff), lambda coeff, g: (g * -coeff, None))
    assert_wrong(rule, "jax", {"λ changed before backward"}, ["λ changed before backward", "eager", "vmap over λ"])


@needs_jax
def test_jax_gradient_to_the_coefficient() -> None:
    right = jax_layer()

    def leaking(x: Any, coeff: Any) -> Any:
        return right(x, coeff) + (coeff - jax.lax.stop_gradient(coeff)) * jax.lax.stop_gradient(x)

    assert_wrong(leaking, "jax", {"no gradient to λ"}, ["no gradient to λ", "eager", "double backward"])


@needs_jax
def test_jax_cost_and_dtype() -> None:
    def in_two_steps(g: Any, coeff: Any) -> Any:
        return g * -coeff + 0.0 * g

    cases = {
        "jit, forward: no instruction": jax_layer(forward=lambda x: x * jnp.cos(0.0 * x)),
        "jit, backward: one multiply": jax_layer(scale=in_two_steps),
        "eval_shape": jax_layer(scale=lambda g, coeff: g.astype(coeff.dtype) * -coeff),
    }
    for name, layer in cases.items():
        assert_wrong(layer, "jax", {name}, [name, "eager", "scan", "cond"])
