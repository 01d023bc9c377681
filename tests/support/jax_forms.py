"""JAX's layer forms, and how a test differentiates and compiles any of them; `torch_forms` has the same names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grl.bits import array_of as array
from grl.bits import bits_of as bits
from grl.bits import dtype_of as dtype_name
from grl.jax_impl import gradient_reversal, gradient_reversal_jvp
from tests.support.installed import HAS_FLAX

if HAS_FLAX:  # without it the functions are tested alone
    from flax import nnx

    from grl.jax_impl import GRL, linen

BACKEND = "jax"
FLUSHES = jax.default_backend() == "cpu"  # XLA turns subnormal operands and results into signed zeros there
FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "custom_vjp": gradient_reversal,
    "custom_jvp": gradient_reversal_jvp,
}
LAYERS: dict[str, Any] = {}
if HAS_FLAX:
    FORMS |= {
        "nnx": lambda x, coeff: GRL(coeff)(x),
        "nnx call": lambda x, coeff: GRL()(x, coeff),
        "linen": lambda x, coeff: linen.GRL(coeff).apply({}, x),
        "linen call": lambda x, coeff: linen.GRL().apply({}, x, coeff),
    }
    LAYERS = {"nnx": GRL, "linen": linen.GRL}
FORWARD_MODE = ("custom_jvp",)
COMPILED_KINDS = ("int", "float", "numpy scalar", "0-d array", "per sample", "per element")
SOURCE = {
    "custom_vjp": "grl.jax_impl.gradient_reversal(x, coeff)",
    "custom_jvp": "grl.jax_impl.gradient_reversal_jvp(x, coeff)",
    "nnx": "grl.jax_impl.GRL(coeff)(x)",
    "nnx call": "grl.jax_impl.GRL()(x, coeff)",
    "linen": "grl.jax_impl.linen.GRL(coeff).apply({}, x)",
    "linen call": "grl.jax_impl.linen.GRL().apply({}, x, coeff)",
}


def coefficient(native: Any) -> Any:
    """Return λ as a user of JAX would pass it: NumPy arrays become JAX arrays."""
    with np.errstate(over="ignore"):  # without x64, JAX rounds a large 64-bit λ to a 32-bit inf, and NumPy warns
        return jnp.asarray(native) if isinstance(native, np.ndarray) else native


def precision(dtype: str) -> Any:
    """Return the context in which JAX has this dtype: 64-bit arrays are disabled by default."""
    return jax.enable_x64(dtype in ("float64", "complex128"))


def gradient(
    reverse: Callable[[Any, Any], Any], x: np.ndarray, g: np.ndarray, dtype: str, coeff: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits of the value and of the gradient of x, for the cotangent g."""
    with precision(dtype):
        y, pull = jax.vjp(lambda x: reverse(x, coefficient(coeff)), array(x, dtype))
        (gradient,) = pull(array(g, dtype))
        assert dtype_name(gradient) == dtype, f"the gradient of {dtype} came back as {dtype_name(gradient)}"
        return bits(y), bits(gradient)


def tangent(
    reverse: Callable[[Any, Any], Any], x: np.ndarray, t: np.ndarray, dtype: str, coeff: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits of the value and of the tangent, in forward mode."""
    with precision(dtype):
        y, tangent = jax.jvp(lambda x: reverse(x, coefficient(coeff)), (array(x, dtype),), (array(t, dtype),))
        return bits(y), bits(tangent)


@functools.cache
def _compiled(form: str) -> Callable[..., Any]:
    """Return one compiled function for all dtypes. λ is an argument of it, so that it is traced once."""

    def pull_back(reverse: Callable[[Any], Any], xs: Any, gs: Any) -> Any:
        ys, pull = jax.vjp(lambda xs: jax.tree.map(reverse, xs), xs)
        return ys, pull(gs)[0]

    if form == "nnx":
        layer = GRL()
        model = nnx.jit(lambda layer, xs, gs: pull_back(layer, xs, gs))

        def run(coeff: Any, xs: Any, gs: Any) -> Any:
            layer.coeff = coeff
            return model(layer, xs, gs)

        return run
    reverse = FORMS[form]
    return jax.jit(lambda coeff, xs, gs: pull_back(lambda x: reverse(x, coeff), xs, gs))


def compiled_gradients(
    form: str, xs: dict[str, np.ndarray], gs: dict[str, np.ndarray], coeff: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, by dtype, the bits of the value and of the gradient, from one compiled program."""
    with precision("float64"):
        arrays = [{dtype: array(b, dtype) for dtype, b in side.items()} for side in (xs, gs)]
        ys, gradients = _compiled(form)(coefficient(coeff), *arrays)
        return {dtype: (bits(ys[dtype]), bits(gradients[dtype])) for dtype in xs}
