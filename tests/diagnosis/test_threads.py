"""A report changes no gradient that another thread computes meanwhile, and none of what it compiles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from grl.parity import domain_gradient_report
from tests.support.installed import HAS_FLAX, HAS_TORCH, needs_flax, needs_torch

if HAS_TORCH:
    import torch

    from grl import torch_impl
if HAS_FLAX:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from grl import jax_impl
    from grl.jax_impl.dann import MLP


def in_another_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


if HAS_TORCH:

    class Rule(torch.autograd.Function):
        """A reversal of a user's own."""

        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, cotangent: Any) -> Any:
            return -0.5 * cotangent

    class Layer(torch.nn.Module):
        """The same as a layer."""

        def forward(self, x: Any) -> Any:
            return Rule.apply(x)

    class TorchModel(torch.nn.Module):
        def __init__(self, reverse: Any) -> None:
            super().__init__()
            self.backbone, self.reverse = torch.nn.Linear(2, 3), reverse
            self.label, self.domain = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)

        def forward(self, x: Any) -> tuple[Any, Any]:
            features = self.backbone(x)
            return self.label(features), self.domain(self.reverse(features))


def torch_global(x: Any) -> Any:
    return Rule.apply(x)


TORCH_LAYERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "grl": lambda: (torch_impl.GRL(0.5), None),
    "a submodule": lambda: (Layer(), "reverse"),
    "a Function": lambda: (Layer(), Rule),
    "a global function": lambda: (lambda x: torch_global(x), torch_global),
}


@needs_torch
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo instantiates `Rule`
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", TORCH_LAYERS)
def test_torch_another_thread_gets_its_own_gradient(kind: str, compiled: bool) -> None:
    reverse, layer = TORCH_LAYERS[kind]()
    model = TorchModel(reverse)
    step = torch.compile(lambda x: model.reverse(x).sum(), backend="aot_eager") if compiled else model.reverse

    def gradient() -> float:
        x = torch.ones(1, requires_grad=True)
        step(x).backward()
        assert x.grad is not None
        return float(x.grad)

    seen: list[float] = []

    def domain_loss(model: Any, x: Any) -> Any:
        loss = model(x)[1].square().mean()
        seen.append(in_another_thread(gradient))
        return loss

    report = domain_gradient_report(
        model,
        torch.ones(4, 2),
        label_loss=lambda model, x: model(x)[0].square().mean(),
        domain_loss=domain_loss,
        features="backbone",
        layer=layer,
    )
    assert (report.verdict, report.whole.ratio) == ("ok", pytest.approx(-0.5))
    assert seen == [-0.5] * 3
    assert gradient() == -0.5


@needs_torch
def test_torch_two_reports_at_once_leave_nothing_behind() -> None:
    models = [TorchModel(torch_impl.GRL(coeff)) for coeff in (0.5, 0.25)]
    barrier = threading.Barrier(2, timeout=60)
    reports: dict[int, Any] = {}

    def run(index: int) -> None:
        def domain_loss(model: Any, x: Any) -> Any:
            barrier.wait()  # both are inside of their blocks
            return model(x)[1].square().mean()

        reports[index] = domain_gradient_report(
            models[index],
            torch.ones(4, 2),
            label_loss=lambda model, x: model(x)[0].square().mean(),
            domain_loss=domain_loss,
            features="backbone",
        )

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reports[index].whole.ratio for index in range(2)] == pytest.approx([-0.5, -0.25])
    assert torch._dynamo.eval_frame._stance.stance == "default"


if HAS_FLAX:
    rule = jax.custom_vjp(lambda x: x)
    rule.defvjp(lambda x: (x, None), lambda _, cotangent: (-0.5 * cotangent,))

    class NnxLayer(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return rule(x)

    class NnxModel(nnx.Module):
        def __init__(self, reverse: Any) -> None:
            rngs = nnx.Rngs(0)
            self.backbone, self.reverse = MLP(2, (3,), rngs=rngs), reverse
            self.label, self.domain = (nnx.Linear(3, 1, rngs=rngs) for _ in range(2))

        def __call__(self, x: Any) -> tuple[Any, Any]:
            features = self.backbone(x)
            return self.label(features), self.domain(self.reverse(features))


def jax_global(x: Any) -> Any:
    return rule(x)


JAX_LAYERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "grl": lambda: (jax_impl.GRL(0.5), None),
    "a submodule": lambda: (NnxLayer(), "reverse"),
    "a class": lambda: (NnxLayer(), NnxLayer),
    "a global function": lambda: (lambda x: jax_global(x), jax_global),
}


@needs_flax
@pytest.mark.parametrize("run", [1, 2, 3])  # as it is, without the layer, and with one that blocks
@pytest.mark.parametrize("kind", JAX_LAYERS)
def test_jax_another_thread_compiles_its_own_gradient_and_keeps_it(kind: str, run: int) -> None:
    reverse, layer = JAX_LAYERS[kind]()
    model = NnxModel(reverse)
    step = jax.jit(jax.grad(lambda x: reverse(x).sum()))
    calls, seen = [0], []

    def domain_loss(model: Any, x: Any) -> Any:
        calls[0] += 1
        loss = jnp.mean(model(x)[1] ** 2)
        if calls[0] == run:  # the first call of `step`, which compiles it
            seen.append(in_another_thread(lambda: float(step(jnp.ones(1))[0])))
        return loss

    report = domain_gradient_report(
        model,
        jnp.ones((4, 2)),
        label_loss=lambda model, x: jnp.mean(model(x)[0] ** 2),
        domain_loss=domain_loss,
        features="backbone",
        layer=layer,
    )
    assert (report.verdict, report.whole.ratio) == ("ok", pytest.approx(-0.5))
    assert seen == [-0.5]
    assert float(step(jnp.ones(1))[0]) == -0.5
