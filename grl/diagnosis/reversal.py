"""Does this layer really reverse? The factor that reaches x, measured, and a verdict in words."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from grl.arrays import Array
from grl.coefficient import aligned_shape

__all__ = ["Reversal", "assert_reverses", "measure_reversal"]


@dataclass(frozen=True)
class Reversal:
    """What a layer does to the gradient; `str` of it is a sentence.

    Args:
        verdict: "reversed" (every factor ≤ 0, not all 0), "blocked" (all 0), "not reversed", "not linear" (the backward
            pass is no linear map), or "not finite".
        factors: what the gradient of x is multiplied by, −λ if all is well: one number, or one for each sample (N,), or
            one for each element; None if there is no such factor.
        identity: whether the output is x bit for bit.
        cause: what explains a verdict that is not "reversed", where that is known.
    """

    verdict: str
    factors: Array | None
    identity: bool
    cause: str = ""

    @property
    def factor(self) -> float | None:
        """The one factor, where there is one."""
        return float(self.factors) if self.factors is not None and self.factors.ndim == 0 else None

    def __str__(self) -> str:
        seen = _SEEN[self.verdict]
        if self.factor == 1:
            seen = "the gradient reaches x unchanged"
        if self.factors is not None:
            seen += f" ({_shown(self.factors)})"
        forward = "" if self.identity else "; the output is not x"
        return f"{self.verdict}: {seen}{forward}{': ' if self.cause else ''}{self.cause}."


_FAR = 1024.0
_SEEN = {
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

    The layer is called once; its backward pass runs with ones and with random cotangents, their sum and their
    multiples, so that a backward pass that is not linear shows.

    Args:
        layer: a function of x, an `nn.Module`, an `nnx.Module`, or for Linen `functools.partial(layer.apply, {})`.
        x: a torch tensor or a JAX array of real floats, any shape but an empty one; its backend is the layer's.

    Returns:
        The verdict with the factor.

    Raises:
        TypeError: x or what the layer returns is no such array.
        ValueError: x is empty, or what the layer returns has another shape.

    Example:
        `print(measure_reversal(GRL(0.5), torch.ones(3)))` prints
        "reversed: the gradient reaches x with its sign reversed (factor −0.5)."

    Reference:
        Ganin & Lempitsky 2015, arXiv:1409.7495.
    """
    half = _half(x)
    if half is None or not half.is_real_float(x):
        seen = f"{type(x).__module__}.{type(x).__name__}{'' if half is None else f' of {x.dtype}'}"
        raise TypeError(f"x: got a {seen}; expected a torch tensor or a JAX array of real floats.")
    shape = tuple(x.shape)
    if 0 in shape:
        raise ValueError(f"x: got the shape {shape}; expected one with elements.")
    limits = half.finfo(x)
    epsilon, tiny = float(limits.eps), float(limits.tiny)
    generator = np.random.default_rng(0)
    # Quarters of small integers: exact in every float, as are sums and multiples by powers of 2; and none of them 0.
    one, other = (generator.choice([-1, 1], shape) * generator.integers(low, low + 4, shape) / 4 for low in (1, 5))
    identity, pull = half.pull_back(layer, x)
    ones = pull(np.ones(shape))
    scale = float(np.abs(ones).max())
    # As far up and down as what comes back can be held: float16 has no room for 1024·λ with λ = 100.
    up = _power_of_two(float(limits.max) / 4 / max(scale, 1.0))
    down = _power_of_two(min(scale or 1.0, 1.0) / 4 / tiny)
    first, second, both, large, small = map(pull, (one, other, one + other, one * up, one / down))
    cause = never_called(half, layer)
    if not all(np.isfinite(gradient).all() for gradient in (ones, first, second, both, large, small)):
        return Reversal("not finite", None, identity)
    size = max(float(np.abs(gradient).max()) for gradient in (ones, first, second, both))

    def same(a: Array, b: Array) -> bool:
        return bool(np.abs(a - b).max() <= 8 * epsilon * max(size, tiny))

    if not (same(first + second, both) and same(large / up, first) and same(small * down, first)):
        return Reversal("not linear", None, identity, CLIPPED)
    if not (same(ones * one, first) and same(ones * other, second)):
        return Reversal("not reversed", None, identity, cause or _MIXED)
    factors = _simplest(ones, same)
    if not factors.any():
        return Reversal("blocked", factors, identity, cause or CUT)
    if (factors <= 0).all():
        return Reversal("reversed", factors, identity)
    unchanged = factors.ndim == 0 and abs(factors - 1) <= 8 * epsilon
    other_cause = _SKIPPED if unchanged else "λ is negative, or the sign is applied twice"
    return Reversal("not reversed", factors, identity, cause or other_cause)


