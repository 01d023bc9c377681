"""Causes in what a layer is told: the order of axes, the kernel, epsilon, the form of GELU, the mode, dropout."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import Any

import numpy as np
from torch import Tensor

from grl.port.causes.cause import Experiment, cause
from grl.port.causes.evidence import Evidence, Variant, arguments, with_arguments
from grl.port.runs.recording import Array
from grl.port.runs.torch_functions import Call, active_dropout, without_dropout

__all__ = ["EXPERIMENTS", "rearrangements"]

EXPERIMENTS: dict[str, Experiment] = {}

_KERNELS = ("linear", *(f"{name}{axes}d" for name in ("conv", "conv_transpose") for axes in (1, 2, 3)))
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")


@cause(EXPERIMENTS, "dropout_active")
def dropout_active(evidence: Evidence) -> str | None:
    """Switch dropout off in PyTorch; or in the nnx model, or in both."""

    def variants(call: Call, _: Any) -> Iterator[Variant]:
        rate = active_dropout(call.name, *call.arguments)
        if rate:
            yield f"without PyTorch's {call.name} of rate {rate:g} there is no difference", without_dropout

    found = evidence.try_out(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), variants)
    found = found or evidence.try_out(
        ("multi_head_attention_forward", "scaled_dot_product_attention", "lstm", "gru"), variants
    )
    return found or evidence.without_their_dropout()


@cause(EXPERIMENTS, "train_eval_mode")
def train_eval_mode(evidence: Evidence) -> str | None:
    """Let batch norm use the other statistics."""

    def variants(call: Call, _: Any) -> Iterator[Variant]:
        training = bool(arguments(call.name, *call.arguments).get("training", False))
        modes = "training", "evaluation"
        words = f"PyTorch's batch norm is in {modes[not training]} mode and gives the nnx model's in {modes[training]}"
        yield f"{words} mode", with_arguments(call.name, training=not training)

    return evidence.try_out(("batch_norm",), variants)


@cause(EXPERIMENTS, "epsilon")
def epsilon(evidence: Evidence) -> str | None:
    """Normalise with the epsilon of the nnx layer, and with those that are usual."""

    def variants(call: Call, layer: Any) -> Iterator[Variant]:
        own = arguments(call.name, *call.arguments).get("eps", 1e-5)
        told = getattr(layer, "epsilon", None)
        usual = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 1e-4, 1e-7, 1e-2, 0.0)
        for eps in dict.fromkeys((*((told,) if isinstance(told, float) else ()), *usual)):
            if eps != own:
                words = f"PyTorch's {call.name} has {own}, and with {eps:g} gives the nnx model's"
                yield words, with_arguments(call.name, eps=eps)

    return evidence.try_out(_NORMS, variants)


@cause(EXPERIMENTS, "gelu_approximation")
def gelu_approximation(evidence: Evidence) -> str | None:
    """Compute GELU in the other form."""

    def variants(call: Call, _: Any) -> Iterator[Variant]:
        own = arguments(call.name, *call.arguments).get("approximate", "none")
        names = {"none": "erf", "tanh": "tanh"}
        other = "tanh" if own == "none" else "none"
        yield (
            f"PyTorch has {names[own]}, and with {names[other]} gives the nnx model's",
            with_arguments("gelu", approximate=other),
        )

    return evidence.try_out(("gelu",), variants)


@cause(EXPERIMENTS, "align_corners")
def align_corners(evidence: Evidence) -> str | None:
    """Interpolate with corners aligned, and without; as JAX does it where an image shrinks, too."""

    def variants(call: Call, _: Any) -> Iterator[Variant]:
        given = arguments(call.name, *call.arguments)
        if given.get("mode", "bilinear") in ("nearest", "area"):
            return
        own = bool(given.get("align_corners"))
        words = f"PyTorch's {call.name} with align_corners={not own} gives the nnx model's"
        yield words, with_arguments(call.name, align_corners=not own)
        if call.name == "interpolate" and own and given.get("mode") in ("bilinear", "bicubic"):
            yield f"{words}, antialiased", with_arguments(call.name, align_corners=False, antialias=True)

    return evidence.try_out(("interpolate", "grid_sample", "affine_grid"), variants)


@cause(EXPERIMENTS, "flatten_order")
def flatten_order(evidence: Evidence) -> str | None:
    """Flatten the axes in other orders; or take weights that were made for another one."""
    if evidence.with_their_weights():
        for name, theirs in evidence.replacements.items():
            ours = evidence.torch.parameter(name)
            for words in _orders_of_inputs(ours, theirs):
                return f"{name} is made for {words}"
        return None
    return evidence.try_out(("flatten", "unflatten", "view", "reshape"), _orders, earlier=True)


@cause(EXPERIMENTS, "transposed_kernel")
def transposed_kernel(evidence: Evidence) -> str | None:
    """Transpose and turn the kernel in each way that keeps its shape; or see that it was copied that way."""
    if evidence.with_their_weights():
        for name, theirs in evidence.replacements.items():
            words = _rearranged(evidence.torch.parameter(name), theirs)
            if words:
                return f"the nnx model's {name} is PyTorch's {words}"
        return None

    def variants(call: Call, _: Any) -> Iterator[Variant]:
        weight = arguments(call.name, *call.arguments)["weight"]
        for words, axes, flips in rearrangements(tuple(weight.shape)):

            def change(function: Any, args: Any, kwargs: Any, axes: Any = axes, flips: Any = flips) -> Any:
                given = arguments(call.name, args, kwargs)
                return function(**{**given, "weight": given["weight"].permute(axes).flip(flips)})

            yield f"PyTorch's {call.name} with its weight {words} gives the nnx model's", change

    return evidence.try_out(_KERNELS, variants)


def rearrangements(shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Yield (words, order of axes, axes to flip) of all that keeps the shape of a kernel but changes it."""
    spatial = range(2, len(shape))
    flips = [tuple(a for a, flipped in zip(spatial, chosen, strict=True) if flipped)
             for chosen in product((False, True), repeat=len(spatial))]  # fmt: skip
    for axes in sorted(permutations(range(len(shape))), key=lambda axes: sum(a != i for i, a in enumerate(axes))):
        if tuple(shape[a] for a in axes) != shape:
            continue
        for flip in sorted(flips, key=len):
            if flip or axes != tuple(range(len(shape))):
                transposed = f"transposed to {axes}" if axes != tuple(range(len(shape))) else ""
                flipped = f"flipped along {flip}" if flip else ""
                yield " and ".join(filter(None, (transposed, flipped))), axes, flip


