"""Causes in what slides over an image: padding, stride and dilation, and how an average counts what is outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grl.port.causes.cause import Experiment, cause
from grl.port.causes.evidence import Evidence, Variant, arguments, with_arguments
from grl.port.runs.torch_functions import Call

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Experiment] = {}

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_MAX_POOLS = ("max_pool1d", "max_pool2d", "max_pool3d")
_AVERAGES = ("avg_pool1d", "avg_pool2d", "avg_pool3d")

Pads = tuple[tuple[int, int], ...]
"""Before and after, for each spatial axis."""


@cause(EXPERIMENTS, "pool_padding_count")
def pool_padding_count(evidence: Evidence) -> str | None:
    """Average with the zeros outside of the image, and without."""

    def variants(call: Call, _: Any) -> Iterator[Variant]:
        counts = arguments(call.name, *call.arguments).get("count_include_pad", True)
        words = "without counting it" if counts else "counting it"
        yield (
            f"PyTorch's {call.name} {words} gives the nnx model's",
            with_arguments(call.name, count_include_pad=not counts),
        )

    return evidence.try_out(_AVERAGES, variants)


@cause(EXPERIMENTS, "padding")
def padding(evidence: Evidence) -> str | None:
    """Pad as XLA's SAME and VALID do, as the nnx layer is told to, and by other widths."""

    def variants(call: Call, layer: Any) -> Iterator[Variant]:
        window = _Window(call)
        for words, pads in window.paddings(layer):
            yield f"PyTorch's {call.name} with {words} gives the nnx model's", window.padded(pads)

    found = evidence.try_out((*_CONVOLUTIONS, *_MAX_POOLS, *_AVERAGES), variants)
    return found or evidence.try_out(_TRANSPOSED, _crops) or evidence.try_out(("pad",), _other_pads)


@cause(EXPERIMENTS, "stride")
def stride(evidence: Evidence) -> str | None:
    """Step and dilate as the nnx layer is told to, and by one, two or three; begin one step later."""

    def variants(call: Call, layer: Any) -> Iterator[Variant]:
        window = _Window(call)
        for changed in window.steps(layer):
            for words, pads in [("", window.pads), *window.paddings(layer, changed)]:
                told = ", ".join(f"{name}={value}" for name, value in changed.items())
                end = f" and {words}" if words else ""
                yield f"PyTorch's {call.name} with {told}{end} gives the nnx model's", window.padded(pads, **changed)

    found = evidence.try_out((*_CONVOLUTIONS, *_MAX_POOLS, *_AVERAGES), variants)
    return found or evidence.try_out(("__getitem__",), _other_starts)


