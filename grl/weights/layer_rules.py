"""The rules of the layers of PyTorch, Flax and this package, as one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from grl.arrays import Array
from grl.weights import attention, recurrent
from grl.weights.half import Part
from grl.weights.rule import SAME, Layout, Rule, table

__all__ = ["CONVOLUTION", "LAYER_RULES", "LINEAR"]


def _linear_to_torch(kernel: Array, module: Part) -> Array:
    """(in…, out…) → (out, in). An `nnx.LinearGeneral` may have several axes of each."""
    inputs = getattr(module, "in_features", 1)
    axes = len(inputs) if isinstance(inputs, tuple) else 1
    return kernel.reshape(int(np.prod(kernel.shape[:axes])), -1).T


def _linear_to_nnx(weight: Array, module: Part) -> Array:
    shape = (*_sizes(module.in_features), *_sizes(module.out_features))
    return weight.T.reshape(shape) if weight.size == np.prod(shape) else weight.T


def _bias_to_nnx(bias: Array, module: Part) -> Array:
    outputs = _sizes(module.out_features)
    return bias.reshape(outputs) if bias.size == np.prod(outputs) else bias


def _sizes(features: int | tuple[int, ...]) -> tuple[int, ...]:
    return features if isinstance(features, tuple) else (features,)


def _convolution_to_torch(kernel: Array, module: Part) -> Array:
    return kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))


def _convolution_to_nnx(weight: Array, module: Part) -> Array:
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def _transposed_to_torch(kernel: Array, module: Part) -> Array:
    """(*k, in, out) → (in, out, *k) with the kernel flipped; (*k, out, in) as it is with `transpose_kernel`."""
    space = tuple(range(kernel.ndim - 2))
    if module.transpose_kernel:
        return kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *space)
    return np.flip(kernel, space).transpose(kernel.ndim - 2, kernel.ndim - 1, *space)


def _transposed_to_nnx(weight: Array, module: Part) -> Array:
    space = tuple(range(2, weight.ndim))
    if module.transpose_kernel:
        return weight.transpose(*space, 1, 0)
    return np.flip(weight, space).transpose(*space, 0, 1)


def _reduces_space(norm: Part) -> bool:
    """Return whether an `nnx.LayerNorm` reduces several axes, as PyTorch's `GroupNorm(1)` and `InstanceNorm` do."""
    return isinstance(norm.reduction_axes, Sequence) and len(norm.reduction_axes) > 1


LINEAR = Layout(_linear_to_torch, _linear_to_nnx)
"""(in, out) of nnx, (out, in) of PyTorch."""

CONVOLUTION = Layout(_convolution_to_torch, _convolution_to_nnx)
"""(*k, in / groups, out) of nnx, (out, in / groups, *k) of PyTorch."""

_TRANSPOSED = Layout(_transposed_to_torch, _transposed_to_nnx)
_BIAS = Layout(lambda bias, module: bias.reshape(-1), _bias_to_nnx)
_NUMBER = Layout(lambda number, module: number.reshape(1), lambda weight, module: weight.reshape(()))


def _rule(kind: str, torch: str, nnx: str, **tensors: tuple[str, Layout]) -> Rule:
    """Return the rule of some classes of torch.nn and flax.nnx whose arrays correspond one to one."""
    return Rule(
        kind,
        tuple(f"torch.nn.{name}" for name in torch.split()),
        tuple(f"flax.nnx.{name}" for name in nnx.split()),
        *table(**tensors),
        nnx_names={name: nnx_name for name, (nnx_name, _) in tensors.items()},
    )


def _norm(kind: str, torch: str, nnx: str, **statistics: tuple[str, Layout]) -> Rule:
    return _rule(kind, torch, nnx, weight=("scale", SAME), bias=("bias", SAME), **statistics)


def _recurrent(kind: str, nnx: str, when: Callable[[Part], bool] | None = None) -> Rule:
    return Rule(
        kind,
        (f"torch.nn.{kind}",),
        tuple(f"flax.nnx.{name}" for name in nnx.split()),
        recurrent.to_torch,
        recurrent.to_nnx,
        gradients=recurrent.gradients,
        when=when,
        optional=recurrent.OPTIONAL,
    )


LAYER_RULES: tuple[Rule, ...] = (
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
        "BatchNorm",
        running_mean=("mean", SAME),
        running_var=("var", SAME),
    ),
    # Norms over space, with one scale per channel. `compare` examines their axes and groups.
    _norm("GroupNorm", "GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d", "GroupNorm InstanceNorm"),
    dataclasses.replace(_norm("GroupNorm", "", "LayerNorm"), when=_reduces_space),
    _norm("LayerNorm", "LayerNorm", "LayerNorm"),
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
    _recurrent("LSTMCell", "LSTMCell OptimizedLSTMCell"),
    _recurrent("GRUCell", "GRUCell"),
    _recurrent("RNNCell", "SimpleCell"),
    _recurrent("LSTM", "RNN Bidirectional", lambda module: recurrent.cell_kind(module) == "LSTM"),
    _recurrent("GRU", "RNN Bidirectional", lambda module: recurrent.cell_kind(module) == "GRU"),
    _recurrent("RNN", "RNN Bidirectional", lambda module: recurrent.cell_kind(module) == "RNN"),
    _rule("Dropout", "Dropout Dropout1d Dropout2d Dropout3d", "Dropout"),
    Rule(
        "GRL",
        (),  # both layers of this package name their kind themselves
        (),
        *table(coeff=("coeff", SAME), step=("step", SAME)),
        settings=frozenset({"coeff", "step"}),
    ),
)
"""The built-in rules. The first rule that is for a module counts."""
