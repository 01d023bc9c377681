"""What the figures of a domain-adversarial model mean, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from grl.diagnosis.reversal import CLIPPED, CUT, signed

__all__ = ["ClassifierGradient", "Seen", "judge"]

_SMALL, _LARGE = 1e-3, 1e2  # of the domain gradient's norm to the label gradient's
_FAINT = 1e-2  # a smaller label gradient (of a label loss near its minimum) is no measure of a large one
_CHANGED = 0.1  # of a gradient that should stay; a reversal changes it by 1 + λ, and rounding by less
_TOLERANCE = 1e-2  # of a ratio or a norm: room for float16


class ClassifierGradient(NamedTuple):
    """What reaches a parameter of the domain classifier.

    Args:
        ratio: c in ∂domain/∂θ with the layer = c · the same without it.
        change: the distance of the two, relative to the one without the layer.
    """

    ratio: float
    change: float


@dataclass(frozen=True)
class Seen:
    """What was seen in a model.

    Args:
        ratio: of the domain gradient with the layer to that without it; None if both are 0.
        label_size: the norm of the label gradient.
        size: the norm of the domain gradient.
        plain_size: the same without the layer.
        beside_size: the same with a layer in its place that lets no gradient through: what bypasses it.
        label_ratio: of the label gradient with the layer to that without it; None if both are 0.
        label_change: the distance of these two, relative to the one without the layer.
        values: the label loss and the domain loss, each with the layer and without it.
        bend: the distance of four times the gradient of a quarter of the domain loss from the whole gradient, relative
            to the latter.
        plain_bend: the same without the layer.
        spread: the distance of the domain gradient from a multiple of that without the layer, relative to it.
        runs: how often the layer ran.
        by_hook: whether it is a tensor hook that reverses.
        is_function: whether the layer is given as a function, which is found by its global name alone.
        is_foreign: whether the layer is not one of grl's, so that running does not mean reversing.
        added: whether the domain loss is added to the label loss, not subtracted.
        uncalled: the sentence on a `backward` method that is never called, or "".
        classifier: by the names of the domain classifier's parameters.
    """

    ratio: float | None
    label_size: float
    size: float
    plain_size: float
    beside_size: float
    label_ratio: float | None
    label_change: float
    values: tuple[tuple[float, float], tuple[float, float]]
    bend: float
    plain_bend: float
    spread: float
    runs: int
    by_hook: bool
    is_function: bool
    is_foreign: bool
    added: bool
    uncalled: str
    classifier: Mapping[str, ClassifierGradient]


def judge(seen: Seen, coeff: float | None = None) -> tuple[str, str]:
    """Return the verdict and its reason: first whether anything can be measured, then the path, the sign and the size.

    Args:
        seen: the figures.
        coeff: the expected λ; None: any above 0.
    """
    wrong = (
        _unmeasurable(seen)
        or _misplaced(seen)
        or _astray(seen)
        or _vanished(seen)
        or _wrong_sign(seen, coeff)
        or _wrong_size(seen)
    )
    if wrong:
        return wrong
    assert seen.ratio is not None
    each = " on average; it differs between samples or parameters" if seen.spread > _TOLERANCE else ""
    hook = ", by a tensor hook (register_hook)" if seen.by_hook else ""
    return "ok", f"the domain gradient reaches the feature extractor with the factor {signed(seen.ratio)}{hook}{each}."


def _unmeasurable(seen: Seen) -> tuple[str, str] | None:
    if not math.isfinite(seen.size + seen.label_size):
        both = not math.isfinite(seen.plain_size + seen.label_size)
        where = "the losses give it without the layer too" if both else "it arises in the layer"
        return "not finite", f"NaN or infinity reaches the feature extractor: {where}."
    for name, (value, again) in zip(("label", "domain"), seen.values, strict=True):
        if abs(value - again) > _TOLERANCE * max(abs(value), abs(again), _SMALL):
            return "not repeatable", (
                f"the {name} loss is {value:.6g} with the layer and {again:.6g} without it: it counts its calls, or"
                " draws random numbers anew (NumPy's, a generator of its own), or the layer is no identity."
            )
    if seen.bend > _TOLERANCE:
        where = "of the layer" if seen.plain_bend <= _TOLERANCE else "without the layer too, as a hook on a parameter"
        return "not linear", f"a quarter of the domain loss does not give a quarter of its gradient: {CLIPPED} {where}."
    return None


def _misplaced(seen: Seen) -> tuple[str, str] | None:
    """Whether the domain classifier's own parameters get another gradient because of the layer."""
    ascending = [name for name, gradient in seen.classifier.items() if gradient.change > _CHANGED]
    if not ascending:
        return None
    factor = seen.classifier[ascending[0]].ratio
    follows = "ascend their own loss" if factor < 0 else "do not descend their own loss as they should"
    return "misplaced", (
        f"the reversal stands after trained layers of the domain classifier: {_listed(ascending)} get the domain"
        f" gradient with the factor {signed(factor)} (expected: +1) and {follows}; put the layer right after the"
        " feature extractor."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _astray(seen: Seen) -> tuple[str, str] | None:
    """Whether a gradient bypasses the layer, or passes it and should not."""
    if seen.runs and seen.beside_size > _TOLERANCE * seen.plain_size:
        part = f"{seen.beside_size / seen.plain_size:.2g} times its size" if seen.plain_size else "all of it"
        return "leaking", (
            f"a part of the domain gradient, {part} without the layer, reaches the feature extractor beside the layer"
            " and is not reversed: the domain classifier, or a second one, is also fed what did not pass the layer."
        )
    if seen.label_change > _CHANGED:
        return "label reversed", (
            f"the label gradient passes the layer too, with the factor {signed(seen.label_ratio or 0.0)}: the layer"
            " stands before both heads, or it changes the gradient of x itself, by a hook or in place."
        )
    return None


def _vanished(seen: Seen) -> tuple[str, str] | None:
    if not seen.ratio:
        without = "without it there is one" if seen.ratio == 0 else "nor is there one without it"
        return "vanished", (
            f"no gradient of the domain loss reaches the feature extractor through the layer, {without}: {CUT}"
            f"{'' if seen.ratio == 0 else ', or the loss is flat'}."
        )
    return None


def _wrong_sign(seen: Seen, coeff: float | None) -> tuple[str, str] | None:
    assert seen.ratio is not None
    factor = f"the factor {signed(seen.ratio)}"
    reaches = f"the domain gradient reaches the feature extractor with {factor}"
    expected = coeff is not None and abs(seen.ratio + coeff) <= _TOLERANCE * abs(coeff)
    if seen.ratio > 0 and not seen.runs and seen.is_function:
        return "skipped", (
            f"{reaches}, and the function given by layer= was not called by its global name: the model skips it, or"
            " holds it itself; give a submodule, its class, or the autograd.Function."
        )
    if seen.ratio > 0 and not seen.runs and not seen.added and not seen.is_foreign:
        own = f" ({_listed(list(seen.classifier))})" if seen.classifier else ""
        return "misplaced", (
            f"no reversal ran and the domain loss is subtracted: its gradient reaches the feature extractor with the"
            f" factor {signed(-seen.ratio)}, and the domain classifier{own} ascends its own loss as well; add the loss,"
            " and put a layer right after the feature extractor."
        )
    if seen.ratio > 0 and not seen.runs:
        return "skipped", (
            f"{reaches} and no reversal ran: the domain classifier is fed the features themselves"
            f"{', or ' if seen.uncalled else ''}{seen.uncalled}; name a layer that is not grl's by layer=."
        )
    if expected and (seen.added or seen.ratio > 0):
        return None
    if seen.is_foreign and abs(seen.ratio - 1) <= _TOLERANCE:
        cause = seen.uncalled or "its backward pass is never called, or its sign is applied twice"
        return "skipped", f"the layer ran, and {reaches} all the same: {cause}."
    if seen.ratio > 0:
        return "sign doubled", (
            f"a reversal ran, and yet {reaches}: there are two layers one after the other, or λ is negative."
        )
    if not seen.added:
        return "sign doubled", (
            f"the layer reverses ({factor}) and the domain loss is subtracted as well, so that the features get better"
            " at telling the domains apart: add the losses."
        )
    if coeff is not None:
        return "wrong coefficient", (
            f"{reaches}, expected {signed(-coeff)}: the layer holds another λ, or there is more than one layer."
        )
    return None


def _wrong_size(seen: Seen) -> tuple[str, str] | None:
    assert seen.ratio is not None
    sizes = f"the domain gradient's norm is {seen.size:.3g}, the label gradient's {seen.label_size:.3g}"
    factor = f"with the factor {signed(seen.ratio)}"
    if seen.size > _LARGE * max(seen.label_size, _FAINT):
        return "exploded", f"{sizes}, {factor}: clip the gradients to a global norm of 1, or lower λ."
    if seen.size < _SMALL * seen.label_size:
        why = "λ is near 0, as at the start of a ramp" if abs(seen.ratio) < 0.1 else "the domain loss is flat"
        return "vanished", f"{sizes}, {factor}: {why}."
    return None
