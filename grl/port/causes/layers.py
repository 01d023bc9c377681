"""Causes in how a layer is configured: the order of axes, the kernel, epsilon, the form of GELU, mode, dropout."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import permutations, product
from typing import Any

import numpy as np
from torch import Tensor

from grl.port.causes.evidence import Evidence, Proof, Variant, arguments, with_arguments
from grl.port.runs.recording import Array
from grl.port.runs.torch_functions import Args, Call, Function, Kwargs, active_dropout, without_dropout

__all__ = [
    "align_corners",
    "dropout_active",
    "epsilon",
    "flatten_order",
    "gelu_approximation",
    "rearrangements",
    "train_eval_mode",
    "transposed_kernel",
]

_KERNELS = ("linear", *(f"{name}{axes}d" for name in ("conv", "conv_transpose") for axes in (1, 2, 3)))
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")


_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")
_WITH_DROPOUT = ("multi_head_attention_forward", "scaled_dot_product_attention", "lstm", "gru")


def dropout_active(evidence: Evidence) -> Proof | None:
    """Switch dropout off in PyTorch, or in both models."""
    return (
        evidence.try_out(_DROPOUTS, _no_dropout)
        or evidence.try_out(_WITH_DROPOUT, _no_dropout)
        or evidence.without_nnx_dropout()
    )


def _no_dropout(call: Call, _: Any) -> Iterator[Variant]:
    rate = active_dropout(call.name, *call.arguments)
    if rate:
        yield f"without PyTorch's {call.name} of rate {rate:g} there is no difference", without_dropout


def train_eval_mode(evidence: Evidence) -> Proof | None:
    """Let batch norm use the other statistics."""
    return evidence.try_out(("batch_norm",), _other_mode)


def _other_mode(call: Call, _: Any) -> Iterator[Variant]:
    training = bool(arguments(call.name, *call.arguments).get("training", False))
    mode, other = ("training", "evaluation") if training else ("evaluation", "training")
    words = f"PyTorch's batch norm is in {mode} mode and gives the nnx model's result in {other} mode"
    yield words, with_arguments(call.name, training=not training)


def epsilon(evidence: Evidence) -> Proof | None:
    """Normalise with the epsilon of the nnx layer, and with the usual ones."""
    return evidence.try_out(_NORMS, _other_epsilons)


def _other_epsilons(call: Call, layer: Any) -> Iterator[Variant]:
    torch_epsilon = arguments(call.name, *call.arguments).get("eps", 1e-5)
    nnx_epsilon = getattr(layer, "epsilon", None)
    configured = (nnx_epsilon,) if isinstance(nnx_epsilon, float) else ()
    for eps in dict.fromkeys((*configured, 1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 1e-4, 1e-7, 1e-2, 0.0)):
        if eps != torch_epsilon:
            words = f"PyTorch's {call.name} has {torch_epsilon}, and with {eps:g} gives the nnx model's result"
            yield words, with_arguments(call.name, eps=eps)


def gelu_approximation(evidence: Evidence) -> Proof | None:
    """Compute GELU in the other form."""
    return evidence.try_out(("gelu",), _other_gelu)


def _other_gelu(call: Call, _: Any) -> Iterator[Variant]:
    is_erf = arguments(call.name, *call.arguments).get("approximate", "none") == "none"
    form, other = ("erf", "tanh") if is_erf else ("tanh", "erf")
    words = f"PyTorch has {form}, and with {other} gives the nnx model's result"
    yield words, with_arguments("gelu", approximate="tanh" if is_erf else "none")


def align_corners(evidence: Evidence) -> Proof | None:
    """Interpolate with corners aligned, and without; antialiased too, as JAX does it where an image shrinks."""
    return evidence.try_out(("interpolate", "grid_sample", "affine_grid"), _other_corners)


def _other_corners(call: Call, _: Any) -> Iterator[Variant]:
    given = arguments(call.name, *call.arguments)
    if given.get("mode", "bilinear") in ("nearest", "area"):
        return
    aligned = bool(given.get("align_corners"))
    words = f"PyTorch's {call.name} with align_corners={not aligned} gives the nnx model's result"
    yield words, with_arguments(call.name, align_corners=not aligned)
    if call.name == "interpolate" and aligned and given.get("mode") in ("bilinear", "bicubic"):
        yield f"{words}, antialiased", with_arguments(call.name, align_corners=False, antialias=True)


def flatten_order(evidence: Evidence) -> Proof | None:
    """Flatten the axes in other orders, or take weights that were made for another order."""
    if not evidence.weights_explain_it:
        return evidence.try_out(("flatten", "unflatten", "view", "reshape"), _orders, earlier=True)
    for name, nnx_array in evidence.replacements.items():
        words = _order_of_inputs(evidence.torch.parameter(name), nnx_array)
        if words:
            return Proof(f"{name} is made for {words}")
    return None


def transposed_kernel(evidence: Evidence) -> Proof | None:
    """Transpose and flip the kernel in each way that keeps its shape, or find that it was copied that way."""
    if not evidence.weights_explain_it:
        return evidence.try_out(_KERNELS, _rearranged_kernels)
    for name, nnx_array in evidence.replacements.items():
        words = _rearranged(evidence.torch.parameter(name), nnx_array)
        if words:
            return Proof(f"the nnx model's {name} is PyTorch's {words}")
    return None


def _rearranged_kernels(call: Call, _: Any) -> Iterator[Variant]:
    weight = arguments(call.name, *call.arguments)["weight"]
    for words, axes, flips in rearrangements(tuple(weight.shape)):
        change = partial(_with_rearranged_weight, axes=axes, flips=flips)
        yield f"PyTorch's {call.name} with its weight {words} gives the nnx model's result", change


def _with_rearranged_weight(
    function: Function, args: Args, kwargs: Kwargs, axes: tuple[int, ...], flips: tuple[int, ...]
) -> Any:
    given = arguments(function.__name__, args, kwargs)
    return function(**{**given, "weight": given["weight"].permute(axes).flip(flips)})


def rearrangements(shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Yield (words, order of axes, axes to flip) of every change of a kernel that keeps its shape."""
    same = tuple(range(len(shape)))
    spatial = same[2:]
    choices = product((False, True), repeat=len(spatial))
    flips = [tuple(axis for axis, flipped in zip(spatial, choice, strict=True) if flipped) for choice in choices]
    for axes in sorted(permutations(same), key=lambda axes: sum(a != i for i, a in enumerate(axes))):
        if tuple(shape[a] for a in axes) != shape:
            continue
        for flip in sorted(flips, key=len):
            if flip or axes != same:
                transposed = f"transposed to {axes}" if axes != same else ""
                flipped = f"flipped along {flip}" if flip else ""
                yield " and ".join(filter(None, (transposed, flipped))), axes, flip


