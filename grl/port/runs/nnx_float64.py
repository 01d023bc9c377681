"""Make an nnx model that was written for float32 compute in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params

from grl.substitution import replaced, taking_turns

__all__ = ["doubled", "in_float64", "narrows", "widen", "widens"]

T = TypeVar("T")

_IS_DOUBLE: ContextVar[bool] = ContextVar("_IS_DOUBLE", default=False)
"""Whether this thread computes in float64; a new thread does not."""


@contextmanager
def in_float64() -> Iterator[None]:
    """Give this thread JAX with 64 bits, in which code that asks for `jnp.float32` gets float64.

    `jnp.float32` and `jax.nn.dot_product_attention` are replaced for the whole process, by objects that differ from the
    usual ones only in this thread. Two threads take turns.
    """
    attention = _attention(jax.nn.dot_product_attention)
    with (
        taking_turns(),
        jax.enable_x64(True),
        replaced(jnp, "float32", _float32_or_float64()),
        replaced(jax.nn, "dot_product_attention", attention),
    ):
        token = _IS_DOUBLE.set(True)
        try:
            yield
        finally:
            _IS_DOUBLE.reset(token)


def _float32_or_float64() -> type:
    """Return a scalar type like `jnp.float32` whose dtype is float64 in a thread that computes in float64."""

    def dtype(_: type) -> np.dtype[Any]:
        return np.dtype(np.float64 if _IS_DOUBLE.get() else np.float32)

    by_thread = type("_ScalarTypeByThread", (type(jnp.float32),), {"dtype": property(dtype)})
    scalar_type: type = by_thread("float32", (object,), {})
    return scalar_type


def _attention(usual: Any) -> Any:
    """Return an attention whose softmax is in float64: JAX's computes it in float32 for any input."""

    def attention(query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None, **options: Any) -> Any:
        if not _IS_DOUBLE.get():
            return usual(query, key, value, bias, mask, **options)
        causal, scale = options.pop("is_causal", False), options.pop("scale", None)
        if query.ndim != 4 or query.shape[2] != key.shape[2] or any(v is not None for v in options.values()):
            return usual(query, key, value, bias, mask, is_causal=causal, scale=scale, **options)
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores if bias is None else scores + bias
        scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
        if causal:
            scores = jnp.where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, -jnp.inf)
        return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)

    return attention


def widen(model: nnx.Module) -> None:
    """Make layers that compute in float32 compute in float64."""
    for _, layer in nnx.iter_modules(model):
        for name in ("dtype", "param_dtype"):
            dtype = vars(layer).get(name)
            if dtype is not None and np.dtype(dtype) == np.float32:
                setattr(layer, name, jnp.float64)


def doubled(tree: T) -> T:
    """Return a pytree with its floating-point arrays in float64."""

    def double(leaf: object) -> object:
        if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf.astype(np.float64 if jnp.issubdtype(leaf.dtype, jnp.floating) else np.complex128)

    result: T = jax.tree.map(double, tree)
    return result


def narrows(jaxpr: Jaxpr) -> bool:
    """Return whether a program in float64 rounds to a narrower format anywhere."""
    return any(before == np.float64 and after != np.float64 for before, after in _conversions(jaxpr))


def widens(jaxpr: Jaxpr) -> bool:
    """Return whether a program in float64 takes numbers that were computed in a narrower format."""
    return any(before != np.float64 and after == np.float64 for before, after in _conversions(jaxpr))


def _conversions(jaxpr: Jaxpr) -> Iterator[tuple[np.dtype[Any], np.dtype[Any]]]:
    """Yield the dtypes before and after each conversion of a floating-point number that is no constant."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type" and not isinstance(equation.invars[0], Literal):
            operand: Any = equation.invars[0].aval
            dtypes = operand.dtype, np.dtype(equation.params["new_dtype"])
            if all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
                yield dtypes
        for inner in jaxprs_in_params(equation.params):
            yield from _conversions(inner)
