"""Causes in windows that slide over an image: padding, stride and dilation, and whether an average counts padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grl.port.causes.evidence import Evidence, Proof, Variant, arguments, with_arguments
from grl.port.runs.torch_functions import Args, Call, Function, Kwargs

__all__ = ["padding", "pool_padding_count", "stride"]

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_MAX_POOLS = ("max_pool1d", "max_pool2d", "max_pool3d")
_AVERAGES = ("avg_pool1d", "avg_pool2d", "avg_pool3d")

Pads = tuple[tuple[int, int], ...]
"""Before and after, for each spatial axis."""

Steps = Mapping[str, tuple[int, ...]]
"""By "stride" and "dilation", for each spatial axis; those that are missing stay."""


def pool_padding_count(evidence: Evidence) -> Proof | None:
    """Average with the zeros outside of the image, and without."""
    return evidence.try_out(_AVERAGES, _other_counts)


def _other_counts(call: Call, _: Any) -> Iterator[Variant]:
    counts = arguments(call.name, *call.arguments).get("count_include_pad", True)
    words = f"PyTorch's {call.name} {'without counting' if counts else 'counting'} the padding gives the nnx model's"
    yield words, with_arguments(call.name, count_include_pad=not counts)


def padding(evidence: Evidence) -> Proof | None:
    """Pad as XLA's SAME and VALID do, as the nnx layer is configured, and by other widths."""
    return (
        evidence.try_out((*_CONVOLUTIONS, *_MAX_POOLS, *_AVERAGES), _other_paddings)
        or evidence.try_out(_TRANSPOSED, _crops)
        or evidence.try_out(("pad",), _other_pads)
    )


def _other_paddings(call: Call, layer: Any) -> Iterator[Variant]:
    window = _Window(call)
    for words, pads in window.paddings(layer, {}):
        yield f"PyTorch's {call.name} with {words} gives the nnx model's result", _Padded(window, pads, {})


def stride(evidence: Evidence) -> Proof | None:
    """Step and dilate as the nnx layer is configured, and by one, two or three; begin one step later."""
    windows = evidence.try_out((*_CONVOLUTIONS, *_MAX_POOLS, *_AVERAGES), _other_steps)
    return windows or evidence.try_out(("__getitem__",), _other_starts)


def _other_steps(call: Call, layer: Any) -> Iterator[Variant]:
    window = _Window(call)
    for steps in window.steps(layer):
        for words, pads in [("", window.pads), *window.paddings(layer, steps)]:
            settings = ", ".join(f"{name}={value}" for name, value in steps.items())
            end = f" and {words}" if words else ""
            words_of_all = f"PyTorch's {call.name} with {settings}{end} gives the nnx model's result"
            yield words_of_all, _Padded(window, pads, steps)


