"""Which part of one tree corresponds to which of another: by name, and where names differ by structure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from grl.weights.slot import PortError
from grl.weights.tree import Node, Signature

__all__ = ["Search", "correspond"]


def correspond(ours: Node, theirs: Node, names: Mapping[str, str] | None = None) -> Search:
    """Return what corresponds to what in two trees, in `found`, and what was left open, in `ambiguous`.

    Args:
        ours: the tree of a model, or of a file.
        theirs: that of another model.
        names: what the caller has paired: name in the first → name in the second.

    Raises:
        PortError: a name in `names` is in no tree.
    """
    search = Search(ours, theirs)
    search.take_given(names or {})
    if ours.kind == theirs.kind:
        search.match(ours, theirs, "name")
    return search


@dataclass
class Search:
    """A search for what corresponds.

    Args:
        torch: the first tree.
        nnx: the second.
        found: what corresponds, and how that was found: "name", "structure" or "given".
        ambiguous: a sentence on each group in which more than one pairing was possible.
        taken: what has its counterpart.
    """

    torch: Node
    nnx: Node
    found: list[tuple[Node, Node, str]] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    taken: set[Node] = field(default_factory=set)

    def take_given(self, names: Mapping[str, str]) -> None:
        """Pair what the caller has paired."""
        known = [{node.path: node for node in tree.below()} for tree in (self.torch, self.nnx)]
        for torch_name, nnx_name in names.items():
            for name, there in zip((torch_name, nnx_name), known, strict=True):
                if name not in there:
                    some = ", ".join(list(there)[1:5])
                    raise PortError(f"names: got {name!r}; expected a module or tensor such as {some}.")
            pair = known[0][torch_name], known[1][nnx_name]
            if pair[0].kind != pair[1].kind:
                kinds = " and a ".join(node.kind or "module without a rule" for node in pair)
                raise PortError(f"names: got {torch_name!r} and {nnx_name!r}, a {kinds}; expected two of one kind.")
            self.match(*pair, "given")

    def match(self, torch: Node, nnx: Node, how: str) -> None:
        """Pair two parts, and what is in them."""
        self.taken |= {torch, nnx}
        self.found.append((torch, nnx, how))
        ours, theirs = self._left(torch.children), self._left(nnx.children)
        for a, b in _by_offset(ours, theirs):
            self.match(a, b, "structure")
        ours, theirs = self._left(ours), self._left(theirs)
        for a, b in _by_name(ours, theirs):
            self.match(a, b, "name")
        ours, theirs = _numbered(self._left(ours)), _numbered(self._left(theirs))
        for a, b in self._by_structure([n for n in ours if not n.is_leaf], [n for n in theirs if not n.is_leaf]):
            self.match(a, b, "structure")
        ours, theirs = (
            self._left(leaf for node in self._left(nodes) for leaf in node.leaves()) for nodes in (ours, theirs)
        )
        for a, b in _by_name(ours, theirs, same_shapes=True):
            self.match(a, b, "name")
        ours, theirs = self._left(ours), self._left(theirs)
        for a, b in self._by_structure(ours, theirs, last=True):
            self.match(a, b, "structure")

    def _left(self, nodes: Iterable[Node]) -> list[Node]:
        return [node for node in nodes if node not in self.taken]

    def _by_structure(self, ours: list[Node], theirs: list[Node], last: bool = False) -> list[tuple[Node, Node]]:
        """Groups of the same kind and shapes, in their order, unless that is ambiguous."""
        found = []
        groups = _grouped(theirs)
        for signature, mine in _grouped(ours).items():
            other = groups.get(signature, [])
            why = ""
            orders = [
                _numbered_order(nodes) if tree.is_sorted and len(nodes) > 1 else nodes
                for tree, nodes in ((self.torch, mine), (self.nnx, other))
            ]
            if len(mine) != len(other):
                why = "there are not equally many"
            elif not all(orders):
                why = "nnx.merge, clone or eval_shape has lost the order in which they were defined"
            elif swap := _contradiction(*orders):
                why = f"by their order {swap[0]} is {swap[1]}, their names say otherwise"
            if other and not why:
                found += list(zip(*orders, strict=True))
            elif other and last:
                shown = [", ".join(node.path for node in nodes) for nodes in (mine, other)]
                self.ambiguous.append(f"{shown[0]} (PyTorch) and {shown[1]} (nnx) have the same shapes, and {why}")
        return found


def _by_offset(ours: list[Node], theirs: list[Node]) -> list[tuple[Node, Node]]:
    """Those of one name but for its number, in the order of the numbers, where each side counts in its own way.

    fc1, fc2, fc3 are fc0, fc1, fc2: by their names fc1 would be fc1, and fc3 what is left, fc0.
    """
    found = []
    sides = [_counted(nodes) for nodes in (ours, theirs)]
    for stem, mine in sides[0].items():
        other = sides[1].get(stem, {})
        numbers = sorted(mine), sorted(other)
        if len(mine) > 1 and len(mine) == len(other) and numbers[0] != numbers[1]:
            pairs = [(mine[a], other[b]) for a, b in zip(*numbers, strict=True)]
            if all(a.signature == b.signature for a, b in pairs):
                found += pairs
    return found


def _counted(nodes: list[Node]) -> dict[str, dict[int, Node]]:
    """Parts whose names end in a number, or in none where others' do: name without it → number → part."""
    groups: dict[str, dict[int, Node]] = defaultdict(dict)
    for node in _numbered(nodes):
        stem, number = re.fullmatch(r"(.*?)_?(\d*)", node.key, re.DOTALL).groups()  # type: ignore[union-attr]
        if stem:  # a mere index is the business of `_indices`
            groups[stem][int(number or -1)] = node
    return groups


