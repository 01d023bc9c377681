"""What the layer keeps for the backward pass: λ as it was at the forward call, and nothing of the size of x."""

import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.installed import HAS_JAX, HAS_TORCH
from tests.support.layer_forms import FORMS, LAYERS, Layer, LayerForm

TORCH_FORMS = [form for form in FORMS if form.backend.BACKEND == "torch"]
JAX_FORMS = [form for form in FORMS if form.backend.BACKEND == "jax"]
SIZE = 1000

if HAS_TORCH:
    import torch

    class Labelled(torch.Tensor):
        """A tensor subclass as users write them."""


if HAS_JAX:
    import jax
    import jax.numpy as jnp


# Nothing of the size of x


@pytest.mark.parametrize("coeff", [0.5, np.float32(0.5), np.array(0.5), np.full(1, 0.5)], ids=repr)
@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_saves_nothing_of_the_size_of_x(form: LayerForm, coeff: Any) -> None:
    saved: list[int] = []
    x = torch.ones(SIZE, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        y = form.reverse(x, form.backend.coefficient(coeff))
    kept = [value.numel() for value in vars(y.grad_fn).values() if isinstance(value, torch.Tensor)]
    assert sum(saved) + sum(kept) <= 1  # λ itself, where it is a tensor


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_frees_x_while_the_graph_lives(form: LayerForm) -> None:
    leaf = torch.ones(SIZE, requires_grad=True)
    x = leaf + 1  # saves nothing itself
    alive = weakref.ref(x)
    y = form.reverse(x, 0.5)
    graph = y.grad_fn
    del x, y
    gc.collect()
    assert alive() is None
    assert graph is not None


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_allocates_nothing_forward_and_one_gradient_backward(form: LayerForm) -> None:
    x = torch.ones(SIZE, requires_grad=True)
    g = torch.ones(SIZE)
    with torch.profiler.profile(profile_memory=True) as profile:
        y = form.reverse(x, 0.5)
    assert sum(event.self_cpu_memory_usage for event in profile.key_averages()) == 0
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(y, x, g)
    allocated = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
    assert sum(allocated) <= 4 * SIZE + 64


@pytest.mark.parametrize("coeff", [0.5, np.array(0.5), np.full(1, 0.5)], ids=repr)
@pytest.mark.parametrize("form", JAX_FORMS, ids=str)
def test_jax_keeps_no_residual_of_the_size_of_x(form: LayerForm, coeff: Any) -> None:
    coeff = form.backend.coefficient(coeff)
    _, pull = jax.vjp(lambda x: form.reverse(x, coeff), jnp.ones(SIZE))
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(pull)) <= 2  # λ itself
    _, pull = jax.jit(lambda x: jax.vjp(lambda x: form.reverse(x, coeff), x))(jnp.ones(SIZE))
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(pull)) <= 2


# λ is the one of the forward call


