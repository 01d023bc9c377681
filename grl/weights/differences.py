"""Whether two models have the same weights, and in which order a Linear behind a flattened map has its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from grl.arrays import Array
from grl.weights.feature_order import BY_FEATURE, to_channels_first
from grl.weights.halves import half_of
from grl.weights.layouts import in_nnx_layout, input_arrays
from grl.weights.pairing import Pair, Pairing
from grl.weights.tree import joined

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

__all__ = ["Weights", "differing_weights"]


@dataclass(frozen=True)
class Weights:
    """The comparison of two models' weights.

    Args:
        differing: the nnx model's arrays that are not PyTorch's, by PyTorch's names and in its layouts.
        rounded: the nnx model's arrays that are PyTorch's in another form: rounded to a narrower dtype, or two biases
            added up.
        flattened: nnx's name of each layer whose inputs are in the order (H, W, C) → C.
        constant: nnx's name of each layer whose weights are the same in any order of its inputs → the number of inputs.
        sizes: the number of inputs of each layer in `flattened`.
    """

    differing: dict[str, Array] = field(default_factory=dict)
    rounded: dict[str, Array] = field(default_factory=dict)
    flattened: dict[str, int] = field(default_factory=dict)
    constant: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def of(self, layer: str) -> dict[str, Array]:
        """Return the differing arrays of one layer, or all of them if the layer has none."""
        of_layer = {name: array for name, array in self.differing.items() if name.rpartition(".")[0] == layer}
        return of_layer or dict(self.differing)


def differing_weights(torch_model: nn.Module, nnx_model: nnx.Module, pairing: Pairing) -> Weights:
    """Compare all parameters and statistics of two models.

    A weight (out, C·H·W) that has PyTorch's columns in the order (H, W, C) counts as the same: `copy_weights` permutes
    the layers behind a flattened feature map.
    """
    torch_arrays = {name: slot.read() for name, slot in half_of("torch").slots(torch_model).items()}
    nnx_arrays = {name: slot.read() for name, slot in half_of("nnx").slots(nnx_model).items()}
    converted = pairing.to_torch(nnx_arrays)
    weights = Weights()
    for one in (*pairing.pairs, *pairing.parameters):
        start = f"{one.torch_name}." if one.torch_name else ""
        within = {n: array for n, array in converted.items() if n == one.torch_name or n.startswith(start)}
        _Comparison(one, within, torch_arrays, nnx_arrays).add_to(weights)
    return weights


@dataclass(frozen=True)
class _Comparison:
    """One pair.

    Args:
        pair: the pair.
        converted: the nnx layer's arrays, by PyTorch's full names and in its layouts.
        torch_arrays: all arrays of the PyTorch model.
        nnx_arrays: all arrays of the nnx model.
    """

    pair: Pair
    converted: Mapping[str, Array]
    torch_arrays: Mapping[str, Array]
    nnx_arrays: Mapping[str, Array]

    def add_to(self, weights: Weights) -> None:
        unequal = {
            name: array
            for name, array in self.converted.items()
            if name in self.torch_arrays and not np.array_equal(array, self.torch_arrays[name])
        }
        is_same = self._is_same_in_nnx()
        orders = {} if is_same else {n: c for n, a in unequal.items() if (c := _channels(self.torch_arrays[n], a))}
        if orders:
            name, channels = next(iter(orders.items()))
            weights.flattened[self.pair.nnx_name] = channels
            weights.sizes[self.pair.nnx_name] = unequal[name].shape[-1]
            is_same = self._is_same_in_nnx(channels)
        elif inputs := self._constant_inputs():
            weights.constant[self.pair.nnx_name] = inputs
        for name, array in unequal.items():
            if name in orders:
                continue
            is_rounded = is_same or _is_close(array, self.torch_arrays[name])
            (weights.rounded if is_rounded else weights.differing)[name] = array

    def _constant_inputs(self) -> int:
        """Return the number of a layer's inputs if its weights are the same for all of them; else 0."""
        rule = self.pair.rule
        if rule is None or rule.kind not in BY_FEATURE:
            return 0
        within = {name.rpartition(".")[2]: array for name, array in self.converted.items()}
        arrays = [within[name] for name in input_arrays(rule, within) if within[name].ndim]
        sizes = {array.shape[-1] for array in arrays}
        is_constant = all((array == array[..., :1]).all() for array in arrays)
        return sizes.pop() if is_constant and len(sizes) == 1 else 0

    def _is_same_in_nnx(self, channels: int | None = None) -> bool:
        """Return whether nnx has what PyTorch's arrays become. One bias of nnx's may stand for two of PyTorch's."""
        rule = self.pair.rule
        if rule is None:
            return False
        arrays = {
            name.removeprefix(self.pair.torch_name).removeprefix("."): self.torch_arrays[name]
            for name in self.converted
            if name in self.torch_arrays
        }
        try:
            expected = in_nnx_layout(rule, self.pair.nnx_module, arrays, channels)
        except ValueError:
            return False
        return all(
            _is_close(array, self.nnx_arrays[full_name])
            for name, array in expected.items()
            if (full_name := joined(self.pair.nnx_name, name)) in self.nnx_arrays
        )


def _is_close(a: Array, b: Array) -> bool:
    """Return whether two arrays are equal, up to the rounding of the narrower of two floating-point formats."""
    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype:
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    rounding = max((np.finfo(array.dtype).eps for array in (a, b) if array.dtype.kind == "f"), default=0.0)
    return bool(np.array_equal(a, b) or np.allclose(a, b, rounding, 0.0))


def _channels(torch_array: Array, nnx_array: Array) -> int:
    """Return C if nnx's array is PyTorch's behind a flattened map of C channels; 0 if there is no such C."""
    if torch_array.shape != nnx_array.shape or not 1 <= torch_array.ndim <= 2:
        return 0
    inputs = torch_array.shape[-1]
    for channels in range(2, inputs // 2 + 1):
        if inputs % channels == 0 and _is_close(to_channels_first(nnx_array, channels), torch_array):
            return channels
    return 0
