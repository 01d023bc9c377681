"""The JAX forms: ours, the peer, the floors; each compiled (jit) and call by call (eager).

A forward call is `jax.vjp`: the value and what the backward pass needs. Under jit a λ that is a number is part of the
program and any other an argument of it, save for nnx, whose λ is state and so an argument always.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.form import TimedForm, WrongResultError, shape_of
from benchmarks.inputs import base_block
from benchmarks.settings import COEFF
from benchmarks.timing import BlockingClock, Call, QueueClock
from grl.jax_impl import gradient_reversal, gradient_reversal_jvp

__all__ = ["JaxBackend", "device_of"]

Inputs = Sequence[tuple[jax.Array, jax.Array]]
Made = tuple[Callable[..., Any], tuple[Any, ...]]


def _called(function: Callable[..., Any]) -> Callable[[Any], Made]:
    """Return the form that calls function(x, λ)."""

    def make(coeff: Any) -> Made:
        if isinstance(coeff, float):
            return (lambda x: function(x, coeff)), ()
        return function, (coeff,)

    return make


def _nnx(coeff: Any) -> Made:
    from flax import nnx

    from grl.jax_impl import GRL

    graph, state = nnx.split(GRL(coeff))
    return (lambda x, state: nnx.merge(graph, state)(x)), (state,)


def _nnx_eager(coeff: Any) -> Made:
    from grl.jax_impl import GRL

    return GRL(coeff), ()


def _linen(coeff: Any) -> Made:
    from grl.jax_impl.linen import GRL

    if isinstance(coeff, float):
        layer = GRL(coeff)
        return (lambda x: layer.apply({}, x)), ()
    return (lambda x, coeff: GRL().apply({}, x, coeff=coeff)), (coeff,)


def _optax(coeff: Any) -> Made:
    import optax

    return _called(lambda x, coeff: optax.scale_gradient(x, -coeff))(coeff)


def _identity(coeff: Any) -> Made:
    return (lambda x: x), ()


def _one(coeff: Any) -> float:
    return 1.0


def _in_both_modes(name: str, kind: str, make: Callable[[Any], Made], **options: Any) -> tuple[TimedForm, TimedForm]:
    headline = options.pop("headline", False)
    return (
        TimedForm(f"{name}, jit", kind, make, "jit", headline=headline, **options),
        TimedForm(f"{name}, eager", kind, make, "eager", **options),
    )


_IDENTITY = {"factor": _one, "headline": True}
_DIRECT = {"measures": ("backward",), "direct": True, "headline": True}
FORMS = (
    *_in_both_modes("custom_vjp", "ours", _called(gradient_reversal), headline=True),
    *_in_both_modes("custom_jvp", "ours", _called(gradient_reversal_jvp)),
    TimedForm("nnx GRL, jit", "ours", _nnx, "jit"),
    TimedForm("nnx GRL, eager", "ours", _nnx_eager),
    *_in_both_modes("Linen GRL", "ours", _linen),
    *_in_both_modes("optax.scale_gradient", "peer", _optax, headline=True),
    *_in_both_modes("identity", "floor", _identity, **_IDENTITY),
    *_in_both_modes("multiply", "floor", lambda c: (operator.mul, (-c,)), **_DIRECT),
    *_in_both_modes("copy", "floor", lambda c: (jnp.copy, ()), factor=_one, **_DIRECT)[:1],
)


def device_of(name: str) -> jax.Device:
    """Return JAX's device for "cpu" or "cuda".

    Raises:
        RuntimeError: JAX has none.
    """
    try:
        return jax.devices(name)[0]
    except RuntimeError as error:
        raise RuntimeError(f"JAX finds no {name} device, and is not timed on another one ({error})") from error


class JaxBackend:
    """JAX on one device.

    Raises:
        RuntimeError: there is no such device.
    """

    name = "jax"

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.device = device_of(device)
        jax.config.update("jax_default_device", self.device)

    @property
    def forms(self) -> Sequence[TimedForm]:
        """Ours, the peer and the floors."""
        return FORMS

    def start(self) -> None:
        """Forget nothing: JAX compiles one program for each shape."""

    def inputs(self, size: int, dtype: str, count: int) -> list[tuple[jax.Array, jax.Array]]:
        """Return pairs (x, g)."""
        elements = size // jnp.dtype(dtype).itemsize

        def array(seed: int) -> jax.Array:
            block = jax.device_put(base_block(elements, seed).astype(dtype), self.device)
            return jnp.tile(block, elements // len(block)).reshape(shape_of(elements))

        return jax.block_until_ready([(array(2 * i), array(2 * i + 1)) for i in range(count)])

    def coefficient(self, kind: str, rows: int) -> Any:
        """Return λ."""
        if kind == "number":
            return COEFF
        array = np.float32(COEFF) if kind == "tensor" else np.linspace(0.5, 1.5, rows, dtype=np.float32)
        return jax.device_put(jnp.asarray(array), self.device)

    def calls(self, form: TimedForm, inputs: Inputs, coeff: Any, measure: str) -> list[Call]:
        """Return the call with the one clock that JAX has on this device."""
        function, arguments = self._call(form, inputs, coeff, measure)
        return [Call(function, arguments, QueueClock() if self.on_gpu else BlockingClock())]

    def _call(self, form: TimedForm, inputs: Inputs, coeff: Any, measure: str) -> tuple[Any, list[tuple[Any, ...]]]:
        jit = jax.jit if form.mode == "jit" else lambda function: function
        if form.direct:
            function, further = form.make(_column(coeff))
            if form.mode == "jit" and isinstance(coeff, float):
                return jax.jit(lambda g: function(g, *further)), [(g,) for _, g in inputs]
            return jit(function), [(g, *further) for _, g in inputs]
        function, further = form.make(coeff)

        def forward(x: jax.Array, *further: Any) -> Any:
            return jax.vjp(lambda x: function(x, *further), x)

        def both(x: jax.Array, g: jax.Array, *further: Any) -> jax.Array:
            return forward(x, *further)[1](g)[0]

        if measure == "forward":
            return jit(forward), [(x, *further) for x, _ in inputs]
        if measure == "both":
            return jit(both), [(x, g, *further) for x, g in inputs]
        run = jit(forward)
        return jit(_pull_back), [(run(x, *further)[1], g) for x, g in inputs]

    def check(self, form: TimedForm, inputs: Inputs, coeff: Any, measure: str, call: Call) -> None:
        """Make every call of the ring on poisoned memory and compare its result with the input, or with −λ·g."""
        factor = form.factor(_column(coeff))
        for (x, g), arguments in zip(inputs, call.arguments, strict=True):
            poison = jax.block_until_ready([jnp.full_like(g, jnp.nan) for _ in range(3)])
            del poison
            result = call.function(*arguments)
            result = result[0] if isinstance(result, tuple) else result
            if result.shape != x.shape or result.dtype != x.dtype:
                raise WrongResultError(f"{measure}: {result.dtype} of shape {result.shape}")
            if measure == "forward" and not _equal(result, x):
                raise WrongResultError("forward: the values are not those of x")
            if measure != "forward" and (wrong := float(_wrong(result, g, factor))):
                raise WrongResultError(f"{measure}: {wrong:.1%} of the gradient is wrong")

    def floor(self, form: TimedForm, measure: str) -> tuple[str, str] | None:
        """Return the floor in the same mode: the identity for a forward pass, one multiply for a gradient."""
        name = form.name.split(", ")[0]
        if name in ("multiply", "copy") or (name == "identity" and measure == "forward"):
            return None
        return (f"identity, {form.mode}", "forward") if measure == "forward" else (f"multiply, {form.mode}", "backward")


def _pull_back(pull: Any, g: jax.Array) -> jax.Array:
    return pull(g)[0]


def _column(coeff: Any) -> Any:
    return coeff[:, None] if np.ndim(coeff) else coeff


@jax.jit
def _equal(result: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.all(result == x)


@jax.jit
def _wrong(result: jax.Array, g: jax.Array, factor: Any) -> jax.Array:
    """Return the share of wrong elements in the gradient; NaN is wrong."""
    expected = g.astype(jnp.float32) * jnp.asarray(factor, jnp.float32)
    kind = jnp.finfo(result.dtype)
    bound = 2 * float(kind.eps) * jnp.abs(expected) + float(kind.tiny)
    return jnp.mean(~(jnp.abs(result.astype(jnp.float32) - expected) <= bound))