def assert_reverses(layer: Callable[[Any], Any], x: Any, coeff: Any = None) -> None:
    """Raise unless a layer is the identity and multiplies the gradient by −λ: a line for your own tests.

    Args:
        layer: as for `measure_reversal`.
        x: as for `measure_reversal`.
        coeff: λ, a number or one value for each sample or element; None: any at which the layer reverses.

    Raises:
        AssertionError: the sentence says what was seen and what was expected.
        TypeError, ValueError: as `measure_reversal`.

    Example:
        `assert_reverses(lambda x: x, jnp.ones(3), coeff=0.5)` raises "the gradient reaches x unchanged (factor +1): the
        layer is skipped, its backward pass is never called, or the sign is applied twice (expected: factor −0.5)."
    """
    seen = measure_reversal(layer, x)
    if coeff is None:
        right, expected = seen.verdict == "reversed", "a negative factor"
    else:
        own = _half(coeff)
        coeff = np.asarray(coeff, np.float64) if own is None else own.numbers(coeff)
        wanted = -coeff.reshape(aligned_shape(coeff.shape, x.shape))
        limits = _half(x).finfo(x)
        spacing = float(limits.eps), float(limits.eps) * float(limits.tiny)
        right = seen.factors is not None and np.allclose(
            seen.factors.reshape(aligned_shape(seen.factors.shape, x.shape)), wanted, 8 * spacing[0], spacing[1]
        )
        expected = _shown(-coeff)
    if right and seen.identity:
        return
    found = str(seen).removeprefix(f"{seen.verdict}: ").removesuffix(".")
    raise AssertionError(f"{found} (expected: {expected}{'' if seen.identity else ', and the output equal to x'}).")


def _power_of_two(most: float) -> float:
    """The largest power of two up to a number, between 1 and `_FAR`: it changes no digit of what it multiplies."""
    return min(max(2.0 ** math.floor(math.log2(most)), 1.0), _FAR) if math.isfinite(most) and most > 0 else 1.0


def _simplest(factors: Array, same: Callable[[Array, Array], bool]) -> Array:
    """One factor for all if that is what they are, else one for each sample, else as they are."""
    if same(factors, factors.reshape(-1)[0]):
        return np.asarray(factors.reshape(-1)[0])
    first = factors.reshape(len(factors), -1)[:, 0]
    return first if same(factors, first.reshape(-1, *[1] * (factors.ndim - 1))) else factors


def _shown(factors: Array) -> str:
    low, high = float(factors.min()), float(factors.max())
    if low == high:
        return f"factor {signed(low)}"
    return f"factors from {signed(low)} to {signed(high)}, by {'sample' if factors.ndim == 1 else 'element'}"


def signed(number: float) -> str:
    """Return a number as sentences have it: +1, −0.5, 0."""
    return f"{number:+.4g}".replace("-", "−") if number else "0"


def never_called(half: Any, layer: Any) -> str:
    """Name a `backward` method on a module, the commonest reason why a layer does not reverse; "" if there is none."""
    for name, part in half.parts(getattr(layer, "__self__", layer)):
        if callable(getattr(type(part), "backward", None)):
            where = f"{type(part).__name__}{f' ({name})' if name else ''}"
            return f"{where} has a method `backward`, which {half.NAME} never calls on a Module"
    return ""


def _half(value: Any) -> Any:
    """The half of the framework that a value belongs to, or None; imports no framework that is not in use already."""
    for backend, kind in (("torch", "Tensor"), ("jax", "Array")):
        if isinstance(value, getattr(sys.modules.get(backend), kind, ())):
            return half_of(backend)
    return None


def half_of(backend: str) -> Any:
    """Return the half of the diagnosis that belongs to a framework."""
    return importlib.import_module(f"grl.diagnosis.{backend}_gradients")
