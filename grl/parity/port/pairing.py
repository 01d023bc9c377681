"""Which part of a PyTorch model corresponds to which of an nnx model: by name, and where names differ by structure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from grl.architecture import Weights
from grl.parity.port.flatten import to_channels_first, to_channels_last
from grl.parity.port.rules import Rule
from grl.parity.port.slot import PortError
from grl.parity.port.tree import PARAMETER, Node, Signature, grown, half_of, joined

__all__ = ["Pair", "Pairing", "pair"]


@dataclass(frozen=True)
class Pair:
    """Two parts that correspond.

    Args:
        torch_name: as `named_modules` or `named_parameters` has it.
        nnx_name: the same for nnx: the attributes and indices on the way, with dots.
        torch_module: the `nn.Module`, or the tensor of a module of one's own.
        nnx_module: the `nnx.Module`, or the Variable.
        rule: how its arrays are carried across; None if there are none, or if it is a tensor: as it is.
        how: "name", "structure" or "given".
    """

    torch_name: str
    nnx_name: str
    torch_module: Any
    nnx_module: Any
    rule: Rule | None
    how: str = "name"


@dataclass(frozen=True)
class Pairing:
    """What corresponds to what in two models, and what to nothing.

    Args:
        pairs: layers, in the order of PyTorch's `named_modules`: all that a rule is for, and those without numbers that
            have the same name on both sides.
        parameters: tensors and Variables that modules of one's own keep beside layers.
        containers: modules that were paired to look for pairs in them.
        unmatched_torch: names of parameters and statistics without a counterpart.
        unmatched_nnx: the same.
        ambiguous: a sentence on each group in which more than one pairing was possible, so that none was chosen.
        mismatched: the name of each array whose shapes differ → a sentence that says how.
    """

    pairs: tuple[Pair, ...]
    parameters: tuple[Pair, ...]
    containers: tuple[Pair, ...]
    unmatched_torch: tuple[str, ...]
    unmatched_nnx: tuple[str, ...]
    ambiguous: tuple[str, ...]
    mismatched: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether every number of either model has its counterpart, of the same shape."""
        return not (self.unmatched_torch or self.unmatched_nnx or self.mismatched)

    def complaint(self) -> str:
        """Return one sentence that names all that is without a counterpart and all shapes that differ."""
        parts = [
            f"{', '.join(left)} of the {side} model {'has' if len(left) == 1 else 'have'} no counterpart"
            for left, side in ((self.unmatched_torch, "PyTorch"), (self.unmatched_nnx, "nnx"))
            if left
        ]
        hint = ["say by names= which is which"] if self.ambiguous else []
        return "; ".join([*parts, *self.mismatched.values(), *self.ambiguous, *hint]) + "."

    def covers(self, name: str, side: str) -> bool:
        """Whether an array, by its name in "torch" or "nnx", has a counterpart of its shape."""
        if name in (self.unmatched_torch if side == "torch" else self.unmatched_nnx):
            return False
        return any(
            _is_below(name, one.torch_name if side == "torch" else one.nnx_name)
            and not any(_is_below(wrong, one.torch_name) for wrong in self.mismatched)
            for one in (*self.pairs, *self.parameters)
        )

    def to_torch(self, arrays: Weights, flattened: Mapping[str, int] = {}, *, gradients: bool = False) -> Weights:
        """Return the arrays of all pairs by PyTorch's names, in its layouts.

        Args:
            arrays: nnx's, by nnx's names ("layers.0.kernel"); what is in no pair is left out.
            flattened: as `find_flattened` returns it.
            gradients: whether they are gradients, which recurrent layers carry across in another way.
        """
        found: Weights = {}
        for one in (*self.pairs, *self.parameters):
            mine = _below(arrays, one.nnx_name)
            if one.rule is not None and mine:
                convert = (one.rule.gradients if gradients else None) or one.rule.to_torch
                mine = convert(mine, one.nnx_module)
            if gradients and one.rule is not None and one.rule.optional:
                there = half_of("torch").slots(one.torch_module)
                mine = {name: array for name, array in mine.items() if name in there}
            for name in _of_inputs(one, mine) if one.nnx_name in flattened else ():
                mine[name] = to_channels_first(mine[name], flattened[one.nnx_name])
            found |= {joined(one.torch_name, name): array for name, array in mine.items()}
        return found

    def to_nnx(self, arrays: Weights, flattened: Mapping[str, int] = {}) -> Weights:
        """Return the arrays of all pairs by nnx's names, in its layouts: the inverse of `to_torch`.

        Raises:
            PortError: nnx has no place for a number of PyTorch's.
        """
        found: Weights = {}
        for one in (*self.pairs, *self.parameters):
            mine = _below(arrays, one.torch_name)
            for name in _of_inputs(one, mine) if one.nnx_name in flattened else ():
                mine[name] = to_channels_last(mine[name], flattened[one.nnx_name])
            if one.rule is not None and mine:
                try:
                    mine = one.rule.to_nnx(mine, one.nnx_module)
                except ValueError as error:
                    raise PortError(f"{one.torch_name}: {error}.") from error
            found |= {joined(one.nnx_name, name): array for name, array in mine.items()}
        return found


