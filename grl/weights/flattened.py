"""A layer behind a flattened feature map: PyTorch counts its inputs channel by channel, nnx pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from grl.weights.feature_order import BY_FEATURE, channels_of, input_weight
from grl.weights.slot import PortError
from grl.weights.tree import Node, grown

__all__ = ["find_flattened"]

_SUSPECTED = ("Linear", "LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


def find_flattened(
    nnx_model: Any,
    flatten: Mapping[str, Sequence[int]] | None = None,
    aliases: Mapping[str, str] | None = None,
    torch_model: Any = None,
) -> dict[str, int]:
    """Return the layers whose inputs are a feature map that was flattened as (H, W, C): nnx's name → C.

    A layer is suspected if it follows convolutions and its number of inputs is not what the layer before it gives (a
    model that flattens an image without one has to say so); where the order of definition does not tell what it
    follows, if its inputs are some pixels of as many channels as a convolution gives.
    If there is one, the model is traced, for the smallest square input that it takes: the output of the last layer
    before the suspect that keeps height and width is replaced, so that one channel differs. If every C-th input
    differs, the map was flattened as (H, W, C); if it is a run of neighbours, as (C, H, W), as in PyTorch. Weights do
    not matter, and nothing that comes before is computed. PyTorch's model, where it is at hand, is looked at in the
    same way: what it too flattens as (H, W, C) is left out.

    A module with the attribute `layout = "NCHW"` takes its images and gives its features in PyTorch's order, as
    `ConvNet` of this package does; its convolutions raise no suspicion.

    Args:
        nnx_model: an `nnx.Module`.
        flatten: the name of each such layer → (C, H, W) or (C,), instead of all this; {} for none.
        aliases: PyTorch's name of a layer → nnx's.
        torch_model: the `nn.Module` to which it corresponds.

    Raises:
        PortError: a name or a shape in `flatten` is wrong; the experiment cannot be made, since the model takes
            something else than one square image, or does not reach a suspect; PyTorch's order is another one.
    """
    tree = grown(nnx_model, "nnx_model")
    if flatten is not None:
        return _given(tree, flatten, aliases or {})
    suspects = _suspects(tree)
    if not suspects:
        return {}
    from grl.weights.flattened_in_nnx import changed_inputs

    changed = changed_inputs(nnx_model, tree)
    if changed is None:
        raise _unknown(suspects, "the model takes something else than one square image")
    found = {path: channels_of(inputs.first, inputs.second) for path, inputs in changed.items()}
    odd = [path for path in suspects if path in found and found[path] is None and changed[path].direct]
    if odd:
        raise _unknown(odd, "its inputs are in neither order")
    missed = [path for path in suspects if path not in found]
    if missed:
        raise _unknown(missed, "no change of a map before it is seen in its inputs")
    flattened = {path: channels for path, channels in found.items() if channels}
    names = {ours: theirs for ours, theirs in (aliases or {}).items() if theirs in flattened}
    if torch_model is None or not names:
        return flattened
    from grl.weights.flattened_in_torch import orders_in_torch

    side = max(inputs.side for inputs in changed.values())
    for ours, channels in orders_in_torch(torch_model, names, side).items():
        if channels == flattened.get(names[ours]):
            del flattened[names[ours]]
        elif channels != 0:
            raise _unknown([names[ours]], f"PyTorch's {ours} has its inputs in neither")
    return flattened


def _unknown(names: list[str], why: str) -> PortError:
    return PortError(
        f"flatten: {', '.join(names)} may follow a flattened feature map, whose order cannot be found out: {why}; say"
        " flatten={name: (C, H, W)}, or flatten={} if there is none or if it is (C, H, W) in nnx too."
    )


def _given(tree: Node, flatten: Mapping[str, Sequence[int]], aliases: Mapping[str, str]) -> dict[str, int]:
    known = {node.path: node for node in tree.leaves()} | {node.name: node for node in tree.leaves()}
    found = {}
    for name, shape in flatten.items():
        node = known.get(aliases.get(name, name))
        inputs = None if node is None else _inputs(node)
        if node is None or inputs is None:
            raise PortError(f"flatten: got {name!r}; expected a layer such as {', '.join(_suspects(tree)) or '…'}.")
        wrong = inputs % shape[0] if len(shape) == 1 else inputs - prod(shape)
        if wrong:
            raise PortError(f"flatten: got {name!r}: {tuple(shape)}; expected (C, H, W) with {inputs} elements.")
        found[node.path] = shape[0]
    return found


def _suspects(tree: Node) -> list[str]:
    """Layers after convolutions that have more inputs than the layer before them has outputs, or fewer."""
    found, before, convolved = [], None, False
    leaves = [leaf for leaf in _leaves_of_channels_last(tree) if leaf.signature]
    channels = {_outputs(leaf) for leaf in leaves if leaf.kind in ("Conv", "ConvTranspose")} - {None}
    for leaf in leaves:
        inputs = _inputs(leaf) or 1
        if leaf.kind in _SUSPECTED and inputs != 1:
            if convolved and not tree.is_sorted:
                is_suspect = inputs != before
            else:  # which layer it follows, the order of definition does not say
                is_suspect = inputs not in channels and any(inputs % c == 0 for c in channels if c and c > 1)
            found += [leaf.path] if is_suspect else []
        convolved |= leaf.kind in ("Conv", "ConvTranspose")
        before = before if "Norm" in leaf.kind else _outputs(leaf)  # a norm gives what it takes
    return found


def _leaves_of_channels_last(node: Node) -> list[Node]:
    if node.is_leaf:
        return [node]
    if getattr(node.value, "layout", None) == "NCHW":
        return []
    return [leaf for child in node.children for leaf in _leaves_of_channels_last(child)]


def _inputs(node: Node) -> int | None:
    """The size of the last axis of what a layer takes, for those that may follow a flattened map."""
    shape = node.shapes.get(input_weight(node.kind))
    return shape[-1] if shape and node.kind in (*BY_FEATURE, *_SUSPECTED) else None


def _outputs(node: Node) -> int | None:
    """The size of the last axis of what a layer gives."""
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
