"""How one kind of layer names and lays out its numbers in PyTorch and in nnx. This needs NumPy alone.

PyTorch's names and layouts are the canonical ones, in memory and in files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from grl.arrays import Array, Weights
from grl.weights.half import Part

__all__ = ["SAME", "Conversion", "Conversions", "Layout", "Names", "Rule", "table"]

Conversion: TypeAlias = Callable[[Weights, Part], Weights]
"""A function of a layer's arrays by name and of its nnx module."""


class Conversions(NamedTuple):
    """The two directions in which the arrays of a layer are converted."""

    to_torch: Conversion
    to_nnx: Conversion


@dataclass(frozen=True)
class Layout:
    """How one array of nnx becomes PyTorch's, and back.

    Args:
        to_torch: a function of nnx's array and of the nnx module.
        to_nnx: its inverse.
    """

    to_torch: Callable[[Array, Part], Array]
    to_nnx: Callable[[Array, Part], Array]


SAME = Layout(lambda array, module: array, lambda array, module: array)
"""Both frameworks have the same layout."""


Names: TypeAlias = Mapping[str, str | tuple[str, Layout]]
"""Pairs that the caller gives: PyTorch's name → nnx's. The names of two single tensors may come with a layout."""


@dataclass(frozen=True)
class Rule:
    """How the weights of one kind of layer are converted.

    Args:
        kind: the name of the kind. Layers are paired only with layers of the same kind. A module whose class has the
            attribute `port_kind` is of that kind.
        torch: PyTorch's classes and their subclasses. Each is the class itself or its name, "package.module.Class".
        nnx: the same for nnx.
        to_torch: converts nnx's arrays, by name, into PyTorch's arrays.
        to_nnx: its inverse. It must also accept some of the arrays without the others.
        gradients: the same as `to_torch`, for gradients, where the two differ. Names without a counterpart are left
            out.
        when: restricts the rule to some nnx modules of its classes.
        optional: PyTorch's names of arrays that may be missing in PyTorch, and then mean 0.
        settings: PyTorch's names of numbers that are settings, not weights. They are copied where both layers have
            them, and stay where only one has.
        nnx_names: PyTorch's name → nnx's, for messages.

    Example:
        >>> import numpy as np
        >>> rule = Rule("Scale", ("mine.torch.Scale",), ("mine.jax.Scale",), *table(weight=("gain", SAME)))
        >>> rule.to_torch({"gain": np.ones(3)}, None)
        {'weight': array([1., 1., 1.])}
    """

    kind: str
    torch: tuple[type | str, ...]
    nnx: tuple[type | str, ...]
    to_torch: Conversion
    to_nnx: Conversion
    gradients: Conversion | None = None
    when: Callable[[Part], bool] | None = None
    optional: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()
    nnx_names: Mapping[str, str] = field(default_factory=dict)


def table(**tensors: tuple[str, Layout]) -> Conversions:
    """Return the conversions of a layer whose arrays correspond one to one.

    Args:
        tensors: PyTorch's name = (nnx's name, layout).
    """

    def to_torch(arrays: Weights, module: Part) -> Weights:
        return {
            name: layout.to_torch(arrays[nnx_name], module)
            for name, (nnx_name, layout) in tensors.items()
            if nnx_name in arrays
        }

    def to_nnx(arrays: Weights, module: Part) -> Weights:
        return {
            nnx_name: layout.to_nnx(arrays[name], module)
            for name, (nnx_name, layout) in tensors.items()
            if name in arrays
        }

    return Conversions(to_torch, to_nnx)
