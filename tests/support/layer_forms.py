"""One table of every layer form of the installed backends: a test that is parametrised over it is a promise of all.

    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_promise(form): ...

With one framework missing, its forms are not in the table, and the suite tests what is left.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support import oracle
from tests.support.installed import HAS_JAX, HAS_TORCH

_MODULES = (("tests.support.torch_forms", HAS_TORCH), ("tests.support.jax_forms", HAS_JAX))
BACKENDS = [importlib.import_module(name) for name, there in _MODULES if there]


@dataclass(frozen=True)
class LayerForm:
    """One way to write a gradient reversal layer: `reverse(x, coeff)` in its backend (`in_torch` or `in_jax`)."""

    name: str
    backend: Any

    def __str__(self) -> str:
        return f"{self.backend.BACKEND}-{self.name}".replace(" ", "-")

    @property
    def reverse(self) -> Callable[[Any, Any], Any]:
        return self.backend.FORMS[self.name]

    def gradient(self, x: np.ndarray, g: np.ndarray, dtype: str, coeff: Any) -> tuple[np.ndarray, np.ndarray]:
        """Bits of the value and of the gradient, eager."""
        return self.backend.gradient(self.reverse, x, g, dtype, coeff)

    def tangent(self, x: np.ndarray, t: np.ndarray, dtype: str, coeff: Any) -> tuple[np.ndarray, np.ndarray]:
        """Bits of the value and of the tangent, eager."""
        return self.backend.tangent(self.reverse, x, t, dtype, coeff)

    def compiled_gradients(self, xs: Any, gs: Any, coeff: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By dtype: bits of the value and of the gradient, compiled."""
        return self.backend.compiled_gradients(self.name, xs, gs, coeff)

    def expected(self, g: np.ndarray, dtype: str, coeff: Any) -> np.ndarray:
        """What the oracle says of −λ·g; λ is already in the shape in which it multiplies g."""
        return oracle.backward(g, dtype, coeff, flush=self.backend.FLUSHES)


FORMS = [LayerForm(name, backend) for backend in BACKENDS for name in backend.FORMS]
FORWARD_MODE_FORMS = [LayerForm(name, backend) for backend in BACKENDS for name in backend.FORWARD_MODE]


@dataclass(frozen=True)
class Layer:
    """A layer class that holds λ: `GRL` of PyTorch, nnx or Linen."""

    name: str
    backend: Any

    def __str__(self) -> str:
        return f"{self.backend.BACKEND}-{self.name}"

    def __call__(self, *args: Any) -> Any:
        return self.backend.LAYERS[self.name](*args)


LAYERS = [Layer(name, backend) for backend in BACKENDS for name in backend.LAYERS]


@contextlib.contextmanager
def reproduced_by(form: LayerForm, dtype: str, x: np.ndarray, g: np.ndarray, coeff: Any, mode: str) -> Iterator[None]:
    """Attach to any exception a snippet that shows the failure without this test suite's help.

    Args:
        form: the layer form under test.
        dtype: of x and g.
        x, g: bits of the input and of the cotangent (or tangent).
        coeff: a `grl.parity.strategies.Coefficient`.
        mode: "gradient", "tangent" or "compiled".
    """
    try:
        yield
    except Exception as error:
        error.add_note(snippet(form, dtype, x, g, coeff, mode))
        raise


def snippet(form: LayerForm, dtype: str, x: np.ndarray, g: np.ndarray, coeff: Any, mode: str) -> str:
    """Python text that runs the form on these very bits, to be run at the root of the repository."""
    call = {
        "gradient": f"value, result = form.gradient(x, g, {dtype!r}, coeff)",
        "tangent": f"value, result = form.tangent(x, g, {dtype!r}, coeff)",
        "compiled": f"value, result = form.compiled_gradients({{{dtype!r}: x}}, {{{dtype!r}: g}}, coeff)[{dtype!r}]",
    }[mode]
    unsigned = f"np.uint{8 * np.asarray(g).itemsize}"
    return "\n".join(
        [
            "",
            f"To reproduce ({form.backend.SOURCE[form.name]}, {dtype}, {mode}), run at the root of the repository:",
            "    import numpy as np",
            f"    import {form.backend.__name__} as backend",
            "    from tests.support import layer_forms",
            f"    form = layer_forms.LayerForm({form.name!r}, backend)",
            f"    x = np.array({x.tolist()}, dtype={unsigned}).reshape({x.shape})  # bits",
            f"    g = np.array({g.tolist()}, dtype={unsigned}).reshape({g.shape})  # bits",
            f"    coeff = {coeff!r}",
            f"    {call}",
            f"    λ = np.reshape(coeff, {coeff.aligned(g.shape if dtype in oracle.REAL else g.shape[:-1]).shape})",
            f"    expected = form.expected(g, {dtype!r}, λ)",
            "    print(value, x, result, expected, sep='\\n')",
        ]
    )


def assert_reversed(
    form: LayerForm, dtype: str, x: np.ndarray, g: np.ndarray, coeff: Any, value: np.ndarray, result: np.ndarray
) -> None:
    """The value is x bit for bit, the result is −λ·g rounded once."""
    assert value.shape == x.shape, f"value of shape {value.shape}, expected {x.shape} [{form}, {dtype}]"
    assert np.array_equal(value, x), f"value {_show(value, dtype)}, expected {_show(x, dtype)} [{form}, {dtype}]"
    shape = g.shape if dtype in oracle.REAL else g.shape[:-1]
    expected = form.expected(g, dtype, coeff.aligned(shape))
    assert result.shape == g.shape, f"gradient of shape {result.shape}, expected {g.shape} [{form}, {dtype}]"
    wrong = ~oracle.same_bits(result, expected, dtype)
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} gradients wrong: "
        f"for g={_show(g[wrong], dtype)} got {_show(result[wrong], dtype)}"
        f", expected {_show(expected[wrong], dtype)} [{form}, {dtype}, coeff={coeff!r}]"
    )


def _show(bits: np.ndarray, dtype: str) -> str:
    bits = bits.reshape(-1)[:4]
    values = oracle.decode(bits, oracle.COMPLEX.get(dtype, dtype))
    return "[" + ", ".join(f"{v!s} (0x{b:x})" for v, b in zip(values, bits, strict=True)) + "]"
