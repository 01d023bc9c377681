"""Gradient reversal as a function: R(x; λ) = x with the declared Jacobian −λ·I."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from grl.bypass import Bypass
from grl.coefficient import aligned_shape
from grl.jax_impl._internals import is_jet_tracer, is_of_jax
from grl.jax_impl.bypass import current_bypass
from grl.jax_impl.coefficient import Coefficient, aligned_coefficient, as_coefficient, scale
from grl.leaves import is_plain

__all__ = ["gradient_reversal", "gradient_reversal_jvp"]

T = TypeVar("T")


def gradient_reversal(x: T, coeff: Coefficient = 1.0) -> T:
    """Return `x` unchanged; multiply its gradient by −λ on the way back. A `jax.custom_vjp`.

    Forward y = x, without any arithmetic. Backward g ↦ −λ·g: one multiply and one rounding, taken in float32 for
    float16 and bfloat16. The second derivative of f(R(x)) is λ²·f'', by reverse-over-reverse and by
    forward-over-reverse (`jax.hessian`). A `custom_vjp` refuses forward mode at first order (`jax.jvp`,
    `jax.linearize`, `jax.jacfwd`): `gradient_reversal_jvp` supports it.

    Args:
        x: an array of any shape, or a pytree of arrays. Leaves that carry no gradient (integers, bools, PRNG keys,
            plain Python values, functions) are returned as they are, and so is an array that nothing differentiates.
        coeff: λ. A positive λ reverses, 0 blocks, a negative λ passes the gradient on, scaled. A finite real number,
            a real array of one element, traced or not, one value per sample with shape (N,), or one per element. λ
            never gets a gradient.

    Returns:
        The same structure with the same values, bit for bit. Each array has x's dtype, shape and sharding.

    Raises:
        TypeError: λ is a bool, a string, None or complex; or x holds an array of another library, or an object that
            JAX's pytrees do not know and that could contain arrays.
        ValueError: λ is not finite, or its shape fits none of the forms above.
        NotImplementedError: under `jax.experimental.jet`, which knows no custom rules.

    Example:
        >>> jax.grad(lambda x: gradient_reversal(x, 0.5).sum())(jnp.ones(3))
        Array([-0.5, -0.5, -0.5], dtype=float32)

    Reference:
        Ganin & Lempitsky 2015, Unsupervised Domain Adaptation by Backpropagation, arXiv:1409.7495.
    """
    # Nothing differentiates an array that no transformation traces, and a `custom_vjp` call would cost 95 µs.
    if isinstance(coeff, float) and isinstance(x, Array) and not isinstance(x, Tracer) and -inf < coeff < inf:
        return x
    checked = as_coefficient(coeff)
    tree: T = jax.tree.map(lambda leaf: _reverse_leaf(_reverse, leaf, checked), x)
    return tree


def gradient_reversal_jvp(x: T, coeff: Coefficient = 1.0) -> T:
    """Return `x` unchanged; multiply tangents and gradients by −λ. A `jax.custom_jvp`: for forward mode too.

    The twin of `gradient_reversal`: the same values, the same bits of the gradient, and ẋ ↦ −λ·ẋ under `jax.jvp`,
    `jax.linearize` and `jax.jacfwd`. `jax.linear_transpose` works on the linear maps that these return. It raises on R
    itself, because R's forward value is not the linear map that its derivative describes. The gradient of a complex x
    may lose the sign of a zero real or imaginary part.

    Args:
        x: as for `gradient_reversal`.
        coeff: as for `gradient_reversal`.

    Returns:
        As `gradient_reversal`.

    Raises:
        TypeError, ValueError, NotImplementedError: as `gradient_reversal`.

    Example:
        >>> jax.jvp(gradient_reversal_jvp, (jnp.ones(2),), (jnp.ones(2),))[1]
        Array([-1., -1.], dtype=float32)

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """
    if isinstance(coeff, float) and isinstance(x, Array) and not isinstance(x, Tracer) and -inf < coeff < inf:
        return x
    checked = as_coefficient(coeff)
    tree: T = jax.tree.map(lambda leaf: _reverse_leaf(_reverse_jvp, leaf, checked), x)
    return tree


@jax.custom_jvp
def _reverse_jvp(x: Array, coeff: Array) -> Array:
    # Not `return x`: `jax.linear_transpose` reads this body. It would find an identity and return the cotangent
    # un-reversed without a word. A `custom_vjp` refuses to be transposed, and costs nothing once compiled.
    return _reverse(x, coeff)


@_reverse_jvp.defjvp
def _reverse_jvp_rule(primals: tuple[Array, Array], tangents: tuple[Array, object]) -> tuple[Array, Array]:
    (x, coeff), (tangent, _) = primals, tangents
    # The value is reversed again. Otherwise the next derivative would see a plain identity (−λ·f'' for λ²·f'').
    return _reverse_jvp(x, coeff), scale(tangent, coeff)


@jax.custom_vjp
def _reverse(x: Array, coeff: Array) -> Array:
    y: Array = _value(x, coeff)
    return y


def _forward(x: Array, coeff: Array) -> tuple[Array, Array]:
    # The twin, not the plain x: for the next derivative, and so that forward mode may follow (`jax.hessian`).
    return _reverse_jvp(x, coeff), coeff


def _backward(coeff: Array, cotangent: Array) -> tuple[Array, None]:
    return scale(cotangent, coeff), None


_reverse.defvjp(_forward, _backward)


@custom_vmap
def _value(x: Array, coeff: Array) -> Array:
    return x


@_value.def_vmap
def _value_of_each(size: int, batched: Sequence[bool], x: Array, coeff: Array) -> tuple[Array, bool]:
    # Under `vmap` over λ alone, a plain `x` would be one value for all λ. Its cotangent would be the sum over all λ
    # before each λ could scale its own.
    x_batched, coeff_batched = batched
    if coeff_batched and not x_batched:
        x = jnp.broadcast_to(x, (size, *x.shape))
    return _value(x, coeff), True


def _reverse_leaf(reverse: Callable[[Array, Array], Array], leaf: object, coeff: np.float64 | Array) -> object:
    if not isinstance(leaf, Array | np.ndarray):
        if is_plain(leaf) or is_of_jax(leaf) or isinstance(leaf, jax.Device):
            return leaf
        kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
        raise TypeError(f"x: got a {kind}; expected JAX arrays, in tuples, lists and dicts (pytrees).")
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    if not isinstance(leaf, Tracer):
        aligned_shape(jnp.shape(coeff), leaf.shape)  # raises for a shape that does not fit
        return leaf
    if is_jet_tracer(leaf):
        raise NotImplementedError(
            "jax.experimental.jet ignores custom derivative rules (JAX 0.10, jax#40747), so it would not reverse."
            " Nested jax.jvp of gradient_reversal_jvp gives the same derivatives."
        )
    aligned = aligned_coefficient(leaf, coeff)
    bypass = current_bypass()
    if bypass is None:
        return reverse(leaf, aligned)
    count = _count if reverse is _reverse else _count_jvp
    return reverse(count(bypass, leaf), jnp.full_like(aligned, -bypass.factor, dtype=jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _count(bypass: Bypass, x: Array) -> Array:
    """Return x; count the derivatives that reverse mode takes."""
    return x


def _count_backward(bypass: Bypass, _: None, cotangent: Array) -> tuple[Array]:
    bypass.runs += 1
    return (cotangent,)


_count.defvjp(lambda bypass, x: (x, None), _count_backward)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _count_jvp(bypass: Bypass, x: Array) -> Array:
    """Return x; count the derivatives."""
    return x


@_count_jvp.defjvp
def _count_jvp_rule(bypass: Bypass, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    bypass.runs += 1
    return primals[0], tangents[0]
