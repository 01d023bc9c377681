"""Networks of `random_networks` in nnx; `random_networks_torch` has the same names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from grl.jax_impl import GRL
from tests.support.nnx_models import attend
from tests.support.random_networks import VOCABULARY, Architecture, Layer

ACTIVATIONS = {
    "relu": nnx.relu,
    "tanh": jnp.tanh,
    "gelu": lambda x: nnx.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nnx.gelu(x, approximate=True),
    "silu": nnx.silu,
}


class Network(nnx.Module):
    """Layers one after the other, in float64; images are channels last."""

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        layers = [build(layer, rngs) for layer in architecture.layers]
        self.names = []
        if architecture.same_names:
            self.layers = nnx.List(layers)
        else:
            for i, (layer, built) in enumerate(zip(architecture.layers, layers, strict=True)):
                self.names.append(f"{layer.kind}_{i}")
                setattr(self, self.names[-1], built)
        self.names = tuple(self.names)

    def __call__(self, x: Array) -> Array:
        for layer in [getattr(self, name) for name in self.names] or self.layers:
            x = layer(x)
        return x


class Function(nnx.Module):
    """A layer without parameters."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, x: Array) -> Array:
        return self.function(x)


class Attention(nnx.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.attention = nnx.MultiHeadAttention(*args, **kwargs, attention_fn=attend, decode=False)

    def __call__(self, x: Array) -> Array:
        return self.attention(x)


class Recurrent(nnx.Module):
    def __init__(self, rnn: nnx.Module) -> None:
        self.rnn = rnn

    def __call__(self, x: Array) -> Array:
        return self.rnn(x)


def build(layer: Layer, rngs: nnx.Rngs) -> nnx.Module:
    """One layer."""
    kind, shape = layer.kind, layer.shape
    space = len(shape) - 1
    how: dict[str, Any] = {"param_dtype": jnp.float64, "rngs": rngs}

    def pads() -> Any:
        return [(layer["padding"],) * 2] * space

    def windows() -> Any:
        return (layer["kernel"],) * space, (layer["stride"],) * space

    if kind == "conv":
        kernel, strides = windows()
        settings = {"kernel_dilation": layer["dilation"], "feature_group_count": layer["groups"]}
        return nnx.Conv(
            shape[0], layer["size"], kernel, strides, padding=pads(), use_bias=layer["bias"], **settings, **how
        )
    if kind == "conv_transpose":
        kernel, strides = windows()
        # The padding of PyTorch is that of the convolution which this one is the transposed of.
        reach = layer["dilation"] * (layer["kernel"] - 1) - layer["padding"]
        return nnx.ConvTranspose(
            shape[0],
            layer["size"],
            kernel,
            strides,
            padding=[(reach, reach)] * space,
            kernel_dilation=layer["dilation"],
            use_bias=layer["bias"],
            transpose_kernel=layer["transpose_kernel"],
            **how,
        )
    if kind == "max_pool":
        return Function(lambda x: nnx.max_pool(x, *windows(), padding=pads()))
    if kind == "avg_pool":
        include = layer["count_include_pad"]
        return Function(lambda x: nnx.avg_pool(x, *windows(), padding=pads(), count_include_pad=include))
    if kind == "upsample":
        return Function(lambda x: upsample(x, layer["align_corners"]))
    norm = {"epsilon": layer.settings.get("epsilon"), **how}
    return {
        "activation": lambda: Function(ACTIVATIONS[layer["name"]]),
        "dropout": lambda: nnx.Dropout(layer["rate"], rngs=rngs),
        "flatten": lambda: Function(lambda x: flatten(x, layer["order"])),
        "global_mean": lambda: Function(lambda x: x.reshape(len(x), -1, x.shape[-1]).mean(1)),
        "time_mean": lambda: Function(lambda x: x.mean(1)),
        "embedding": lambda: nnx.Embed(VOCABULARY, layer["size"], **how),
        "linear": lambda: nnx.Linear(shape[-1], layer["size"], use_bias=layer["bias"], **how),
        "batch_norm": lambda: nnx.BatchNorm(shape[0], momentum=1 - layer["momentum"], **norm),
        "group_norm": lambda: nnx.GroupNorm(shape[0], layer["groups"], **norm),
        "layer_norm": lambda: nnx.LayerNorm(shape[-1], **norm),
        "rms_norm": lambda: nnx.RMSNorm(shape[-1], **norm),
        "attention": lambda: Attention(layer["heads"], shape[-1], use_bias=layer["bias"], **how),
        "lstm": lambda: _recurrent(nnx.OptimizedLSTMCell, layer, how),
        "gru": lambda: _recurrent(nnx.GRUCell, layer, how),
        "grl": lambda: GRL(layer["coeff"]),
    }[kind]()


def flatten(x: Array, order: str) -> Array:
    """In nnx's order, or in PyTorch's."""
    return (jnp.moveaxis(x, -1, 1) if order == "CHW" else x).reshape(len(x), -1)


def upsample(x: Array, align_corners: bool) -> Array:
    """Twice the size, linear; corners as PyTorch's align_corners=False unless the fault is planted."""
    shape = (len(x), *(2 * n for n in x.shape[1:-1]), x.shape[-1])
    if not align_corners:
        return jax.image.resize(x, shape, "linear", antialias=False)
    sizes = [(n, 2 * n) for n in x.shape[1:-1]]
    scale = jnp.array([(new - 1) / max(old - 1, 1) for old, new in sizes], x.dtype)
    return jax.image.scale_and_translate(
        x, shape, tuple(range(1, x.ndim - 1)), scale, (1 - scale) / 2, "linear", antialias=False
    )


def _recurrent(cell: Any, layer: Layer, how: Any) -> nnx.Module:
    rnns = [nnx.RNN(cell(layer.shape[-1], layer["size"], **how)) for _ in range(2)]
    return Recurrent(nnx.Bidirectional(*rnns) if layer["bidirectional"] else rnns[0])
