"""Flax and Equinox models that contain the layer.

To add a transformation, write one function and list it in `TRANSFORMATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grl.check.form import Call, Form, Layer, NotApplicableError, transformation
from grl.check.reference import COEFF, X, same

__all__ = ["TRANSFORMATIONS"]

_KERNEL = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)


def _compare(gradient: Call, layer: Call, identity: Call) -> None:
    """Raise `WrongError` unless a weight's gradient is −λ times its gradient with an identity as the layer."""
    with jax.default_matmul_precision("highest"):  # a GPU would round what it multiplies
        same(gradient(layer), -COEFF * np.asarray(gradient(identity)), "weight gradient")


def _library(name: str, title: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise NotApplicableError(f"{title} is not installed") from error


def _nnx(form: Form, differentiate: Callable[[ModuleType, Call], Call]) -> None:
    """Check an nnx model. `differentiate` takes nnx and a loss(model, x), and returns the gradient's function."""
    _library("flax.nnx", "Flax")
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, layer: Layer) -> None:
            self.first = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.layer = layer

        def __call__(self, x: Array) -> Array:
            return jnp.sin(self.layer(jnp.tanh(self.first(x)))).sum()

    def gradient(layer: Layer) -> Array:
        gradients = differentiate(nnx, lambda model, x: model(x))(Model(layer), jnp.asarray(X))
        kernel: Array = gradients["first"]["kernel"][...]
        return kernel

    _compare(gradient, form.make(COEFF), lambda x: x)


@transformation("nnx.grad")
def _nnx_grad(form: Form) -> None:
    _nnx(form, lambda nnx, loss: nnx.grad(loss))


@transformation("nnx.jit of nnx.grad")
def _nnx_jit(form: Form) -> None:
    _nnx(form, lambda nnx, loss: nnx.jit(nnx.grad(loss)))


@transformation("nnx.vmap of nnx.grad")
def _nnx_vmap(form: Form) -> None:
    _nnx(form, lambda nnx, loss: nnx.vmap(nnx.grad(loss), in_axes=(None, 0)))


@transformation("nnx.remat")
def _nnx_remat(form: Form) -> None:
    _nnx(form, lambda nnx, loss: nnx.grad(lambda model, x: nnx.remat(loss)(model, x)))


@transformation("nnx.scan")
def _nnx_scan(form: Form) -> None:
    def differentiate(nnx: ModuleType, loss: Call) -> Call:
        add = nnx.scan(lambda model, total, x: total + loss(model, x), in_axes=(None, nnx.Carry, 0), out_axes=nnx.Carry)
        derivative: Call = nnx.grad(lambda model, x: add(model, jnp.zeros(()), x))
        return derivative

    _nnx(form, differentiate)


@transformation("nnx.split and merge")
def _nnx_split(form: Form) -> None:
    def differentiate(nnx: ModuleType, loss: Call) -> Call:
        def gradient(model: Any, x: Array) -> Any:
            graph, parameters, rest = nnx.split(model, nnx.Param, ...)
            return jax.jit(jax.grad(lambda parameters: loss(nnx.merge(graph, parameters, rest), x)))(parameters)

        return gradient

    _nnx(form, differentiate)


def _linen(form: Form, transform: Callable[[ModuleType, Call], Call]) -> None:
    """Check a Linen model. `transform` takes linen and the class of the model, and returns the class to use."""
    _library("flax.linen", "Flax")
    from flax import linen

    class Model(linen.Module):
        make: Call

        @linen.compact
        def __call__(self, x: Array) -> Array:
            return jnp.sin(self.make()(jnp.tanh(linen.Dense(3, name="first")(x)))).sum()

    variables = {"params": {"first": {"kernel": jnp.asarray(_KERNEL), "bias": jnp.zeros(3)}}}

    def gradient(make: Call) -> Array:
        model = transform(linen, Model)(make)
        gradients = jax.grad(lambda variables: model.apply(variables, jnp.asarray(X)).sum())(variables)
        kernel: Array = gradients["params"]["first"]["kernel"]
        return kernel

    _compare(gradient, partial(form.linen or form.make, COEFF), lambda: lambda x: x)


@transformation("linen, grad of apply")
def _linen_grad(form: Form) -> None:
    _linen(form, lambda linen, model: model)


@transformation("linen.jit")
def _linen_jit(form: Form) -> None:
    _linen(form, lambda linen, model: linen.jit(model))


@transformation("linen.vmap")
def _linen_vmap(form: Form) -> None:
    _linen(form, lambda linen, model: linen.vmap(model, variable_axes={"params": None}, split_rngs={"params": False}))


@transformation("linen.remat")
def _linen_remat(form: Form) -> None:
    _linen(form, lambda linen, model: linen.remat(model))


@transformation("linen.scan")
def _linen_scan(form: Form) -> None:
    def transform(linen: ModuleType, model: Any) -> Call:
        class Step(model):  # type: ignore[misc]
            def __call__(self, carry: None, x: Array) -> tuple[None, Array]:
                return carry, super().__call__(x)

        scanned = linen.scan(Step, variable_broadcast="params", split_rngs={"params": False})
        return lambda make: SimpleNamespace(apply=lambda variables, x: scanned(make).apply(variables, None, x)[1])

    _linen(form, transform)


def _equinox(form: Form, differentiate: Callable[[ModuleType, Call], Call]) -> None:
    """Check an Equinox model. `differentiate` takes equinox and a loss(model, x), and returns a function to call."""
    _library("equinox", "Equinox")
    import equinox

    class Model(equinox.Module):
        first: equinox.nn.Linear
        layer: Layer

        def __call__(self, x: Array) -> Array:
            return jnp.sin(self.layer(jnp.tanh(self.first(x)))).sum()

    def gradient(layer: Layer) -> Array:
        model = Model(equinox.nn.Linear(3, 3, key=jax.random.key(0)), layer)
        loss = lambda model, x: jax.vmap(model)(x).sum()
        weight: Array = differentiate(equinox, loss)(model, jnp.asarray(X)).first.weight
        return weight

    _compare(gradient, form.make(COEFF), lambda x: x)


@transformation("equinox.filter_grad")
def _equinox_grad(form: Form) -> None:
    _equinox(form, lambda equinox, loss: equinox.filter_grad(loss))


@transformation("equinox.filter_jit of filter_grad")
def _equinox_jit(form: Form) -> None:
    _equinox(form, lambda equinox, loss: equinox.filter_jit(equinox.filter_grad(loss)))


@transformation("equinox.filter_checkpoint")
def _equinox_checkpoint(form: Form) -> None:
    _equinox(form, lambda equinox, loss: equinox.filter_grad(equinox.filter_checkpoint(loss)))


TRANSFORMATIONS = (
    _nnx_grad,
    _nnx_jit,
    _nnx_vmap,
    _nnx_remat,
    _nnx_scan,
    _nnx_split,
    _linen_grad,
    _linen_jit,
    _linen_vmap,
    _linen_remat,
    _linen_scan,
    _equinox_grad,
    _equinox_jit,
    _equinox_checkpoint,
)
"""The rows of this module, in the order of the table."""
