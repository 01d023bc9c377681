"""A coefficient that ramps linearly from −1 to 1: the features first help the domain classifier, then fight it."""

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
    layer.step()  # λ moves here and nowhere else

assert factors[0] == 1.0
assert factors[5] == 0.0
assert factors[10] == -1.0
print("factor on the gradient:", " ".join(f"{factor:+.1f}" for factor in factors))

# The same ramp without a layer, all steps in one compiled loop: a schedule takes the traced step.
schedule = LinearSchedule(total_steps=10, start=-1.0, end=1.0)


def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, jax.grad(lambda x: gradient_reversal(x, schedule(i)).sum())(x)


_, scanned = jax.lax.scan(step, x, jnp.arange(11))
assert jnp.allclose(scanned[:, 0], jnp.array(factors), atol=1e-6)
