"""Forward, R(x; λ) is x: the same bits, dtype, shape, memory, class and container, whatever x is."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grl.parity import strategies
from tests.support import oracle
from tests.support.installed import HAS_FLAX, HAS_JAX, HAS_TORCH, needs_flax, needs_jax, needs_torch
from tests.support.layer_forms import FORMS, LayerForm
from tests.support.several_processes import ROOT

TORCH_FORMS = [form for form in FORMS if form.backend.BACKEND == "torch"]
JAX_FORMS = [form for form in FORMS if form.backend.BACKEND == "jax"]
PYTREE_FORMS = [form for form in FORMS if form.name != "Function"]  # the raw rule takes one tensor

if HAS_TORCH:
    import torch

    from grl import torch_impl

    class Tagged(torch.Tensor):
        """A tensor subclass as users write them."""


if HAS_JAX:
    import jax
    import jax.numpy as jnp

    from grl import jax_impl
if HAS_FLAX:
    from flax import linen

Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(data=st.data())
def test_value_is_bit_identical(form: LayerForm, data: st.DataObject) -> None:
    dtype = data.draw(strategies.dtypes((*oracle.REAL, *oracle.COMPLEX)), "dtype")
    shape = data.draw(strategies.shapes(), "shape")
    bits = data.draw(strategies.arrays(dtype, shape), "x")
    coeff = data.draw(strategies.coefficients(shape), "coeff")
    backend = form.backend
    if backend.BACKEND == "jax":
        with backend.precision(dtype):
            x = backend.array(bits, dtype)
            y = form.reverse(x, backend.coefficient(coeff.native))
    else:
        x = backend.array(bits, dtype)
        y = form.reverse(x, backend.coefficient(coeff.native))
    assert np.array_equal(backend.bits(y), bits), f"out={y}, expected {x} [{form}(coeff={coeff!r})]"
    assert y.dtype == x.dtype
    assert y.shape == x.shape


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_default_coefficient_is_one(form: LayerForm) -> None:
    defaults: dict[str, Callable[..., Any]] = {
        "Function": lambda x: form.reverse(x),
        "GRL call": lambda x: form.reverse(x, None),
        "nnx call": lambda x: form.reverse(x, None),
        "linen call": lambda x: form.reverse(x, None),
        "GRL": lambda x: _layer(form)()(x),
        "nnx": lambda x: _layer(form)()(x),
        "linen": lambda x: _layer(form)().apply({}, x),
    }
    reverse = defaults.get(form.name, form.reverse)
    g = np.float32([1.0, -2.0]).view(np.uint32)
    _, gradient = form.backend.gradient(lambda x, _: reverse(x), g, g, "float32", 1.0)
    assert gradient.view(np.float32).tolist() == [-1.0, 2.0]


def _layer(form: LayerForm) -> Any:
    return form.backend.LAYERS[form.name]


# PyTorch: a view of the same storage, of the same class and layout


def _layouts() -> dict[str, Any]:
    if not HAS_TORCH:
        return {}
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    return {
        "contiguous": images,
        "channels last": images.to(memory_format=torch.channels_last),
        "transposed": images.transpose(1, 3),
        "sliced": images[:, 1:, ::2],
        "expanded": torch.ones(3, 1).expand(3, 4),
        "0-d": torch.tensor(2.0),
        "empty": torch.empty(0, 3),
        "complex": torch.view_as_complex(images.reshape(2, 3, 2, 5, 2)),
        "conjugated": torch.view_as_complex(images.reshape(2, 3, 2, 5, 2)).conj(),
    }


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("layout", _layouts())
@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_returns_a_view_of_the_same_storage(form: LayerForm, layout: str, requires_grad: bool) -> None:
    x = _layouts()[layout].detach().requires_grad_(requires_grad)
    y = form.reverse(x, 0.5)
    assert y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert y.storage_offset() == x.storage_offset()
    assert y.stride() == x.stride()
    assert y.shape == x.shape
    assert y.is_conj() == x.is_conj()
    assert y.requires_grad == requires_grad
    assert torch.equal(y, x)


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_gradient_of_any_layout(form: LayerForm) -> None:
    for name, layout in _layouts().items():
        x = layout.detach().requires_grad_()
        weights = torch.arange(x.numel(), dtype=torch.float32).reshape(x.shape)
        (gradient,) = torch.autograd.grad((form.reverse(x, 0.5) * weights).sum().real, x)
        assert torch.equal(gradient.resolve_conj(), (-0.5 * weights).to(x.dtype)), name


@needs_torch
def test_torch_exported_program_refuses_tangents_that_it_would_not_reverse() -> None:
    from torch.autograd import forward_ad

    x = torch.ones(3)
    exported = torch.export.export(torch_impl.GRL(0.5), (x,)).module()
    assert torch.equal(torch.autograd.functional.jacobian(exported, x), -0.5 * torch.eye(3))
    with pytest.raises(NotImplementedError, match="has no forward mode through a gradient reversal"):
        torch.func.jvp(exported, (x,), (x,))

    class Tangent(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            with forward_ad.dual_level():
                y = torch_impl.gradient_reversal(forward_ad.make_dual(x, torch.ones_like(x)), 0.5)
                return forward_ad.unpack_dual(y).tangent

    for grad in (True, False):
        refusal = pytest.raises(NotImplementedError, match="has no forward mode through a gradient reversal")
        with refusal, torch.set_grad_enabled(grad):
            torch.export.export(Tangent(), (x,), strict=False)


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_gradient_of_8_bits_is_rounded_once(form: LayerForm) -> None:
    values = torch.tensor([0.5, 1.0, 3.5, -6.0])
    x = values.to(torch.float8_e4m3fn).requires_grad_()
    for coeff in (0.3, np.array(0.3)):
        (gradient,) = torch.autograd.grad(form.reverse(x, coeff), x, x.detach())
        assert torch.equal(gradient.float(), (values * -0.3).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_keeps_a_tensor_subclass(form: LayerForm) -> None:
    x = torch.ones(3, requires_grad=True)
    y = form.reverse(x.as_subclass(Tagged), 0.5)
    assert type(y) is Tagged
    y.sum().backward()
    assert torch.equal(x.grad.as_subclass(torch.Tensor), torch.full((3,), -0.5))


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_takes_a_parameter(form: LayerForm) -> None:
    x = torch.nn.Parameter(torch.ones(3))
    y = form.reverse(x, 0.5)
    assert type(y) is torch.Tensor
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), -0.5))


@pytest.mark.parametrize("coeff", [0.5, np.array(0.5), np.array([0.5, 1.0]), np.ones((2, 3))], ids=np.shape)
@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_meta_tensors_work_and_the_coefficient_follows_x_to_its_device(form: LayerForm, coeff: Any) -> None:
    x = torch.empty(2, 3, device="meta", dtype=torch.bfloat16, requires_grad=True)
    y = form.reverse(x, coeff)
    (gradient,) = torch.autograd.grad(y, x, torch.empty_like(y))
    for tensor in (y, gradient):
        assert (tensor.device.type, tensor.shape, tensor.dtype) == ("meta", x.shape, x.dtype)


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_value_is_no_leaf_and_x_keeps_its_flags(form: LayerForm) -> None:
    x = torch.ones(3, requires_grad=True)
    y = form.reverse(x, 0.5)
    assert x.is_leaf
    assert not y.is_leaf


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_no_grad_cuts_the_graph(form: LayerForm) -> None:
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        y = form.reverse(x, 0.5)
    other = torch.ones(3, requires_grad=True)
    assert torch.autograd.grad((y * other).sum(), (x, other), allow_unused=True)[0] is None


# JAX: no arithmetic (see test_compiled_cost), the same buffer where nothing differentiates


@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_jax_returns_a_concrete_array_itself(form: LayerForm) -> None:
    x = jnp.ones((2, 3))
    assert form.reverse(x, 0.5) is x


@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_jax_donated_input_is_returned_without_a_copy(form: LayerForm) -> None:
    x = jnp.arange(1024.0)
    pointer = x.unsafe_buffer_pointer()
    y = jax.jit(lambda x: form.reverse(x, 0.5), donate_argnums=0)(x)
    assert y.unsafe_buffer_pointer() == pointer


_SHARDED = """
import json
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.support import jax_forms
mesh = Mesh(jax.devices(), ("data",))
sharding = NamedSharding(mesh, PartitionSpec("data"))
x = jax.device_put(jnp.arange(32.0).reshape(8, 4), sharding)
report = {}
for name, reverse in jax_forms.FORMS.items():
    step = jax.jit(lambda x, g: (reverse(x, 0.5), jax.vjp(lambda x: reverse(x, 0.5), x)[1](g)[0]))
    y, gradient = step(x, x)
    text = step.lower(x, x).compile().as_text()
    report[name] = dict(
        devices=len(jax.devices()),
        eager=reverse(x, 0.5).sharding == sharding,
        value=y.sharding.is_equivalent_to(sharding, 2),
        gradient=gradient.sharding.is_equivalent_to(sharding, 2),
        right=bool((gradient == -0.5 * x).all()),
        collectives=[c for c in ("all-reduce", "all-gather", "all-to-all", "collective-permute") if c + "(" in text],
    )
