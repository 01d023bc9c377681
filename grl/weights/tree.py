"""A model as a tree of named parts, whichever framework it belongs to: what pairing compares."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from grl.arrays import Weights
from grl.weights.rules import Rule, rule_of
from grl.weights.slot import Slot

__all__ = ["PARAMETER", "Node", "grown", "half_of", "joined", "side_of"]

PARAMETER = "parameter"
"""The kind of a tensor that a module of one's own keeps, beside or instead of layers."""

Signature = tuple[Any, ...]


def side_of(model: Any, argument: str = "model") -> str:
    """Return "torch" or "nnx"; imports no framework that is not in use already.

    Raises:
        TypeError: the model is neither.
    """
    for side, package in (("torch", "torch.nn"), ("nnx", "flax.nnx")):
        if isinstance(model, getattr(sys.modules.get(package), "Module", ())):
            return side
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise TypeError(f"{argument}: got a {kind}; expected an nn.Module of PyTorch or an nnx.Module.")


def half_of(side: str) -> Any:
    """Return the module that knows one framework."""
    return importlib.import_module(f"grl.weights.{side}_slots")


def joined(*parts: str) -> str:
    """Return names one after the other, with dots."""
    return ".".join(part for part in parts if part)


@dataclass(eq=False)
class Node:
    """One part of a model: a layer that a rule knows, a tensor of its own, or a module made of other parts.

    Args:
        side: "torch" or "nnx".
        path: where it is in its model, as that framework says it: "layers.0".
        name: the same as PyTorch would say it: "0".
        value: the module, tensor or Variable.
        rule: for a layer that is known.
        children: the parts of a module that is not; () for a layer and a tensor.
    """

    side: str
    path: str
    name: str
    value: Any
    rule: Rule | None
    children: tuple[Node, ...]

    @property
    def key(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]

    @cached_property
    def kind(self) -> str:
        """Of which kind it is: a layer's rule says, a tensor is a parameter; "" for all others."""
        if self.rule is not None:
            return self.rule.kind
        return PARAMETER if half_of(self.side).is_parameter(self.value) else ""

    @property
    def is_leaf(self) -> bool:
        """Whether it is paired as a whole."""
        return bool(self.kind)

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """The places of all its numbers, by the framework's own names within it."""
        found: dict[str, Slot] = half_of(self.side).slots(self.value)
        return found

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        """The shapes of a layer's arrays, by PyTorch's names and in its layouts."""
        shapes = {name: slot.shape for name, slot in self.slots.items()}
        if self.rule is None or self.side == "torch":
            return shapes
        known = None not in shapes.values()
        return {name: array.shape if known else None for name, array in self.canonical().items()}

    def canonical(self) -> Weights:
        """Zeros by PyTorch's names and in its layouts."""
        hollow = self.hollow()
        return hollow if self.rule is None or self.side == "torch" else self.rule.to_torch(hollow, self.value)

    def hollow(self) -> Weights:
        """Zeros of the shapes and dtypes that are there, to see what a rule makes of them."""
        return {name: np.zeros(slot.shape or (), slot.dtype) for name, slot in self.slots.items()}

    def not_carried(self) -> set[str]:
        """The names of an nnx layer's arrays that its rule does not know, such as the norms in an attention layer."""
        if self.rule is None or self.side != "nnx":
            return set()
        carried = self.rule.to_nnx(self.rule.to_torch(self.hollow(), self.value), self.value)
        return self.slots.keys() - carried.keys()

    @cached_property
    def signature(self) -> Signature:
        """What two parts that correspond have in common, whatever they are called; () if they hold no numbers."""
        if self.is_leaf:
            shapes = {name: shape for name, shape in self.shapes.items() if not self._may_be_missing(name)}
            return (self.kind, *sorted(shapes.items())) if shapes else ()
        return tuple(child.signature for child in self.children if child.signature)

    def _may_be_missing(self, name: str) -> bool:
        return self.rule is not None and name in self.rule.optional

    def leaves(self) -> Iterator[Node]:
        """Yield all layers and tensors below it, in the order of definition, and itself if it is one."""
        if self.is_leaf:
            yield self
        for child in self.children:
            yield from child.leaves()

    @cached_property
    def is_sorted(self) -> bool:
        """Whether the order of definition is lost, and its parts are in alphabetical order."""
        if self.side != "nnx":
            return False
        kept = [half_of("nnx").keeps_order(node.value) for node in self.below() if _is_of_flax(node.value)]
        if any(found is not None for found in kept):
            return False in kept
        # No layer of Flax's tells; then it is lost if no module of one's own tells otherwise.
        own = [half_of("nnx").keeps_order(node.value, few=2) for node in self.below()]
        return True not in own and False in own

    def below(self) -> Iterator[Node]:
        """Yield itself and all below it."""
        yield self
        for child in self.children:
            yield from child.below()


def _is_of_flax(value: Any) -> bool:
    return type(value).__module__.startswith("flax.")


def grown(model: Any, argument: str = "model") -> Node:
    """Return the tree of a model.

    Args:
        model: an `nn.Module` or an `nnx.Module`.
        argument: what it is called in messages.

    Raises:
        TypeError: it is neither.
    """
    side = side_of(model, argument)
    return _grown(side, half_of(side), model, "", "", frozenset())


def _grown(side: str, half: Any, value: Any, path: str, name: str, above: frozenset[int]) -> Node:
    rule = None if half.is_parameter(value) else rule_of(value, side)
    children = []
    if rule is None and not half.is_parameter(value):
        for part, key, child in half.children(value):
            if id(child) not in above:  # a module may know its parent
                children.append(_grown(side, half, child, joined(path, part), joined(name, key), above | {id(value)}))
    return Node(side, path, name, value, rule, tuple(children))
