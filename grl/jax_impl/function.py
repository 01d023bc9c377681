"""Gradient reversal as a function: R(x; λ) = x with the declared Jacobian −λ·I."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from grl.coefficient import aligned_shape, finite_number, own_array, require_real
from grl.leaves import is_plain

__all__ = ["gradient_reversal", "gradient_reversal_jvp"]


def gradient_reversal(x: Any, coeff: Any = 1.0) -> Any:
    """Return `x` unchanged; multiply its gradient by −λ on the way back. A `jax.custom_vjp`.

    Forward y = x, without any arithmetic. Backward g ↦ −λ·g: one multiply and one rounding, taken in float32 for
    float16 and bfloat16. The second derivative of f(R(x)) is λ²·f'', by reverse-over-reverse and by
    forward-over-reverse (`jax.hessian`). For forward mode at first order (`jax.jvp`, `jax.linearize`, `jax.jacfwd`),
    which a `custom_vjp` refuses, there is `gradient_reversal_jvp`.

    Args:
        x: an array of any shape, or a pytree of arrays. Leaves that carry no gradient (integers, bools, PRNG keys,
            plain Python values, functions) are returned as they are, and so is an array that nobody differentiates.
        coeff: λ; reverses where positive, blocks where 0, passes on (scaled) where negative. A finite real number,
            a 0-d real array, traced or not, one value per sample with shape (N,), or one per element. λ never gets a
            gradient.

    Returns:
        What came in: values bit for bit the same, each array with x's dtype, shape and sharding.

    Raises:
        TypeError: λ is a bool, a string, None or complex; or x holds an array of another library, or an object that
            JAX's pytrees do not know and that may hold arrays.
        ValueError: λ is not finite, or its shape fits neither of the forms above.
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
    coeff = _as_coefficient(coeff)
    return jax.tree.map(lambda leaf: _reverse_leaf(_reverse, leaf, coeff), x)


def gradient_reversal_jvp(x: Any, coeff: Any = 1.0) -> Any:
    """Return `x` unchanged; multiply tangents and gradients by −λ. A `jax.custom_jvp`: for forward mode too.

    The twin of `gradient_reversal`: the same values, the same bits of the gradient, and ẋ ↦ −λ·ẋ under `jax.jvp`,
    `jax.linearize` and `jax.jacfwd`. `jax.linear_transpose` serves what these give (it raises on R itself, whose
    value is not what its derivative is of). The gradient of a complex x may lose the sign of a zero part.

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
    coeff = _as_coefficient(coeff)
    return jax.tree.map(lambda leaf: _reverse_leaf(_reverse_jvp, leaf, coeff), x)


@jax.custom_jvp
def _reverse_jvp(x: Array, coeff: Array) -> Array:
    # Not `return x`: `jax.linear_transpose` looks into this body, would find an identity, and would return the
    # cotangent un-reversed without a word. A `custom_vjp` refuses to be transposed, and costs nothing once compiled.
    return _reverse(x, coeff)


@_reverse_jvp.defjvp
def _reverse_jvp_rule(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    (x, coeff), (tangent, _) = primals, tangents
    # The value is reversed again: without that the next derivative would see a plain identity (−λ·f'' for λ²·f'').
    return _reverse_jvp(x, coeff), _scale(tangent, coeff)


@jax.custom_vjp
def _reverse(x: Array, coeff: Array) -> Array:
    y: Array = _value(x, coeff)
    return y


def _forward(x: Array, coeff: Array) -> tuple[Array, Array]:
    # The twin, not the plain x: for the next derivative, and so that forward mode may follow (`jax.hessian`).
    return _reverse_jvp(x, coeff), coeff


def _backward(coeff: Array, cotangent: Array) -> tuple[Array, None]:
    return _scale(cotangent, coeff), None


_reverse.defvjp(_forward, _backward)


@custom_vmap
def _value(x: Array, coeff: Array) -> Array:
    return x


@_value.def_vmap
def _value_of_each(size: int, batched: Sequence[bool], x: Array, coeff: Array) -> tuple[Array, bool]:
    # Under `vmap` over λ alone, a plain `x` would be one value for all λ, and its cotangent the sum of all that come
    # back, before λ is there to scale each.
    x_batched, coeff_batched = batched
    if coeff_batched and not x_batched:
        x = jnp.broadcast_to(x, (size, *x.shape))
    return _value(x, coeff), True


def _scale(array: Array, coeff: Array) -> Array:
    """−λ·t with one rounding: in float32 for floats of 16 bits or fewer, in t's own precision otherwise."""
    if jnp.iscomplexobj(array):  # λ is real: a complex multiply would turn inf·0 into NaN
        return lax.complex(_scale(array.real, coeff), _scale(array.imag, coeff))
    precision = jnp.float32 if array.dtype.itemsize < 4 else array.dtype
    factor = -lax.stop_gradient(coeff).astype(precision)
    return (array.astype(precision) * factor).astype(array.dtype)


def _as_coefficient(coeff: Any) -> Any:
    if isinstance(coeff, np.ndarray):  # JAX may still read from it when the call has returned: the copy is NumPy's
        coeff = own_array(coeff)
        with np.errstate(over="ignore"):  # a λ that float32 cannot hold is infinite there, as it is in PyTorch
            return jnp.asarray(coeff)
    if isinstance(coeff, Array):
        is_real = jnp.issubdtype(coeff.dtype, jnp.integer) or jnp.issubdtype(coeff.dtype, jnp.floating)
        require_real(coeff.dtype, is_real=is_real)
        return coeff
    return np.float64(finite_number(coeff))  # 64 bits until JAX makes it an array of the precision in force


def _reverse_leaf(reverse: Any, leaf: Any, coeff: Any) -> Any:
    if not isinstance(leaf, Array | np.ndarray):
        is_jaxs_own = type(leaf).__module__.startswith("jax") and callable(leaf)  # jax.nn.relu is an object
        if is_plain(leaf) or is_jaxs_own or isinstance(leaf, jax.Device):
            return leaf
        kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
        raise TypeError(f"x: got a {kind}; expected JAX arrays, in tuples, lists and dicts (pytrees).")
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    shape = aligned_shape(jnp.shape(coeff), leaf.shape)
    if not isinstance(leaf, Tracer):
        return leaf
    if type(leaf).__name__ == "JetTracer":
        raise NotImplementedError(
            "jax.experimental.jet does not look at custom derivative rules (JAX 0.10, jax#40747): it would not reverse."
            " Nested jax.jvp of gradient_reversal_jvp gives the same derivatives."
        )
    with np.errstate(over="ignore"):  # as there
        coeff = jnp.asarray(coeff)
    return reverse(leaf, coeff.reshape(shape))