def _unless_refused(compute: Callable[[], Any]) -> Any:
    """The result, or None where PyTorch refuses because something was changed in place."""
    try:
        return compute()
    except RuntimeError as error:
        if not re.search("in-?place", str(error)):
            raise
        return None


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_tensor_coefficient_changed_before_backward_never_gives_a_wrong_gradient(form: LayerForm) -> None:
    for shape, x_shape in (((), (3,)), ((3,), (3,)), ((2,), (2, 3)), ((2, 1), (2, 3))):
        coeff = torch.full(shape, 0.5)
        x = torch.ones(x_shape, requires_grad=True)
        y = form.reverse(x, coeff)
        coeff.fill_(7.0)
        gradient = _unless_refused(lambda x=x, y=y: torch.autograd.grad(y.sum(), x)[0])
        assert gradient is None or torch.equal(gradient, torch.full_like(x, -0.5))


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Halves, where JAX could take the memory as it is instead of copying it: at a multiple of 64 bytes."""
    memory = np.zeros(64 + int(np.prod(shape)) * 4, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + int(np.prod(shape)) * 4].view(np.float32).reshape(shape)
    array[...] = 0.5
    return array


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_coefficient_in_memory_that_others_write_to_does_not_matter(form: LayerForm) -> None:
    """Nobody counts the versions of what NumPy shares, and `.data` is not counted either."""
    for array in (np.array(0.5), np.array([0.5, 0.5, 0.5])):
        x, coeff = torch.ones(3, requires_grad=True), torch.from_numpy(array)
        y = form.reverse(x, coeff)
        array[...] = 7.0
        coeff.data.fill_(7.0)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.full_like(x, -0.5))


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_coefficient_changed_before_the_pullback_does_not_matter(form: LayerForm) -> None:
    for shape in ((), (3,)):
        coeff = torch.full(shape, 0.5)
        _, pull = torch.func.vjp(lambda x, coeff=coeff: form.reverse(x, coeff), torch.ones(3))
        coeff.fill_(7.0)
        assert torch.equal(pull(torch.ones(3))[0], torch.full((3,), -0.5))


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_one_number_spread_out_is_kept_as_one(form: LayerForm) -> None:
    x = torch.ones(1000, 100, requires_grad=True)
    assert form.reverse(x, torch.tensor(0.5).expand(1000, 100)).grad_fn.coeff.numel() == 1


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_checkpoint_that_finds_another_coefficient_does_not_matter(form: LayerForm) -> None:
    from torch.utils.checkpoint import checkpoint

    half, seven = torch.tensor(0.5), torch.tensor(7.0)
    pairs: list[tuple[Any, Any]] = [(0.5, 7.0), (half, seven), (half.expand(3).clone(), seven.expand(3))]
    pairs += [(one.as_subclass(Labelled), other.as_subclass(Labelled)) for one, other in pairs[1:]]
    for before, after in pairs:
        held, x = [before], torch.ones(3, requires_grad=True)
        y = checkpoint(lambda x, held=held: form.reverse(x * 2, held[0]) * 3, x, use_reentrant=False)
        held[0] = after
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.full_like(x, -3.0))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_numpy_coefficient_changed_before_backward_does_not_matter(form: LayerForm) -> None:
    for shape, x_shape in (((), (3,)), ((3,), (3,)), ((2,), (2, 3))):
        coeff = _aligned(shape)
        ones = np.ones(x_shape, dtype=np.float32).view(np.uint32)
        if form.backend.BACKEND == "torch":
            x = form.backend.array(ones, "float32").requires_grad_()
            y = form.reverse(x, coeff)
            coeff[...] = 7.0
            (gradient,) = torch.autograd.grad(y.sum(), x)
        else:
            y, pull = jax.vjp(lambda x, coeff=coeff: form.reverse(x, coeff), form.backend.array(ones, "float32"))
            coeff[...] = 7.0
            (gradient,) = pull(y)
        assert (np.asarray(gradient) == -0.5).all()


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.name != "linen"], ids=str)
def test_layer_coeff_changed_before_backward_does_not_matter(layer: Layer) -> None:
    made = layer(0.5)
    ones = layer.backend.array(np.ones(3, dtype=np.float32).view(np.uint32), "float32")
    if layer.backend.BACKEND == "torch":
        y = made(ones.requires_grad_())
        made.coeff = 7.0
        made.step()
        (gradient,) = torch.autograd.grad(y.sum(), ones)
    else:
        y, pull = jax.vjp(made, ones)
        made.coeff = 7.0
        made.step()
        (gradient,) = pull(y)
    assert (np.asarray(gradient) == -0.5).all()


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_backward_twice_and_retained_graphs(form: LayerForm) -> None:
    x = torch.ones(3, requires_grad=True)
    y = form.reverse(x, 0.5).sum()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(y, x, retain_graph=True)
        assert torch.equal(gradient, torch.full((3,), -0.5))
    form.reverse(x, 0.5).sum().backward()
    form.reverse(x, 0.25).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), -0.75))


# In-place operations after the layer work or raise; they never give a wrong gradient

_IN_PLACE = {
    "relu_": (lambda y: y.relu_(), lambda y: y.relu()),
    "mul_": (lambda y: y.mul_(3.0), lambda y: y * 3.0),
    "slice add_": (lambda y: y[1:].add_(1.0), None),
    "copy_": (lambda y: y.copy_(torch.zeros(3)), lambda y: 0 * y),
}


@pytest.mark.parametrize("coeff", [0.5, np.array(0.5)], ids=["number", "tensor"])
@pytest.mark.parametrize("change", _IN_PLACE)
@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_in_place_on_the_result(form: LayerForm, change: str, coeff: Any) -> None:
    in_place, plain = _IN_PLACE[change]
    leaf = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    y = form.reverse(leaf * 2, form.backend.coefficient(coeff))

    def compute() -> Any:
        in_place(y)
        return torch.autograd.grad((y * y).sum(), leaf)[0]

    gradient = _unless_refused(compute)
    if gradient is None:
        return
    assert plain is not None
    reference = leaf.detach().clone().requires_grad_()
    through = plain(reference * 2)
    (expected,) = torch.autograd.grad((through * through).sum(), reference)
    assert torch.equal(gradient, -0.5 * expected)


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_in_place_on_x_after_the_layer(form: LayerForm) -> None:
    leaf = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    x = leaf * 2
    y = form.reverse(x, 0.5)

    def compute() -> Any:
        x.mul_(3.0)  # y is a view of x and changes with it
        return torch.autograd.grad(y.sum(), leaf)[0]

    gradient = _unless_refused(compute)
    assert gradient is None or torch.equal(gradient, torch.full((3,), -0.5 * 2 * 3))


@pytest.mark.parametrize("form", TORCH_FORMS, ids=str)
def test_torch_relu_in_place_after_the_layer_is_refused_by_name(form: LayerForm) -> None:
    y = form.reverse(torch.ones(3, requires_grad=True) * 2, 0.5)
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        torch.nn.ReLU(inplace=True)(y)
