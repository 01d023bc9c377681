"""Make an nnx model compute in float64 that was written for float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxprs_in_params

from grl.substitution import replaced

__all__ = ["doubled", "in_float64", "narrows", "widen"]


@contextmanager
def in_float64() -> Iterator[None]:
    """JAX with 64 bits, in which code that asks for `jnp.float32` gets float64."""
    usual = jax.nn.dot_product_attention

    def attention(query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None, **options: Any) -> Any:
        # JAX's own computes the softmax in float32 whatever comes in.
        causal, scale = options.pop("is_causal", False), options.pop("scale", None)
        if query.ndim != 4 or query.shape[2] != key.shape[2] or any(v is not None for v in options.values()):
            return usual(query, key, value, bias, mask, is_causal=causal, scale=scale, **options)
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores if bias is None else scores + bias
        scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
        if causal:
            scores = jnp.where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, -jnp.inf)
        return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)

    with (
        jax.enable_x64(True),
        replaced(jnp, "float32", jnp.float64),
        replaced(jax.nn, "dot_product_attention", attention),
    ):
        yield


def widen(model: nnx.Module) -> None:
    """Make layers that compute in float32 compute in float64."""
    for _, part in nnx.iter_modules(model):
        for name in ("dtype", "param_dtype"):
            dtype = vars(part).get(name)
            if dtype is not None and np.dtype(dtype) == np.float32:
                setattr(part, name, jnp.float64)


def doubled(tree: Any) -> Any:
    """Return a pytree with its floating-point arrays in float64."""

    def double(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf.astype(np.float64 if jnp.issubdtype(leaf.dtype, jnp.floating) else np.complex128)

    return jax.tree.map(double, tree)


def narrows(jaxpr: Any) -> bool:
    """Whether a program in float64 rounds to a narrower format anywhere."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type":
            before, after = equation.invars[0].aval.dtype, equation.params["new_dtype"]
            if before == np.float64 and jnp.issubdtype(after, jnp.floating) and after != np.float64:
                return True
        if any(narrows(inner) for inner in jaxprs_in_params(equation.params)):
            return True
    return False
