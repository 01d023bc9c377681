"""The DANN class around your own backbone, which can be any module with an `output_dim`; `alpha` is λ."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from grl.jax_impl import DANN


class Backbone(nnx.Module):
    """Images (N, 16, 16, 1) -> features (N, 32)."""

    output_dim = 32

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.convolution = nnx.Conv(1, 8, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.linear = nnx.Linear(7 * 7 * 8, self.output_dim, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(self.linear(jax.nn.relu(self.convolution(x)).reshape(len(x), -1)))


rngs = nnx.Rngs(0)
# The domain classifier is deeper than the (linear) label classifier.
model = DANN(Backbone(rngs=rngs), num_classes=10, domain_hidden=(64, 64), rngs=rngs)
images = jax.random.normal(jax.random.key(0), (6, 16, 16, 1))
class_logits, domain_logits = model(images, alpha=0.5)
assert class_logits.shape == (6, 10)
assert domain_logits.shape == (6,)  # above 0: target; below 0: source


def kernel_gradient(alpha: float) -> Array:
    return nnx.grad(lambda model: model(images, alpha)[1].sum())(model)["backbone"]["convolution"]["kernel"][...]


gradients = {alpha: kernel_gradient(alpha) for alpha in (-1.0, 0.0, 0.5)}
assert jnp.allclose(gradients[0.5], -0.5 * gradients[-1.0], atol=1e-6)
assert not gradients[0.0].any()
print({alpha: round(jnp.linalg.norm(gradient).item(), 4) for alpha, gradient in gradients.items()})
