"""This project's layers in every cell of the matrix that `grl check` shows: right, or refused for a known reason."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec

import pytest

from grl.backends import installed_backends
from grl.check.check_layer import check_layer
from grl.check.form import Form
from grl.check.forms import our_forms
from grl.check.matrix import transformations

FORMS = [form for backend in installed_backends() for form in our_forms(backend)]
CELLS = [(form, name) for form in FORMS for name in transformations(form.backend)]

_IN_PLACE = "is a view and is being modified inplace"  # PyTorch refuses it for every Function that returns a view
_FORWARD_MODE = "can't apply forward-mode (autodiff|differentiation)"  # JAX refuses it for every custom_vjp
_TRANSPOSE = "Transpose rule"  # a custom_vjp has none: its value is not the linear map that its derivative is
_OF_JAX = {
    "jacfwd": _FORWARD_MODE,
    "jvp": _FORWARD_MODE,
    "linearize": _FORWARD_MODE,
    "hvp, reverse over forward": _FORWARD_MODE,
    "jit of jvp": _FORWARD_MODE,
    "while_loop, jvp of it": _FORWARD_MODE,
    "linear_transpose": _TRANSPOSE,
}
REFUSALS = {
    ("torch", "gradient_reversal"): {"in-place operation afterwards": _IN_PLACE},
    ("torch", "GradientReverseFunction"): {"in-place operation afterwards": _IN_PLACE},
    ("torch", "GRL"): {"in-place operation afterwards": _IN_PLACE},
    ("jax", "gradient_reversal"): _OF_JAX,
    ("jax", "gradient_reversal_jvp"): {"linear_transpose": _TRANSPOSE},
    ("jax", "GRL (nnx)"): _OF_JAX,
    ("jax", "GRL (Linen)"): _OF_JAX,
}
"""By form: every transformation that is refused, and the exception's words. Docstrings name each of these limits."""


def _absent(backend: str) -> dict[str, str]:
    """Return the transformations that this machine cannot run, and why."""
    if backend == "torch":
        import torch

        if torch.torch_version.TorchVersion(torch.__version__) < "2.13":
            # A graph for each Python number λ, until PyTorch's limit of eight: pytorch's own rule up to 2.12.
            REFUSALS["torch", "GradientReverseFunction"]["compile, ramp of λ"] = "FailOnRecompileLimitHit"
        absent = {} if torch.cuda.is_available() else dict.fromkeys(("CUDA", "CUDA graph"), "no CUDA device")
        needed = {"ONNX": "onnx"}
    else:
        import jax

        several = [name for name, row in transformations("jax").items() if "_mesh" in row.examine.__code__.co_names]
        assert several, "no transformation of JAX deals out over devices"
        absent = dict.fromkeys(several, "one device") if len(jax.devices()) == 1 else {}
        needed = {"export, serialised": "flatbuffers"}
        needed |= {name: "equinox" for name in transformations("jax") if name.startswith("equinox")}
        needed |= {name: "flax" for name in transformations("jax") if name.startswith(("nnx", "linen"))}
    return absent | {name: "not installed" for name, package in needed.items() if find_spec(package) is None}


ABSENT = {backend: _absent(backend) for backend in installed_backends()}


@pytest.mark.parametrize(
    ("form", "transformation"), CELLS, ids=[f"{f.backend}-{f.name}-{name}".replace(" ", "-") for f, name in CELLS]
)
def test_every_cell_is_right_or_refused_for_a_known_reason(form: Form, transformation: str) -> None:
    """No cell may become better or worse unseen: one that no longer refuses, or applies no more, fails as well."""
    _assert_as_expected(form, transformation)


def _assert_as_expected(form: Form, transformation: str) -> None:
    (cell,) = check_layer(form, backend=form.backend, transformations=[transformation])
    refusal = REFUSALS[form.backend, form.name].get(transformation)
    absence = ABSENT[form.backend].get(transformation)
    expected = ("n/a", absence) if absence else ("refuses", refusal) if refusal else ("ok", "^$")
    assert cell.status == expected[0], cell
    assert re.search(expected[1], cell.reason), cell


@pytest.mark.parametrize("form", FORMS, ids=[f"{form.backend}-{form.name}" for form in FORMS])
def test_a_form_that_loses_the_coefficient_of_its_call_is_noticed(form: Form) -> None:
    """Its cells become n/a, as if no question arose: the exact table must object."""
    assert form.call is not None
    with pytest.raises(AssertionError, match="status='n/a'"):
        _assert_as_expected(replace(form, call=None), "per-sample λ")


def test_the_table_of_refusals_names_forms_and_transformations_that_exist() -> None:
    known: dict[tuple[str, str], set[str]] = {}
    for form, name in CELLS:
        known.setdefault((form.backend, form.name), set()).add(name)
    assert known.keys() == {key for key in REFUSALS if key[0] in ABSENT and key in known}
    for key, refused in REFUSALS.items():
        assert refused.keys() <= known.get(key, refused.keys()), key


def test_every_transformation_that_is_written_is_in_the_table() -> None:
    """One that was left out of its module's table would never be asked."""
    import importlib

    from grl.check.form import Transformation

    modules = [f"{backend}_{part}" for backend, parts in {
        "torch": ("derivatives", "tensors", "programs"), "jax": ("derivatives", "programs", "modules")
    }.items() if backend in ABSENT for part in parts]  # fmt: skip
    for name in modules:
        module = importlib.import_module(f"grl.check.{name}")
        written = {row.name for row in vars(module).values() if isinstance(row, Transformation)}
        assert written == {row.name for row in module.TRANSFORMATIONS}, name
    for backend in ABSENT:
        assert len(transformations(backend)) == sum(
            len(importlib.import_module(f"grl.check.{name}").TRANSFORMATIONS) for name in modules if backend in name
        ), "two transformations have one name"
