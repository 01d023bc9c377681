"""Conditional reversal: an argument of the call decides whether the gradient is reversed or passed on."""

import jax
import jax.numpy as jnp

from grl.jax_impl import GRL, gradient_reversal

layer = GRL(0.7)
x = jnp.ones(3)
on = jax.grad(lambda x: layer(x, reverse=True).sum())(x)
off = jax.grad(lambda x: layer(x, reverse=False).sum())(x)
assert jnp.allclose(on, jnp.full(3, -0.7))
assert jnp.array_equal(off, jnp.ones(3))


# Where the flag is an array, traced or not, choose λ by it instead: −1 passes the gradient on.
@jax.jit
def gradient(x: jax.Array, flag: jax.Array) -> jax.Array:
    coeff = jnp.where(flag, 0.7, -1.0)
    return jax.grad(lambda x: gradient_reversal(x, coeff).sum())(x)


assert jnp.array_equal(gradient(x, jnp.array(False)), off)
print("reverse=True:", on.tolist(), " reverse=False:", off.tolist())
