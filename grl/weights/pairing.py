"""Which part of a PyTorch model corresponds to which of an nnx model: by name, and where names differ by structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grl.arrays import Weights
from grl.weights.layouts import in_nnx_layout, in_torch_layout
from grl.weights.matching import Search, correspond
from grl.weights.rules import Rule
from grl.weights.slot import PortError
from grl.weights.tree import PARAMETER, Node, grown, half_of, joined

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
            mine = in_torch_layout(one.rule, one.nnx_module, mine, flattened.get(one.nnx_name), gradients=gradients)
            if gradients and one.rule is not None and one.rule.optional:
                there = half_of("torch").slots(one.torch_module)
                mine = {name: array for name, array in mine.items() if name in there}
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
            try:
                mine = in_nnx_layout(one.rule, one.nnx_module, mine, flattened.get(one.nnx_name))
            except ValueError as error:
                raise PortError(f"{one.torch_name}: {error}.") from error
            found |= {joined(one.nnx_name, name): array for name, array in mine.items()}
        return found


def pair(torch_model: Any, nnx_model: Any, names: Mapping[str, str] | None = None) -> Pairing:
    """Find out what corresponds to what in two models.

    First by name, from the outside in, where both sides know the name and the kind is the same (`layers.0` of an
    `nnx.Sequential` is `0` of an `nn.Sequential`); names that differ in their last number alone go by the order of the
    numbers (`fc1`, `fc2` are `fc0`, `fc1`). What is left in two modules that correspond is paired by structure:
    same kind, same shapes, in the same order, if there are equally many. Nothing is guessed: where numbers differ, or
    where the names speak for another order, all candidates are left over, and are named. So they are in an nnx model
    that comes from `nnx.merge`, `clone` or `eval_shape`, which sort attributes by name, unless these have numbers.

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
    return _result(correspond(grown(torch_model, "torch_model"), grown(nnx_model, "nnx_model"), names))


def _result(search: Search) -> Pairing:
    order = {node: i for i, node in enumerate(search.torch.below())}
    pairs = [
        (a, Pair(a.path, b.path, a.value, b.value, a.rule, how))
        for a, b, how in sorted(search.found, key=lambda found: order[found[0]])
    ]
    return Pairing(
        tuple(p for node, p in pairs if node.kind not in ("", PARAMETER) or not (node.children or node.signature)),
        tuple(p for node, p in pairs if node.kind == PARAMETER),
        tuple(p for node, p in pairs if not node.kind and node.children),
        *_unmatched(search),
        tuple(search.ambiguous),
        {name: sentence for a, b, _ in search.found for name, sentence in _mismatches(a, b).items()},
    )


def _unmatched(search: Search) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Numbers without a counterpart; numbers tied to some that have one do not count."""
    partner = {a: b for a, b, _ in search.found} | {b: a for a, b, _ in search.found}
    names = []
    for tree in (search.torch, search.nnx):
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
    return (known & node.slots.keys()) | node.not_carried()


def _mismatches(torch: Node, nnx: Node) -> dict[str, str]:
    found = {}
    for name, shape in torch.shapes.items() if torch.is_leaf else ():
        other = nnx.shapes.get(name, shape)
        if shape != other and None not in (shape, other):
            place = joined(torch.path, name)
            found[place] = f"{place} is {shape} in PyTorch, {nnx.path} in the same layout {other} in nnx"
    return found
