"""What of a PyTorch model is what of its port: names, layouts, and the order of flattened feature maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from grl.port.runs.recording import LOSS, OUTPUT, Array, Key
from grl.weights.differences import Weights, differing_weights
from grl.weights.flattened import find_flattened
from grl.weights.pairing import Pairing, pair
from grl.weights.slot import PortError

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

    from grl.port.setup import Setup

__all__ = ["Correspondence", "correspond"]


def correspond(setup: Setup) -> Correspondence:
    """Pair the layers and the weights of two models.

    Raises:
        TypeError: a model belongs to neither framework.
        PortError: the models cannot be paired.
    """
    pairing = pair(setup.torch_model, setup.nnx_model, setup.names)
    weights = differing_weights(setup.torch_model, setup.nnx_model, pairing)
    weights = _with_orders_of_constants(weights, pairing, setup)
    channels = frozenset((*weights.flattened.values(), *_channels_before_differing(weights, setup.nnx_model)))
    return Correspondence(pairing, weights, channels, _kept_names(setup.torch_model))


@dataclass(frozen=True)
class Correspondence:
    """The names and layouts of two models.

    Args:
        pairing: the layers that correspond.
        weights: how their weights differ.
        channels: how many channels a flattened feature map may have.
        kept_names: of PyTorch's parameters with two names, the second name → the one that PyTorch keeps.
    """

    pairing: Pairing
    weights: Weights
    channels: frozenset[int]
    kept_names: Mapping[str, str]

    @property
    def nnx_names(self) -> dict[str, str]:
        """PyTorch's name of a layer → nnx's."""
        return {one.torch_name: one.nnx_name for one in self.pairing.pairs}

    def nnx_key(self, key: Key) -> Key:
        """Return the nnx model's name of a layer, with the same number of the call."""
        return key if key in (OUTPUT, LOSS) else (self.nnx_names[key[0]], key[1])

    def nnx_name(self, parameter: str) -> str:
        """Return a parameter's name with its layer named as in the nnx model."""
        module, _, last = parameter.rpartition(".")
        return f"{self.nnx_names[module]}.{last}" if module in self.nnx_names else parameter

    def nnx_layer(self, name: str) -> Any:
        """Return the nnx model's layer by PyTorch's name; None if there is none."""
        return {one.torch_name: one.nnx_module for one in self.pairing.pairs}.get(name)

    def in_torch(self, arrays: Mapping[str, Array], gradients: bool = False) -> dict[str, Array]:
        """Return the nnx model's arrays by PyTorch's names and in its layouts."""
        converted: dict[str, Array] = self.pairing.to_torch(dict(arrays), self.weights.flattened, gradients=gradients)
        for name, kept in self.kept_names.items():
            if name in converted:  # the frameworks may keep different names for a module that is used twice
                converted.setdefault(kept, converted[name])
        return converted

    def in_nnx(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return PyTorch's arrays by the nnx model's names and in its layouts."""
        converted: dict[str, Array] = self.pairing.to_nnx(dict(arrays), self.weights.flattened)
        return converted


def _with_orders_of_constants(weights: Weights, pairing: Pairing, setup: Setup) -> Weights:
    """Find out by experiment whether the inputs of constant weights, which show no order, are a flattened map."""
    maps = {one.nnx_module.out_features for one in pairing.pairs if hasattr(one.nnx_module, "kernel_size")}
    constant = {name: size for name, size in weights.constant.items() if size not in maps}  # not the norm of a map
    if not maps or not constant:
        return weights
    nnx_names = {one.torch_name: one.nnx_name for one in pairing.pairs}
    try:
        orders = find_flattened(setup.nnx_model, None, nnx_names, setup.torch_model)
    except PortError:  # then assume the order of the other layers with as many inputs
        like = {weights.sizes[name]: channels for name, channels in weights.flattened.items()}
        orders = {name: like[size] for name, size in constant.items() if size in like}
    known = {name: channels for name, channels in orders.items() if name in constant}
    return replace(weights, flattened={**weights.flattened, **known})


def _channels_before_differing(weights: Weights, nnx_model: nnx.Module) -> Iterable[int]:
    """The channels of maps that the nnx model flattens before weights that differ, and so show no order."""
    if not any(array.ndim == 2 for array in weights.differing.values()):
        return ()
    try:
        return find_flattened(nnx_model).values()
    except PortError:
        return ()


def _kept_names(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    kept = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        name_of_first = first.setdefault(id(parameter), name)
        if name_of_first != name:
            kept[name] = name_of_first
    return kept
