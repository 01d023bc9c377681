"""What the figures of a domain-adversarial model mean, in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grl.diagnosis.reversal import CLIPPED, CUT, signed

__all__ = ["Seen", "judge"]

_SMALL, _LARGE = 1e-3, 1e2  # of the domain gradient's norm to the label gradient's
_FAINT = 1e-2  # a label gradient this small (a label loss that is learnt) is no measure of what is large
_CHANGED = 0.1  # of the label gradient; a reversal changes it by 1 + λ, and rounding by less
_TOLERANCE = 1e-2  # of a ratio or a norm: room for float16


@dataclass(frozen=True)
class Seen:
    """What was seen in a feature extractor.

    Args:
        ratio: of the domain gradient with the layer to that without it; None if both are 0.
        label_size: the norm of the label gradient.
        size: the norm of the domain gradient.
        plain_size: the same without the layer.
        beside_size: the same with a layer in its place that lets no gradient through: what gets around it.
        label_ratio: of the label gradient with the layer to that without it; None if both are 0.
        label_change: how far these two are from one another, relative to the one without it.
        values: the label loss and the domain loss, each with the layer and without it.
        bend: how far the gradient of a part of the domain loss is from that part of the gradient, relative to it.
        plain_bend: the same without the layer.
        spread: how far the domain gradient is from a multiple of that without the layer, relative to it.
        runs: how often the layer ran.
        function: whether the layer is given as a function, which is found by its global name alone.
        foreign: whether the layer is none of grl's, so that running does not mean reversing.
        added: whether the domain loss is added to the label loss, not subtracted.
        uncalled: the sentence on a `backward` method that is never called, or "".
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
    function: bool
    foreign: bool
    added: bool
    uncalled: str


def judge(seen: Seen, coeff: float | None = None) -> tuple[str, str]:
    """Return the verdict and its reason: whether it can be measured, which way it goes, then its sign, then its size.

    Args:
        seen: the figures.
        coeff: λ as it should be; None: any above 0.
    """
    wrong = _unmeasurable(seen) or _astray(seen) or _vanished(seen) or _wrong_sign(seen, coeff) or _wrong_size(seen)
    if wrong:
        return wrong
    assert seen.ratio is not None
    each = " on average; it differs between samples or parameters" if seen.spread > _TOLERANCE else ""
    return "ok", f"the domain gradient reaches the feature extractor with the factor {signed(seen.ratio)}{each}."


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


def _astray(seen: Seen) -> tuple[str, str] | None:
    """What goes around the layer, and what goes through it and should not."""
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
    if seen.ratio > 0 and not seen.runs and seen.function:
        return "skipped", (
            f"{reaches}, and the function given by layer= was not called by its global name: the model skips it, or"
            " holds it itself; give a submodule, its class, or the autograd.Function."
        )
    if seen.ratio > 0 and not seen.runs:
        return "skipped", (
            f"{reaches} and no reversal ran: the domain classifier is fed the features themselves"
            f"{', or ' if seen.uncalled else ''}{seen.uncalled}; name a layer that is not grl's by layer=."
        )
    if expected and (seen.added or seen.ratio > 0):
        return None
    if seen.foreign and abs(seen.ratio - 1) <= _TOLERANCE:
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
