"""Models as papers' repositories write them, ported to nnx; `torch_models` has the originals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions beside a shortcut, as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, **how: Any) -> None:
        conv = partial(nnx.Conv, use_bias=False, **how)
        norm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, **how)
        self.conv1 = conv(inputs, outputs, (3, 3), stride, padding=1)
        self.bn1 = norm(outputs)
        self.conv2 = conv(outputs, outputs, (3, 3), padding=1)
        self.bn2 = norm(outputs)
        changes = stride != 1 or inputs != outputs
        shortcut = nnx.Sequential(conv(inputs, outputs, (1, 1), stride, padding=0), norm(outputs)) if changes else None
        self.downsample = nnx.data(shortcut)

    def __call__(self, x: Array) -> Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nnx.Module):
    """ResNet-18 of torchvision, with its names: images (N, H, W, 3) → logits (N, num_classes)."""

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        how = {"param_dtype": param_dtype, "rngs": rngs}
        self.conv1 = nnx.Conv(3, width, (7, 7), 2, padding=3, use_bias=False, **how)
        self.bn1 = nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, **how)
        sizes = [width * 2**i for i in range(len(blocks))]
        for i, (size, count) in enumerate(zip(sizes, blocks, strict=True)):
            first = BasicBlock(sizes[max(i - 1, 0)], size, stride=1 if i == 0 else 2, **how)
            rest = (BasicBlock(size, size, **how) for _ in range(count - 1))
            setattr(self, f"layer{i + 1}", nnx.Sequential(first, *rest))
        self.depth = len(blocks)
        self.fc = nnx.Linear(sizes[-1], num_classes, **how)

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for i in range(self.depth):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((1, 2)))


def attend(query: Array, key: Array, value: Array, **_: Any) -> Array:
    """softmax(q·kᵀ / √d)·v for (N, T, heads, d). nnx's own takes the softmax in float32, of float64 too."""
    weights = jnp.einsum("nqhd,nkhd->nhqk", query / query.shape[-1] ** 0.5, key)
    return jnp.einsum("nhqk,nkhd->nqhd", nnx.softmax(weights), value)


class EncoderLayer(nnx.Module):
    """Self-attention and two linear layers, each after a layer norm and beside a shortcut."""

    def __init__(self, size: int, heads: int, hidden: int, dropout: float, **how: Any) -> None:
        self.norm1 = nnx.LayerNorm(size, epsilon=1e-5, **how)
        self.attention = nnx.MultiHeadAttention(heads, size, decode=False, attention_fn=attend, **how)
        self.norm2 = nnx.LayerNorm(size, epsilon=1e-5, **how)
        self.linear1 = nnx.Linear(size, hidden, **how)
        self.linear2 = nnx.Linear(hidden, size, **how)
        self.dropout = nnx.Dropout(dropout, rngs=how["rngs"])

    def __call__(self, x: Array) -> Array:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.linear2(nnx.gelu(self.linear1(self.norm2(x)), approximate=False)))


class Transformer(nnx.Module):
    """A small transformer encoder over tokens (N, T) → logits (N, num_classes)."""

    def __init__(
        self,
        vocabulary: int = 50,
        length: int = 12,
        size: int = 32,
        heads: int = 4,
        layers: int = 2,
        num_classes: int = 5,
        dropout: float = 0.1,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        how = {"param_dtype": param_dtype, "rngs": rngs}
        self.embedding = nnx.Embed(vocabulary, size, **how)
        self.position = nnx.Param(rngs.params.normal((length, size), param_dtype) * 0.02)
        self.layers = nnx.List(EncoderLayer(size, heads, 4 * size, dropout, **how) for _ in range(layers))
        self.norm = nnx.LayerNorm(size, epsilon=1e-5, **how)
        self.head = nnx.Linear(size, num_classes, **how)

    def __call__(self, tokens: Array) -> Array:
        x = self.embedding(tokens) + self.position[...]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class TextClassifier(nnx.Module):
    """An LSTM in both directions over tokens (N, T) → logits (N, num_classes)."""

    def __init__(
        self,
        vocabulary: int = 50,
        size: int = 16,
        hidden: int = 24,
        num_classes: int = 3,
        dropout: float = 0.5,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        how = {"param_dtype": param_dtype, "rngs": rngs}
        self.embedding = nnx.Embed(vocabulary, size, **how)
        self.lstm = nnx.Bidirectional(*(nnx.RNN(nnx.OptimizedLSTMCell(size, hidden, **how)) for _ in range(2)))
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classifier = nnx.Linear(2 * hidden, num_classes, **how)

    def __call__(self, tokens: Array) -> Array:
        return self.classifier(self.dropout(self.lstm(self.embedding(tokens)).max(1)))


class LeNet(nnx.Module):
    """Convolutions, a flatten and linear layers: images (N, 28, 28, 1) → logits (N, num_classes)."""

    def __init__(self, num_classes: int = 10, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        how = {"param_dtype": param_dtype, "rngs": rngs}
        self.conv1 = nnx.Conv(1, 6, (5, 5), padding=2, **how)
        self.norm1 = nnx.BatchNorm(6, momentum=0.9, **how)
        self.conv2 = nnx.Conv(6, 16, (5, 5), padding="VALID", **how)
        self.norm2 = nnx.BatchNorm(16, momentum=0.9, **how)
        self.fc1 = nnx.Linear(400, 120, **how)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.fc2 = nnx.Linear(120, 84, **how)
        self.fc3 = nnx.Linear(84, num_classes, **how)

    def __call__(self, x: Array) -> Array:
        x = nnx.max_pool(nnx.relu(self.norm1(self.conv1(x))), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.norm2(self.conv2(x))), (2, 2), (2, 2))
        x = self.dropout(nnx.relu(self.fc1(x.reshape(len(x), -1))))
        return self.fc3(nnx.relu(self.fc2(x)))
