"""Faults, each planted into a random place of a correct port, for the instrument to find.

port = Port(architecture, rng)
options = FAULTS["epsilon"].plant(port)  # None where this network has no place for it
compare(port.torch, port.nnx, port.x, **port.options | options)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import nnx

from grl.jax_impl import gradient_reversal
from grl.parity import copy_weights
from tests.support import random_networks_nnx, random_networks_torch
from tests.support.random_networks import Architecture, output_shape

BATCH = 3


class Port:
    """A random network in both frameworks, in float64, with the weights carried across; built once it is asked for.

    Args:
        architecture: the network.
        rng: chooses places and sizes.
    """

    def __init__(self, architecture: Architecture, rng: np.random.Generator) -> None:
        self.architecture, self.rng = architecture, rng
        self.options: dict[str, Any] = {"layout": "NCHW"} if len(architecture.shape) > 1 else {}

    @cached_property
    def torch(self) -> random_networks_torch.Network:
        """PyTorch's."""
        torch.manual_seed(int(self.rng.integers(2**31)))
        model = random_networks_torch.Network(self.architecture)
        _shake(model, self.rng)
        return model.eval()

    @cached_property
    def right(self) -> random_networks_nnx.Network:
        """The correct port."""
        model = random_networks_nnx.Network(self.architecture)
        model.eval()
        for _, layer in nnx.iter_modules(model):
            if isinstance(layer, nnx.BatchNorm):
                layer.__class__ = UnbiasedBatchNorm
                for part in (layer.mean, layer.var):
                    part.set_value(part.get_value().astype(jnp.float64))
        copy_weights(self.torch, model, flatten=self.architecture.flattened())
        return model

    @cached_property
    def nnx(self) -> random_networks_nnx.Network:
        """The port into which a fault is planted."""
        return nnx.clone(self.right)

    @cached_property
    def x(self) -> np.ndarray:
        """A batch of inputs."""
        return self.architecture.inputs(BATCH, seed=int(self.rng.integers(2**31)))

    def layer(self, index: int) -> Any:
        """The nnx layer of a place."""
        return getattr(self.nnx, self.nnx.names[index]) if self.nnx.names else self.nnx.layers[index]

    def put(self, index: int, layer: Any) -> None:
        """Put another nnx layer there."""
        if self.nnx.names:
            setattr(self.nnx, self.nnx.names[index], layer)
        else:
            self.nnx.layers[index] = layer

    def place(self, *kinds: str, when: Callable[[Any], bool] = lambda layer: True) -> int | None:
        """A place of one of these kinds, at random; None if there is none."""
        places = [i for i, layer in enumerate(self.architecture.layers) if layer.kind in kinds and when(layer)]
        return int(self.rng.choice(places)) if places else None

    def one_of(self, *values: Any) -> Any:
        """One of them, at random."""
        return values[int(self.rng.integers(len(values)))]


class UnbiasedBatchNorm(nnx.BatchNorm):
    """PyTorch's running variance, which is not what `nnx.BatchNorm` keeps."""

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.var[...]
        y = super().__call__(x, *args, **kwargs)
        if not self.use_running_average:
            count = x.size // x.shape[-1]
            biased = (self.var[...] - self.momentum * before) / (1 - self.momentum)
            self.var[...] = self.momentum * before + (1 - self.momentum) * biased * count / max(count - 1, 1)
        return y


