"""PyTorch's layer forms, and how a test differentiates and compiles any of them; `jax_forms` has the same names."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from grl.bits import bits_of as bits
from grl.bits import dtype_of as dtype_name
from grl.bits import tensor_of as array
from grl.torch_impl import GRL, GradientReverseFunction, gradient_reversal

BACKEND = "torch"
FLUSHES = False  # PyTorch keeps subnormals
FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "Function": GradientReverseFunction.apply,
    "gradient_reversal": gradient_reversal,
    "GRL": lambda x, coeff: GRL(coeff)(x),
    "GRL call": lambda x, coeff: GRL()(x, coeff),
}
LAYERS = {"GRL": GRL}
FORWARD_MODE = tuple(FORMS)
COMPILED_KINDS = ("float", "0-d array", "per sample")  # each kind costs a compilation; an int is part of the program
SOURCE = {
    "Function": "grl.torch_impl.GradientReverseFunction.apply(x, coeff)",
    "gradient_reversal": "grl.torch_impl.gradient_reversal(x, coeff)",
    "GRL": "grl.torch_impl.GRL(coeff)(x)",
    "GRL call": "grl.torch_impl.GRL()(x, coeff)",
}
# Inductor needs a C++ compiler. Without one, the graphs of AOTAutograd run eagerly.
COMPILER = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
# One test function is compiled for every form, dtype and kind of λ: more programs than the default limit of 8.
torch._dynamo.config.recompile_limit = 100


def coefficient(native: Any) -> Any:
    """Return λ as a user of PyTorch would pass it: NumPy arrays become tensors."""
    return torch.tensor(native) if isinstance(native, np.ndarray) else native


def gradient(
    reverse: Callable[[Any, Any], Any], x: np.ndarray, g: np.ndarray, dtype: str, coeff: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits of the value and of the gradient of x, for the cotangent g."""
    tensor = array(x, dtype).requires_grad_()
    y = reverse(tensor, coefficient(coeff))
    (gradient,) = torch.autograd.grad(y, tensor, array(g, dtype))
    assert dtype_name(gradient) == dtype, f"the gradient of {dtype} came back as {dtype_name(gradient)}"
    return bits(y), bits(gradient)


def tangent(
    reverse: Callable[[Any, Any], Any], x: np.ndarray, t: np.ndarray, dtype: str, coeff: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits of the value and of the tangent, in forward mode."""
    y, tangent, *_ = torch.func.jvp(lambda x: reverse(x, coefficient(coeff)), (array(x, dtype),), (array(t, dtype),))
    return bits(y), bits(tangent)


@functools.cache
def _compiled(form: str) -> Callable[..., Any]:
    layer = GRL()
    if form == "GRL":  # λ is read from the layer instead of passed
        program = torch.compile(lambda *xs: [layer(x) for x in xs], fullgraph=True, backend=COMPILER)

        def run(coeff: Any, *xs: torch.Tensor) -> Any:
            layer.coeff = coeff
            return program(*xs)

        return run
    reverse = layer if form == "GRL call" else FORMS[form]
    return torch.compile(lambda coeff, *xs: [reverse(x, coeff) for x in xs], fullgraph=True, backend=COMPILER)


def compiled_gradients(
    form: str, xs: dict[str, np.ndarray], gs: dict[str, np.ndarray], coeff: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, by dtype, the bits of the value and of the gradient, compiled."""
    results: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    # A program has several dtypes, because compiling is slow. It never has both 16-bit ones: Inductor warns about that.
    for group in (("bfloat16", "float32", "float64"), ("float16",)):
        names = [dtype for dtype in group if dtype in xs]
        tensors = [array(xs[dtype], dtype).requires_grad_() for dtype in names]
        ys = _compiled(form)(coefficient(coeff), *tensors) if names else []
        cotangents = [array(gs[dtype], dtype) for dtype in names]
        gradients = torch.autograd.grad(ys, tensors, cotangents) if names else []
        results |= {dtype: (bits(y), bits(g)) for dtype, y, g in zip(names, ys, gradients, strict=True)}
    return results
