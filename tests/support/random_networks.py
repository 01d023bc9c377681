"""Small networks drawn at random, as data: a list of layers that either framework builds.

A fault is planted by building one side from a changed list:

    nnx_network(architecture.but(i, epsilon=1e-3))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

ACTIVATIONS = ("relu", "tanh", "gelu", "gelu_tanh", "silu")
# Of images, by the number of their axes. Unlike sides show an exchange, square ones let the flatten order be found out.
SIZES = {1: [(9,)], 2: [(8, 7), (7, 7)], 3: [(5, 4, 6)]}


@dataclass(frozen=True)
class Layer:
    """One layer: its kind and its settings, with PyTorch's meanings; `shape` is what goes in, without the batch."""

    kind: str
    settings: dict[str, Any]
    shape: tuple[int, ...]

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"


@dataclass(frozen=True)
class Architecture:
    """A network: layers one after the other.

    Args:
        layers: in their order.
        shape: of one input, channels first; () for tokens, of which there are `LENGTH`.
        same_names: whether both sides call their layers `layers.0`, …, or nnx `conv_0`, … .
    """

    layers: tuple[Layer, ...]
    shape: tuple[int, ...]
    same_names: bool = True

    def but(self, index: int, **settings: Any) -> Architecture:
        """The same with other settings of one layer."""
        layer = self.layers[index]
        changed = replace(layer, settings=layer.settings | settings)
        return replace(self, layers=(*self.layers[:index], changed, *self.layers[index + 1 :]))

    def places(self, kind: str) -> Iterator[int]:
        """The indices of layers of a kind."""
        yield from (i for i, layer in enumerate(self.layers) if layer.kind == kind)

    def flattened(self) -> dict[str, tuple[int, ...]]:
        """What `copy_weights` takes as `flatten`: the layers up to the first linear one behind a map in nnx's order."""
        found: dict[str, tuple[int, ...]] = {}
        start = next((i for i in self.places("flatten") if self.layers[i]["order"] == "HWC"), len(self.layers))
        for i in range(start + 1, len(self.layers)):
            kind = self.layers[i].kind
            if kind in ("batch_norm", "layer_norm", "rms_norm", "linear"):
                found[f"layers.{i}"] = self.layers[start].shape
            if kind == "linear":
                break
        return found

    def order_can_be_found(self) -> bool:
        """Whether `copy_weights` finds out about a flattened map by itself: behind a convolution, of a square image."""
        convolved = any(layer.kind in ("conv", "conv_transpose") for layer in self.layers)
        return convolved and len(self.shape) > 1 and len(set(self.shape[1:])) == 1

    def inputs(self, batch: int = 3, seed: int = 0) -> np.ndarray:
        """A batch of inputs in float64, channels first, or of tokens."""
        generator = np.random.default_rng(seed)
        if not self.shape:
            return generator.integers(0, VOCABULARY, (batch, LENGTH))
        return generator.normal(size=(batch, *self.shape))


VOCABULARY, LENGTH = 11, 5


@st.composite
def architectures(draw: Any, inputs: str | None = None, largest: int = 6) -> Architecture:
    """A network of a few layers.

    Args:
        inputs: "images", "vectors" or "tokens"; any by default.
        largest: how many layers there are at most before the head.
    """
    inputs = inputs or draw(st.sampled_from(("images", "vectors", "tokens")))
    count = draw(st.integers(1, largest))
    same_names = draw(st.booleans())
    layers: list[Layer] = []
    if inputs == "images":
        space = draw(st.sampled_from((1, 2, 2, 2, 3)))
        first: tuple[int, ...] = (draw(st.integers(1, 3)), *draw(st.sampled_from(SIZES[space])))
        shape = _extend(draw, layers, first, count, IMAGE_LAYERS)
        ending = draw(st.sampled_from(("flatten", "global_mean")))
        order = {"order": draw(st.sampled_from(("HWC", "CHW")))} if ending == "flatten" else {}
        shape = _append(layers, Layer(ending, order, shape))
    elif inputs == "vectors":
        first = shape = (draw(st.integers(2, 6)),)
    else:
        first = ()
        layers.append(Layer("embedding", {"size": 4}, ()))
        shape = _extend(draw, layers, (LENGTH, 4), count, SEQUENCE_LAYERS)
        shape = _append(layers, Layer("time_mean", {}, shape))
    shape = _extend(draw, layers, shape, draw(st.integers(1, 3)), VECTOR_LAYERS)
    _append(layers, Layer("linear", {"size": 3, "bias": True}, shape))
    return Architecture(tuple(layers), first, same_names)


def _extend(draw: Any, layers: list[Layer], shape: tuple[int, ...], count: int, kinds: Any) -> tuple[int, ...]:
    for _ in range(count):
        kind = draw(st.sampled_from(sorted(kinds)))
        settings = draw(kinds[kind](shape))
        layer = Layer(kind, settings, shape)
        refused = "pool" in kind and min(shape[1:]) < settings["kernel"]  # by PyTorch in 3d, whatever the padding
        if min(output_shape(layer)) >= 1 and not refused:  # what is too small for a layer goes without
            shape = _append(layers, layer)
    return shape


