"""Per-sample coefficients: λ of shape (N,) gives each sample of the batch its own weight, here a confidence."""

import jax
import jax.numpy as jnp

from grl.jax_impl import gradient_reversal

features = jnp.ones((4, 2, 3))
confidence = jnp.array([0.0, 0.25, 0.5, 1.0])  # one value per sample; no gradient ever flows to λ
gradient = jax.grad(lambda x: gradient_reversal(x, confidence).sum())(features)
assert jnp.array_equal(gradient, -jnp.broadcast_to(confidence.reshape(4, 1, 1), (4, 2, 3)))

try:
    gradient_reversal(features, jnp.ones(3))  # it fits the last axis, and raises: nothing is broadcast silently
except ValueError as error:
    print(error)
else:
    raise AssertionError("a coefficient of the wrong shape was accepted")