def _shake(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Scales, shifts and statistics as after some training: with 1 and 0 a fault may not show."""
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if tensor.is_floating_point() and tensor.ndim == 1 and "bias_hh" not in name:
                    tensor.add_(torch.from_numpy(rng.uniform(0.05, 0.3, tuple(tensor.shape))))


@dataclass
class Fault:
    """One way to port a model wrongly.

    Args:
        inputs: the kind of network that has a place for it; None: any.
        plant: a function of the port, which it changes, to more options for `compare`; None if there is no place.
    """

    inputs: str | None
    plant: Callable[[Port], dict[str, Any] | None] = field(repr=False)


FAULTS: dict[str, Fault] = {}
"""By the identifier of the cause that has to be named first."""


def fault(identifier: str, inputs: str | None = None) -> Any:
    def register(plant: Callable[[Port], dict[str, Any] | None]) -> Any:
        FAULTS[identifier] = Fault(inputs, plant)
        return plant

    return register


@fault("padding", "images")
def padding(port: Port) -> dict[str, Any] | None:
    """SAME for explicit padding where that is another one, or the same width elsewhere."""
    i = port.place("conv", when=lambda layer: layer["padding"] > 0 and layer["kernel"] > 1)
    if i is None:
        return None
    layer, conv = port.architecture.layers[i], port.layer(i)
    sizes, p = layer.shape[1:], layer["padding"]
    same = [_same(n, layer["kernel"], layer["stride"], layer["dilation"]) for n in sizes]
    fits = all(-(-n // layer["stride"]) == out for n, out in zip(sizes, output_shape(layer)[1:], strict=True))
    if fits and any(pads != (p, p) for pads in same):
        conv.padding = "SAME"
    else:
        conv.padding = port.one_of([(p - 1, p + 1)] * len(sizes), [(p + 1, p - 1)] * len(sizes))
    return {}


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


@fault("stride", "images")
def stride(port: Port) -> dict[str, Any] | None:
    """Another dilation, padded so that the size is the same."""
    i = port.place("conv", when=lambda layer: layer["kernel"] > 1)
    if i is None:
        return None
    layer, conv = port.architecture.layers[i], port.layer(i)
    dilation = 3 - layer["dilation"]
    total = 2 * layer["padding"] + (layer["kernel"] - 1) * (dilation - layer["dilation"])
    if total < 0:
        return None
    conv.kernel_dilation = dilation
    conv.padding = [(total // 2, total - total // 2)] * (len(layer.shape) - 1)
    return {}


@fault("flatten_order", "images")
def flatten_order(port: Port) -> dict[str, Any] | None:
    """The map is flattened in the other order than the weights are for."""
    i = port.place("flatten", when=lambda layer: layer.shape[0] > 1 and np.prod(layer.shape[1:]) > 1)
    if i is None:
        return None
    order = {"CHW": "HWC", "HWC": "CHW"}[port.architecture.layers[i]["order"]]
    port.put(i, random_networks_nnx.Function(lambda x: random_networks_nnx.flatten(x, order)))
    return {}


@fault("transposed_kernel")
def transposed_kernel(port: Port) -> dict[str, Any] | None:
    """A square kernel as it is in PyTorch, or a convolution's with height and width exchanged or turned round."""
    i = port.place("linear", "conv", "conv_transpose", when=_may_be_transposed)
    if i is None:
        return None
    kernel, kind = port.layer(i).kernel, port.architecture.layers[i].kind
    array = kernel.get_value()
    space = tuple(range(array.ndim - 2))
    if kind == "linear":
        array = array.T
    elif kind == "conv_transpose":
        array = jnp.flip(array, space)
    else:
        array = port.one_of(jnp.flip(array, space), array.transpose(*space[::-1], -2, -1))
    if np.array_equal(array, kernel.get_value()):
        return None
    kernel.set_value(array)
    return {}


def _may_be_transposed(layer: Any) -> bool:
    if layer.kind == "linear":
        return layer["size"] == layer.shape[-1]
    return layer["kernel"] > 1


@fault("epsilon")
def epsilon(port: Port) -> dict[str, Any] | None:
    i = port.place("batch_norm", "group_norm", "layer_norm", "rms_norm")
    if i is None:
        return None
    own = port.architecture.layers[i]["epsilon"]
    port.layer(i).epsilon = port.one_of(*(eps for eps in (1e-3, 1e-5, 1e-6) if eps != own))
    return {}


@fault("batchnorm_momentum")
def batchnorm_momentum(port: Port) -> dict[str, Any] | None:
    """PyTorch's number where the other convention asks for one minus it."""
    i = port.place("batch_norm")
    if i is None:
        return None
    port.layer(i).momentum = port.architecture.layers[i]["momentum"]
    return {"train": True}


@fault("batchnorm_variance")
def batchnorm_variance(port: Port) -> dict[str, Any] | None:
    i = port.place("batch_norm")
    if i is None:
        return None
    port.layer(i).__class__ = nnx.BatchNorm
    return {"train": True}


@fault("gelu_approximation")
def gelu_approximation(port: Port) -> dict[str, Any] | None:
    i = port.place("activation", when=lambda layer: layer["name"].startswith("gelu"))
    if i is None:
        return None
    approximate = port.architecture.layers[i]["name"] == "gelu"
    port.put(i, random_networks_nnx.Function(lambda x: nnx.gelu(x, approximate=approximate)))
    return {}


@fault("align_corners", "images")
def align_corners(port: Port) -> dict[str, Any] | None:
    i = port.place("upsample", when=lambda layer: max(layer.shape[1:]) > 1)
    if i is None:
        return None
    other = not port.architecture.layers[i]["align_corners"]
    port.put(i, random_networks_nnx.Function(lambda x: random_networks_nnx.upsample(x, other)))
    return {}


@fault("pool_padding_count", "images")
def pool_padding_count(port: Port) -> dict[str, Any] | None:
    i = port.place("avg_pool", when=lambda layer: layer["padding"] > 0)
    if i is None:
        return None
    layer = port.architecture.layers[i]
    changed = port.architecture.but(i, count_include_pad=not layer["count_include_pad"]).layers[i]
    port.put(i, random_networks_nnx.build(changed, nnx.Rngs(0)))
    return {}


@fault("dropout_active")
def dropout_active(port: Port) -> dict[str, Any] | None:
    """On one side, either one."""
    i = port.place("dropout")
    if i is None:
        return None
    if port.one_of(True, False):
        port.torch.layers[i].train()
    else:
        port.layer(i).deterministic = False
    return {}


@fault("train_eval_mode")
def train_eval_mode(port: Port) -> dict[str, Any] | None:
    i = port.place("batch_norm")
    if i is None:
        return None
    if port.one_of(True, False):
        port.torch.layers[i].train()
    else:
        port.layer(i).use_running_average = False
    return {}


def _reversal(port: Port) -> int | None:
    """The only one, with parameters before it: another would be its double, and without them nobody would see it."""
    with_numbers = (
        *("conv", "conv_transpose", "linear", "embedding", "attention", "lstm", "gru"),
        *("batch_norm", "group_norm", "layer_norm", "rms_norm"),
    )
    layers = port.architecture.layers
    first = min((i for i, layer in enumerate(layers) if layer.kind in with_numbers), default=len(layers))
    places = list(port.architecture.places("grl"))
    return places[0] if len(places) == 1 and places[0] > first else None


@fault("reversal_missing")
def reversal_missing(port: Port) -> dict[str, Any] | None:
    i = _reversal(port)
    if i is None:
        return None
    port.put(i, random_networks_nnx.Function(lambda x: x))
    return {}


@fault("reversal_doubled")
def reversal_doubled(port: Port) -> dict[str, Any] | None:
    i = _reversal(port)
    if i is None:
        return None
    coeff = port.architecture.layers[i]["coeff"]
    port.put(i, random_networks_nnx.Function(lambda x: gradient_reversal(gradient_reversal(x, coeff), coeff)))
    return {}


@fault("coefficient")
def coefficient(port: Port) -> dict[str, Any] | None:
    i = _reversal(port)
    if i is None:
        return None
    port.layer(i).coeff = port.architecture.layers[i]["coeff"] * port.one_of(0.1, 0.5, 2.0, 3.0)
    return {}


def labels(port: Port) -> np.ndarray:
    return port.rng.integers(0, 3, BATCH)


def cross_entropy(logits: Any, targets: Any, reduction: Any = jnp.mean, smoothing: float = 0.0) -> Any:
    smoothed = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), smoothing)
    return reduction(optax.softmax_cross_entropy(logits, smoothed))