class _Window:
    """A call of a convolution or a pooling, with everything said for each spatial axis."""

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
        """What XLA's SAME pads: the output has ⌈size / stride⌉ pixels; of an odd number the larger half comes last."""
        pads = []
        for size, kernel, s, d in zip(
            self.sizes, self.kernel, stride or self.stride, dilation or self.dilation, strict=True
        ):
            total = max((-(-size // s) - 1) * s + (kernel - 1) * d + 1 - size, 0)
            pads.append((total // 2, total - total // 2))
        return tuple(pads)

    def paddings(self, layer: Any, changed: dict[str, Any] | None = None) -> Iterator[tuple[str, Pads]]:
        """Yield other paddings, likeliest first: that of the nnx layer, SAME, VALID, equal and unequal ones."""
        changed = changed or {}
        same = self.same(changed.get("stride"), changed.get("dilation"))
        reach = [d * (k - 1) for k, d in zip(self.kernel, changed.get("dilation", self.dilation), strict=True)]
        told = _padding_of(layer, self.axes, same)
        known = {self.pads}
        candidates: list[tuple[str, Pads]] = [(f"the padding of the nnx layer, {told}", told)] if told else []
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

    def steps(self, layer: Any) -> Iterator[dict[str, Any]]:
        """Yield other strides and dilations."""
        told = {"stride": getattr(layer, "strides", None), "dilation": getattr(layer, "kernel_dilation", None)}
        own = {"stride": self.stride, "dilation": self.dilation}
        told_each = {n: self._each(v) for n, v in told.items() if v is not None and not callable(v)}
        configured = {n: v for n, v in told_each.items() if len(v) == self.axes and v != own[n]}
        if configured:
            yield configured
        names = ["stride"] if self.name in _AVERAGES else ["stride", "dilation"]
        for name in names:
            for step in (1, 2, 3, 4):
                if own[name] != (step,) * self.axes:
                    yield {name: (step,) * self.axes}

    def padded(self, pads: Pads, **changed: Any) -> Callable[..., Any]:
        """Return the change that pads first, and then calls the function without padding."""
        flat = [width for pair in reversed(pads) for width in pair]
        symmetric = all(before == after for before, after in pads)

        def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = arguments(self.name, args, kwargs) | changed
            if self.name in _MAX_POOLS:
                given["input"] = F.pad(given["input"], flat, value=-torch.inf)
            elif self.name in _CONVOLUTIONS or self.counts:
                given["input"] = F.pad(given["input"], flat)
            elif symmetric:
                return function(**{**given, "padding": tuple(before for before, _ in pads)})
            else:
                ones = F.pad(torch.ones_like(given["input"]), flat)
                given |= {"input": F.pad(given["input"], flat), "padding": 0}
                return function(**given) / function(**{**given, "input": ones})
            return function(**{**given, "padding": 0})

        return change


def _padding_of(layer: Any, axes: int, same: Pads) -> Pads | None:
    """What an nnx layer's `padding` says, where it is not a word of XLA's that is tried anyway."""
    told = getattr(layer, "padding", None)
    if told == "SAME":
        return same
    if isinstance(told, int):
        return ((told, told),) * axes
    if isinstance(told, list | tuple) and len(told) == axes:
        return tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in told)
    return None


def _crops(call: Call, _: Any) -> Iterator[Variant]:
    """A transposed convolution computes everything; its padding says what of it to cut off."""
    axes = int(call.name[-2])
    given = arguments(call.name, *call.arguments)
    largest = max(given["weight"].shape[2:])
    for before, after in product(range(-1, largest + 1), repeat=2):

        def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], cut: Any = (before, after)) -> Any:
            whole = arguments(call.name, args, kwargs) | {"padding": 0, "output_padding": 0}
            return F.pad(function(**whole), [-width for width in cut] * axes)

        yield f"PyTorch's {call.name} with {before} and {after} cut off the ends gives the nnx model's", change


def _other_pads(call: Call, _: Any) -> Iterator[Variant]:
    args, kwargs = call.arguments
    widths = list(args[1] if len(args) > 1 else kwargs["pad"])
    swapped = [w for i in range(0, len(widths), 2) for w in (widths[i + 1], widths[i])]
    others = [swapped, [0] * len(widths), *([w] * len(widths) for w in range(1, max(widths, default=0) + 2))]
    for other in others:
        if other != widths:

            def change(function: Any, args: Any, kwargs: Any, other: list[int] = other) -> Any:
                rest = {name: value for name, value in kwargs.items() if name not in ("pad", "input")}
                return function(args[0] if args else kwargs["input"], other, *args[2:], **rest)

            yield f"PyTorch's pad by {other} gives the nnx model's", change


def _other_starts(call: Call, _: Any) -> Iterator[Variant]:
    tensor, index = call.arguments[0]
    places = index if isinstance(index, tuple) else (index,)
    if not isinstance(tensor, Tensor) or not any(isinstance(p, slice) and (p.step or 1) > 1 for p in places):
        return
    for start in range(4):
        moved = tuple(slice(start, p.stop, p.step) if isinstance(p, slice) and (p.step or 1) > 1 else p for p in places)

        def change(function: Any, args: Any, kwargs: Any, moved: Any = moved) -> Any:
            return function(args[0], moved)

        yield (
            f"every {[p.step for p in moved if isinstance(p, slice)][-1]}th from {start} on is the nnx model's",
            change,
        )
