"""The DANN class and its backbones: alpha is used, any backbone serves, both frameworks build one network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.installed import needs_flax, needs_torch

X = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)


def torch_gradients(alpha: Any, **sizes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the summed domain logits at the first layers of the backbone and of the domain classifier."""
    import torch

    from grl.torch_impl.dann import DANN, MLP

    torch.manual_seed(0)
    model = DANN(MLP(2, (5,)), 3, **sizes)
    model(torch.from_numpy(X), alpha)[1].sum().backward()
    layers: list[Any] = [model.backbone.layers[0], model.domain_classifier.layers[0]]
    return layers[0].weight.grad.numpy(), layers[1].weight.grad.numpy()


def jax_gradients(alpha: Any, **sizes: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same for JAX."""
    import jax.numpy as jnp
    from flax import nnx

    from grl.jax_impl.dann import DANN, MLP

    rngs = nnx.Rngs(0)
    model = DANN(MLP(2, (5,), rngs=rngs), 3, **sizes, rngs=rngs)
    alpha = jnp.asarray(alpha) if isinstance(alpha, np.ndarray) else alpha
    gradients = nnx.grad(lambda model: model(jnp.asarray(X), alpha)[1].sum())(model)
    layers = [gradients[name].layers[0] for name in ("backbone", "domain_classifier")]
    return np.asarray(layers[0].kernel[...]), np.asarray(layers[1].kernel[...])


both = pytest.mark.parametrize(
    "gradients", [pytest.param(torch_gradients, marks=needs_torch), pytest.param(jax_gradients, marks=needs_flax)]
)


@both
@pytest.mark.parametrize("alpha", [0.0, 0.25, 3.0, -1.0])
def test_alpha_scales_and_reverses_what_reaches_the_backbone_and_nothing_else(gradients: Any, alpha: float) -> None:
    backbone, classifier = gradients(-1.0)  # −1: as if there were no layer
    scaled, same = gradients(alpha)
    assert np.abs(backbone).max() > 0
    np.testing.assert_allclose(scaled, -alpha * backbone, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(same, classifier)


@both
def test_alpha_may_be_one_value_per_sample(gradients: Any) -> None:
    alone = np.array([1, 0, 0, 0, 0, 0], np.float32)
    parts = [gradients(np.roll(alone, i))[0] for i in range(len(X))]
    np.testing.assert_allclose(sum(parts), gradients(1.0)[0], rtol=1e-4, atol=1e-6)
    assert not np.allclose(parts[0], parts[1])


@both
def test_the_domain_classifier_may_be_the_deeper_one(gradients: Any) -> None:
    assert gradients(1.0, domain_hidden=(7, 6, 5), label_hidden=())[1].size == 5 * 7


@needs_torch
def test_outputs_have_the_promised_shapes_in_pytorch() -> None:
    import torch

    from grl.torch_impl.dann import DANN, ConvNet

    backbone = ConvNet((3, 28, 28))
    backbone.output_dim = np.prod((48, 4, 4))  # as NumPy counts
    model = DANN(backbone, 10)
    classes, domains = model(torch.zeros(4, 3, 28, 28), 0.5)
    assert (classes.shape, domains.shape) == ((4, 10), (4,))
    with pytest.raises(TypeError, match="backbone: output_dim is None; expected the integer number of features"):
        DANN(torch.nn.Linear(2, 2), 3)
    with pytest.raises(TypeError, match="coeff"):
        model(torch.zeros(4, 3, 28, 28), "0.5")


@needs_flax
def test_outputs_have_the_promised_shapes_in_jax() -> None:
    import jax.numpy as jnp
    from flax import nnx

    from grl.jax_impl.dann import DANN, ConvNet

    rngs = nnx.Rngs(0)
    backbone = ConvNet((3, 28, 28), rngs=rngs)
    backbone.output_dim = np.prod((48, 4, 4))  # as NumPy counts
    model = DANN(backbone, 10, rngs=rngs)
    classes, domains = model(jnp.zeros((4, 3, 28, 28)), 0.5)
    assert (classes.shape, domains.shape) == ((4, 10), (4,))
    with pytest.raises(TypeError, match="backbone: output_dim is None; expected the integer number of features"):
        DANN(nnx.Linear(2, 2, rngs=rngs), 3, rngs=rngs)
    with pytest.raises(TypeError, match="coeff"):
        model(jnp.zeros((4, 3, 28, 28)), "0.5")


# JAX's own convolution and pooling, against the framework's.


@needs_flax
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("count", [0, 3, 700])  # the last makes more patches than are held at once
def test_convolution_and_its_gradients_are_those_of_xla(count: int, padding: int) -> None:
    import jax
    import jax.numpy as jnp
    from jax import lax

    from grl.jax_impl.convolution import convolve

    def expected(x: Any, kernel: Any) -> Any:
        dimensions = ("CHWN", "HWIO", "CHWN")
        pads = [(padding, padding)] * 2
        return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=dimensions)

    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(4, 13, 12, count)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(5, 5, 4, 3)), jnp.float32)
    values, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, padding), x, kernel)
    right, right_pullback = jax.vjp(expected, x, kernel)
    cotangent = jnp.asarray(generator.normal(size=values.shape), jnp.float32)
    for got, wanted in zip((values, *pullback(cotangent)), (right, *right_pullback(cotangent)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-4 * float(jnp.abs(wanted).max(initial=0)))


@needs_flax
@needs_torch
def test_max_pool_gives_the_gradient_of_a_tie_to_the_same_pixel_as_pytorch() -> None:
    import jax
    import jax.numpy as jnp
    import torch

    from grl.jax_impl.convolution import max_pool

    generator = np.random.default_rng(0)
    x = generator.integers(0, 3, size=(3, 2, 7, 6)).astype(np.float32)  # NCHW; few values, so many ties
    cotangent = generator.normal(size=(3, 2, 3, 3)).astype(np.float32)
    tensor = torch.from_numpy(x).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(tensor, 2)
    pooled.backward(torch.from_numpy(cotangent))
    values, pullback = jax.vjp(max_pool, jnp.asarray(x.transpose(1, 2, 3, 0)))
    (gradient,) = pullback(jnp.asarray(cotangent.transpose(1, 2, 3, 0)))
    np.testing.assert_array_equal(np.asarray(values).transpose(3, 0, 1, 2), pooled.detach().numpy())
    np.testing.assert_array_equal(np.asarray(gradient).transpose(3, 0, 1, 2), tensor.grad.numpy())
