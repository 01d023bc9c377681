"""The order in which a PyTorch model flattens a feature map: the experiment of `flattened_in_nnx` in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn

from grl.weights.feature_order import channels_of

__all__ = ["orders_in_torch"]

_CONVOLUTION = nn.modules.conv._ConvNd
_CHANNELS_FIRST = (_CONVOLUTION, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_KEEP_ORDER = (nn.LayerNorm, nn.RMSNorm)
_SAMPLES = 5
_CHANGE = 1e3
_MAPS = 8  # the experiment replaces at most this many maps, from the last one back


def orders_in_torch(model: nn.Module, names: Collection[str], side: int) -> dict[str, int | None]:
    """Return the order of the inputs of some layers, for the layers that a change of a channel reaches.

    Args:
        model: an `nn.Module`. It stays unchanged.
        names: the layers' names.
        side: the side of the square image that the model takes, in pixels.

    Returns:
        Name → 0 for (C, H, W), the usual order; C for (H, W, C); None for any other order. The result is empty if the
        model does not run on one image, or has no module for a convolution.
    """
    try:
        model = copy.deepcopy(model).eval()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.fill_(1.0)  # a scale of 0 would block the change
            return _orders(model, names, side)
    except (RuntimeError, ValueError, TypeError):
        return {}  # the model takes another input, or has no memory yet


def _orders(model: nn.Module, names: Collection[str], side: int) -> dict[str, int | None]:
    first = next((module for module in model.modules() if isinstance(module, _CONVOLUTION)), None)
    if first is None:
        return {}
    image = torch.zeros(_SAMPLES, first.in_channels, *[side] * len(first.kernel_size), dtype=first.weight.dtype)
    image = image.to(first.weight.device)
    watch = _Watch()
    for module in model.modules():
        module.register_forward_hook(watch.after_layer)
    modules = dict(model.named_modules())
    for name in names:
        modules[name].register_forward_pre_hook(partial(watch.before_layer, name=name))
    orders: dict[str, int | None] = {}
    with torch.random.fork_rng(devices=[]):
        model(image)
        last_maps = range(watch.maps)[: -_MAPS - 1 : -1]
        for replace_at in last_maps:
            watch.restart(replace_at)
            model(image)
            for name, inputs in watch.inputs.items():
                rows = inputs.detach().cpu().float().numpy()
                differences = abs(rows[1:] - rows[0])
                changed = differences > 1e-3 * differences.max()
                if changed.any() and name not in orders:
                    by_channel = changed.reshape(2, -1, changed.shape[-1]).any(1)
                    orders[name] = channels_of(by_channel[0], by_channel[1])
    return orders


class _Watch:
    """Hooks that count feature maps, replace one of them, and keep the inputs of the named layers behind it."""

    def __init__(self) -> None:
        self.restart(-1)

    def restart(self, replace_at: int) -> None:
        self.replace_at = replace_at
        self.maps = 0
        self.inputs: dict[str, Tensor] = {}

    def after_layer(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if isinstance(module, _KEEP_ORDER) or (isinstance(module, nn.BatchNorm1d) and output.ndim == 2):
            return arguments[0]  # a norm would make one changed channel change all the others too
        if isinstance(module, _CHANNELS_FIRST) and output.ndim > 2:
            self.maps += 1
            return _changed(output) if self.maps - 1 == self.replace_at else None
        return None

    def before_layer(self, _: nn.Module, arguments: tuple[Tensor, ...], name: str) -> None:
        if self.maps > self.replace_at:
            self.inputs.setdefault(name, arguments[0])


def _changed(output: Tensor) -> Tensor:
    """Return a feature map of zeros, (5, C, …), with two neighbouring channels changed: more and less of each."""
    if len(output) != _SAMPLES or output.shape[1] < 2:
        return output
    change = torch.zeros_like(output)
    for sample, (channel, sign) in enumerate(((0, 1), (0, -1), (1, 1), (1, -1)), 1):
        change[sample, channel] = sign * _CHANGE
    return change
