"""JAX's arrays as NumPy arrays by name, and NumPy arrays as JAX's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grl.arrays import Array

__all__ = ["named", "split_arrays", "to_arrays"]


def split_arrays(tree: Any) -> tuple[list[jax.Array], Callable[[Any], Any]]:
    """Return the arrays of a pytree, which can be traced, and a function that puts other arrays in their places."""
    leaves, structure = jax.tree.flatten(tree)

    def rebuild(arrays: Sequence[jax.Array]) -> Any:
        rest = iter(arrays)
        return jax.tree.unflatten(structure, [next(rest) if isinstance(a, jax.Array) else a for a in leaves])

    return [leaf for leaf in leaves if isinstance(leaf, jax.Array)], rebuild


def to_arrays(values: Any, double: bool) -> Any:
    """Return a pytree with JAX arrays for its NumPy arrays, without a copy where precision and device allow it."""

    def convert(value: object) -> object:
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.kind in "iu":
            return jnp.asarray(value.astype(np.int32))
        return jnp.asarray(value.astype(np.float64) if double and value.dtype.kind == "f" else value)

    return jax.tree.map(convert, values)


def named(tree: Any) -> dict[str, Array]:
    """Return the arrays of an nnx state by the names of their places, such as "layers.0.kernel"."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path]
        if isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":  # of an nnx Variable
            keys.pop()
        if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            arrays[".".join(map(str, keys))] = np.asarray(leaf)
    return arrays
