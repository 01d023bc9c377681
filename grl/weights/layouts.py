"""The arrays of one layer, converted from nnx's names and layouts to PyTorch's and back, flattened maps included."""

from __future__ import annotations

from collections.abc import Iterable

from grl.arrays import Weights
from grl.weights.feature_order import input_weight, to_channels_first, to_channels_last
from grl.weights.half import Part
from grl.weights.rule import Rule

__all__ = ["in_nnx_layout", "in_torch_layout", "input_arrays"]


def in_torch_layout(
    rule: Rule | None, module: Part, arrays: Weights, channels: int | None = None, *, gradients: bool = False
) -> Weights:
    """Return a layer's arrays by PyTorch's names and in its layouts.

    Args:
        rule: the layer's rule; None for a tensor, which stays unchanged.
        module: the nnx module.
        arrays: nnx's arrays, by their names within the layer.
        channels: C, if the layer follows a feature map that nnx has flattened as (H, W, C).
        gradients: whether the arrays are gradients.
    """
    if rule is None or not arrays:
        return arrays
    convert = rule.gradients if gradients and rule.gradients is not None else rule.to_torch
    converted = convert(arrays, module)
    if channels is None:
        return converted
    return converted | {name: to_channels_first(converted[name], channels) for name in input_arrays(rule, converted)}


def in_nnx_layout(rule: Rule | None, module: Part, arrays: Weights, channels: int | None = None) -> Weights:
    """Return the inverse of `in_torch_layout`.

    Raises:
        ValueError: nnx has no place for a number of PyTorch's.
    """
    if rule is None or not arrays:
        return arrays
    if channels is not None:
        arrays = arrays | {name: to_channels_last(arrays[name], channels) for name in input_arrays(rule, arrays)}
    return rule.to_nnx(arrays, module)


def input_arrays(rule: Rule, names: Iterable[str]) -> list[str]:
    """Return the names of the arrays whose last axis is the layer's inputs. A Linear's bias, for one, is not."""
    if "Norm" in rule.kind:
        return list(names)
    return [name for name in names if name.startswith(input_weight(rule.kind))]  # "weight_ih_l0_reverse" as well
