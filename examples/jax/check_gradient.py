"""The first check: compare sign and size of the input's gradient with those of the same network without the layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from grl.jax_impl import GRL

rngs = nnx.Rngs(0)
first, last = nnx.Linear(10, 20, rngs=rngs), nnx.Linear(20, 1, rngs=rngs)
with_layer = nnx.Sequential(first, GRL(), last)
without = nnx.Sequential(first, last)

x = jax.random.normal(jax.random.key(0), (4, 10))
assert jnp.array_equal(with_layer(x), without(x))  # forward: the identity

reversed_ = jax.grad(lambda x: with_layer(x).sum())(x)
plain = jax.grad(lambda x: without(x).sum())(x)
assert jnp.array_equal(reversed_, -plain)  # backward: the negative, bit for bit
print(f"gradient of the first input: {plain[0, 0]:+.4f} without the layer, {reversed_[0, 0]:+.4f} with it")
