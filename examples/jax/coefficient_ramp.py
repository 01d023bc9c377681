"""A coefficient that ramps linearly from −1 to 1: the features help the domain classifier first and fight it later."""

import jax
import jax.numpy as jnp
from flax import nnx

from grl import LinearSchedule
from grl.jax_impl import GRL, gradient_reversal

layer = GRL(LinearSchedule(total_steps=10, start=-1.0, end=1.0))
gradient_of = nnx.jit(lambda layer, x: jax.grad(lambda x: layer(x).sum())(x))  # traced once: λ is state
x = jnp.ones(1)
factors = []
for _ in range(11):
    factors.append(gradient_of(layer, x).item())
    layer.step()  # λ changes here and nowhere else

assert factors[0] == 1.0
assert factors[5] == 0.0
assert factors[10] == -1.0
print("factor on the gradient:", " ".join(f"{factor:+.1f}" for factor in factors))

# The same ramp without a layer, with all steps in one compiled loop: a schedule accepts a traced step.
schedule = LinearSchedule(total_steps=10, start=-1.0, end=1.0)


def gradient_at(i: jax.Array) -> jax.Array:
    return jax.grad(lambda x: gradient_reversal(x, schedule(i)).sum())(x)


gradients = jax.lax.map(gradient_at, jnp.arange(11))
assert jnp.allclose(gradients[:, 0], jnp.array(factors), atol=1e-6)