def _orders(call: Call, _: Any) -> Iterator[Variant]:
    """Yield each order of all axes but the batch's, and its inverse, for weights that were made for that order."""
    x = next((arg for arg in call.arguments[0] if isinstance(arg, Tensor)), None)
    if x is not None and x.ndim == 2:
        words = "PyTorch gives the nnx model's result with the features taken as (…, C) and not as (C, …)"
        yield words, _to_map_channels_last
    if x is None or x.ndim < 3 or x.ndim > 5:
        return
    same = tuple(range(1, x.ndim))
    usual = (*range(2, x.ndim), 1)  # channels last
    for axes in sorted(permutations(same), key=lambda axes: axes != usual):
        if axes != same:
            order = (0, *axes)
            words = f"the axes in the order {order}, and in PyTorch they come as {(0, *same)}"
            yield f"PyTorch gives the nnx model's result with {words}", partial(_reordered, order=order)
            yield f"the weights are made for {words}", partial(_reordered_back, order=order)


def _reordered(function: Function, args: Args, kwargs: Kwargs, order: tuple[int, ...]) -> Any:
    return args[0].permute(order).contiguous().reshape(function(*args, **kwargs).shape)


def _reordered_back(function: Function, args: Args, kwargs: Kwargs, order: tuple[int, ...]) -> Any:
    shuffled = args[0].reshape([args[0].shape[axis] for axis in order])
    back = [order.index(axis) for axis in range(len(order))]
    return shuffled.permute(back).contiguous().reshape(function(*args, **kwargs).shape)


def _to_map_channels_last(function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Make a feature map of vectors, but take them pixel by pixel."""
    y = function(*args, **kwargs)
    return y if y.ndim < 3 else y.reshape(len(y), *y.shape[2:], y.shape[1]).movedim(-1, 1)


def _rearranged(torch_array: Array, nnx_array: Array) -> str | None:
    """Return in words how PyTorch's kernel is transposed or flipped to be the nnx model's; None if it is not."""
    for words, axes, flips in rearrangements(torch_array.shape):
        if np.array_equal(np.flip(torch_array.transpose(axes), flips), nnx_array):
            return words
    return None


def _order_of_inputs(torch_array: Array, nnx_array: Array) -> str | None:
    """Return in words the order of a feature map (C, H, W) for which one weight (out, C·H·W) is the other."""
    if torch_array.ndim != 2 or torch_array.shape != nnx_array.shape:
        return None
    outputs, inputs = torch_array.shape
    for channels in range(2, inputs // 2 + 1):
        if inputs % channels == 0:
            reordered = torch_array.reshape(outputs, channels, -1).swapaxes(1, 2).reshape(torch_array.shape)
            if np.array_equal(reordered, nnx_array):
                return f"features of {channels} channels in the other order"
    return None