def _append(layers: list[Layer], layer: Layer) -> tuple[int, ...]:
    layers.append(layer)
    return output_shape(layer)


def output_shape(layer: Layer) -> tuple[int, ...]:
    """What comes out of a layer, without the batch."""
    shape, settings = layer.shape, layer.settings
    if layer.kind == "conv":
        reach = settings["dilation"] * (settings["kernel"] - 1)
        return settings["size"], *(
            (n + 2 * settings["padding"] - reach - 1) // settings["stride"] + 1 for n in shape[1:]
        )
    if layer.kind == "conv_transpose":
        reach = settings["dilation"] * (settings["kernel"] - 1)
        return settings["size"], *(
            (n - 1) * settings["stride"] - 2 * settings["padding"] + reach + 1 for n in shape[1:]
        )
    if layer.kind in ("max_pool", "avg_pool"):
        return shape[0], *(
            (n + 2 * settings["padding"] - settings["kernel"]) // settings["stride"] + 1 for n in shape[1:]
        )
    if layer.kind == "upsample":
        return shape[0], *(2 * n for n in shape[1:])
    if layer.kind == "flatten":
        return (int(np.prod(shape)),)
    if layer.kind == "global_mean":
        return shape[:1]
    if layer.kind == "time_mean":
        return shape[1:]
    if layer.kind == "embedding":
        return LENGTH, settings["size"]
    if layer.kind == "linear":
        return *shape[:-1], settings["size"]
    if layer.kind in ("lstm", "gru"):
        return shape[0], settings["size"] * (2 if settings["bidirectional"] else 1)
    return shape


def _fixed(**settings: Any) -> Any:
    strategies = {
        name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in settings.items()
    }
    return st.fixed_dictionaries(strategies)


def _conv(shape: tuple[int, ...]) -> Any:
    """Groups divide both channels."""
    groups = st.sampled_from([g for g in (1, 2, 3) if shape[0] % g == 0])
    return groups.flatmap(
        lambda g: _fixed(
            size=st.sampled_from([n for n in (2, 3, 4, 6) if n % g == 0]),
            groups=g,
            kernel=st.sampled_from((1, 2, 3)),
            stride=st.sampled_from((1, 1, 2)),
            padding=st.sampled_from((0, 1)),
            dilation=st.sampled_from((1, 1, 2)),
            bias=st.booleans(),
        )
    )


def _conv_transpose(shape: tuple[int, ...]) -> Any:
    return _fixed(
        size=st.sampled_from((2, 3)),
        kernel=st.sampled_from((2, 3)),
        stride=st.sampled_from((1, 2)),
        padding=st.sampled_from((0, 1)),
        dilation=st.sampled_from((1, 2)),
        bias=st.booleans(),
        transpose_kernel=st.booleans(),
    )


def _pool(shape: tuple[int, ...], **more: Any) -> Any:
    return _fixed(
        kernel=st.sampled_from((2, 3)), stride=st.sampled_from((1, 2)), padding=st.sampled_from((0, 1)), **more
    )


def _norm(shape: tuple[int, ...], **more: Any) -> Any:
    return _fixed(epsilon=st.sampled_from((1e-5, 1e-3)), **more)


def _recurrent(shape: tuple[int, ...]) -> Any:
    return _fixed(size=st.sampled_from((2, 3)), bidirectional=st.booleans(), bias=st.booleans())


_LINEAR = {"linear": lambda shape: _fixed(size=st.sampled_from((3, 4, 5)), bias=st.booleans())}
_ANYWHERE = {
    "activation": lambda shape: _fixed(name=st.sampled_from(ACTIVATIONS)),
    "dropout": lambda shape: _fixed(rate=st.sampled_from((0.1, 0.5))),
}
IMAGE_LAYERS = _ANYWHERE | {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "batch_norm": lambda shape: _norm(shape, momentum=st.sampled_from((0.1, 0.3))),
    "group_norm": lambda shape: _norm(shape, groups=st.sampled_from([g for g in (1, 2, 3) if shape[0] % g == 0])),
    "max_pool": _pool,
    "avg_pool": lambda shape: _pool(shape, count_include_pad=st.booleans()),
    "upsample": lambda shape: _fixed(align_corners=st.booleans()),
}
SEQUENCE_LAYERS = (
    _ANYWHERE
    | _LINEAR
    | {
        "layer_norm": _norm,
        "rms_norm": _norm,
        "attention": lambda shape: _fixed(
            heads=st.sampled_from([h for h in (1, 2) if shape[-1] % h == 0]), bias=st.booleans()
        ),
        "lstm": _recurrent,
        "gru": _recurrent,
    }
)
VECTOR_LAYERS = (
    _ANYWHERE
    | _LINEAR
    | {
        "batch_norm": lambda shape: _norm(shape, momentum=st.sampled_from((0.1, 0.3))),
        "layer_norm": _norm,
        "rms_norm": _norm,
        "grl": lambda shape: _fixed(coeff=st.sampled_from((0.5, 1.0, 2.0))),
    }
)
