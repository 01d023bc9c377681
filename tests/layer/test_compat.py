"""Other libraries' names: the arguments, attributes and gradients of each original, restated from its semantics."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from tests.support.installed import needs_jax, needs_torch

torch = pytest.importorskip("torch")

from grl.torch_impl import compat


def gradient(layer: Any, *arguments: Any) -> Any:
    """Return what reaches x = (1, 1, 1) of the gradient (1, 2, 3)."""
    x = torch.ones(3, requires_grad=True)
    y = layer(x, *arguments)
    assert torch.equal(y, x)
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    return x.grad


def reversed_by(coeff: float) -> Any:
    return torch.tensor([1.0, 2.0, 3.0]) * -coeff


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (compat.revgrad, (0.5,)),
        (compat.revgrad, (torch.tensor(0.5),)),  # as pytorch-revgrad's own layer calls it
        (compat.grad_reverse, (0.5,)),
        (compat.ReverseLayerF.apply, (0.5,)),
        (compat.GradReverse.apply, (0.5,)),
        (compat.GradientReverseFunction.apply, (0.5,)),
        (compat.GradientReverseLayer(), (0.5,)),
        (compat.GradientReverseLayer(0.5), ()),
        (compat.RevGrad(0.5), ()),
        (compat.RevGrad(alpha=0.5), ()),
        (compat.GradientReversal(0.5), ()),
        (compat.GradientReversal(weight=0.5), ()),
        (compat.GradientReversal(lambda_=0.5), ()),
    ],
)
def test_each_name_takes_its_originals_arguments(call: Any, arguments: tuple[Any, ...]) -> None:
    assert torch.equal(gradient(call, *arguments), reversed_by(0.5))


@pytest.mark.parametrize(
    "call",
    [
        compat.grad_reverse,
        compat.GradientReverseFunction.apply,
        compat.GradientReverseLayer(),
        compat.RevGrad(),
        compat.GradientReversal(),
    ],
)
def test_the_factor_is_one_where_the_originals_has_that_default(call: Any) -> None:
    assert torch.equal(gradient(call), reversed_by(1.0))


def test_the_weight_of_pytorch_adapt_is_updated_and_loaded() -> None:
    layer = compat.GradientReversal()
    layer.update_weight(0.25)
    assert (layer.weight, layer.lambda_) == (0.25, 0.25)
    assert torch.equal(gradient(layer), reversed_by(0.25))
    layer.lambda_ = 2.0
    assert torch.equal(gradient(layer), reversed_by(2.0))
    layer.load_state_dict({"weight": torch.tensor([0.75])}, strict=False)  # as pytorch-adapt's layer is saved
    assert layer.weight == 0.75
    with pytest.raises(TypeError, match=r"^weight and lambda_: got both; expected one of them\.$"):
        compat.GradientReversal(1.0, lambda_=1.0)


def test_a_state_dict_of_pytorch_adapt_loads_strictly_in_a_model() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), compat.GradientReversal())
    theirs = {"0.weight": torch.eye(2), "0.bias": torch.zeros(2), "1.weight": torch.tensor([0.75])}
    model.load_state_dict(theirs, strict=False)
    assert model[1].weight == 0.75
    assert torch.equal(model[0].weight, torch.eye(2)), "the weight of another layer is not taken for λ"


def tll_coeff(step: int, alpha: float, lo: float, hi: float, max_iters: float) -> float:
    """λ of the Transfer-Learning-Library at a step."""
    return lo + (hi - lo) * (2.0 / (1.0 + math.exp(-alpha * step / max_iters)) - 1.0)


@pytest.mark.parametrize("settings", [(1.0, 0.0, 1.0, 10), (10.0, 0.1, 0.3, 4), (2.0, 1.0, -1.0, 1000.0)])
def test_the_warm_start_ramps_in_forward_as_the_original_does(settings: tuple[float, float, float, float]) -> None:
    layer = compat.WarmStartGradientReverseLayer(*settings, auto_step=True)
    for step in range(15):  # past max_iters, where the original goes on
        assert layer.iter_num == step
        assert gradient(layer).tolist() == pytest.approx(reversed_by(tll_coeff(step, *settings)).tolist(), rel=1e-6)
    layer.eval()
    before = layer.iter_num
    layer(torch.ones(3))
    assert layer.iter_num == before, "only training counts"


@pytest.mark.filterwarnings("ignore")  # of PyTorch's own, about the graph break
def test_the_warm_start_ramps_in_a_compiled_model_too() -> None:
    settings = (10.0, 0.5, 1.0, 4)
    layer = compat.WarmStartGradientReverseLayer(*settings, auto_step=True)
    model = torch.nn.Sequential(torch.nn.Identity(), layer, torch.nn.Identity())
    compiled = torch.compile(model, backend="aot_eager")
    for step in range(4):
        assert gradient(compiled).tolist() == pytest.approx(reversed_by(tll_coeff(step, *settings)).tolist(), rel=1e-6)
        assert layer.iter_num == step + 1


def test_the_warm_start_without_auto_step_waits_for_step() -> None:
    layer = compat.WarmStartGradientReverseLayer(alpha=1.0, lo=0.0, hi=0.1, max_iters=1000, auto_step=False)
    gradient(layer)
    assert layer.iter_num == 0
    layer.step()
    assert layer.coeff == pytest.approx(tll_coeff(1, 1.0, 0.0, 0.1, 1000))


def test_a_checkpoint_of_a_transfer_learning_library_model_loads() -> None:
    """Their layers keep nothing in the `state_dict`: λ and the count stay as they are."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), compat.WarmStartGradientReverseLayer(lo=0.5, auto_step=True))
    model(torch.ones(1, 2))
    model.load_state_dict({"0.weight": torch.eye(2), "0.bias": torch.zeros(2)})
    assert model[1].iter_num == 1


def test_the_warm_start_goes_on_in_a_copy_and_from_its_state_dict() -> None:
    layer = compat.WarmStartGradientReverseLayer(auto_step=True)
    for _ in range(7):
        layer(torch.ones(3))
    fresh = compat.WarmStartGradientReverseLayer(auto_step=True)
    fresh.load_state_dict(layer.state_dict())
    for one in (copy.deepcopy(layer), fresh):
        assert (one.iter_num, one.coeff) == (7, layer.coeff)


@needs_torch
def test_each_name_is_right_in_second_order_and_under_func() -> None:
    for layer in (compat.RevGrad(0.5), compat.GradientReversal(0.5), lambda x: compat.grad_reverse(x, 0.5)):
        second = torch.func.grad(lambda x, layer=layer: torch.func.grad(lambda x: layer(x) ** 3)(x))(torch.tensor(2.0))
        assert second == 0.25 * 6 * 2.0  # λ²·f''


@needs_jax
def test_scale_gradient_is_optax_s() -> None:
    import jax
    import jax.numpy as jnp

    from grl.jax_impl.compat import scale_gradient

    for scale in (-0.5, 0.0, 2.0, jnp.float32(-3.0)):
        value, gradient = jax.value_and_grad(lambda x, scale=scale: (scale_gradient(x, scale) ** 2).sum())(jnp.ones(3))
        assert value == 3.0
        assert gradient.tolist() == [2.0 * float(scale)] * 3
    tree = jax.grad(lambda t: scale_gradient(t, -1.0)["a"] * 3.0)({"a": jnp.float32(1.0)})
    assert tree["a"] == -3.0
    second = jax.grad(jax.grad(lambda x: scale_gradient(x, -0.5) ** 3))(2.0)
    assert second == 0.25 * 6 * 2.0
