"""The parts of a PyTorch model and of an nnx model that correspond, and the conversion of all their arrays."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grl.arrays import Weights
from grl.weights.half import Part, Side
from grl.weights.halves import half_of
from grl.weights.layouts import in_nnx_layout, in_torch_layout
from grl.weights.matching import How, Search, correspond
from grl.weights.rule import Names, Rule
from grl.weights.slot import PortError
from grl.weights.tree import PARAMETER, ModelNode, Shapes, grown, joined

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

__all__ = ["Pair", "Pairing", "pair"]


@dataclass(frozen=True)
class Pair:
    """Two parts that correspond.

    Args:
        torch_name: the name that `named_modules` or `named_parameters` gives it.
        nnx_name: the same for nnx: attributes and indices, joined by dots.
        torch_module: the `nn.Module`, or a tensor outside known layers.
        nnx_module: the `nnx.Module`, or the Variable.
        rule: how its arrays are converted; None for a tensor, which stays unchanged, and for a part without arrays.
        how: how the pair was found: "name", "structure" or "given".
    """

    torch_name: str
    nnx_name: str
    torch_module: Part
    nnx_module: Part
    rule: Rule | None
    how: How = "name"

    def name(self, side: Side) -> str:
        """Return its name on one side."""
        return self.torch_name if side == "torch" else self.nnx_name


@dataclass(frozen=True)
class Pairing:
    """The parts of two models that correspond, and the parts without a counterpart.

    Args:
        pairs: layers, in the order of PyTorch's `named_modules`: all layers that a rule is for, and layers without
            numbers that have the same name on both sides.
        parameters: tensors and Variables outside such layers.
        containers: modules that were paired because they contain pairs.
        unmatched_torch: names of parameters and statistics without a counterpart.
        unmatched_nnx: the same for nnx.
        ambiguous: one sentence for each group with more than one possible pairing. None of them was chosen.
        mismatched: the name of each array whose shapes differ → a sentence with both shapes.
        notes: one sentence for each layer whose settings (λ and the step count of a reversal) have no counterpart, and
            therefore stay as they are.
    """

    pairs: tuple[Pair, ...]
    parameters: tuple[Pair, ...]
    containers: tuple[Pair, ...]
    unmatched_torch: tuple[str, ...]
    unmatched_nnx: tuple[str, ...]
    ambiguous: tuple[str, ...]
    mismatched: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every weight of either model has a counterpart of its shape. Settings are no weights."""
        return not (self.unmatched_torch or self.unmatched_nnx or self.mismatched)

    def complaint(self) -> str:
        """Return one sentence that names all weights without a counterpart and all shapes that differ."""
        reasons = []
        for names, framework in ((self.unmatched_torch, "PyTorch"), (self.unmatched_nnx, "nnx")):
            if names:
                verb = "has" if len(names) == 1 else "have"
                reasons.append(f"{', '.join(names)} of the {framework} model {verb} no counterpart")
        hint = ["pair them with names="] if self.ambiguous else []
        return "; ".join([*reasons, *self.mismatched.values(), *self.ambiguous, *hint]) + "."

    def covers(self, name: str, side: Side) -> bool:
        """Return whether an array has a counterpart of its shape.

        Args:
            name: the array's name on that side.
            side: "torch" or "nnx".
        """
        if name in (self.unmatched_torch if side == "torch" else self.unmatched_nnx):
            return False
        return any(
            _is_below(name, one.name(side)) and not any(_is_below(wrong, one.torch_name) for wrong in self.mismatched)
            for one in self._with_arrays()
        )

    def to_torch(self, arrays: Weights, flattened: Mapping[str, int] = {}, *, gradients: bool = False) -> Weights:
        """Return the arrays of all pairs by PyTorch's names and in its layouts.

        Args:
            arrays: nnx's arrays by nnx's names ("layers.0.kernel"). Arrays outside of all pairs are left out.
            flattened: the return value of `find_flattened`.
            gradients: whether the arrays are gradients, which recurrent layers convert differently.
        """
        converted: Weights = {}
        for one in self._with_arrays():
            within = _below(arrays, one.nnx_name)
            channels = flattened.get(one.nnx_name)
            within = in_torch_layout(one.rule, one.nnx_module, within, channels, gradients=gradients)
            if gradients and one.rule is not None and one.rule.optional:
                present = half_of("torch").slots(one.torch_module)
                within = {name: array for name, array in within.items() if name in present}
            converted |= {joined(one.torch_name, name): array for name, array in within.items()}
        return converted

    def to_nnx(self, arrays: Weights, flattened: Mapping[str, int] = {}) -> Weights:
        """Return the arrays of all pairs by nnx's names and in its layouts: the inverse of `to_torch`.

        Raises:
            PortError: nnx has no place for a number of PyTorch's.
        """
        converted: Weights = {}
        for one in self._with_arrays():
            within = _below(arrays, one.torch_name)
            try:
                within = in_nnx_layout(one.rule, one.nnx_module, within, flattened.get(one.nnx_name))
            except ValueError as error:
                raise PortError(f"{one.torch_name}: {error}.") from error
            converted |= {joined(one.nnx_name, name): array for name, array in within.items()}
        return converted

    def _with_arrays(self) -> Iterator[Pair]:
        yield from self.pairs
        yield from self.parameters


