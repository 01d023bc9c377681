"""In which order a PyTorch model flattens a feature map: the experiment of `flattened_in_nnx`, on the other side."""

from __future__ import annotations

import copy
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grl.weights.feature_order import channels_of

__all__ = ["orders_in_torch"]

_CONVOLUTION = nn.modules.conv._ConvNd
_CHANNELS_FIRST = (_CONVOLUTION, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_KEEP_ORDER = (nn.LayerNorm, nn.RMSNorm)
_CHANGE = 1e3
_TRIES = 8


def orders_in_torch(model: nn.Module, names: Collection[str], side: int) -> dict[str, int | None]:
    """Return what `channels_of` says of the inputs of layers, for those that a change of a channel reaches.

    Args:
        model: it stays as it is.
        names: of the layers.
        side: of the square image that it takes, in pixels.

    Returns:
        Name → 0 for (C, H, W), as it is usual; C for (H, W, C); None for neither. Empty if the model does not run on
        one image, or has no convolution that is a module.
    """
    try:
        model = copy.deepcopy(model).eval()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.fill_(1.0)  # no scale of 0 is to block the way
            return _orders(model, names, side)
    except (RuntimeError, ValueError, TypeError):
        return {}  # it is not on one square image that it runs, or has no memory yet


def _orders(model: nn.Module, names: Collection[str], side: int) -> dict[str, int | None]:
    first = next((module for module in model.modules() if isinstance(module, _CONVOLUTION)), None)
    if first is None:
        return {}
    image = torch.zeros(5, first.in_channels, *[side] * len(first.kernel_size), dtype=first.weight.dtype)
    image = image.to(first.weight.device)
    maps, replace_at = 0, -1
    seen: dict[str, Tensor] = {}

    def watch(module: nn.Module, arguments: Any, output: Any) -> Any:
        nonlocal maps
        if isinstance(module, _KEEP_ORDER) or (isinstance(module, nn.BatchNorm1d) and output.ndim == 2):
            return arguments[0]  # else one changed channel would change all the others too
        if isinstance(module, _CHANNELS_FIRST) and output.ndim > 2:
            maps += 1
            return _changed(output) if maps - 1 == replace_at else None
        return None

    def look(_: nn.Module, arguments: Any, name: str) -> None:
        if maps > replace_at:
            seen.setdefault(name, arguments[0])

    for module in model.modules():
        module.register_forward_hook(watch)
    parts = dict(model.named_modules())
    for name in names:
        parts[name].register_forward_pre_hook(partial(look, name=name))
    with torch.random.fork_rng(devices=[]):
        model(image)
        found: dict[str, int | None] = {}
        for index in range(maps)[: -_TRIES - 1 : -1]:
            maps, replace_at = 0, index
            seen.clear()
            model(image)
            for name, inputs in seen.items():
                rows = inputs.detach().cpu().float().numpy()
                differences = np.abs(rows[1:] - rows[0])
                changed = differences > 1e-3 * differences.max()
                if changed.any() and name not in found:
                    pairs = changed.reshape(2, -1, changed.shape[-1]).any(1)
                    found[name] = channels_of(pairs[0], pairs[1])
    return found


def _changed(output: Tensor) -> Tensor:
    """A feature map of zeros, (5, C, …), with two neighbouring channels changed: more and less of each."""
    if len(output) != 5 or output.shape[1] < 2:
        return output
    change = torch.zeros_like(output)
    for sample, (channel, sign) in enumerate(((0, 1), (0, -1), (1, 1), (1, -1)), 1):
        change[sample, channel] = sign * _CHANGE
    return change