class _Window:
    """A call of a convolution or a pooling, with its settings given for each spatial axis."""

    def __init__(self, call: Call) -> None:
        self.name = call.name
        given = arguments(call.name, *call.arguments)
        self.axes = int(call.name[-2])
        self.sizes: tuple[int, ...] = tuple(given["input"].shape[-self.axes :])
        kernel = given["weight"].shape[2:] if "weight" in given else given["kernel_size"]
        self.kernel = self._each(kernel)
        is_pool = "pool" in call.name
        self.stride = self._each(given.get("stride") or (self.kernel if is_pool else 1))
        self.dilation = self._each(given.get("dilation", 1))
        pads = given.get("padding", 0)
        if isinstance(pads, str):
            self.pads = self.same() if pads == "same" else ((0, 0),) * self.axes
        else:
            self.pads = tuple((p, p) for p in self._each(pads))
        self.counts = bool(given.get("count_include_pad", True))

    def _each(self, value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, Sequence | torch.Size) else (value,)
        return values * self.axes if len(values) == 1 else values

    def same(self, stride: Sequence[int] | None = None, dilation: Sequence[int] | None = None) -> Pads:
        """Return the padding of XLA's SAME: ⌈size / stride⌉ pixels come out; an odd width is larger at the end."""
        pads = []
        for size, kernel, s, d in zip(
            self.sizes, self.kernel, stride or self.stride, dilation or self.dilation, strict=True
        ):
            total = max((-(-size // s) - 1) * s + (kernel - 1) * d + 1 - size, 0)
            pads.append((total // 2, total - total // 2))
        return tuple(pads)

    def paddings(self, layer: Any, steps: Steps) -> Iterator[tuple[str, Pads]]:
        """Yield other paddings, likeliest first: that of the nnx layer, SAME, VALID, equal and unequal ones."""
        same = self.same(steps.get("stride"), steps.get("dilation"))
        reach = [d * (k - 1) for k, d in zip(self.kernel, steps.get("dilation", self.dilation), strict=True)]
        configured = _padding_of(layer, self.axes, same)
        known = {self.pads}
        candidates: list[tuple[str, Pads]] = []
        if configured:
            candidates.append((f"the padding of the nnx layer, {configured}", configured))
        candidates += [("SAME padding as XLA does it", same), ("no padding", ((0, 0),) * self.axes)]
        for width in range(max(reach) + 1):
            candidates.append((f"padding {width}", tuple((min(width, r), min(width, r)) for r in reach)))
        for first, total in product(range(3), range(1, max(reach) + 2)):
            if first <= total:
                candidates.append((f"padding {(first, total - first)}", ((first, total - first),) * self.axes))
        for words, pads in candidates:
            if pads not in known:
                known.add(pads)
                yield words, pads

    def steps(self, layer: Any) -> Iterator[Steps]:
        """Yield other strides and dilations, first those of the nnx layer."""
        torch_steps = {"stride": self.stride, "dilation": self.dilation}
        nnx_steps = {"stride": getattr(layer, "strides", None), "dilation": getattr(layer, "kernel_dilation", None)}
        configured = {}
        for name, value in nnx_steps.items():
            each = () if value is None or callable(value) else self._each(value)
            if len(each) == self.axes and each != torch_steps[name]:
                configured[name] = each
        if configured:
            yield configured
        names = ["stride"] if self.name in _AVERAGES else ["stride", "dilation"]
        for name in names:
            for step in (1, 2, 3, 4):
                if torch_steps[name] != (step,) * self.axes:
                    yield {name: (step,) * self.axes}


@dataclass(frozen=True)
class _Padded:
    """The change that pads first, and then calls the function without padding.

    Args:
        window: the call.
        pads: the padding.
        steps: other strides and dilations.
    """

    window: _Window
    pads: Pads
    steps: Steps

    def __call__(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Call the function with the other settings."""
        flat = [width for pair in reversed(self.pads) for width in pair]
        given = arguments(self.window.name, args, kwargs) | dict(self.steps)
        if self.window.name in _MAX_POOLS:
            given["input"] = F.pad(given["input"], flat, value=-torch.inf)
        elif self.window.name in _CONVOLUTIONS or self.window.counts:
            given["input"] = F.pad(given["input"], flat)
        elif all(before == after for before, after in self.pads):
            return function(**{**given, "padding": tuple(before for before, _ in self.pads)})
        else:
            ones = F.pad(torch.ones_like(given["input"]), flat)
            given |= {"input": F.pad(given["input"], flat), "padding": 0}
            return function(**given) / function(**{**given, "input": ones})
        return function(**{**given, "padding": 0})


def _padding_of(layer: Any, axes: int, same: Pads) -> Pads | None:
    """Return the `padding` of an nnx layer; None for a word of XLA's other than SAME, which is tried anyway."""
    configured = getattr(layer, "padding", None)
    if configured == "SAME":
        return same
    if isinstance(configured, int):
        return ((configured, configured),) * axes
    if isinstance(configured, list | tuple) and len(configured) == axes:
        return tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in configured)
    return None


def _crops(call: Call, _: Any) -> Iterator[Variant]:
    """Yield other crops: a transposed convolution computes everything, and its padding says how much is cut off."""
    axes = int(call.name[-2])
    largest = max(arguments(call.name, *call.arguments)["weight"].shape[2:])
    for before, after in product(range(-1, largest + 1), repeat=2):
        words = f"PyTorch's {call.name} with {before} and {after} cut off the ends gives the nnx model's result"
        yield words, partial(_cropped, name=call.name, widths=[-before, -after] * axes)


def _cropped(function: Function, args: Args, kwargs: Kwargs, name: str, widths: list[int]) -> Any:
    return F.pad(function(**(arguments(name, args, kwargs) | {"padding": 0, "output_padding": 0})), widths)


def _other_pads(call: Call, _: Any) -> Iterator[Variant]:
    args, kwargs = call.arguments
    widths = list(args[1] if len(args) > 1 else kwargs["pad"])
    swapped = [width for i in range(0, len(widths), 2) for width in (widths[i + 1], widths[i])]
    equal = [[width] * len(widths) for width in range(max(widths, default=0) + 2)]
    for other in (swapped, *equal):
        if other != widths:
            yield f"PyTorch's pad by {other} gives the nnx model's result", partial(_padded_by, widths=other)


def _padded_by(function: Function, args: Args, kwargs: Kwargs, widths: list[int]) -> Any:
    rest = {name: value for name, value in kwargs.items() if name not in ("pad", "input")}
    return function(args[0] if args else kwargs["input"], widths, *args[2:], **rest)


def _other_starts(call: Call, _: Any) -> Iterator[Variant]:
    tensor, index = call.arguments[0]
    places = index if isinstance(index, tuple) else (index,)
    steps = [place.step for place in places if isinstance(place, slice)]
    if not isinstance(tensor, Tensor) or not any((step or 1) > 1 for step in steps):
        return
    for start in range(4):
        moved = tuple(_started(place, start) for place in places)
        words = f"every {steps[-1]}th from {start} on is the nnx model's result"
        yield words, partial(_indexed, index=moved)


def _started(place: Any, start: int) -> Any:
    """The same slice from another start, if it steps."""
    if isinstance(place, slice) and (place.step or 1) > 1:
        return slice(start, place.stop, place.step)
    return place


def _indexed(function: Function, args: Args, kwargs: Kwargs, index: tuple[Any, ...]) -> Any:
    return function(args[0], index)
