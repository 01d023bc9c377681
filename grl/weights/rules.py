"""How each kind of layer names and lays out its numbers: in PyTorch, and in nnx. NumPy alone; imports no framework.

PyTorch's names and layouts are the canonical ones, in memory and in files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grl.arrays import Array, Weights
from grl.weights import attention, recurrent

__all__ = ["CONVOLUTION", "LINEAR", "SAME", "Layout", "Rule", "register_rule", "rule_of", "rule_of_kind", "table"]

Conversion = Callable[[Weights, Any], Weights]


@dataclass(frozen=True)
class Layout:
    """How one array of nnx becomes PyTorch's, and back.

    Args:
        to_torch: a function of nnx's array and its nnx module.
        to_nnx: its inverse.
    """

    to_torch: Callable[[Array, Any], Array]
    to_nnx: Callable[[Array, Any], Array]


@dataclass(frozen=True)
class Rule:
    """How one kind of layer is carried across.

    Args:
        kind: its name; a layer is paired only with one of the same kind.
        torch: PyTorch's classes, each itself or by its name ("package.module.Class"), with their subclasses.
        nnx: those of nnx.
        to_torch: a function of nnx's arrays by name and the nnx module, to PyTorch's arrays by name.
        to_nnx: its inverse, of PyTorch's arrays and the nnx module; of some of them, where some are missing.
        gradients: as `to_torch`, for gradients, where the two differ; names without a counterpart are left out.
        when: whether the rule is for this nnx module of its classes; None: for each.
        optional: PyTorch's names that may be missing there, and then stand for zeros.
        nnx_names: PyTorch's name → nnx's, for messages.

    Example:
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
    when: Callable[[Any], bool] | None = None
    optional: frozenset[str] = frozenset()
    nnx_names: Mapping[str, str] = field(default_factory=dict)


def table(**tensors: tuple[str, Layout]) -> tuple[Conversion, Conversion]:
    """Return `to_torch` and `to_nnx` of a layer whose arrays correspond one by one.

    Args:
        tensors: PyTorch's name = (nnx's name, layout).
    """

    def to_torch(arrays: Weights, module: Any) -> Weights:
        return {
            name: layout.to_torch(arrays[nnx_name], module)
            for name, (nnx_name, layout) in tensors.items()
            if nnx_name in arrays
        }

    def to_nnx(arrays: Weights, module: Any) -> Weights:
        return {
            nnx_name: layout.to_nnx(arrays[name], module)
            for name, (nnx_name, layout) in tensors.items()
            if name in arrays
        }

    return to_torch, to_nnx


def register_rule(rule: Rule) -> None:
    """Make `copy_weights`, `compare` and the portable files know a layer of your own; the last one registered wins.

    Args:
        rule: what it is called, its two classes and the conversions.

    Example:
        >>> register_rule(Rule("Scale", ("mine.torch.Scale",), ("mine.jax.Scale",), *table(weight=("gain", SAME))))
    """
    _RULES.insert(0, rule)


def rule_of(module: Any, side: str) -> Rule | None:
    """Return the rule for a module, or None.

    Args:
        module: an `nn.Module` or an `nnx.Module`.
        side: "torch" or "nnx".
    """
    for rule in _RULES:
        classes = _classes(rule.torch if side == "torch" else rule.nnx)
        if isinstance(module, classes) and (side == "torch" or rule.when is None or rule.when(module)):
            return rule
    return None


def rule_of_kind(kind: str) -> Rule | None:
    """Return the rule of this name, or None."""
    return next((rule for rule in _RULES if rule.kind == kind), None)


def _classes(names: tuple[type | str, ...]) -> tuple[type, ...]:
    """What is not imported has no objects: no framework is imported to look for one."""
    found = []
    for name in names:
        if isinstance(name, str):
            module, _, attribute = name.rpartition(".")
            found.append(getattr(sys.modules.get(module), attribute, None))
        else:
            found.append(name)
    return tuple(cls for cls in found if cls is not None)


def _linear_to_torch(kernel: Array, module: Any) -> Array:
    """(in…, out…) → (out, in); more than one axis each in `nnx.LinearGeneral`."""
    inputs = getattr(module, "in_features", 1)
    axes = len(inputs) if isinstance(inputs, tuple) else 1
    return kernel.reshape(int(np.prod(kernel.shape[:axes])), -1).T


def _linear_to_nnx(weight: Array, module: Any) -> Array:
    inputs, outputs = module.in_features, module.out_features
    shape = (*(inputs if isinstance(inputs, tuple) else (inputs,)), *_tuple(outputs))
    return weight.T.reshape(shape) if weight.size == np.prod(shape) else weight.T


def _tuple(sizes: Any) -> tuple[int, ...]:
    return sizes if isinstance(sizes, tuple) else (sizes,)


def _bias_to_nnx(bias: Array, module: Any) -> Array:
    outputs = _tuple(module.out_features)
    return bias.reshape(outputs) if bias.size == np.prod(outputs) else bias