def pair(torch_model: nn.Module, nnx_model: nnx.Module, names: Names | None = None) -> Pairing:
    """Find the parts of two models that correspond.

    Names come first, from the outside in: parts of one name and kind correspond, and `layers.0` of an `nnx.Sequential`
    is `0` of an `nn.Sequential`. Names that differ in their last number alone correspond in the order of the numbers
    (`fc1`, `fc2` are `fc0`, `fc1`). The remaining parts of two modules that correspond are paired by structure: the
    same kind, the same shapes and the same order, if there are equally many.

    Nothing is guessed. Where the numbers of parts differ, or where the names contradict the order, all candidates stay
    unpaired, and the result names them. The same holds for an nnx model from `nnx.merge`, `clone` or `eval_shape`,
    which sort attributes by name, unless the names have numbers.

    A PyTorch module of an unknown class that computes an RMSNorm, like those of transformers, corresponds to an
    `nnx.RMSNorm`: a copy of it is run on a few numbers.

    Args:
        torch_model: an `nn.Module`.
        nnx_model: an `nnx.Module`.
        names: PyTorch's name → nnx's, for modules or tensors that you pair yourself. Two single tensors, within known
            layers as well, may come with a `Layout`: `{"proj.weight": ("dense.kernel", LINEAR)}`.

    Returns:
        The pairs, and the parts without a counterpart.

    Raises:
        TypeError: a model is of neither framework.
        PortError: a name in `names` is in neither model, or pairs two different kinds.

    Example:
        `pair(torch_model, nnx_model, {"encoder.proj": "embed"}).unmatched_torch`
    """
    nnx_tree = grown(nnx_model, "nnx_model")
    torch_tree = grown(torch_model, "torch_model", {leaf.kind for leaf in nnx_tree.leaves()})
    return _result(correspond(torch_tree, nnx_tree, names))


def _result(search: Search[ModelNode]) -> Pairing:
    order = {node.path: index for index, node in enumerate(search.torch.below())}
    pairs: list[Pair] = []
    parameters: list[Pair] = []
    containers: list[Pair] = []
    for torch, nnx, how, rule in sorted(search.matches, key=lambda match: order.get(match.torch.path, len(order))):
        one = Pair(torch.path, nnx.path, torch.value, nnx.value, rule, how)
        if torch.kind == PARAMETER:
            parameters.append(one)
        elif torch.kind or not torch.children:
            pairs.append(one)
        else:
            containers.append(one)
    partners = {match.torch: match.nnx for match in search.matches} | {
        match.nnx: match.torch for match in search.matches
    }
    return Pairing(
        pairs=tuple(pairs),
        parameters=tuple(parameters),
        containers=tuple(containers),
        unmatched_torch=_unmatched(search.torch, partners),
        unmatched_nnx=_unmatched(search.nnx, partners),
        ambiguous=tuple(search.ambiguous),
        mismatched=_mismatches(search),
        notes=(*_settings_that_stay(search.torch, partners), *_settings_that_stay(search.nnx, partners)),
    )


