"""Does this layer really reverse? The factor that reaches x, measured, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from grl.arrays import Array
from grl.coefficient import aligned_shape
from grl.diagnosis.half import Half, half_of_array

__all__ = ["Reversal", "assert_reverses", "measure_reversal"]


@dataclass(frozen=True)
class Reversal:
    """What a layer does to the gradient; `str` of it is a sentence.

    Args:
        verdict: "reversed" (every factor ≤ 0, not all 0), "blocked" (all 0), "not reversed", "not linear" (the backward
            pass is no linear map), or "not finite".
        factors: the gradient of x is multiplied by them, −λ if all is well: one number, or one for each sample (N,), or
            one for each element; None if there is no such factor.
        identity: whether the output is x bit for bit.
        cause: the explanation of a verdict that is not "reversed", where it is known.
    """

    verdict: str
    factors: Array | None
    identity: bool
    cause: str = ""

    @property
    def factor(self) -> float | None:
        """The factor, if it is the same for all elements; else None."""
        return float(self.factors) if self.factors is not None and self.factors.ndim == 0 else None

    def __str__(self) -> str:
        sentence = "the gradient reaches x unchanged" if self.factor == 1 else _SENTENCES[self.verdict]
        if self.factors is not None:
            sentence += f" ({_shown(self.factors)})"
        forward = "" if self.identity else "; the output is not x"
        return f"{self.verdict}: {sentence}{forward}{': ' if self.cause else ''}{self.cause}."


_FAR = 1024.0  # the largest multiple of a cotangent that is tried
_SENTENCES = {
    "reversed": "the gradient reaches x with its sign reversed",
    "not reversed": "the gradient reaches x without its sign reversed",
    "blocked": "no gradient reaches x",
    "not linear": "what reaches x is not proportional to the gradient that comes in",
    "not finite": "NaN or infinity reaches x from a finite gradient",
}
_SKIPPED = "the layer is skipped, its backward pass is never called, or the sign is applied twice"
_MIXED = "elements of the gradient are mixed with one another, as a layer with weights does"
CUT = "λ is 0, or x is cut off (detach, no_grad, stop_gradient)"
CLIPPED = "something clips, normalises or rounds within the backward pass"


def measure_reversal(layer: Callable[[Any], Any], x: Any) -> Reversal:
    """Measure what a layer does to the gradient: x̄ = c·ȳ, with c = −λ if it reverses.

    The layer is called once. Its backward pass runs with ones, with random cotangents, and with sums and multiples of
    them. These show a backward pass that is not linear.

    Args:
        layer: a function of x, an `nn.Module`, an `nnx.Module`, or for Linen `functools.partial(layer.apply, {})`.
        x: a torch tensor or a JAX array of real floats, of any shape that is not empty; the layer's framework is its.

    Returns:
        The verdict with the factor.

    Raises:
        TypeError: x is no such array, or the layer does not return one.
        ValueError: x is empty, or the layer returns another shape.

    Example:
        `print(measure_reversal(GRL(0.5), torch.ones(3)))` prints
        "reversed: the gradient reaches x with its sign reversed (factor −0.5)."

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """
    half = half_of_array(x)
    if half is None or not half.is_real_float(x):
        seen = f"{type(x).__module__}.{type(x).__name__}{'' if half is None else f' of {x.dtype}'}"
        raise TypeError(f"x: got a {seen}; expected a torch tensor or a JAX array of real floats.")
    shape = tuple(x.shape)
    if 0 in shape:
        raise ValueError(f"x: got the shape {shape}; expected one with elements.")
    limits = half.limits(x)
    epsilon, tiny = float(limits.eps), float(limits.tiny)
    generator = np.random.default_rng(0)
    # Quarters of small integers are exact in every float, as are their sums and multiples by powers of 2. None is 0.
    small, large = (generator.choice([-1, 1], shape) * generator.integers(low, low + 4, shape) / 4 for low in (1, 5))
    is_identity, pull = half.pull_back(layer, x)
    ones = pull(np.ones(shape))
    scale = float(np.abs(ones).max())
    # The multiples are limited by the range of the floats: float16 has no room for 1024·λ with λ = 100.
    up = _power_of_two(float(limits.max) / 4 / max(scale, 1.0))
    down = _power_of_two(min(scale or 1.0, 1.0) / 4 / tiny)
    cotangents = (small, large, small + large, small * up, small / down)
    of_small, of_large, of_sum, scaled_up, scaled_down = (pull(cotangent) for cotangent in cotangents)
    cause = never_called(half, layer)
    if not all(np.isfinite(gradient).all() for gradient in (ones, of_small, of_large, of_sum, scaled_up, scaled_down)):
        return Reversal("not finite", None, is_identity)
    size = max(float(np.abs(gradient).max()) for gradient in (ones, of_small, of_large, of_sum))

    def same(a: Array, b: Array) -> bool:
        return bool(np.abs(a - b).max() <= 8 * epsilon * max(size, tiny))

    if not (
        same(of_small + of_large, of_sum) and same(scaled_up / up, of_small) and same(scaled_down * down, of_small)
    ):
        return Reversal("not linear", None, is_identity, CLIPPED)
    if not (same(ones * small, of_small) and same(ones * large, of_large)):
        return Reversal("not reversed", None, is_identity, cause or _MIXED)
    factors = _simplest(ones, same)
    if not factors.any():
        return Reversal("blocked", factors, is_identity, cause or CUT)
    if (factors <= 0).all():
        return Reversal("reversed", factors, is_identity)
    is_unchanged = factors.ndim == 0 and abs(factors - 1) <= 8 * epsilon
    usual_cause = _SKIPPED if is_unchanged else "λ is negative, or the sign is applied twice"
    return Reversal("not reversed", factors, is_identity, cause or usual_cause)


def assert_reverses(layer: Callable[[Any], Any], x: Any, coeff: Any = None) -> None:
    """Raise unless a layer is the identity and multiplies the gradient by −λ: a line for your own tests.

    Args:
        layer: as for `measure_reversal`.
        x: as for `measure_reversal`.
        coeff: the expected λ, a number or one value for each sample or element; None: any at which the layer reverses.

    Raises:
        AssertionError: the layer does not; the sentence says what was seen and what was expected.
        TypeError, ValueError: as `measure_reversal`.

    Example:
        `assert_reverses(lambda x: x, jnp.ones(3), coeff=0.5)` raises "the gradient reaches x unchanged (factor +1): the
        layer is skipped, its backward pass is never called, or the sign is applied twice (expected: factor −0.5)."
    """
    seen = measure_reversal(layer, x)
    is_right, expected = seen.verdict == "reversed", "a negative factor"
    if coeff is not None:
        half = half_of_array(coeff)
        coeff = np.asarray(coeff, np.float64) if half is None else half.numbers(coeff)
        is_right, expected = _agrees(seen, x, -coeff), _shown(-coeff)
    if is_right and seen.identity:
        return
    sentence = str(seen).removeprefix(f"{seen.verdict}: ").removesuffix(".")
    raise AssertionError(f"{sentence} (expected: {expected}{'' if seen.identity else ', and the output equal to x'}).")


def _agrees(seen: Reversal, x: Any, expected: Array) -> bool:
    """Whether the factors are the expected ones but for rounding in x's precision."""
    half = half_of_array(x)
    if seen.factors is None or half is None:
        return False
    epsilon, tiny = float(half.limits(x).eps), float(half.limits(x).tiny)
    factors, expected = (each.reshape(aligned_shape(each.shape, x.shape)) for each in (seen.factors, expected))
    return bool(np.allclose(factors, expected, 8 * epsilon, epsilon * tiny))