def _transposed_to_torch(kernel: Array, module: Any) -> Array:
    """(*k, in, out) → (in, out, *k), with the kernel turned round; with `transpose_kernel`, (*k, out, in) as it is."""
    space = tuple(range(kernel.ndim - 2))
    if module.transpose_kernel:
        return kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *space)
    return np.flip(kernel, space).transpose(kernel.ndim - 2, kernel.ndim - 1, *space)


def _transposed_to_nnx(weight: Array, module: Any) -> Array:
    space = tuple(range(2, weight.ndim))
    if module.transpose_kernel:
        return weight.transpose(*space, 1, 0)
    return np.flip(weight, space).transpose(*space, 0, 1)


SAME = Layout(lambda array, module: array, lambda array, module: array)
"""The array as it is."""

LINEAR = Layout(_linear_to_torch, _linear_to_nnx)
"""(in, out) of nnx, (out, in) of PyTorch."""

CONVOLUTION = Layout(
    lambda kernel, module: kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2)),
    lambda weight, module: weight.transpose(*range(2, weight.ndim), 1, 0),
)
"""(*k, in / groups, out) of nnx, (out, in / groups, *k) of PyTorch."""

_TRANSPOSED = Layout(_transposed_to_torch, _transposed_to_nnx)
_BIAS = Layout(lambda bias, module: bias.reshape(-1), _bias_to_nnx)
_NUMBER = Layout(lambda number, module: number.reshape(1), lambda weight, module: weight.reshape(()))


def _rule(kind: str, torch: str, nnx: str, **tensors: tuple[str, Layout]) -> Rule:
    """A rule of classes of torch.nn and flax.nnx, or with a dot in their names of other modules."""
    return Rule(
        kind,
        tuple(name if "." in name else f"torch.nn.{name}" for name in torch.split()),
        tuple(name if "." in name else f"flax.nnx.{name}" for name in nnx.split()),
        *table(**tensors),
        nnx_names={name: nnx_name for name, (nnx_name, _) in tensors.items()},
    )


def _norm(kind: str, torch: str, nnx: str, **statistics: tuple[str, Layout]) -> Rule:
    return _rule(kind, torch, nnx, weight=("scale", SAME), bias=("bias", SAME), **statistics)


def _recurrent(kind: str, torch: str, nnx: str, when: Callable[[Any], bool] | None = None) -> Rule:
    return Rule(
        kind,
        (f"torch.nn.{torch}",),
        tuple(f"flax.nnx.{name}" for name in nnx.split()),
        recurrent.to_torch,
        recurrent.to_nnx,
        recurrent.gradients,
        when,
        recurrent.OPTIONAL,
    )


_STATISTICS = {"running_mean": ("mean", SAME), "running_var": ("var", SAME)}
_RULES = [
    _rule("Linear", "Linear", "Linear LinearGeneral", weight=("kernel", LINEAR), bias=("bias", _BIAS)),
    _rule("Conv", "Conv1d Conv2d Conv3d", "Conv", weight=("kernel", CONVOLUTION), bias=("bias", SAME)),
    _rule(
        "ConvTranspose",
        "ConvTranspose1d ConvTranspose2d ConvTranspose3d",
        "ConvTranspose",
        weight=("kernel", _TRANSPOSED),
        bias=("bias", SAME),
    ),
    _rule("Embedding", "Embedding EmbeddingBag", "Embed", weight=("embedding", SAME)),
    _norm(
        "BatchNorm",
        "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm",
        "BatchNorm grl.jax_impl.dann._BatchNorm",
        **_STATISTICS,
    ),
    _norm("LayerNorm", "LayerNorm", "LayerNorm"),
    _norm("GroupNorm", "GroupNorm", "GroupNorm"),
    _norm("InstanceNorm", "InstanceNorm1d InstanceNorm2d InstanceNorm3d", "InstanceNorm"),
    _norm("RMSNorm", "RMSNorm", "RMSNorm"),
    _rule("PReLU", "PReLU", "PReLU", weight=("negative_slope", _NUMBER)),
    Rule(
        "MultiheadAttention",
        ("torch.nn.MultiheadAttention",),
        ("flax.nnx.MultiHeadAttention",),
        attention.to_torch,
        attention.to_nnx,
        nnx_names=attention.NAMES,
    ),
    _recurrent("LSTMCell", "LSTMCell", "LSTMCell OptimizedLSTMCell"),
    _recurrent("GRUCell", "GRUCell", "GRUCell"),
    _recurrent("RNNCell", "RNNCell", "SimpleCell"),
    _recurrent("LSTM", "LSTM", "RNN Bidirectional", lambda module: recurrent.cell_kind(module) == "LSTM"),
    _recurrent("GRU", "GRU", "RNN Bidirectional", lambda module: recurrent.cell_kind(module) == "GRU"),
    _recurrent("RNN", "RNN", "RNN Bidirectional", lambda module: recurrent.cell_kind(module) == "RNN"),
    _rule("Dropout", "Dropout Dropout1d Dropout2d Dropout3d", "Dropout"),
    _rule(
        "GRL",
        "grl.torch_impl.module.GRL",
        "grl.jax_impl.module.GRL",
        coeff=("_coeff", SAME),
        step=("_step", SAME),
    ),
]