def _orders(call: Call, _: Any) -> Iterator[Variant]:
    """Each order of all axes but the batch's; and the way back, for weights that were made for that order."""
    x = next((a for a in call.arguments[0] if isinstance(a, Tensor)), None)
    if x is not None and x.ndim == 2:
        yield "PyTorch gives the nnx model's with the features taken as (…, C) and not as (C, …)", _to_map_channels_last
    if x is None or x.ndim < 3 or x.ndim > 5:
        return
    same = tuple(range(1, x.ndim))
    usual = (*range(2, x.ndim), 1)  # channels last
    for axes in sorted(permutations(same), key=lambda axes: axes != usual):
        if axes == same:
            continue
        order = (0, *axes)
        for inverse in (False, True):

            def change(function: Any, args: Any, kwargs: Any, order: Any = order, inverse: bool = inverse) -> Any:
                tensor = args[0]
                if inverse:
                    shuffled = tensor.reshape([tensor.shape[a] for a in order])
                    moved = shuffled.permute([order.index(a) for a in range(len(order))]).contiguous()
                    return moved.reshape(function(tensor, *args[1:], **kwargs).shape)
                moved = tensor.permute(order).contiguous()
                return moved.reshape(function(tensor, *args[1:], **kwargs).shape)

            words = "the weights are made for" if inverse else "PyTorch gives the nnx model's with"
            yield f"{words} the axes in the order {order}, and here they come as {(0, *same)}", change


def _to_map_channels_last(function: Any, args: Any, kwargs: Any) -> Any:
    """Make a feature map of vectors, but take them pixel by pixel."""
    y = function(*args, **kwargs)
    return y if y.ndim < 3 else y.reshape(len(y), *y.shape[2:], y.shape[1]).movedim(-1, 1)


def _rearranged(ours: Array, theirs: Array) -> str | None:
    """Return in words how a kernel has to be transposed or turned to be the other; None if it never is."""
    for words, axes, flips in rearrangements(ours.shape):
        if np.array_equal(np.flip(ours.transpose(axes), flips), theirs):
            return words
    return None


def _orders_of_inputs(ours: Array, theirs: Array) -> Iterator[str]:
    """Yield in words the order of a feature map (C, H, W) for which one weight (out, C·H·W) is the other."""
    if ours.ndim != 2 or ours.shape != theirs.shape:
        return
    for channels in range(2, ours.shape[1] // 2 + 1):
        if ours.shape[1] % channels == 0:
            split = ours.reshape(len(ours), channels, -1).swapaxes(1, 2).reshape(ours.shape)
            if np.array_equal(split, theirs):
                yield f"features of {channels} channels in the other order"