@fault("loss_reduction")
def loss_reduction(port: Port) -> dict[str, Any] | None:
    kind = port.one_of("cross entropy", "squares", "squares by sample")
    if kind == "cross entropy":
        pair = (F.cross_entropy, lambda z, t: cross_entropy(z, t, jnp.sum))
        return {"loss": pair, "targets": labels(port)}
    targets = port.rng.normal(size=(BATCH, 3))
    if kind == "squares":
        return {"loss": (F.mse_loss, lambda z, t: ((z - t) ** 2).sum()), "targets": targets}
    return {
        "loss": (lambda z, t: ((z - t) ** 2).mean(), lambda z, t: ((z - t) ** 2).sum(-1).mean()),
        "targets": targets,
    }


@fault("label_smoothing")
def label_smoothing(port: Port) -> dict[str, Any] | None:
    ours, theirs = port.one_of((0.0, 0.1), (0.1, 0.0), (0.1, 0.2))
    pair = (
        lambda z, t: F.cross_entropy(z, t, label_smoothing=ours),
        lambda z, t: cross_entropy(z, t, smoothing=theirs),
    )
    return {"loss": pair, "targets": labels(port)}


@fault("weight_decay")
def weight_decay(port: Port) -> dict[str, Any] | None:
    """In Adam instead of beside it, or beside it instead of in it, or forgotten."""
    rate, decay = float(10 ** port.rng.uniform(-4, -1)), float(10 ** port.rng.uniform(-3, -1))
    adam = optax.adam(rate)
    inside = optax.chain(optax.add_decayed_weights(decay), adam)
    beside = optax.adamw(rate, weight_decay=decay)
    parameters = port.torch.parameters()
    torch_adam = torch.optim.Adam(parameters, rate, weight_decay=decay)
    torch_adamw = torch.optim.AdamW(port.torch.parameters(), rate, weight_decay=decay)
    pair = port.one_of((torch_adam, beside), (torch_adamw, inside), (torch_adam, adam), (torch_adamw, adam))
    return {"optimizers": pair}


@fault("optimizer_epsilon")
def optimizer_epsilon(port: Port) -> dict[str, Any] | None:
    """Inside the root instead of outside, or another one."""
    rate, eps = float(10 ** port.rng.uniform(-4, -1)), port.one_of(1e-8, 1e-6, 1e-3)
    other = port.one_of(optax.adam(rate, eps=0.0, eps_root=eps), optax.adam(rate, eps=eps * 100))
    return {"optimizers": (torch.optim.Adam(port.torch.parameters(), rate, eps=eps), other)}


@fault("weights_not_copied")
def weights_not_copied(port: Port) -> dict[str, Any] | None:
    """One layer's weights are those that it was born with."""
    i = port.place("conv", "conv_transpose", "linear", "embedding")
    assert i is not None
    layer = port.layer(i)
    variable = layer.embedding if hasattr(layer, "embedding") else layer.kernel
    array = variable.get_value()
    variable.set_value(array + jnp.asarray(port.rng.normal(size=array.shape) * 0.1, array.dtype))
    return {}
