"""Per-sample coefficients: λ of shape (N,) weighs each sample of the batch by itself, here by a confidence."""

import jax
import jax.numpy as jnp

from grl.jax_impl import gradient_reversal

features = jnp.ones((4, 2, 3))
confidence = jnp.array([0.0, 0.25, 0.5, 1.0])  # of each sample; no gradient ever flows to λ
gradient = jax.grad(lambda x: gradient_reversal(x, confidence).sum())(features)
assert jnp.array_equal(gradient, -jnp.broadcast_to(confidence.reshape(4, 1, 1), (4, 2, 3)))

try:
    gradient_reversal(features, jnp.ones(3))  # fits the last axis, but means nothing: refused, not broadcast
except ValueError as error:
    print(error)
else:
    raise AssertionError("a coefficient of the wrong shape was accepted")
