"""Weight initialisation over a whole model: the layer has no parameters, so an initialiser skips it."""

import jax.numpy as jnp
from flax import nnx

from grl.jax_impl import GRL

rngs = nnx.Rngs(0)
xavier_uniform = nnx.initializers.xavier_uniform()
first, reversal, last = nnx.Linear(10, 20, rngs=rngs), GRL(0.5), nnx.Linear(20, 1, rngs=rngs)
model = nnx.Sequential(first, reversal, last)
for _, module in nnx.iter_modules(model):
    if isinstance(module, nnx.Linear) and module.bias is not None:
        module.kernel[...] = xavier_uniform(rngs.params(), module.kernel.shape)
        module.bias[...] = jnp.zeros(module.bias.shape)

assert not nnx.state(reversal, nnx.Param)
assert reversal.coeff == 0.5
assert all(layer.bias is not None and (layer.bias[...] == 0).all() for layer in (first, last))
bound = (6 / (10 + 20)) ** 0.5
assert jnp.abs(first.kernel[...]).max() <= bound
print(f"weights within ±{bound:.3f}, λ still {reversal.coeff}")
