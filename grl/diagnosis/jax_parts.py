"""The modules and the parameters of a model in JAX, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array as JaxArray

__all__ = ["SplitModel", "is_nnx", "is_real_float", "parts", "split"]


class SplitModel(NamedTuple):
    """A model taken apart.

    Args:
        parameters: the arrays that take a gradient, by name.
        join: puts arrays, by name, into a copy of the model.
    """

    parameters: dict[str, JaxArray]
    join: Callable[[dict[str, JaxArray]], Any]


def parts(model: object) -> Iterator[tuple[str, object]]:
    """Yield an nnx module and all modules in it, with their names; of any other object, the object alone."""
    if is_nnx(model):
        for path, part in sys.modules["flax.nnx"].iter_modules(model):
            yield ".".join(map(str, path)), part
    else:
        yield "", model


def split(model: Any) -> SplitModel:
    """Take a model apart: an nnx module into its `nnx.Param`s and the rest, a pytree into its arrays of floats."""
    if is_nnx(model):
        nnx = sys.modules["flax.nnx"]
        graph, tree, rest = nnx.split(model, nnx.Param, ...)
    else:
        tree = model
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    by_name = [(_name(path), leaf) for path, leaf in leaves]

    def join(arrays: dict[str, JaxArray]) -> Any:
        tree = jax.tree_util.tree_unflatten(structure, [arrays.get(name, leaf) for name, leaf in by_name])
        return nnx.merge(graph, tree, rest, copy=True) if is_nnx(model) else tree

    parameters = {name: leaf for name, leaf in by_name if isinstance(leaf, JaxArray) and is_real_float(leaf)}
    return SplitModel(parameters, join)


def is_nnx(model: object) -> bool:
    """Return whether an object is an nnx module; imports no Flax that is not in use."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def is_real_float(x: JaxArray) -> bool:
    """Return whether an array holds real floats."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _name(path: tuple[Any, ...]) -> str:
    keys = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path]
    if isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":  # inside of an nnx Variable
        keys.pop()
    return ".".join(map(str, keys))
