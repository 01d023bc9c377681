"""The pairs that a caller gives by `names=`: modules, or single tensors with a layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Generic, NamedTuple, TypeVar

from grl.arrays import Weights
from grl.weights.half import Part
from grl.weights.rule import Layout, Names, Rule
from grl.weights.slot import PortError
from grl.weights.tree import PARAMETER, ModelNode, Node

__all__ = ["GivenPair", "given_pairs"]

AnyNode = TypeVar("AnyNode", bound=Node)
TorchNode = TypeVar("TorchNode", bound=Node)

_NO_KIND = "module without a rule"


class GivenPair(NamedTuple, Generic[TorchNode]):
    """Two parts that the caller has paired.

    Args:
        torch: the part of the first tree.
        nnx: the part of the second tree.
        rule: the conversion of two tensors with a layout; else None.
        layers: the layers that contain the tensors. They are not paired as a whole.
    """

    torch: TorchNode
    nnx: ModelNode
    rule: Rule | None
    layers: set[Node]


def given_pairs(torch_tree: TorchNode, nnx_tree: ModelNode, names: Names) -> Iterator[GivenPair[TorchNode]]:
    """Yield the pairs that `names` gives.

    Raises:
        PortError: a name is in neither tree, two parts differ in kind, or a layout is given for a module.
    """
    torch_layers, nnx_layers = _layers_of_tensors(torch_tree), _layers_of_tensors(nnx_tree)
    torch_nodes = {node.path: node for node in (*torch_tree.below(), *torch_layers)}
    nnx_nodes = {node.path: node for node in (*nnx_tree.below(), *nnx_layers)}
    for torch_name, given in names.items():
        nnx_name, layout = (given, None) if isinstance(given, str) else given
        torch = _named(torch_name, torch_nodes, torch_tree.origin)
        nnx = _named(nnx_name, nnx_nodes, nnx_tree.origin)
        if torch.kind != nnx.kind:
            raise _unlike(torch, nnx, torch_nodes.values(), nnx_nodes.values())
        if layout is not None and torch.kind != PARAMETER:
            raise PortError(f"names: got a layout for {torch_name!r}, {_a_kind(torch)}; expected a tensor.")
        rule = None if layout is None else _rule_of_tensor(layout, _owner(nnx_tree, nnx_name))
        layers: set[Node] = {layer for layer in (torch_layers.get(torch), nnx_layers.get(nnx)) if layer is not None}
        yield GivenPair(torch, nnx, rule, layers)


def _layers_of_tensors(tree: AnyNode) -> dict[AnyNode, AnyNode]:
    """Return each single tensor within a known layer → the layer."""
    return {tensor: leaf for leaf in tree.leaves() for tensor in leaf.tensors()}


def _named(name: str, nodes: Mapping[str, AnyNode], origin: str) -> AnyNode:
    if name not in nodes:
        known = [path for path in nodes if path]
        examples = ", ".join(get_close_matches(name, known, cutoff=0.4) or known[:4])
        raise PortError(f"names: got {name!r}; expected a module or tensor of the {origin}, such as {examples}.")
    return nodes[name]


def _unlike(torch: Node, nnx: Node, torch_nodes: Iterable[Node], nnx_nodes: Iterable[Node]) -> PortError:
    """Return the error for a pair of two kinds. It names parts that either one could be paired with."""
    for_torch = _examples(nnx_nodes, torch.kind, torch.path)
    for_nnx = _examples(torch_nodes, nnx.kind, nnx.path)
    return PortError(
        f"names: got {torch.path!r} and {nnx.path!r}, {_a_kind(torch)} and {_a_kind(nnx)}; expected two of one kind:"
        f" {torch.path!r} with {for_torch}, or {nnx.path!r} with {for_nnx}."
    )


def _examples(nodes: Iterable[Node], kind: str, name: str) -> str:
    paths = [node.path for node in nodes if node.kind == kind and node.path]
    return " or ".join(get_close_matches(name, paths, cutoff=0.0)) or f"no part (there is no {kind or _NO_KIND})"


def _a_kind(node: Node) -> str:
    return f"a {node.kind or _NO_KIND}"


def _owner(tree: ModelNode, tensor_name: str) -> Part:
    """Return the innermost module of the tree that holds a tensor."""
    holders = [node for node in tree.below() if not node.path or tensor_name.startswith(f"{node.path}.")]
    return max(holders, key=lambda node: len(node.path)).value


def _rule_of_tensor(layout: Layout, owner: Part) -> Rule:
    """Return the rule of a single tensor. Its name within itself is ""."""

    def to_torch(arrays: Weights, _: Part) -> Weights:
        return {name: layout.to_torch(array, owner) for name, array in arrays.items()}

    def to_nnx(arrays: Weights, _: Part) -> Weights:
        return {name: layout.to_nnx(array, owner) for name, array in arrays.items()}

    return Rule(PARAMETER, (), (), to_torch, to_nnx)
