"""The layer in JAX: what comes in comes out, with its type."""

from __future__ import annotations

from typing import assert_type

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from grl import DannSchedule
from grl.jax_impl import DANN, GRL, Coefficient, gradient_reversal, gradient_reversal_jvp, linen


def function(x: Array, samples: Array) -> None:
    assert_type(gradient_reversal(x), Array)
    assert_type(gradient_reversal(x, 0.5), Array)
    assert_type(gradient_reversal(x, 1), Array)
    assert_type(gradient_reversal(x, coeff=jnp.asarray(0.5)), Array)
    assert_type(gradient_reversal(samples, np.ones(8, np.float32)), Array)
    assert_type(gradient_reversal_jvp(x), Array)
    assert_type(gradient_reversal_jvp(x, 0.5), Array)


def trees(x: Array) -> None:
    assert_type(gradient_reversal([x, x]), list[Array])
    assert_type(gradient_reversal((x, x)), tuple[Array, Array])
    assert_type(gradient_reversal({"features": x}, 0.5), dict[str, Array])
    assert_type(gradient_reversal_jvp({"features": x}, 0.5), dict[str, Array])


def layer(x: Array) -> None:
    reversal = GRL()
    assert_type(reversal(x), Array)
    assert_type(reversal(x, 0.5), Array)
    assert_type(reversal(x, reverse=False), Array)
    assert_type(reversal({"features": x}, coeff=jnp.asarray(0.5)), dict[str, Array])


def state() -> None:
    reversal = GRL(DannSchedule(100))
    assert_type(reversal.step(), None)
    reversal.coeff = 0.5
    reversal.coeff = jnp.asarray(0.5)
    reversal.coeff = DannSchedule(100)
    coeff: Coefficient = reversal.coeff
    del coeff
    GRL(lambda step: 0.1 * step)
    GRL(jnp.asarray(0.5))
    GRL(coeff=np.float32(0.5))


def linen_layer(x: Array) -> None:
    reversal = linen.GRL(DannSchedule(100))
    assert_type(reversal(x), Array)
    assert_type(reversal([x], 0.5, reverse=False), list[Array])
    linen.GRL(coeff=0.5)


def model(backbone: nnx.Module, images: Array) -> None:
    dann = DANN(backbone, num_classes=10, label_hidden=(50,), domain_hidden=[100, 100], rngs=nnx.Rngs(0))
    assert_type(dann(images), tuple[Array, Array])
    assert_type(dann(images, alpha=0.5), tuple[Array, Array])
    assert_type(dann(images, jnp.asarray(0.5)), tuple[Array, Array])


def refused(x: Array) -> None:
    # A checker that accepted one of these lines would report its comment as unused.
    gradient_reversal(x, "0.5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gradient_reversal(x, None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gradient_reversal_jvp(x, alpha=0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    GRL("dann")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    GRL()(x, flag=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
