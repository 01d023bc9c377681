"""What is left of the layer in a compiled program: nothing forward, one multiply backward."""

import re
from typing import Any

import numpy as np
import pytest

from tests.support.installed import HAS_JAX, HAS_TORCH
from tests.support.layer_forms import FORMS, LayerForm

TORCH_FORMS = [form for form in FORMS if form.backend.BACKEND == "torch"]
JAX_FORMS = [form for form in FORMS if form.backend.BACKEND == "jax"]
SIZE = 1024

if HAS_TORCH:
    import torch
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
if HAS_JAX:
    import jax
    import jax.numpy as jnp

    from grl.check.jax_programs import instructions


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_jitted_forward_has_no_arithmetic(form: LayerForm, dtype: str) -> None:
    x = jnp.ones(SIZE, dtype)
    assert instructions(lambda x: form.reverse(x, 0.5), x) == []
    assert instructions(lambda x, coeff: form.reverse(x, coeff), x, 0.5) == []
    assert instructions(lambda x: form.reverse(x, 0.5) * x, x).count("multiply") == 1  # they are seen


def _pull_back(form: LayerForm) -> Any:
    return lambda x, g, coeff: jax.vjp(lambda x: form.reverse(x, coeff), x)[1](g)[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_jitted_backward_is_one_multiply(form: LayerForm, dtype: str) -> None:
    x = jnp.ones(SIZE, dtype)
    for coeff in (0.5, jnp.full(SIZE, 0.5, jnp.float32)):
        names = instructions(_pull_back(form), x, x, coeff)
        signs = {"negate"} if np.ndim(coeff) else set()
        conversions = {"convert"} if dtype != "float32" else set()
        assert names.count("multiply") == 1, names
        assert set(names) <= {"multiply"} | signs | conversions, names


@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_jitted_backward_does_not_read_x(form: LayerForm) -> None:
    def both(x: Any, g: Any) -> Any:
        return jax.vjp(lambda x: form.reverse(x, 0.5), x)[1](g)[0]

    x = jnp.ones(SIZE)
    text = jax.jit(both).lower(x, x).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert len(re.findall(r" = f32\[1024\]\S* parameter\(", entry)) == 1  # g alone: XLA dropped x


@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_layer_adds_one_multiply_to_a_model(form: LayerForm) -> None:
    def of_model(reverse: Any) -> list[str]:
        def loss(x: Any, weights: Any) -> Any:
            return jnp.tanh(reverse(jnp.tanh(x * weights))).sum()

        return instructions(jax.grad(loss), jnp.ones(SIZE), jnp.ones(SIZE))

    with_layer, without = of_model(lambda x: form.reverse(x, 0.3)), of_model(lambda x: x)
    added = {name: with_layer.count(name) - without.count(name) for name in {*with_layer, *without}}
    assert added.pop("multiply") == 1
    assert not any(added.values()), added


def _graphs(form: LayerForm, coeff: Any, dtype: Any) -> dict[str, list[str]]:
    """The operators of the forward and of the backward graph that AOTAutograd hands to a compiler."""
    operators: dict[str, list[str]] = {}

    def keep(name: str) -> Any:
        def compiler(graph: Any, inputs: Any) -> Any:
            operators[name] = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
            return make_boxed_func(graph.forward)

        return compiler

    torch.compiler.reset()
    backend = aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward"))
    x = torch.ones(SIZE, dtype=dtype, requires_grad=True)
    if form.name == "GRL":
        layer = form.backend.LAYERS["GRL"](coeff)
        y = torch.compile(layer, fullgraph=True, backend=backend)(x)
    else:
        y = torch.compile(lambda x, coeff: form.reverse(x, coeff), fullgraph=True, backend=backend)(x, coeff)
    y.sum().backward()
    assert (x.grad == -0.5).all()
    return operators


@pytest.mark.parametrize("kind", ["number", "tensor"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_compiled_graphs(form: LayerForm, dtype: str, kind: str) -> None:
    coeff = 0.5 if kind == "number" else torch.tensor(0.5)
    operators = _graphs(form, coeff, getattr(torch, dtype))
    views = {"aten.view.default", "aten.alias.default", "aten.view_as.default", "aten.detach.default"}
    # What is done to λ before it is saved has the size of λ.
    scalars = {"aten.neg.default", "aten._to_copy.default", "prims.convert_element_type.default"}
    is_tensor = kind == "tensor" or form.name == "GRL"  # the layer's λ is a buffer
    assert set(operators["forward"]) <= views | (scalars if is_tensor else set()), operators
    arithmetic = [name for name in operators["backward"] if name not in views]
    assert arithmetic.count("aten.mul.Tensor") == 1, operators
    assert set(arithmetic) <= {"aten.mul.Tensor"} | (scalars if is_tensor else set()), operators
