"""A DANN over a bottleneck ResNet in JAX, in training: the large network of `step`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from numpy.typing import NDArray

from benchmarks.settings import CLASSES, ResNetSize
from grl.jax_impl import DANN

__all__ = ["ResNet", "Trainer"]

Array = NDArray[Any]


class _Bottleneck(nnx.Module):
    """1×1, 3×3 (strided), 1×1 convolution, each with batch norm, around a shortcut."""

    def __init__(self, before: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        after = 4 * width
        self.body = nnx.Sequential(
            *_convolution(before, width, 1, rngs=rngs),
            jax.nn.relu,
            *_convolution(width, width, 3, stride, rngs=rngs),
            jax.nn.relu,
            *_convolution(width, after, 1, rngs=rngs),
        )
        changes = stride != 1 or before != after
        self.shortcut = nnx.Sequential(*(_convolution(before, after, 1, stride, rngs=rngs) if changes else ()))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.body(x) + self.shortcut(x))


def _convolution(
    before: int, after: int, kernel: int, stride: int = 1, *, rngs: nnx.Rngs
) -> tuple[nnx.Module, nnx.Module]:
    convolution = nnx.Conv(
        before, after, (kernel, kernel), strides=stride, padding=kernel // 2, use_bias=False, rngs=rngs
    )
    return convolution, nnx.BatchNorm(after, momentum=0.9, rngs=rngs)


class ResNet(nnx.Module):
    """Features (N, output_dim) of images (N, 3, H, W); with blocks (3, 4, 6, 3) and width 64, those of ResNet-50.

    Reference:
        He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385.
    """

    def __init__(self, size: ResNetSize, *, rngs: nnx.Rngs) -> None:
        pool = partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        self.stem = nnx.Sequential(*_convolution(3, size.width, 7, 2, rngs=rngs), jax.nn.relu, pool)
        blocks, before = [], size.width
        for stage, count in enumerate(size.blocks):
            for block in range(count):
                width, stride = size.width * 2**stage, 2 if stage and not block else 1
                blocks.append(_Bottleneck(before, width, stride, rngs=rngs))
                before = 4 * width
        self.blocks = nnx.Sequential(*blocks)
        self.output_dim = before

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the features."""
        return self.blocks(self.stem(jnp.transpose(x, (0, 2, 3, 1)))).mean((1, 2))


class Trainer:
    """The network and its optimiser, SGD with momentum; `run` is that of `jax_trainer.Trainer`."""

    def __init__(self, size: ResNetSize, on_gpu: bool) -> None:
        self.device = jax.local_devices(backend="gpu" if on_gpu else "cpu")[0]
        with jax.default_device(self.device):
            rngs = nnx.Rngs(0)
            model = DANN(ResNet(size, rngs=rngs), CLASSES, rngs=rngs)
            graph, params, *others = nnx.split(model, nnx.Param, ...)
            (statistics,) = others
            optimizer = optax.trace(decay=0.9)
            self._state = jax.device_put((params, statistics, optimizer.init(params)), self.device)
        self._run = jax.jit(partial(lax.scan, partial(_step, graph, optimizer)), donate_argnums=0)

    def run(self, x: Array, y: Array, x_target: Array, coeffs: Array, rates: Array) -> tuple[Array, Array, Array]:
        """Train for k steps on images (k, N, 3, H, W); return label loss, domain loss and accuracy, each (k,)."""
        floats = (array.astype(np.float32) for array in (x, x_target, coeffs, rates[:, 0]))
        batches = jax.device_put((y.astype(np.int32), *floats), self.device)
        self._state, records = self._run(self._state, batches)
        label_loss, domain_loss, accuracy = (np.asarray(record) for record in records)
        return label_loss, domain_loss, accuracy


def _step(graph: Any, optimizer: Any, state: Any, batch: Any) -> tuple[Any, Any]:
    params, statistics, optimizer_state = state
    y, x, x_target, coeff, rate = batch

    def losses(params: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, statistics, copy=True)
        class_logits, source_logits = model(x, coeff)
        _, target_logits = model(x_target, coeff)
        logits = jnp.concatenate([source_logits, target_logits])
        domains = jnp.concatenate([jnp.zeros_like(source_logits), jnp.ones_like(target_logits)])
        label_loss = optax.softmax_cross_entropy_with_integer_labels(class_logits, y).mean()
        domain_loss = optax.sigmoid_binary_cross_entropy(logits, domains).mean()
        accuracy = (class_logits.argmax(1) == y).mean(dtype=class_logits.dtype)
        return label_loss + domain_loss, (nnx.state(model, nnx.Not(nnx.Param)), (label_loss, domain_loss, accuracy))

    gradients, (statistics, record) = jax.grad(losses, has_aux=True)(params)
    directions, optimizer_state = optimizer.update(gradients, optimizer_state)
    params = jax.tree.map(lambda parameter, direction: parameter - rate * direction, params, directions)
    return (params, statistics, optimizer_state), record
