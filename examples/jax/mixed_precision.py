"""Mixed precision: computing in bfloat16, and float16 gradients with a loss scale. λ is never rounded to 16 bits."""

import jax
import jax.numpy as jnp
from flax import nnx

from grl.jax_impl import GRL, gradient_reversal

rngs = nnx.Rngs(0)
first = nnx.Linear(10, 20, dtype=jnp.bfloat16, rngs=rngs)  # computes in bfloat16, keeps float32 weights
last = nnx.Linear(20, 1, dtype=jnp.bfloat16, rngs=rngs)
model = nnx.Sequential(first, GRL(0.1), last)
x = jax.random.normal(jax.random.key(0), (8, 10))
assert model(x).dtype == jnp.bfloat16
gradients = nnx.grad(lambda model: model(x).astype(jnp.float32).mean())(model)
assert gradients["layers"][0]["kernel"][...].dtype == jnp.float32

# One gradient in bfloat16: λ·g is computed in float32 and rounded once. Rounding λ = 0.1 to bfloat16 first, as
# `g * -coeff` with a Python coeff does, gives a different number.
y, pullback = jax.vjp(lambda x: gradient_reversal(x, 0.1), jnp.ones((), jnp.bfloat16))
g = jnp.asarray(1.203125, jnp.bfloat16)
(gradient,) = pullback(g)
assert gradient == (-(g.astype(jnp.float32) * 0.1)).astype(jnp.bfloat16)
assert gradient != g * -jnp.asarray(0.1, jnp.bfloat16)

# float16 with a loss scale: the scale keeps a gradient representable that float16 would round to almost nothing.
# The scale is a power of two, so that multiplying and dividing by it are exact.
scale = 2.0**14


def scaled_loss(z: jax.Array) -> jax.Array:
    return (gradient_reversal(z, 0.5).astype(jnp.float32) * 1e-7).sum() * scale


unscaled = jax.grad(scaled_loss)(jnp.ones(3, jnp.float16)).astype(jnp.float32) / scale
assert jnp.allclose(unscaled, -0.5e-7, rtol=1e-3, atol=0)
print(f"bfloat16 gradient {gradient.item()}, float16 gradient after unscaling {unscaled[0].item():.3e}")
