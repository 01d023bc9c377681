"""A model as a tree of named parts, in the same form for both frameworks. Pairing compares two such trees."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeAlias

import numpy as np

from grl.arrays import Weights
from grl.weights.half import Half, Part, Side
from grl.weights.halves import half_of, side_of
from grl.weights.rule import Rule
from grl.weights.rules import rule_of, rule_of_kind
from grl.weights.slot import Slot

__all__ = ["PARAMETER", "ModelNode", "Node", "Shapes", "Signature", "grown", "joined"]

PARAMETER = "parameter"
"""The kind of a tensor that belongs to no known layer."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...] | None]
"""Name → shape; None for a shape that is not known yet."""

Signature: TypeAlias = tuple[object, ...]


def joined(*names: str) -> str:
    """Return names joined by dots. Empty names are left out."""
    return ".".join(name for name in names if name)


@dataclass(eq=False)
class Node:
    """A part of a model: a known layer, a tensor outside such layers, or a module made of other parts.

    Args:
        path: its name in its own framework: "layers.0".
        name: the name that PyTorch would give it: "0".
        kind: the kind of a known layer, `PARAMETER` for a tensor, "" for a module made of other parts.
        rule: the rule of a known layer.
        children: the parts of a module of kind ""; otherwise ().
    """

    path: str
    name: str
    kind: str
    rule: Rule | None
    children: tuple[Self, ...]

    @property
    def origin(self) -> str:
        """The model or file that the part belongs to, for messages."""
        raise NotImplementedError

    @property
    def shapes(self) -> Shapes:
        """The shapes of a layer's arrays, by PyTorch's names and in its layouts."""
        raise NotImplementedError

    @property
    def is_sorted(self) -> bool:
        """Whether the order of definition is lost, because the parts were sorted by name."""
        raise NotImplementedError

    @property
    def key(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]

    @property
    def is_leaf(self) -> bool:
        """Whether the part is paired as a whole."""
        return bool(self.kind)

    @cached_property
    def signature(self) -> Signature:
        """A value that corresponding parts share under any names; () if the part holds no numbers."""
        if not self.is_leaf:
            return tuple(child.signature for child in self.children if child.signature)
        optional = self.rule.optional if self.rule is not None else frozenset()
        shapes = {name: shape for name, shape in self.shapes.items() if name not in optional}
        return (self.kind, *sorted(shapes.items())) if shapes else ()

    @property
    def settings(self) -> frozenset[str]:
        """PyTorch's names of numbers that are settings, not weights."""
        return self.rule.settings if self.rule is not None else frozenset()

    def tensors(self) -> Iterator[Self]:
        """Yield the tensors within a known layer, each as a part of its own. They are not among `children`."""
        raise NotImplementedError

    def leaves(self) -> Iterator[Self]:
        """Yield all layers and tensors from here on down, in the order of definition."""
        if self.is_leaf:
            yield self
        for child in self.children:
            yield from child.leaves()

    def below(self) -> Iterator[Self]:
        """Yield this part and all parts below it."""
        yield self
        for child in self.children:
            yield from child.below()


@dataclass(eq=False)
class ModelNode(Node):
    """A part of a model in memory.

    Args:
        path: its name in its own framework: "layers.0".
        name: the name that PyTorch would give it: "0".
        kind: the kind of a known layer, `PARAMETER` for a tensor, "" for a module made of other parts.
        rule: the rule of a known layer.
        children: the parts of a module of kind ""; otherwise ().
        side: its framework.
        value: the module, tensor or Variable.
    """

    side: Side
    value: Part

    @property
    def origin(self) -> str:
        """The model that the part belongs to, for messages."""
        return f"{half_of(self.side).NAME} model"

    def tensors(self) -> Iterator[ModelNode]:
        """Yield the tensors within a known layer, each as a part of its own."""
        if self.rule is not None:
            growth = _Growth(self.side, half_of(self.side), with_rules=False)
            yield from growth.node(self.value, self.path, self.name).leaves()

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """The slots of all its numbers, by their names within it."""
        return half_of(self.side).slots(self.value)

    @cached_property
    def shapes(self) -> Shapes:
        """The shapes of a layer's arrays, by PyTorch's names and in its layouts."""
        shapes = {name: slot.shape for name, slot in self.slots.items()}
        if self.rule is None or self.side == "torch":
            return shapes
        known = None not in shapes.values()
        return {name: array.shape if known else None for name, array in self.canonical().items()}

    def canonical(self) -> Weights:
        """Return zeros of the layer's arrays, by PyTorch's names and in its layouts."""
        zeros = self._zeros()
        return zeros if self.rule is None or self.side == "torch" else self.rule.to_torch(zeros, self.value)

    def not_converted(self) -> set[str]:
        """Return the names of an nnx layer's arrays that its rule leaves out, like the norms of an attention layer."""
        if self.rule is None or self.side != "nnx":
            return set()
        converted = self.rule.to_nnx(self.rule.to_torch(self._zeros(), self.value), self.value)
        return self.slots.keys() - converted.keys()

    def _zeros(self) -> Weights:
        return {name: np.zeros(slot.shape or (), slot.dtype) for name, slot in self.slots.items()}

    @cached_property
    def is_sorted(self) -> bool:
        """Whether the order of definition is lost: merge, clone and eval_shape of nnx sort attributes by name."""
        keeps_order = half_of(self.side).keeps_order
        in_flax = [keeps_order(node.value) for node in self.below() if type(node.value).__module__.startswith("flax.")]
        if any(answer is not None for answer in in_flax):
            return False in in_flax
        # None of Flax's own layers has an answer. Then the model's modules decide, if they agree.
        answers = [keeps_order(node.value, few=2) for node in self.below()]
        return True not in answers and False in answers


def grown(model: object, argument: str = "model", other_kinds: Collection[str] = ()) -> ModelNode:
    """Return the tree of a model.

    Args:
        model: an `nn.Module` or an `nnx.Module`.
        argument: its name in error messages.
        other_kinds: the kinds in the tree that this one is paired with. If "RMSNorm" is among them, a module of an
            unknown class that computes an RMSNorm is one. Otherwise it is a module with a tensor.

    Raises:
        TypeError: the model is neither.
        PortError: a Variable holds something else than one array.
    """
    side = side_of(model, argument)
    return _Growth(side, half_of(side), finds_rms_norms="RMSNorm" in other_kinds).node(model)


@dataclass(frozen=True)
class _Growth:
    side: Side
    half: Half
    with_rules: bool = True
    finds_rms_norms: bool = False

    def node(self, value: Part, path: str = "", name: str = "", above: frozenset[int] = frozenset()) -> ModelNode:
        if self.half.is_tensor(value):
            return ModelNode(path, name, PARAMETER, None, (), self.side, value)
        rule = rule_of(value, self.side) if self.with_rules else None
        if rule is None and self.finds_rms_norms and self.half.computes_rms_norm(value):
            rule = rule_of_kind("RMSNorm")
        if rule is not None:
            return ModelNode(path, name, rule.kind, rule, (), self.side, value)
        above |= {id(value)}
        children = [
            self.node(child.value, joined(path, child.name), joined(name, child.torch_name), above)
            for child in self.half.children(value)
            if id(child.value) not in above  # a module may refer to its parent
        ]
        return ModelNode(path, name, "", None, tuple(children), self.side, value)
