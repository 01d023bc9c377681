"""The names and layouts of a `DANN`'s weights: nnx's in the JAX trainer, PyTorch's in everything that leaves it."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import numpy as np

from grl.arrays import Array, Weights
from grl.weights.layer_rules import CONVOLUTION
from grl.weights.rules import rule_of_kind

__all__ = ["filled", "named", "torch_name"]

Path = tuple[Any, ...]
"""A leaf's place in a tree, as `jax.tree_util` describes it."""

Tree = TypeVar("Tree")


def _torch_names() -> dict[str, str]:
    """Return nnx's name → PyTorch's of the arrays of the layers that a `DANN` has."""
    rules = [rule_of_kind(kind) for kind in ("Linear", "Conv", "BatchNorm")]
    return {nnx_name: name for rule in rules if rule is not None for name, nnx_name in rule.nnx_names.items()}


_TORCH_NAMES = _torch_names()


def torch_name(path: Path) -> str:
    """Return PyTorch's name of a leaf.

    Args:
        path: the leaf's place in a tree of nnx, from `jax.tree_util`.

    Example:
        >>> from jax.tree_util import DictKey
        >>> torch_name((DictKey("backbone"), DictKey("norms"), DictKey(0), DictKey("mean")))
        'backbone.norms.0.running_mean'
    """
    keys = [str(key.key) for key in path if hasattr(key, "key")]
    return ".".join([*keys[:-1], _TORCH_NAMES[keys[-1]]])


def named(tree: object) -> Weights:
    """Return PyTorch's name → array, in PyTorch's layout, of every leaf of a tree; each is a contiguous copy."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {torch_name(path): np.array(_to_torch(np.asarray(leaf)), order="C") for path, leaf in leaves}


def filled(tree: Tree, weights: Weights, dtype: np.dtype[Any]) -> Tree:
    """Return a tree of this structure, whose leaves come from weights with PyTorch's names and layouts."""

    def leaf(path: Path, _: object) -> Array:
        return _to_nnx(weights[torch_name(path)]).astype(dtype)

    result: Tree = jax.tree_util.tree_map_with_path(leaf, tree)
    return result


def _to_torch(array: Array) -> Array:
    """Convert a kernel of a convolution or of a linear layer, which is one without spatial axes; keep vectors."""
    return array if array.ndim == 1 else CONVOLUTION.to_torch(array, None)


def _to_nnx(array: Array) -> Array:
    return array if array.ndim == 1 else CONVOLUTION.to_nnx(array, None)