print(json.dumps(report))
"""


@needs_jax
def test_jax_keeps_the_sharding_and_adds_no_collective() -> None:
    # In a process of its own, since the number of devices is fixed once JAX has started.
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_PLATFORMS="cpu")
    run = subprocess.run([sys.executable, "-c", _SHARDED], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = {"devices": 4, "eager": True, "value": True, "gradient": True, "right": True, "collectives": []}
    report = json.loads(run.stdout)
    for form in JAX_FORMS:
        assert report[form.name] == expected, form


def _without_plain_strides() -> dict[str, Any]:
    eye = torch.eye(3)
    return {
        "sparse_coo": eye.to_sparse(),
        "sparse_csr": eye.to_sparse_csr(),
        "sparse_csc": eye.to_sparse_csc(),
        "sparse_bsr": torch.eye(4).to_sparse_bsr((2, 2)),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided),
    }


@needs_torch
@pytest.mark.filterwarnings("ignore:Sparse|The PyTorch API of nested:UserWarning")
@pytest.mark.parametrize("kind", ["sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "nested"])
def test_torch_tensors_without_views_are_refused_in_a_sentence(kind: str) -> None:
    x = _without_plain_strides()[kind].requires_grad_()
    layout = (
        "torch.strided; expected one of layout torch.jagged" if kind == "nested" else f"torch.{kind}; expected a dense"
    )
    for coeff in (0.5, torch.tensor(0.5)):
        for reverse in (torch_impl.gradient_reversal, torch_impl.GradientReverseFunction.apply):
            with pytest.raises(TypeError, match=f"^x: got a .*tensor of layout {layout}"):
                reverse(x, coeff)


# Any pytree


def _leaf(form: LayerForm, values: Any) -> Any:
    bits = np.float32(values).view(np.uint32)
    return form.backend.array(bits, "float32")


def _containers(a: Any, b: Any) -> dict[str, Any]:
    return {
        "tuple": (a, b),
        "list": [a, b],
        "dict": {"a": a, "b": b},
        "nested": {"outer": [(a, {"inner": b}), a]},
        "named tuple": Pair(a, b),
        "ordered dict": OrderedDict(b=b, a=a),
        "empty": (),
        "one leaf": [a],
    }


@pytest.mark.parametrize("container", _containers(None, None))
@pytest.mark.parametrize("form", PYTREE_FORMS, ids=str)
def test_any_pytree_goes_through(form: LayerForm, container: str) -> None:
    a, b = _leaf(form, [1.0, 2.0]), _leaf(form, [[3.0]])
    x = _containers(a, b)[container]
    if form.backend.BACKEND == "torch":
        from torch.utils import _pytree as pytree

        y, structure, leaves = form.reverse(x, 0.5), pytree.tree_structure, pytree.tree_leaves
        a.requires_grad_()
        b.requires_grad_()
        outputs = [2 * leaf for leaf in leaves(form.reverse(x, 0.5))]
        total = sum(leaf.sum() for leaf in outputs) + 0 * (a.sum() + b.sum())
        gradients = torch.autograd.grad(total, (a, b))
    else:
        y, structure, leaves = form.reverse(x, 0.5), jax.tree.structure, jax.tree.leaves
        gradients = jax.grad(
            lambda a, b: (
                sum(2 * leaf.sum() for leaf in leaves(form.reverse(_containers(a, b)[container], 0.5)))
                + 0 * (a.sum() + b.sum())
            ),
            argnums=(0, 1),
        )(a, b)
    assert structure(y) == structure(x)
    assert type(y) is type(x)
    for mine, theirs in zip(leaves(y), leaves(x), strict=True):
        assert np.array_equal(form.backend.bits(mine), form.backend.bits(theirs))
    for leaf, gradient in zip((a, b), gradients, strict=True):
        count = sum(other is leaf for other in leaves(x))
        assert (np.asarray(gradient) == -0.5 * 2 * count).all()


@pytest.mark.parametrize("form", PYTREE_FORMS, ids=str)
def test_leaves_without_gradient_pass_untouched(form: LayerForm) -> None:
    if form.backend.BACKEND == "torch":
        leaves = [torch.arange(3), torch.tensor([True, False]), torch.tensor(3, dtype=torch.uint8)]
        leaves += [torch.device("cpu"), torch.float32, torch.relu, torch.nn.Linear, torch.ops.aten.relu]
        leaves += [torch.autograd.Function.apply]
    else:
        leaves = [jnp.arange(3), jnp.array([True, False]), jnp.uint8(3), jax.random.key(0), jax.random.PRNGKey(0)]
        leaves += [jax.devices()[0], jax.nn.relu, jax.jit(len)]
    leaves += [7, 2.5, 1j, True, None, "label", b"bytes", slice(3), range(3), np.float32(1.5), np.dtype("f4"), np.sin]
    leaves += [len, lambda x: x, functools.partial(max, 1)]
    for before, after in zip(leaves, form.reverse(leaves, 0.5), strict=True):
        assert after is before


@dataclasses.dataclass
class Batch:
    images: Any


class Record(dict[str, Any]):
    pass


class Scale:
    def __init__(self, x: Any) -> None:
        self.x = x

    def __call__(self, y: Any) -> Any:
        return self.x * y


HIDING = {
    "dataclass": Batch,
    "dict of a class": lambda x: [Record(x=x)],
    "callable": Scale,
    "method": lambda x: Scale(x).__call__,
    "builtin method": lambda x: x.__mul__,
    "partial": lambda x: functools.partial(max, x),
}


@pytest.mark.parametrize("make", HIDING.values(), ids=HIDING)
@pytest.mark.parametrize("form", PYTREE_FORMS, ids=str)
def test_object_that_may_hide_a_gradient_is_refused(form: LayerForm, make: Any) -> None:
    with pytest.raises(TypeError, match=r"^x: got a \S+; expected .* in tuples, lists and dicts \(pytrees\)\."):
        form.reverse(make(_leaf(form, [1.0])), 0.5)


@needs_torch
def test_torch_module_is_no_function_but_holds_parameters() -> None:
    for module in (torch.nn.Linear(2, 2), torch.nn.ParameterList([torch.nn.Parameter(torch.ones(2))])):
        with pytest.raises(TypeError, match=r"^x: got a torch\.nn\."):
            torch_impl.gradient_reversal(module, 0.5)


@needs_flax
def test_linen_module_is_no_function_but_holds_parameters() -> None:
    with pytest.raises(TypeError, match=r"^x: got a flax\.linen\."):
        jax_impl.gradient_reversal(linen.Dense(2), 0.5)


@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_jax_leaves_without_gradient_pass_through_grad_and_jit(form: LayerForm) -> None:
    @jax.jit
    def gradient(x: Any, labels: Any, key: Any) -> Any:
        def loss(x: Any) -> Any:
            y, count, again = form.reverse((x, labels, key), 0.5)
            return (y * jax.random.normal(again, y.shape)).sum() * count.sum().astype(y.dtype)

        return jax.grad(loss)(x)

    key = jax.random.key(0)
    expected = -0.5 * 3 * jax.random.normal(key, (4,))
    assert np.allclose(gradient(jnp.ones(4), jnp.arange(3), key), expected, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_integer_array_alone_passes_untouched(form: LayerForm) -> None:
    if form.backend.BACKEND == "jax":
        x = jnp.arange(3)
        assert form.reverse(x, 0.5) is x
        return
    tensor = torch.arange(3)
    y = form.reverse(tensor, 0.5)
    assert y.data_ptr() == tensor.data_ptr()
    assert y.dtype == tensor.dtype
    assert not y.requires_grad


@pytest.mark.parametrize("form", PYTREE_FORMS, ids=str)
def test_array_of_another_library_is_refused(form: LayerForm) -> None:
    if form.backend.BACKEND == "torch":
        other: Any = np.ones(3)
    elif HAS_TORCH:
        other = torch.ones(3)
    else:
        pytest.skip("needs another array library")
    with pytest.raises(
        TypeError, match=r"x: got a (numpy\.ndarray|torch\.Tensor); expected (torch tensors|JAX arrays)"
    ):
        form.reverse(other, 0.5)


@pytest.mark.parametrize("form", [f for f in FORMS if f.name.split()[0] in ("GRL", "nnx", "linen")], ids=str)
def test_reverse_false_passes_values_and_gradients_on(form: LayerForm) -> None:
    layer = form.backend.LAYERS[form.name.split()[0]](0.5)
    call = (
        (lambda x: layer.apply({}, x, reverse=False)) if "linen" in form.name else (lambda x: layer(x, reverse=False))
    )
    g = np.float32([1.5, -2.0, np.nan]).view(np.uint32)
    value, gradient = form.backend.gradient(lambda x, _: call(x) * 1, g, g, "float32", None)
    assert np.array_equal(value, g)
    assert oracle.same_bits(gradient, g, "float32").all()
