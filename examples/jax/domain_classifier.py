"""A domain classifier that reverses by calling the function: λ is an argument of the forward pass."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from grl.jax_impl import gradient_reversal


class DomainClassifier(nnx.Module):
    """Features (N, 20) -> logits (N,), positive where a sample looks like the target domain."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(20, 16, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, features: Array, coeff: float) -> Array:
        features = gradient_reversal(features, coeff)
        return self.out(jax.nn.relu(self.hidden(features))).squeeze(-1)


classifier = DomainClassifier(rngs=nnx.Rngs(0))
features = jax.random.normal(jax.random.key(0), (8, 20))
is_target = jnp.arange(8) % 2


def domain_loss(features: Array, classifier: DomainClassifier, coeff: float) -> Array:
    return optax.sigmoid_binary_cross_entropy(classifier(features, coeff), is_target.astype(jnp.float32)).mean()


gradients = {}
for coeff in (-1.0, 0.5):  # −1 passes the gradient on: the plain classifier
    to_features, to_classifier = nnx.grad(domain_loss, argnums=(0, 1))(features, classifier, coeff)
    gradients[coeff] = to_features, to_classifier["out"]["kernel"][...]

(plain, weight_plain), (reversed_, weight_reversed) = gradients[-1.0], gradients[0.5]
assert jnp.allclose(reversed_, -0.5 * plain)  # the gradient of the features is reversed and scaled;
assert jnp.array_equal(weight_reversed, weight_plain)  # the classifier's own gradient is not
norms = jnp.linalg.norm(plain), jnp.linalg.norm(reversed_)
print(f"norm of the gradient at the features: {norms[0]:.4f} plain, {norms[1]:.4f} reversed with λ = 0.5")