def pair(torch_model: Any, nnx_model: Any, names: Mapping[str, str] | None = None) -> Pairing:
    """Find out what corresponds to what in two models.

    First by name, from the outside in, where both sides know the name and the kind is the same (`layers.0` of an
    `nnx.Sequential` is `0` of an `nn.Sequential`). What is left in two modules that correspond is paired by structure:
    same kind, same shapes, in the same order, if there are equally many. Nothing is guessed: where numbers differ, or
    where the names speak for another order, all candidates are left over, and are named.

    Args:
        torch_model: an `nn.Module`.
        nnx_model: an `nnx.Module`.
        names: PyTorch's name → nnx's, of modules or tensors that you pair yourself.

    Returns:
        The pairs, and what is left.

    Raises:
        TypeError: a model is of neither framework.
        PortError: a name in `names` is in no model.
    """
    search = _Search(grown(torch_model, "torch_model"), grown(nnx_model, "nnx_model"))
    search.take_given(names or {})
    search.match(search.torch, search.nnx, "name")
    return search.result()


@dataclass
class _Search:
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
                    raise PortError(f"names: got {name!r}; accepted is a module or tensor such as {some}.")
            self.match(known[0][torch_name], known[1][nnx_name], "given")

    def match(self, torch: Node, nnx: Node, how: str) -> None:
        """Pair two parts, and what is in them."""
        self.taken |= {torch, nnx}
        self.found.append((torch, nnx, how))
        ours, theirs = self._left(torch.children), self._left(nnx.children)
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
            if len(mine) != len(other):
                why = "there are not equally many"
            elif swap := _contradiction(mine, other):
                why = f"by their order {swap[0]} is {swap[1]}, their names say otherwise"
            if other and not why:
                found += list(zip(mine, other, strict=True))
            elif other and last:
                shown = [", ".join(node.path for node in nodes) for nodes in (mine, other)]
                self.ambiguous.append(f"{shown[0]} (PyTorch) and {shown[1]} (nnx) have the same shapes, and {why}")
        return found

    def result(self) -> Pairing:
        """Put together what was found."""
        order = {node: i for i, node in enumerate(self.torch.below())}
        pairs = [
            (a, Pair(a.path, b.path, a.value, b.value, a.rule, how))
            for a, b, how in sorted(self.found, key=lambda found: order[found[0]])
        ]
        return Pairing(
            tuple(p for node, p in pairs if node.kind not in ("", PARAMETER) or not (node.children or node.signature)),
            tuple(p for node, p in pairs if node.kind == PARAMETER),
            tuple(p for node, p in pairs if not node.kind and node.children),
            *self._unmatched(),
            tuple(self.ambiguous),
            {name: sentence for a, b, _ in self.found for name, sentence in _mismatches(a, b).items()},
        )

    def _unmatched(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Numbers without a counterpart; numbers tied to some that have one do not count."""
        partner = {a: b for a, b, _ in self.found} | {b: a for a, b, _ in self.found}
        names = []
        for tree in (self.torch, self.nnx):
            reached: set[Any] = set()
            left: dict[str, Any] = {}
            for leaf in tree.leaves():
                missing = _missing(leaf, partner.get(leaf))
                for name, slot in leaf.slots.items():
                    if name in missing:
                        left[joined(leaf.path, name)] = slot.identity
                    else:
                        reached.add(slot.identity)
            names.append(tuple(name for name, identity in left.items() if identity not in reached))
        return names[0], names[1]


def _below(arrays: Weights, name: str) -> Weights:
    """The arrays of one part, by their names within it."""
    if name in arrays:
        return {"": arrays[name]}
    start = f"{name}." if name else ""
    return {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}


def _is_below(name: str, above: str) -> bool:
    return name == above or name.startswith(f"{above}.") or not above


def _of_inputs(one: Pair, arrays: Weights) -> list[str]:
    """The names of a layer's arrays whose last axis is that of its inputs: all of a norm's, not a Linear's bias."""
    return [name for name in arrays if one.rule is None or one.rule.kind != "Linear" or name == "weight"]


def _missing(node: Node, other: Node | None) -> set[str]:
    """The names of a layer's arrays that its counterpart has not."""
    if other is None:
        return set(node.slots)
    if node.rule is None:
        return set()
    if node.side == "torch":
        return node.shapes.keys() - other.shapes.keys()
    absent = node.shapes.keys() - other.shapes.keys() - node.rule.optional
    known = {node.rule.nnx_names.get(name, name) for name in absent}
    return (known & node.slots.keys()) | _not_carried(node)


def _not_carried(node: Node) -> set[str]:
    """The names of an nnx layer's arrays that its rule does not know, such as the norms in an attention layer."""
    assert node.rule is not None
    hollow = node.hollow()
    return node.slots.keys() - node.rule.to_nnx(node.rule.to_torch(hollow, node.value), node.value).keys()


def _mismatches(torch: Node, nnx: Node) -> dict[str, str]:
    found = {}
    for name, shape in torch.shapes.items() if torch.is_leaf else ():
        other = nnx.shapes.get(name, shape)
        if shape != other and None not in (shape, other):
            place = joined(torch.path, name)
            found[place] = f"{place} is {shape} in PyTorch, {nnx.path} in the same layout {other} in nnx"
    return found


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
