"""The matrix of layer forms and transformations: what a cell is, how one is found out, and what all of them ask."""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BITS",
    "COEFF",
    "FIRST",
    "SECOND",
    "STATUSES",
    "WEIGHTS",
    "Cell",
    "Form",
    "NotApplicable",
    "Wrong",
    "X",
    "check_form",
    "counts",
    "records",
    "registering",
    "same",
    "same_bits",
    "transformations",
]

STATUSES = ("ok", "refuses", "n/a", "WRONG")

COEFF = 0.37  # of no short binary form, so that a rounded λ shows
X = np.linspace(-1.3, 1.1, 12, dtype=np.float32).reshape(4, 3)
WEIGHTS = np.linspace(0.5, 2.0, 12, dtype=np.float32).reshape(4, 3)
FIRST = WEIGHTS * np.cos(X)  # derivatives of the loss Σ w·sin(y) with respect to y, at y = x
SECOND = -WEIGHTS * np.sin(X)
# −0, ±inf, a subnormal and NaN with a payload: x + 0, x · 1 and the like would not keep them all.
BITS = np.array([0x80000000, 0x7F800000, 0xFF800000, 0x00000001, 0x7FC01234, 0xFFC00001], np.uint32)


class Wrong(AssertionError):  # noqa: N818  # the verdict on a cell, no error of the program
    """A transformation gave something else than the declared Jacobian, without a word."""


class NotApplicable(Exception):  # noqa: N818  # likewise
    """The question does not arise: the form has no such argument, or the machine no such device."""


@dataclass(frozen=True)
class Form:
    """One way to write a gradient reversal layer.

    Args:
        name: what the table calls it.
        backend: "torch" or "jax".
        make: λ -> layer; the layer maps x to x.
        call: (x, λ) -> x, or None where λ is fixed when the layer is made.
        linen: λ -> the layer as a Flax Linen module, where it is one; `make` then applies it.
    """

    name: str
    backend: str
    make: Callable[[float], Callable[[Any], Any]]
    call: Callable[[Any, Any], Any] | None = None
    linen: Callable[[float], Any] | None = None

    def reverse(self, x: Any, coeff: Any) -> Any:
        """Call the layer with a λ of this call's own; `NotApplicable` where it cannot be given one."""
        if self.call is None:
            raise NotApplicable("λ is no argument of the call")
        return self.call(x, coeff)

    def ways(self, coeff: float) -> Iterator[tuple[str, Callable[[Any], Any]]]:
        """Yield the layer with this λ, made with it and, where that can be, called with it: two places to lose it."""
        yield "when the layer is made", self.make(coeff)
        if self.call is not None:
            yield "in the call", lambda x: self.reverse(x, coeff)


@dataclass(frozen=True)
class Cell:
    """What became of one form under one transformation.

    Args:
        backend: "torch" or "jax".
        form: the form's name.
        transformation: the transformation's name.
        status: "ok"; "refuses", an exception was raised; "n/a", the question does not arise; "WRONG", a wrong result.
        reason: why it refuses or does not apply; what was expected and what came, where it is wrong; else empty.
    """

    backend: str
    form: str
    transformation: str
    status: str
    reason: str


Transformation = Callable[[Form], None]
"""Looks at a form; raises `Wrong`, `NotApplicable`, or what the framework raises, and is else content."""

_PLACES = {
    "torch": ("torch_derivatives", "torch_tensors", "torch_programs"),
    "jax": ("jax_derivatives", "jax_programs", "jax_modules"),
}


def transformations(backend: str) -> dict[str, Transformation]:
    """Return the transformations of a backend by name, in the order of the table. Each is one function, in one place.

    Args:
        backend: "torch" or "jax", which is then imported.

    Raises:
        ImportError: it is not installed.
    """
    importlib.import_module(f"grl.{backend}_impl")  # says what to install where the framework is missing
    found: dict[str, Transformation] = {}
    for place in _PLACES[backend]:
        found |= importlib.import_module(f"grl.check.{place}").TRANSFORMATIONS
    return found


def registering(table: dict[str, Transformation]) -> Callable[[str], Callable[[Transformation], Transformation]]:
    """Return the decorator that puts a transformation into a table under a name."""

    def named(name: str) -> Callable[[Transformation], Transformation]:
        def register(function: Transformation) -> Transformation:
            table[name] = function
            return function

        return register

    return named


def check_form(form: Form, names: Iterable[str] | None = None) -> Iterator[Cell]:
    """Yield the cell of every transformation for a form.

    Args:
        form: the layer to look at.
        names: the transformations; all by default.

    Raises:
        KeyError: there is no transformation of that name.
    """
    known = transformations(form.backend)
    for name in known if names is None else names:
        status, reason = _judge(known[name], form)
        yield Cell(form.backend, form.name, name, status, reason)


def counts(cells: Iterable[Cell]) -> dict[str, dict[str, int]]:
    """Return, by "backend form", how many cells have each status."""
    found: dict[str, Counter[str]] = {}
    for cell in cells:
        found.setdefault(f"{cell.backend} {cell.form}", Counter())[cell.status] += 1
    return {form: {status: counter[status] for status in STATUSES} for form, counter in found.items()}


def records(cells: Iterable[Cell]) -> list[dict[str, str]]:
    """Return the cells as JSON has them."""
    return [asdict(cell) for cell in cells]


def same(got: Any, expected: Any, what: str = "gradient", tolerance: float = 1e-5) -> None:
    """Raise `Wrong` unless two arrays agree in shape and values.

    Args:
        got: what came.
        expected: what is right.
        what: what they are, for the message.
        tolerance: of the difference, relative to the largest expected value.
    """
    kind = np.complex128 if np.iscomplexobj(expected) else np.float64
    got, expected = np.asarray(got, kind), np.asarray(expected, kind)
    if got.shape != expected.shape:
        raise Wrong(f"{what}: expected shape {expected.shape}, got {got.shape}")
    difference = np.abs(got - expected)
    if not np.all(difference <= tolerance * np.abs(expected).max(initial=0)):  # a NaN is no match
        worst = np.unravel_index(np.argmax(difference), got.shape)
        cut = "" if got.any() else " everywhere, as where x is cut off"
        raise Wrong(f"{what}: expected {expected[worst]:.9g}, got {got[worst]:.9g}{cut}")


def same_bits(got: NDArray[Any], what: str = "value") -> None:
    """Raise `Wrong` unless float32 values are those of `BITS`, bit for bit."""
    found = np.ascontiguousarray(got).view(np.uint32)
    for expected, bits in zip(BITS.tolist(), found.tolist(), strict=True):
        if expected != bits:
            raise Wrong(f"{what}: expected the bits {expected:#010x}, got {bits:#010x}")


def _judge(transformation: Transformation, form: Form) -> tuple[str, str]:
    with _quietly():
        try:
            transformation(form)
        except Wrong as error:
            return "WRONG", str(error)
        except NotApplicable as error:
            return "n/a", str(error)
        except (Exception, SystemExit) as error:  # whatever it is: the user was told
            return "refuses", f"{type(error).__name__}: {_first_words(error)}"
    return "ok", ""


@contextmanager
def _quietly() -> Iterator[None]:
    """What a framework warns of or logs while a cell is found out is no result; only what it returns or raises is."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_words(error: BaseException, longest: int = 160) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(error).split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"
