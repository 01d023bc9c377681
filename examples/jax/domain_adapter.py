"""A model that holds the layer: feature extractor, label classifier and, behind a `GRL`, domain classifier."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from grl.jax_impl import GRL


class DomainAdapter(nnx.Module):
    """Inputs (N, 10) -> class logits (N, 3) and domain logits (N, 1)."""

    def __init__(self, coeff: float, *, rngs: nnx.Rngs) -> None:
        self.features = nnx.Linear(10, 20, rngs=rngs)
        self.label_classifier = nnx.Linear(20, 3, rngs=rngs)
        self.reversal = GRL(coeff)
        self.domain_classifier = nnx.Linear(20, 1, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        features = jnp.tanh(self.features(x))
        return self.label_classifier(features), self.domain_classifier(self.reversal(features))


model = DomainAdapter(coeff=0.3, rngs=nnx.Rngs(0))
keys = jax.random.split(jax.random.key(0), 3)
source, target = jax.random.normal(keys[0], (16, 10)), jax.random.normal(keys[1], (16, 10)) + 1
labels = jax.random.randint(keys[2], (16,), 0, 3)


def losses(model: DomainAdapter) -> tuple[Array, Array]:
    class_logits, source_domain = model(source)
    _, target_domain = model(target)
    domain = jnp.concatenate([source_domain, target_domain]).squeeze(-1)
    is_target = jnp.arange(32) >= 16
    label_loss = optax.softmax_cross_entropy_with_integer_labels(class_logits, labels).mean()
    return label_loss, optax.sigmoid_binary_cross_entropy(domain, is_target.astype(jnp.float32)).mean()


def weight_gradient(loss: Callable[[DomainAdapter], Array]) -> Array:
    return nnx.grad(loss)(model)["features"]["kernel"][...]


label_gradient = weight_gradient(lambda model: losses(model)[0])
domain_gradient = weight_gradient(lambda model: losses(model)[1])  # already reversed by the layer
both = weight_gradient(lambda model: jnp.add(*losses(model)))  # losses are added; the layer does the subtraction
assert jnp.allclose(both, label_gradient + domain_gradient, atol=1e-6)

model.reversal.coeff = -1.0  # λ can be set at any time; −1 passes the gradient on
assert jnp.allclose(domain_gradient, -0.3 * weight_gradient(lambda model: losses(model)[1]), atol=1e-6)
print(model.reversal)
