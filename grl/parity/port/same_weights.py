"""Whether the weights of two models are the same, and in which order a Linear behind a flattened map has its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from grl.parity.port.flatten import to_channels_first
from grl.parity.port.pairing import Pairing
from grl.parity.port.recording import Array
from grl.parity.port.tree import half_of

__all__ = ["Weights", "differing_weights"]


@dataclass(frozen=True)
class Weights:
    """How the weights of two models compare.

    Args:
        differing: the nnx model's, by PyTorch's names and in its layouts, where they are not PyTorch's.
        rounded: the same where the numbers are PyTorch's, but in another form: rounded to a narrower dtype, or two
            biases added up.
        flattened: nnx's name of a layer whose inputs are in the order (H, W, C) → C.
    """

    differing: Mapping[str, Array]
    rounded: Mapping[str, Array]
    flattened: Mapping[str, int]

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
    differing: dict[str, Array] = {}
    rounded: dict[str, Array] = {}
    for one in (*pairing.pairs, *pairing.parameters):
        start = f"{one.torch_name}." if one.torch_name else ""
        mine = {n: a for n, a in carried.items() if n == one.torch_name or n.startswith(start)}
        same = _same_for_nnx(one, mine, ours, theirs)
        for name, array in mine.items():
            if name not in ours or np.array_equal(array, ours[name]):
                continue
            channels = 0 if same else _channels(ours[name], array)
            if same or _same(array, ours[name]):
                rounded[name] = array
            elif channels:
                flattened[one.nnx_name] = channels
            else:
                differing[name] = array
    return Weights(differing, rounded, flattened)


def _same_for_nnx(one: Any, mine: Mapping[str, Array], ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> bool:
    """Whether nnx's arrays are those that PyTorch's become: two biases of PyTorch's may be one of nnx's."""
    if one.rule is None:
        return False
    start = f"{one.torch_name}." if one.torch_name else ""
    try:
        made = one.rule.to_nnx({n.removeprefix(start): ours[n] for n in mine if n in ours}, one.nnx_module)
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
