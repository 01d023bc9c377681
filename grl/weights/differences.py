"""Whether the weights of two models are the same, and in which order a Linear behind a flattened map has its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from grl.arrays import Array
from grl.weights.feature_order import BY_FEATURE, to_channels_first
from grl.weights.layouts import in_nnx_layout, inputs_of
from grl.weights.pairing import Pairing
from grl.weights.tree import half_of

__all__ = ["Weights", "differing_weights"]


@dataclass(frozen=True)
class Weights:
    """How the weights of two models compare.

    Args:
        differing: the nnx model's, by PyTorch's names and in its layouts, where they are not PyTorch's.
        rounded: the same where the numbers are PyTorch's, but in another form: rounded to a narrower dtype, or two
            biases added up.
        flattened: nnx's name of a layer whose inputs are in the order (H, W, C) → C.
        constant: nnx's name of each layer that is the same in any order of its inputs → how many those are.
        sizes: the same of each layer in `flattened`.
    """

    differing: Mapping[str, Array]
    rounded: Mapping[str, Array]
    flattened: dict[str, int]
    constant: Mapping[str, int]
    sizes: Mapping[str, int]

    def of(self, layer: str) -> dict[str, Array]:
        """Those of one layer, or all of them if it is none."""
        mine = {name: a for name, a in self.differing.items() if name.rpartition(".")[0] == layer}
        return mine or dict(self.differing)


def differing_weights(torch_model: Any, nnx_model: Any, pairing: Pairing) -> Weights:
    """Compare all parameters and statistics.

    A weight (out, C·H·W) whose columns are PyTorch's in the order (H, W, C) is the same weight: `copy_weights` permutes
    what follows a flattened feature map.
    """
    ours, theirs = (
        {name: slot.read() for name, slot in half_of(side).slots(model).items()}
        for side, model in (("torch", torch_model), ("nnx", nnx_model))
    )
    carried = pairing.to_torch(theirs)
    flattened: dict[str, int] = {}
    constant: dict[str, int] = {}
    sizes: dict[str, int] = {}
    differing: dict[str, Array] = {}
    rounded: dict[str, Array] = {}
    for one in (*pairing.pairs, *pairing.parameters):
        start = f"{one.torch_name}." if one.torch_name else ""
        mine = {n: a for n, a in carried.items() if n == one.torch_name or n.startswith(start)}
        other = {n: a for n, a in mine.items() if n in ours and not np.array_equal(a, ours[n])}
        same = _same_for_nnx(one, mine, ours, theirs)
        channels = 0 if same else next(filter(None, (_channels(ours[n], a) for n, a in other.items())), 0)
        if channels:
            flattened[one.nnx_name] = channels
            sizes[one.nnx_name] = next(a.shape[-1] for n, a in other.items() if _channels(ours[n], a))
            same = _same_for_nnx(one, mine, ours, theirs, channels)
        elif inputs := _constant(one, mine):
            constant[one.nnx_name] = inputs
        for name, array in other.items():
            if channels and _channels(ours[name], array):
                continue
            if same or _same(array, ours[name]):
                rounded[name] = array
            else:
                differing[name] = array
    return Weights(differing, rounded, flattened, constant, sizes)


def _constant(one: Any, mine: Mapping[str, Array]) -> int:
    """The number of a layer's inputs if none of its weights tells one from another; else 0."""
    if one.rule is None or one.rule.kind not in BY_FEATURE:
        return 0
    own = {name.rpartition(".")[2]: array for name, array in mine.items()}
    of_inputs = [own[name] for name in inputs_of(one.rule, own)]
    sizes = {array.shape[-1] for array in of_inputs if array.ndim}
    told = any((array != array[..., :1]).any() for array in of_inputs if array.ndim)
    return 0 if told or len(sizes) != 1 else sizes.pop()


def _same_for_nnx(
    one: Any,
    mine: Mapping[str, Array],
    ours: Mapping[str, Array],
    theirs: Mapping[str, Array],
    channels: int | None = None,
) -> bool:
    """Whether nnx's arrays are those that PyTorch's become: two biases of PyTorch's may be one of nnx's."""
    if one.rule is None:
        return False
    start = f"{one.torch_name}." if one.torch_name else ""
    try:
        arrays = {n.removeprefix(start): ours[n] for n in mine if n in ours}
        made = in_nnx_layout(one.rule, one.nnx_module, arrays, channels)
    except ValueError:
        return False
    prefix = f"{one.nnx_name}." if one.nnx_name else ""
    return all(_same(array, theirs[f"{prefix}{name}"]) for name, array in made.items() if f"{prefix}{name}" in theirs)


def _same(a: Array, b: Array) -> bool:
    """Equal, or as near as the narrower of two floating-point formats allows."""
    if a.shape != b.shape:
        return False
    narrow = max((np.finfo(x.dtype).eps for x in (a, b) if x.dtype.kind == "f"), default=0.0)
    exact = a.dtype == b.dtype
    return bool(np.array_equal(a, b, equal_nan=exact) or (not exact and np.allclose(a, b, narrow, 0.0)))


def _channels(ours: Array, theirs: Array) -> int:
    """C for which one array is the other behind a flattened map; 0 if there is none."""
    if ours.shape != theirs.shape or not 1 <= ours.ndim <= 2:
        return 0
    inputs = ours.shape[-1]
    for channels in range(2, inputs // 2 + 1):
        if inputs % channels == 0 and _same(to_channels_first(theirs, channels), ours):
            return channels
    return 0
