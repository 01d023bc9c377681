"""Which part of one tree corresponds to which of another: by name, and by structure where names differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from grl.arrays import Weights
from grl.weights.half import Part
from grl.weights.rule import Layout, Names, Rule
from grl.weights.slot import PortError
from grl.weights.tree import PARAMETER, ModelNode, Node, Signature

__all__ = ["How", "Match", "Search", "correspond"]

AnyNode = TypeVar("AnyNode", bound=Node)
TorchNode = TypeVar("TorchNode", bound=Node)

How: TypeAlias = Literal["name", "structure", "given"]
"""How a match was found. "given": by the caller."""


class Match(NamedTuple, Generic[TorchNode]):
    """Two parts that correspond.

    Args:
        torch: the part of the first tree.
        nnx: the part of the second tree.
        how: how the match was found.
        rule: how their arrays are converted; None: unchanged.
    """

    torch: TorchNode
    nnx: ModelNode
    how: How
    rule: Rule | None = None


def correspond(torch: TorchNode, nnx: ModelNode, names: Names | None = None) -> Search[TorchNode]:
    """Return a finished search: `matches` are the parts that correspond, `ambiguous` tells what stayed open.

    Args:
        torch: the tree of a PyTorch model, or of a portable file.
        nnx: the tree of an nnx model, or of the model that reads the file.
        names: the pairs that the caller gives, of modules or of single tensors: name in the first tree → name in the
            second, with a layout or without.

    Raises:
        PortError: a name in `names` is in neither tree, or the two parts differ in kind.
    """
    search = Search(torch, nnx)
    search.take_given(names or {})
    if torch.kind == nnx.kind:
        search.match(torch, nnx, "name")
    return search


@dataclass
class Search(Generic[TorchNode]):
    """A search for parts that correspond.

    Args:
        torch: the first tree.
        nnx: the second tree.
        matches: the parts that correspond.
        ambiguous: one sentence for each group of parts with more than one possible pairing.
        taken: the parts that have a counterpart.
    """

    torch: TorchNode
    nnx: ModelNode
    matches: list[Match[TorchNode]] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    taken: set[Node] = field(default_factory=set)

    def take_given(self, names: Names) -> None:
        """Match the parts that the caller has paired."""
        torch_tensors, nnx_tensors = _layers_of_tensors(self.torch), _layers_of_tensors(self.nnx)
        torch_nodes = {node.path: node for node in (*self.torch.below(), *torch_tensors)}
        nnx_nodes = {node.path: node for node in (*self.nnx.below(), *nnx_tensors)}
        for torch_name, given in names.items():
            nnx_name, layout = (given, None) if isinstance(given, str) else given
            torch = _named(torch_name, torch_nodes, self.torch.origin)
            nnx = _named(nnx_name, nnx_nodes, self.nnx.origin)
            if torch.kind != nnx.kind:
                raise _unlike(torch, nnx, torch_nodes.values(), nnx_nodes.values())
            if layout is not None and torch.kind != PARAMETER:
                raise PortError(
                    f"names: got a layout for {torch_name!r}, a {torch.kind or _NO_KIND}; expected a tensor."
                )
            # A layer whose tensors are paired one by one is not paired as a whole.
            self.taken |= {layer for layer in (torch_tensors.get(torch), nnx_tensors.get(nnx)) if layer is not None}
            if layout is None:
                self.match(torch, nnx, "given")
            else:
                self.taken |= {torch, nnx}
                self.matches.append(Match(torch, nnx, "given", _rule_of_tensor(layout, _owner(self.nnx, nnx_name))))

    def match(self, torch: TorchNode, nnx: ModelNode, how: How) -> None:
        """Match two parts, and then the parts within them, by one criterion after the other."""
        self.taken |= {torch, nnx}
        self.matches.append(Match(torch, nnx, how, torch.rule))

        torch_parts, nnx_parts = self._free(torch.children), self._free(nnx.children)
        for a, b in _by_offset(torch_parts, nnx_parts):
            self.match(a, b, "structure")

        torch_parts, nnx_parts = self._free(torch_parts), self._free(nnx_parts)
        for a, b in _by_name(torch_parts, nnx_parts):
            self.match(a, b, "name")

        torch_parts, nnx_parts = _with_numbers(self._free(torch_parts)), _with_numbers(self._free(nnx_parts))
        for a, b in self._by_structure(_modules(torch_parts), _modules(nnx_parts)):
            self.match(a, b, "structure")

        torch_leaves = self._free(_leaves(self._free(torch_parts)))
        nnx_leaves = self._free(_leaves(self._free(nnx_parts)))
        for a, b in _by_name(torch_leaves, nnx_leaves, same_shapes=True):
            self.match(a, b, "name")

        torch_leaves, nnx_leaves = self._free(torch_leaves), self._free(nnx_leaves)
        for a, b in self._by_structure(torch_leaves, nnx_leaves, is_last=True):
            self.match(a, b, "structure")

    def _free(self, nodes: Iterable[AnyNode]) -> list[AnyNode]:
        return [node for node in nodes if node not in self.taken]

    def _by_structure(
        self, torch_nodes: list[TorchNode], nnx_nodes: list[ModelNode], is_last: bool = False
    ) -> Iterator[tuple[TorchNode, ModelNode]]:
        """Yield parts of the same kind and shapes in their order, unless the order is ambiguous.

        Args:
            torch_nodes: the candidates on one side.
            nnx_nodes: those on the other side.
            is_last: whether no other criterion follows, so that an ambiguity is reported.
        """
        nnx_groups = _grouped(nnx_nodes)
        for signature, torch_group in _grouped(torch_nodes).items():
            nnx_group = nnx_groups.get(signature, [])
            if not nnx_group:
                continue
            torch_order = _in_order(torch_group, self.torch.is_sorted)
            nnx_order = _in_order(nnx_group, self.nnx.is_sorted)
            problem = _problem(torch_group, nnx_group, torch_order, nnx_order)
            if not problem:
                yield from zip(torch_order, nnx_order, strict=True)
            elif is_last and not torch_group[0].settings:
                names = [", ".join(node.path for node in group) for group in (torch_group, nnx_group)]
                self.ambiguous.append(f"{names[0]} (PyTorch) and {names[1]} (nnx) have the same shapes, and {problem}")


_NO_KIND = "module without a rule"


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


def _problem(
    torch_group: Sequence[Node], nnx_group: Sequence[Node], torch_order: Sequence[Node], nnx_order: Sequence[Node]
) -> str:
    """Return the reason why two groups cannot be paired in their order; "" if there is none."""
    if len(torch_group) != len(nnx_group):
        return "there are not equally many"
    if not (torch_order and nnx_order):
        return "nnx.merge, clone or eval_shape has lost the order in which they were defined"
    swap = _contradiction(torch_order, nnx_order)
    return f"by their order {swap.torch_name} is {swap.nnx_name}, their names say otherwise" if swap else ""


def _by_offset(torch_nodes: list[TorchNode], nnx_nodes: list[ModelNode]) -> Iterator[tuple[TorchNode, ModelNode]]:
    """Yield parts whose names differ in their number alone, in the order of the numbers, if the numbers differ.

    fc1, fc2, fc3 correspond to fc0, fc1, fc2. By names, fc1 would correspond to fc1, and fc3 to the remaining fc0.
    """
    nnx_groups = _counted(nnx_nodes)
    for stem, torch_group in _counted(torch_nodes).items():
        nnx_group = nnx_groups.get(stem, {})
        torch_numbers, nnx_numbers = sorted(torch_group), sorted(nnx_group)
        if len(torch_numbers) > 1 and len(torch_numbers) == len(nnx_numbers) and torch_numbers != nnx_numbers:
            pairs = [(torch_group[a], nnx_group[b]) for a, b in zip(torch_numbers, nnx_numbers, strict=True)]
            if all(a.signature == b.signature for a, b in pairs):
                yield from pairs


def _counted(nodes: Iterable[AnyNode]) -> dict[str, dict[int, AnyNode]]:
    """Group parts by their names without the number at the end: name → number → part. No number counts as −1."""
    groups: dict[str, dict[int, AnyNode]] = defaultdict(dict)
    for node in _with_numbers(nodes):
        stem = re.sub(r"_?\d*\Z", "", node.key)
        digits = re.search(r"\d*\Z", node.key)
        if stem:  # `_by_name` handles bare indices
            groups[stem][int(digits[0]) if digits and digits[0] else -1] = node
    return groups


def _by_name(
    torch_nodes: list[TorchNode], nnx_nodes: list[ModelNode], same_shapes: bool = False
) -> Iterator[tuple[TorchNode, ModelNode]]:
    """Yield parts of the same name and kind, where each side has the name once.

    Indices count only if both sides have the same. PyTorch counts the activations between the layers of a list, JAX
    often does not.
    """
    nnx_names = _unique(nnx_nodes)
    skip_indices = _indices(torch_nodes) != _indices(nnx_nodes)
    for name, torch in _unique(torch_nodes).items():
        nnx = nnx_names.get(name)
        if nnx is None or (skip_indices and name.isdigit()) or torch.kind != nnx.kind:
            continue
        if same_shapes and torch.signature != nnx.signature:
            continue
        if bool(torch.signature) == bool(nnx.signature):
            yield torch, nnx


def _unique(nodes: list[AnyNode]) -> dict[str, AnyNode]:
    keys = [node.key for node in nodes]
    return {node.key: node for node in nodes if keys.count(node.key) == 1}


def _indices(nodes: Iterable[Node]) -> list[tuple[str, str]]:
    return [(node.key, node.kind) for node in nodes if node.key.isdigit() and node.signature]


def _with_numbers(nodes: Iterable[AnyNode]) -> list[AnyNode]:
    return [node for node in nodes if node.signature]


def _modules(nodes: Iterable[AnyNode]) -> list[AnyNode]:
    return [node for node in nodes if not node.is_leaf]


def _leaves(nodes: Iterable[AnyNode]) -> list[AnyNode]:
    return [leaf for node in nodes for leaf in node.leaves()]


def _in_order(nodes: list[AnyNode], is_sorted: bool) -> list[AnyNode]:
    """Return parts in the order of definition; [] if it is lost, and the numbers in their names do not restore it."""
    if not is_sorted or len(nodes) == 1:
        return nodes
    numbered = {tuple(int(number) for number in re.findall(r"\d+", node.name)): node for node in nodes}
    if len(numbered) < len(nodes) or len({len(numbers) for numbers in numbered}) != 1:
        return []
    return [numbered[numbers] for numbers in sorted(numbered)]


def _grouped(nodes: Iterable[AnyNode]) -> dict[Signature, list[AnyNode]]:
    groups: dict[Signature, list[AnyNode]] = defaultdict(list)
    for node in nodes:
        groups[node.signature].append(node)
    return groups


class _Swap(NamedTuple):
    torch_name: str
    nnx_name: str


def _contradiction(torch_order: Sequence[Node], nnx_order: Sequence[Node]) -> _Swap | None:
    """Return two names that correspond by order, but would fit better if they were exchanged with two others."""
    torch_words = [_words(node.key) for node in torch_order]
    nnx_words = [_words(node.key) for node in nnx_order]
    for i, j in combinations(range(len(torch_order)), 2):
        straight = _shared(torch_words[i], nnx_words[i]) + _shared(torch_words[j], nnx_words[j])
        crossed = _shared(torch_words[i], nnx_words[j]) + _shared(torch_words[j], nnx_words[i])
        if crossed > straight:
            return _Swap(torch_order[i].path, nnx_order[i].path)
    return None


def _words(key: str) -> set[str]:
    """Return the words and numbers of a name. An index has none."""
    return set() if key.isdigit() else set(re.findall(r"[^\W\d_]+|\d+", key.lower()))


def _shared(first: set[str], second: set[str]) -> int:
    """Count the words of one name that agree with a word of the other."""
    return sum(any(_agree(a, b) for b in second) for a in first)


def _agree(a: str, b: str) -> bool:
    """Return whether two numbers are equal, or one word begins with the other, like q and query."""
    return a == b or (not a.isdigit() and not b.isdigit() and (a.startswith(b) or b.startswith(a)))