Partners = Mapping[ModelNode, ModelNode]


def _unmatched(tree: ModelNode, partners: Partners) -> tuple[str, ...]:
    """Return the names of weights without a counterpart. A weight that is tied to a matched one is matched too."""
    tensors = [node for node in partners if node.side == tree.side and node.kind == PARAMETER]
    matched: set[Hashable] = {slot.identity for node in tensors for slot in node.slots.values()}
    candidates: dict[str, Hashable] = {}
    for leaf in tree.leaves():
        missing = _missing(leaf, partners.get(leaf)) - leaf.settings
        for name, slot in leaf.slots.items():
            if name in missing:
                candidates[joined(leaf.path, name)] = slot.identity
            elif name not in leaf.settings:
                matched.add(slot.identity)
    return tuple(name for name, identity in candidates.items() if identity not in matched)


def _settings_that_stay(tree: ModelNode, partners: Partners) -> Iterator[str]:
    """Yield one sentence for each layer whose settings the other model has not."""
    other = "PyTorch" if tree.side == "nnx" else "nnx"
    for leaf in tree.leaves():
        if leaf.settings and leaf not in partners:
            settings = " and ".join(sorted(leaf.settings))
            yield f"{leaf.path or leaf.kind}: keeps its {settings}; the {other} model has no {leaf.kind} to match it."


def _missing(node: ModelNode, partner: ModelNode | None) -> set[str]:
    """Return the names of a layer's arrays that its counterpart lacks."""
    if partner is None:
        return set(node.slots)
    if node.rule is None:
        return set()
    if node.side == "torch":
        return node.shapes.keys() - partner.shapes.keys()
    absent = node.shapes.keys() - partner.shapes.keys() - node.rule.optional
    nnx_names = {node.rule.nnx_names.get(name, name) for name in absent}
    return (nnx_names & node.slots.keys()) | node.not_converted()


def _mismatches(search: Search[ModelNode]) -> dict[str, str]:
    """Return the name of each array whose shapes differ → a sentence with both shapes."""
    sentences = {}
    for torch, nnx, _, rule in search.matches:
        if not torch.is_leaf:
            continue
        nnx_shapes = nnx.shapes if nnx.kind != PARAMETER else _tensor_shapes(nnx, rule)
        for name, torch_shape in torch.shapes.items():
            nnx_shape = nnx_shapes.get(name, torch_shape)
            if torch_shape != nnx_shape and None not in (torch_shape, nnx_shape):
                place = joined(torch.path, name)
                sentences[place] = (
                    f"{place} is {torch_shape} in PyTorch, {nnx.path} in the same layout {nnx_shape} in nnx"
                )
    return sentences


def _tensor_shapes(nnx: ModelNode, rule: Rule | None) -> Shapes:
    """Return the shape of a single tensor in PyTorch's layout, or in nnx's if that layout is for another shape."""
    try:
        return {name: a.shape for name, a in in_torch_layout(rule, nnx.value, nnx.canonical()).items()}
    except (ValueError, IndexError):  # np.exceptions.AxisError is both
        return nnx.shapes


def _below(arrays: Weights, name: str) -> Weights:
    """Return the arrays of one part, by their names within it."""
    if name in arrays:
        return {"": arrays[name]}
    start = f"{name}." if name else ""
    return {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}


def _is_below(name: str, above: str) -> bool:
    return name == above or name.startswith(f"{above}.") or not above