def _by_name(ours: list[Node], theirs: list[Node], same_shapes: bool = False) -> list[tuple[Node, Node]]:
    """Those of the same name and kind, where the name is there once on either side."""
    sides = [_unique(nodes) for nodes in (ours, theirs)]
    if _indices(ours) != _indices(theirs):
        # Layers of a list are counted with what is between them in PyTorch, and often without it in JAX.
        sides = [{key: node for key, node in side.items() if not key.isdigit()} for side in sides]
    found = [(node, sides[1][key]) for key, node in sides[0].items() if key in sides[1]]
    return [
        (a, b)
        for a, b in found
        if a.kind == b.kind
        and bool(a.signature) == bool(b.signature)
        and (not same_shapes or a.signature == b.signature)
    ]


def _unique(nodes: list[Node]) -> dict[str, Node]:
    keys = [node.key for node in nodes]
    return {node.key: node for node in nodes if keys.count(node.key) == 1}


def _indices(nodes: list[Node]) -> list[tuple[str, str]]:
    return [(node.key, node.kind) for node in nodes if node.key.isdigit() and node.signature]


def _numbered(nodes: list[Node]) -> list[Node]:
    """Those that hold numbers."""
    return [node for node in nodes if node.signature]


def _numbered_order(nodes: list[Node]) -> list[Node]:
    """Parts in the order of the numbers in their names, if those tell it; else none."""
    numbers = {tuple(int(number) for number in re.findall(r"\d+", node.name)): node for node in nodes}
    told = len(numbers) == len(nodes) and len({len(found) for found in numbers}) == 1
    return [numbers[found] for found in sorted(numbers)] if told else []


def _grouped(nodes: Iterable[Node]) -> dict[Signature, list[Node]]:
    groups: dict[Signature, list[Node]] = defaultdict(list)
    for node in nodes:
        groups[node.signature].append(node)
    return groups


def _contradiction(ours: Sequence[Node], theirs: Sequence[Node]) -> tuple[str, str] | None:
    """Two names that correspond by order, but less well than if they were exchanged with two others."""
    tokens = [[_tokens(node.key) for node in nodes] for nodes in (ours, theirs)]
    for i, j in combinations(range(len(ours)), 2):
        straight = _shared(tokens[0][i], tokens[1][i]) + _shared(tokens[0][j], tokens[1][j])
        crossed = _shared(tokens[0][i], tokens[1][j]) + _shared(tokens[0][j], tokens[1][i])
        if crossed > straight:
            return ours[i].path, theirs[i].path
    return None


def _tokens(key: str) -> set[str]:
    """The words and numbers of a name; none of an index."""
    return set() if key.isdigit() else set(re.findall(r"[^\W\d_]+|\d+", key.lower()))


def _shared(ours: set[str], theirs: set[str]) -> int:
    """How many words of one name begin one of the other (q and query), or are the same number."""
    return sum(any(_same(a, b) for b in theirs) for a in ours)


def _same(a: str, b: str) -> bool:
    return a == b or (not a.isdigit() and not b.isdigit() and (a.startswith(b) or b.startswith(a)))
