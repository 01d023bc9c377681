"""Weights from a PyTorch model into an nnx model, or back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from grl.weights.flattened import find_flattened
from grl.weights.halves import half_of, side_of
from grl.weights.pairing import Pairing, pair
from grl.weights.rule import Names
from grl.weights.slot import PortError, read_all, write_all

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

    from grl.weights.half import Model

__all__ = ["copy_weights"]


def copy_weights(
    source: Model,
    target: Model,
    *,
    names: Names | None = None,
    flatten: Mapping[str, Sequence[int]] | None = None,
    strict: bool = True,
) -> Pairing:
    """Copy the parameters and statistics of a model into a model of the other framework, in place: θ_target = θ_source.

    Layers are paired by name, and by structure where names differ (see `pair`). Names, shapes and layouts are converted
    (`grl.weights.layer_rules`). The target keeps its dtypes, devices and shardings, and numbers are rounded to nearest
    where its floats are narrower. Either everything is copied or the target stays unchanged.

    λ and the step count of a `GRL` are settings, not weights. They are copied where both models have a `GRL`. Where one
    has none, or a reversal of its own, the other keeps its λ, and `notes` of the result says so.

    A layer behind a flattened feature map has its inputs in the order (C, H, W) in PyTorch and (H, W, C) in nnx, so
    they are permuted. An experiment finds these layers and the order of this nnx model: it changes one channel and
    observes which inputs of the layer change (see `find_flattened`). The outputs of a layer are never permuted: where
    they become a feature map, the nnx model must read them as (C, H, W) too.

    Args:
        source: an `nn.Module` or an `nnx.Module`.
        target: a model of the other framework.
        names: PyTorch's name → nnx's, for modules or tensors that cannot be paired automatically (see `pair`).
        flatten: the name of each layer behind a flattened map → (C, H, W), where the experiment cannot be made; {} if
            there is none, or if the nnx model flattens in PyTorch's order.
        strict: whether every weight of both models must have a counterpart.

    Returns:
        The pairs, and without `strict` the weights that were left out.

    Raises:
        TypeError: the two are not one model of each framework.
        PortError: a weight has no counterpart (the message names all of them); shapes differ; a number does not fit its
            dtype; two different arrays belong to one tied parameter; the order of a flattened map is unknown.

    Example:
        `copy_weights(torch_model, nnx_model)`, and back: `copy_weights(nnx_model, torch_model)`.
    """
    source_side, target_side = side_of(source, "source"), side_of(target, "target")
    if source_side == target_side:
        raise TypeError(f"target: got a second model of {half_of(target_side).NAME}; expected one of each framework.")
    torch_model, nnx_model = _by_framework(source, target)
    pairing = pair(torch_model, nnx_model, names)
    if strict and not pairing.complete:
        raise PortError(pairing.complaint())
    nnx_names = {one.torch_name: one.nnx_name for one in pairing.pairs}
    flattened = find_flattened(nnx_model, flatten, nnx_names, torch_model)
    for one in pairing.parameters:
        if one.nnx_name.rpartition(".")[0] in flattened:
            raise PortError(f"names: got {one.nnx_name!r}, behind a flattened feature map; expected its whole layer.")
    source_slots = half_of(source_side).slots(source)
    arrays = read_all({name: slot for name, slot in source_slots.items() if pairing.covers(name, source_side)})
    converted = pairing.to_nnx(arrays, flattened) if target_side == "nnx" else pairing.to_torch(arrays, flattened)
    write_all(half_of(target_side).slots(target), converted)
    return pairing


def _by_framework(first: Model, second: Model) -> tuple[nn.Module, nnx.Module]:
    """Return PyTorch's model and nnx's model."""
    return (first, second) if side_of(first) == "torch" else (second, first)  # type: ignore[return-value]
