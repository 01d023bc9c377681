"""Networks of `random_networks` in PyTorch; `random_networks_nnx` has the same names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grl.torch_impl import GRL
from tests.support.random_networks import VOCABULARY, Architecture, Layer

ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


class Network(nn.Module):
    """Layers one after the other, in float64."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.layers = nn.ModuleList(build(layer) for layer in architecture.layers)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Function(nn.Module):
    """A layer without parameters."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Attention(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(*args, **kwargs, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def build(layer: Layer) -> nn.Module:
    """One layer."""
    kind, shape = layer.kind, layer.shape
    space = len(shape) - 1
    if kind in ("conv", "conv_transpose"):
        names = ("Conv", "size kernel stride padding dilation groups bias")
        if kind == "conv_transpose":
            names = ("ConvTranspose", "size kernel stride padding dilation bias")
        sizes = {"size": "out_channels", "kernel": "kernel_size"}
        settings = {sizes.get(name, name): layer[name] for name in names[1].split()}
        return getattr(nn, f"{names[0]}{space}d")(shape[0], **settings)
    if kind == "max_pool":
        # PyTorch's own refuses a padding of more than half the kernel, and counts -inf beyond: as here.
        return getattr(nn, f"MaxPool{space}d")(layer["kernel"], layer["stride"], layer["padding"])
    if kind == "avg_pool":
        pool = getattr(nn, f"AvgPool{space}d")
        return pool(layer["kernel"], layer["stride"], layer["padding"], count_include_pad=layer["count_include_pad"])
    if kind == "upsample":
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[space]
        return nn.Upsample(scale_factor=2, mode=mode, align_corners=layer["align_corners"])
    return {
        "activation": lambda: Function(ACTIVATIONS[layer["name"]]),
        "dropout": lambda: nn.Dropout(layer["rate"]),
        "flatten": lambda: nn.Flatten(),
        "global_mean": lambda: Function(lambda x: x.flatten(2).mean(2)),
        "time_mean": lambda: Function(lambda x: x.mean(1)),
        "embedding": lambda: nn.Embedding(VOCABULARY, layer["size"]),
        "linear": lambda: nn.Linear(shape[-1], layer["size"], bias=layer["bias"]),
        "batch_norm": lambda: getattr(nn, f"BatchNorm{max(space, 1)}d")(shape[0], layer["epsilon"], layer["momentum"]),
        "group_norm": lambda: nn.GroupNorm(layer["groups"], shape[0], layer["epsilon"]),
        "layer_norm": lambda: nn.LayerNorm(shape[-1], layer["epsilon"]),
        "rms_norm": lambda: nn.RMSNorm(shape[-1], layer["epsilon"]),
        "attention": lambda: Attention(shape[-1], layer["heads"], bias=layer["bias"]),
        "lstm": lambda: _recurrent(nn.LSTM, layer),
        "gru": lambda: _recurrent(nn.GRU, layer),
        "grl": lambda: GRL(layer["coeff"]),
    }[kind]()


def _recurrent(cls: Any, layer: Layer) -> nn.Module:
    rnn = cls(
        layer.shape[-1], layer["size"], bias=layer["bias"], batch_first=True, bidirectional=layer["bidirectional"]
    )
    if cls is nn.GRU and layer["bias"]:  # the bias that nnx's GRU has not
        with torch.no_grad():
            for name, bias in rnn.named_parameters():
                if "bias_hh" in name:
                    bias[2 * layer["size"] :] = 0
    return Recurrent(rnn)
