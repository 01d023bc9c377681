"""The arrays of one layer, from nnx's names and layouts to PyTorch's and back, a flattened map before it included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from grl.arrays import Weights
from grl.weights.feature_order import input_weight, to_channels_first, to_channels_last
from grl.weights.rules import Rule

__all__ = ["in_nnx_layout", "in_torch_layout", "inputs_of"]


def in_torch_layout(
    rule: Rule | None, module: Any, arrays: Weights, channels: int | None = None, *, gradients: bool = False
) -> Weights:
    """Return a layer's arrays by PyTorch's names, in its layouts.

    Args:
        rule: of the layer; None for a tensor by itself, which stays as it is.
        module: the nnx module.
        arrays: nnx's, by their names within it.
        channels: C, if the layer follows a feature map that nnx has flattened as (H, W, C).
        gradients: whether they are gradients.
    """
    if rule is None or not arrays:
        return arrays
    found = ((rule.gradients if gradients else None) or rule.to_torch)(arrays, module)
    if channels is None:
        return found
    for name in inputs_of(rule, found):
        found[name] = to_channels_first(found[name], channels)
    return found


def in_nnx_layout(rule: Rule | None, module: Any, arrays: Weights, channels: int | None = None) -> Weights:
    """Return the inverse of `in_torch_layout`.

    Raises:
        ValueError: nnx has no place for a number of PyTorch's.
    """
    if rule is None or not arrays:
        return arrays
    if channels is not None:
        arrays = arrays | {name: to_channels_last(arrays[name], channels) for name in inputs_of(rule, arrays)}
    return rule.to_nnx(arrays, module)


def inputs_of(rule: Rule, arrays: Iterable[str]) -> list[str]:
    """Return the names of arrays whose last axis is that of the layer's inputs: of a Linear not its bias."""
    if "Norm" in rule.kind:
        return list(arrays)
    return [name for name in arrays if name.startswith(input_weight(rule.kind))]  # "weight_ih_l0_reverse" too
