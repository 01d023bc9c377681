"""Weight initialisation over a whole model: the layer has no parameters, so an initialiser passes it by."""

import jax.numpy as jnp
from flax import nnx

from grl.jax_impl import GRL

rngs = nnx.Rngs(0)
xavier_uniform = nnx.initializers.xavier_uniform()
model = nnx.Sequential(nnx.Linear(10, 20, rngs=rngs), GRL(0.5), nnx.Linear(20, 1, rngs=rngs))
for _, module in nnx.iter_modules(model):
    if isinstance(module, nnx.Linear):
        module.kernel[...] = xavier_uniform(rngs.params(), module.kernel.shape)
        module.bias[...] = jnp.zeros(module.bias.shape)

assert not nnx.state(model.layers[1], nnx.Param)
assert model.layers[1].coeff == 0.5
assert all((model.layers[i].bias[...] == 0).all() for i in (0, 2))
bound = (6 / (10 + 20)) ** 0.5
assert jnp.abs(model.layers[0].kernel[...]).max() <= bound
print(f"weights within ±{bound:.3f}, λ still {model.layers[1].coeff}")
