"""The domain-adversarial network (DANN) over any backbone, and the two backbones of the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import jax
import jax.numpy as jnp
from jax import Array

from grl.jax_impl._flax import nnx
from grl.jax_impl.coefficient import Coefficient
from grl.jax_impl.convolution import convolve, max_pool
from grl.jax_impl.function import gradient_reversal
from grl.sizes import feature_map, feature_size

__all__ = ["DANN", "MLP", "ConvNet"]


class DANN(nnx.Module):
    """Domain-adversarial network: label classifier on the features, domain classifier on the reversed features.

    With features f = backbone(x): class logits = label_classifier(f), domain logits = domain_classifier(R(f; α)).
    Add the label loss (source only) and the domain loss (source and target); the reversal does the subtraction.

    Args:
        backbone: any module from a batch to features (N, D); its attribute `output_dim` is D.
        num_classes: the number of classes.
        label_hidden: the hidden sizes of the label classifier; none by default, a linear classifier.
        domain_hidden: the hidden sizes of the domain classifier, which may be the deeper of the two.
        rngs: the source of the classifiers' initial weights.

    Raises:
        TypeError: the backbone has no integer `output_dim`.

    Example:
        >>> rngs = nnx.Rngs(0)
        >>> model = DANN(MLP(2, (15,), rngs=rngs), num_classes=3, domain_hidden=(8, 8), rngs=rngs)
        >>> class_logits, domain_logits = model(jnp.zeros((4, 2)), alpha=0.5)
        >>> class_logits.shape, domain_logits.shape
        ((4, 3), (4,))

    Reference:
        Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, arXiv:1505.07818.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        num_classes: int,
        *,
        label_hidden: Sequence[int] = (),
        domain_hidden: Sequence[int] = (100, 100),
        rngs: nnx.Rngs,
    ) -> None:
        self.backbone, size = backbone, feature_size(backbone)
        self.label_classifier = MLP(size, (*label_hidden, num_classes), "relu", activate_last=False, rngs=rngs)
        self.domain_classifier = MLP(size, (*domain_hidden, 1), "relu", activate_last=False, rngs=rngs)

    def __call__(self, x: object, alpha: Coefficient = 1.0) -> tuple[Array, Array]:
        """Return the logits of the classes and of the domain.

        Args:
            x: a batch of N samples, as the backbone takes it.
            alpha: λ. The backbone receives the gradient of the domain loss times −λ. A number, a 0-d
                array, or one value per sample (N,).

        Returns:
            class logits (N, num_classes) and domain logits (N,): above 0 means target (label 1), below 0 source (0).

        Raises:
            TypeError, ValueError: as `gradient_reversal` does, for `alpha`.
        """
        features = self.backbone(x)
        domain_logits = self.domain_classifier(gradient_reversal(features, alpha))
        return self.label_classifier(features), domain_logits[:, 0]


class ConvNet(nnx.Module):
    """Features of small images: convolution → 2×2 max pooling → batch norm → ReLU, once per entry of `channels`.

    Pooling comes first because that leaves batch norm and ReLU a quarter of the work. Pass source and target in
    separate calls, so that each is normalised by its own statistics.

    Args:
        sample_shape: (C, H, W) of one image.
        channels: the channels of each convolution.
        kernel_size: the side of the kernels.
        padding: zeros on each side of a feature map.
        rngs: the source of the initial weights.
    """

    layout = "NCHW"  # of images and of flattened features, as in PyTorch; `grl.parity.copy_weights` reads it

    def __init__(
        self,
        sample_shape: Sequence[int],
        channels: Sequence[int] = (32, 48),
        kernel_size: int = 5,
        padding: int = 0,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.convolutions = nnx.List(
            nnx.Conv(before, after, (kernel_size, kernel_size), rngs=rngs)
            for before, after in pairwise((sample_shape[0], *channels))
        )
        self.norms = nnx.List(_BatchNorm(size) for size in channels)
        self.padding = padding
        self.output_dim = channels[-1] * prod(feature_map(sample_shape[1:], len(channels), kernel_size, padding))

    def __call__(self, x: Array) -> Array:
        """Return the features (N, output_dim) of images (N, C, H, W)."""
        x = jnp.transpose(x, (1, 2, 3, 0))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            assert convolution.bias is not None
            y = convolve(x, convolution.kernel[...], self.padding) + convolution.bias[...][:, None, None, None]
            x = jax.nn.relu(norm(max_pool(y)))
        return x.reshape(-1, x.shape[-1]).T


class MLP(nnx.Module):
    """Fully connected layers: y = σ(W·x + b), once per entry of `features`.

    Args:
        in_features: the size of the input.
        features: the size of each layer's output.
        activation: σ: "tanh", "sigmoid" or "relu".
        activate_last: whether σ follows the last layer too, as in a backbone, or not, as in a classifier.
        rngs: the source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        features: Sequence[int],
        activation: str = "tanh",
        *,
        activate_last: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        self.layers = nnx.List(
            nnx.Linear(before, after, rngs=rngs) for before, after in pairwise((in_features, *features))
        )
        self.activation = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}[activation]
        self.activate_last = activate_last
        self.output_dim = features[-1]

    def __call__(self, x: Array) -> Array:
        """Return (N, output_dim) for x of shape (N, in_features)."""
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.activate_last or i < len(self.layers) - 1:
                x = self.activation(x)
        return x


class _BatchNorm(nnx.Module):
    """Batch norm over all axes but the first, with PyTorch's running statistics.

    `nnx.BatchNorm` keeps the biased variance, PyTorch the unbiased one: the two would score differently.
    """

    port_kind = "BatchNorm"  # `grl.weights` pairs a layer with one of the same kind

    def __init__(self, size: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))
        self.mean = nnx.BatchStat(jnp.zeros(size))
        self.var = nnx.BatchStat(jnp.ones(size))
        self.momentum, self.epsilon = momentum, epsilon
        self.use_running_average = False  # the name that `model.train()` and `model.eval()` set

    def __call__(self, x: Array) -> Array:
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = jnp.mean(x, (1, 2, 3)), jnp.var(x, (1, 2, 3))
            count = x.size // x.shape[0]
            self.mean[...] += self.momentum * (mean - self.mean[...])
            self.var[...] += self.momentum * (var * (count / max(count - 1, 1)) - self.var[...])
        factor = self.scale[...] / jnp.sqrt(var + self.epsilon)
        shift = self.bias[...] - mean * factor
        return x * factor[:, None, None, None] + shift[:, None, None, None]
