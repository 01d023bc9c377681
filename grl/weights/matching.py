"""Which part of one tree corresponds to which of another: by name, and by structure where names differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from grl.weights.given_names import given_pairs
from grl.weights.rule import Names, Rule
from grl.weights.tree import ModelNode, Node, Signature

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
        for torch, nnx, rule, layers in given_pairs(self.torch, self.nnx, names):
            self.taken |= layers
            if rule is None:
                self.match(torch, nnx, "given")
            else:
                self.taken |= {torch, nnx}
                self.matches.append(Match(torch, nnx, "given", rule))

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
