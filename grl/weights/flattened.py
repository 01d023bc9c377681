"""Layers behind a flattened feature map: PyTorch orders their inputs by channel, nnx by pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from grl.weights.feature_order import BY_FEATURE, channels_of, input_weight
from grl.weights.slot import PortError
from grl.weights.tree import ModelNode, grown

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

__all__ = ["find_flattened"]

_SUSPECTED = ("Linear", "LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


def find_flattened(
    nnx_model: nnx.Module,
    flatten: Mapping[str, Sequence[int]] | None = None,
    aliases: Mapping[str, str] | None = None,
    torch_model: nn.Module | None = None,
) -> dict[str, int]:
    """Return the layers whose inputs are a feature map that was flattened as (H, W, C): nnx's name → C.

    A layer is a suspect if it follows convolutions and takes another number of inputs than the layer before it returns.
    A model that flattens an image without a convolution must use `flatten`. Where the order of definition is lost, a
    layer is a suspect if its inputs are a multiple of the channels that some convolution returns.

    If there is a suspect, the model is traced with the smallest square image that it takes. The output of the last
    layer before the suspect that keeps height and width is replaced by one in which a single channel differs. If every
    C-th input of the suspect differs, the map was flattened as (H, W, C). If a run of neighbours differs, it was
    flattened as (C, H, W), as in PyTorch. The result does not depend on the weights, and earlier layers are not
    computed. The PyTorch model, if given, is examined in the same way: a layer that it also flattens as (H, W, C) is
    left out.

    A module with the attribute `layout = "NCHW"` takes its images and returns its features in PyTorch's order, like
    `ConvNet` of this package. Its convolutions raise no suspicion.

    Args:
        nnx_model: an `nnx.Module`. It stays unchanged.
        flatten: the name of each such layer → (C, H, W) or (C,), instead of the experiment; {} for none.
        aliases: PyTorch's name of a layer → nnx's.
        torch_model: the `nn.Module` to which it corresponds.

    Raises:
        PortError: a name or a shape in `flatten` is wrong; the experiment fails, because the model does not take one
            square image or does not reach a suspect; the order is neither of the two.
    """
    tree = grown(nnx_model, "nnx_model")
    if flatten is not None:
        return _given(tree, flatten, aliases or {})
    suspects = _suspects(tree)
    if not suspects:
        return {}
    from grl.weights.flattened_in_nnx import changed_inputs  # imports JAX, which a user of PyTorch alone may lack

    changed = changed_inputs(nnx_model, tree)
    if changed is None:
        raise _unknown(suspects, "the model takes something else than one square image")
    orders = {path: channels_of(inputs.first, inputs.second) for path, inputs in changed.items()}
    odd = [path for path in suspects if path in orders and orders[path] is None and changed[path].direct]
    if odd:
        raise _unknown(odd, "its inputs are in neither order")
    missed = [path for path in suspects if path not in orders]
    if missed:
        raise _unknown(missed, "no change of a map before it is seen in its inputs")
    flattened = {path: channels for path, channels in orders.items() if channels}
    nnx_names = {torch_name: name for torch_name, name in (aliases or {}).items() if name in flattened}
    if torch_model is None or not nnx_names:
        return flattened
    side = max(inputs.side for inputs in changed.values())
    return _without_same_order(flattened, nnx_names, torch_model, side)


def _without_same_order(
    flattened: Mapping[str, int], nnx_names: Mapping[str, str], torch_model: nn.Module, side: int
) -> dict[str, int]:
    """Return the layers that PyTorch's model does not flatten as (H, W, C) too."""
    from grl.weights.flattened_in_torch import orders_in_torch  # imports PyTorch

    remaining = dict(flattened)
    for torch_name, channels in orders_in_torch(torch_model, nnx_names, side).items():
        nnx_name = nnx_names[torch_name]
        if channels == flattened[nnx_name]:
            remaining.pop(nnx_name, None)
        elif channels != 0:
            raise _unknown([nnx_name], f"PyTorch's {torch_name} has its inputs in neither")
    return remaining


def _unknown(names: Sequence[str], reason: str) -> PortError:
    return PortError(
        f"flatten: {', '.join(names)} may follow a flattened feature map whose order cannot be found out: {reason};"
        " pass flatten={name: (C, H, W)}, or flatten={} if there is none or if it is (C, H, W) in nnx too."
    )


def _given(tree: ModelNode, flatten: Mapping[str, Sequence[int]], aliases: Mapping[str, str]) -> dict[str, int]:
    known = {node.path: node for node in tree.leaves()} | {node.name: node for node in tree.leaves()}
    flattened = {}
    for name, shape in flatten.items():
        node = known.get(aliases.get(name, name))
        inputs = None if node is None else _inputs(node)
        if node is None or inputs is None:
            raise PortError(f"flatten: got {name!r}; expected a layer such as {', '.join(_suspects(tree)) or '…'}.")
        fits = inputs % shape[0] == 0 if len(shape) == 1 else inputs == prod(shape)
        if not fits:
            raise PortError(f"flatten: got {name!r}: {tuple(shape)}; expected (C, H, W) with {inputs} elements.")
        flattened[node.path] = shape[0]
    return flattened


def _suspects(tree: ModelNode) -> list[str]:
    """Return the layers that may follow a flattened map."""
    leaves = [leaf for leaf in _channels_last_leaves(tree) if leaf.signature]
    channels = {_outputs(leaf) for leaf in leaves if leaf.kind in ("Conv", "ConvTranspose")} - {None}
    suspects: list[str] = []
    previous_outputs: int | None = None
    after_convolution = False
    for leaf in leaves:
        inputs = _inputs(leaf) or 1
        if leaf.kind in _SUSPECTED and inputs != 1:
            if after_convolution and not tree.is_sorted:
                is_suspect = inputs != previous_outputs
            else:  # the order of definition does not tell which layer it follows
                is_suspect = inputs not in channels and any(inputs % c == 0 for c in channels if c and c > 1)
            suspects += [leaf.path] if is_suspect else []
        after_convolution |= leaf.kind in ("Conv", "ConvTranspose")
        if "Norm" not in leaf.kind:  # a norm keeps the number of features
            previous_outputs = _outputs(leaf)
    return suspects


def _channels_last_leaves(node: ModelNode) -> list[ModelNode]:
    if node.is_leaf:
        return [node]
    if getattr(node.value, "layout", None) == "NCHW":
        return []
    return [leaf for child in node.children for leaf in _channels_last_leaves(child)]


def _inputs(node: ModelNode) -> int | None:
    """Return the number of input features of a layer that may follow a flattened map; None for other layers."""
    shape = node.shapes.get(input_weight(node.kind))
    return shape[-1] if shape and node.kind in (*BY_FEATURE, *_SUSPECTED) else None


def _outputs(node: ModelNode) -> int | None:
    """Return the number of output features of a layer; None if it is unknown."""
    shape = node.shapes.get("weight") or ()
    if node.kind in ("LSTM", "GRU", "RNN"):
        hidden = [shape for name, shape in node.shapes.items() if name.startswith("weight_hh") and shape]
        return sum(shape[-1] for shape in hidden) or None
    if node.kind == "ConvTranspose":
        return shape[1]
    if node.kind == "Embedding":
        return shape[-1]
    if node.kind == "MultiheadAttention":
        return (node.shapes.get("out_proj.weight") or (None,))[0]
    return shape[0] if shape else None
