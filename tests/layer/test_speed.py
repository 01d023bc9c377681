"""What the layer costs: ratios, each the median over rounds that time both sides in turn, so that noise slows both.

Run alone: `pytest -m slow_timing -p no:xdist`.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.installed import HAS_TORCH, needs_jax, needs_torch
from tests.support.layer_forms import FORMS, LayerForm

pytestmark = pytest.mark.slow_timing

if HAS_TORCH:
    import torch
    from torch.autograd import Function

    from grl.torch_impl import GRL, gradient_reversal

    class Cheapest(Function):
        """The least that a Function defined in Python can do."""

        @staticmethod
        def forward(ctx: Any, x: Any, coeff: float) -> Any:
            return x

        @staticmethod
        def backward(ctx: Any, cotangent: Any) -> Any:
            return cotangent, None

    cheapest = super(Function, Cheapest).apply  # the C++ apply, bare

    class ArticleFunction(Function):
        """The Function as the article prints it: copies forward, two operations backward."""

        @staticmethod
        def forward(ctx: Any, input: Any, coeff: float = 1.0) -> Any:
            ctx.coeff = coeff
            return input.clone()

        @staticmethod
        def backward(ctx: Any, grad_output: Any) -> Any:
            return grad_output.neg() * ctx.coeff, None

    class ArticleModule(torch.nn.Module):
        """The Module as the article prints it."""

        def __init__(self, coeff: float = 1.0) -> None:
            super().__init__()
            self.coeff = coeff

        def forward(self, input: Any) -> Any:
            return ArticleFunction.apply(input, self.coeff)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    if not HAS_TORCH:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seconds(function: Callable[[], Any], repeat: int) -> float:
    """Time of one call."""
    started = time.perf_counter()
    for _ in range(repeat):
        function()
    return (time.perf_counter() - started) / repeat


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], repeat: int, rounds: int = 41) -> float:
    """Median over rounds of our time by theirs; within a round the one follows the other, in changing order."""
    for function in (ours, theirs):
        seconds(function, repeat)
    ratios = []
    for index in range(rounds):
        pair = (ours, theirs) if index % 2 else (theirs, ours)
        first, second = (seconds(function, repeat) for function in pair)
        ratios.append(first / second if index % 2 else second / first)
    return statistics.median(ratios)


def assert_ratio_at_most(bound: float, *args: Any, **kwargs: Any) -> None:
    """The bound holds in one of three measurements: noise on a shared machine can only spoil one, not make it."""
    measured = []
    for _ in range(3):
        measured.append(ratio(*args, **kwargs))
        if measured[-1] <= bound:
            return
    raise AssertionError(f"measured {measured}, promised at most {bound}")


@needs_torch
def test_function_costs_little_more_than_the_cheapest_python_function() -> None:
    x = torch.ones(16, requires_grad=True)
    assert_ratio_at_most(1.25, lambda: gradient_reversal(x, 0.5), lambda: cheapest(x, 0.5), repeat=1000)


@needs_torch
def test_function_is_faster_than_the_one_of_the_article() -> None:
    x = torch.ones(16, requires_grad=True)
    assert_ratio_at_most(0.8, lambda: gradient_reversal(x, 0.5), lambda: ArticleFunction.apply(x, 0.5), repeat=1000)


@needs_torch
def test_layer_is_faster_than_the_module_of_the_article() -> None:
    x = torch.ones(16, requires_grad=True)
    ours, theirs = GRL(0.5), ArticleModule(0.5)
    assert_ratio_at_most(0.85, lambda: ours(x), lambda: theirs(x), repeat=1000)


@needs_torch
def test_32_mib_forward_and_backward() -> None:
    x = torch.ones(8 * 2**20, requires_grad=True)
    g = torch.ones_like(x)

    def run(reverse: Callable[[Any, float], Any]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(reverse(x, 0.5), x, g)

    assert_ratio_at_most(0.6, run(gradient_reversal), run(ArticleFunction.apply), repeat=2, rounds=15)


@pytest.mark.parametrize("form", [f for f in FORMS if f.name in ("custom_vjp", "custom_jvp")], ids=str)
@needs_jax
def test_jax_eager_call_on_a_concrete_array(form: LayerForm) -> None:
    import jax.numpy as jnp

    x = jnp.ones(16)
    best = min(seconds(lambda: form.reverse(x, 0.5), 2000) for _ in range(15))
    assert best < 5e-6
