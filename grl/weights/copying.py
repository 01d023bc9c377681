"""Weights from a PyTorch model into an nnx model, or back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grl.weights.flattened import find_flattened
from grl.weights.pairing import Pairing, pair
from grl.weights.slot import PortError, read_all, write_all
from grl.weights.tree import half_of, side_of

__all__ = ["copy_weights"]


def copy_weights(
    source: Any,
    target: Any,
    *,
    names: Mapping[str, str] | None = None,
    flatten: Mapping[str, Sequence[int]] | None = None,
    strict: bool = True,
) -> Pairing:
    """Copy the parameters and statistics of a model into one of the other framework, in place: θ_target = θ_source.

    Layers are found by name, and by structure where names differ (see `pair`); names, shapes and layouts are converted
    (`grl.weights.rules`). The target keeps its dtypes, devices and shardings: numbers are rounded to nearest where
    its floats are narrower. Either everything is copied or the target stays as it was.

    A layer behind a flattened feature map has its inputs in the order (C, H, W) in PyTorch and (H, W, C) in nnx, and is
    permuted. Which layers those are, and whether this nnx model has that order, is found out by an experiment: a
    channel is changed, and the layer's inputs that change with it are looked at (see `find_flattened`). The outputs of
    a layer are never permuted: where they become a feature map, nnx has to take them as (C, H, W) too.

    Args:
        source: an `nn.Module` or an `nnx.Module`.
        target: one of the other framework.
        names: PyTorch's name → nnx's, of modules or tensors that cannot be paired by themselves.
        flatten: the name of each such layer → (C, H, W), if the experiment cannot be made; {} for none: the nnx model
            flattens in PyTorch's order.
        strict: whether everything has to be matched, on both sides.

    Returns:
        What was paired with what, and if not strict what was left out.

    Raises:
        TypeError: not one model of each framework.
        PortError: something on either side has no counterpart, all of which is named; shapes differ; a number does not
            fit its dtype; two different arrays belong to one tied parameter; the order of a flattened map is unknown.

    Example:
        `copy_weights(torch_model, nnx_model)`, and back: `copy_weights(nnx_model, torch_model)`.
    """
    sides = side_of(source, "source"), side_of(target, "target")
    if sides[0] == sides[1]:
        raise TypeError(f"target: got a second model of {half_of(sides[0]).NAME}; expected one of each framework.")
    torch_model, nnx_model = (source, target) if sides[0] == "torch" else (target, source)
    pairing = pair(torch_model, nnx_model, names)
    if strict and not pairing.complete:
        raise PortError(pairing.complaint())
    aliases = {one.torch_name: one.nnx_name for one in pairing.pairs}
    flattened = find_flattened(nnx_model, flatten, aliases, torch_model)
    slots = {name: slot for name, slot in half_of(sides[0]).slots(source).items() if pairing.covers(name, sides[0])}
    arrays = read_all(slots)
    carried = pairing.to_nnx(arrays, flattened) if sides[1] == "nnx" else pairing.to_torch(arrays, flattened)
    write_all(half_of(sides[1]).slots(target), carried)
    return pairing
