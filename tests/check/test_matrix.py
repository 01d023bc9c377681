"""This project's layers in every cell of the matrix that `grl check` shows: right, or refused for a known reason."""

from __future__ import annotations

import re

import pytest

from grl.check.check_layer import check_layer, installed_backends
from grl.check.forms import our_forms
from grl.check.matrix import Form, transformations

CELLS = [
    pytest.param(form, name, id=f"{backend}-{form.name}-{name}".replace(" ", "-"))
    for backend in installed_backends()
    for form in our_forms(backend)
    for name in transformations(backend)
]
FORWARD_MODE = ("jacfwd", "jvp", "linearize", "hvp, reverse over forward", "jit of jvp", "while_loop, jvp of it")
# All that may be refused, and why: each a limit of the framework that the docstrings name.
REFUSALS = {
    **{
        ("torch", form, "in-place operation afterwards"): "is a view and is being modified inplace"
        for form in ("gradient_reversal", "GradientReverseFunction", "GRL")
    },
    # Up to torch 2.12 a graph for each λ, unless it is given as a tensor.
    ("torch", "GradientReverseFunction", "compile, ramp of λ"): "FailOnRecompileLimitHit",
    **{
        ("jax", form, name): "can't apply forward-mode autodiff|can't apply forward-mode differentiation"
        for form in ("gradient_reversal", "GRL (nnx)", "GRL (Linen)")
        for name in FORWARD_MODE
    },
    **{
        ("jax", form, "linear_transpose"): "Transpose rule"
        for form in ("gradient_reversal", "gradient_reversal_jvp", "GRL (nnx)", "GRL (Linen)")
    },
}


@pytest.mark.parametrize(("form", "transformation"), CELLS)
def test_every_cell_is_right_or_refused_for_a_known_reason(form: Form, transformation: str) -> None:
    (cell,) = check_layer(form, backend=form.backend, transformations=[transformation])
    assert cell.status in ("ok", "n/a", "refuses"), cell
    if cell.status == "refuses":
        expected = REFUSALS.get((form.backend, form.name, transformation))
        assert expected is not None, cell
        assert re.search(expected, cell.reason), cell