def _power_of_two(most: float) -> float:
    """Return the largest power of two up to a number, between 1 and `_FAR`. A power of two rounds nothing."""
    return min(max(2.0 ** math.floor(math.log2(most)), 1.0), _FAR) if math.isfinite(most) and most > 0 else 1.0


def _simplest(factors: Array, same: Callable[[Array, Array], bool]) -> Array:
    """Return one factor if all are the same, else one for each sample if that suffices, else all of them."""
    first = np.asarray(factors.reshape(-1)[0])
    if same(factors, first):
        return first
    by_sample = factors.reshape(len(factors), -1)[:, 0]
    return by_sample if same(factors, by_sample.reshape(-1, *[1] * (factors.ndim - 1))) else factors


def _shown(factors: Array) -> str:
    low, high = float(factors.min()), float(factors.max())
    if low == high:
        return f"factor {signed(low)}"
    return f"factors from {signed(low)} to {signed(high)}, by {'sample' if factors.ndim == 1 else 'element'}"


def signed(number: float) -> str:
    """Return a number as sentences write it: +1, −0.5, 0.

    Args:
        number: of any size; four digits are kept.
    """
    return f"{number:+.4g}".replace("-", "−") if number else "0"


def never_called(half: Half, layer: Any) -> str:
    """Name a `backward` method on a module, the commonest reason why a layer does not reverse; "" if there is none.

    Args:
        half: of the layer's framework.
        layer: a module, or a method of one.
    """
    for name, part in half.parts(getattr(layer, "__self__", layer)):
        if callable(getattr(type(part), "backward", None)):
            place = f" ({name})" if name else ""
            return f"{type(part).__name__}{place} has a method `backward`, which {half.NAME} never calls on a Module"
    return ""
