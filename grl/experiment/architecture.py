"""The network of an experiment, described without a framework, and its initial weights, drawn with NumPy.

Both backends build the same `DANN` from an `Architecture` and start from the same numbers. For both, the weights have
the names and layouts of PyTorch's `state_dict`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt

import numpy as np

from grl.arrays import Weights
from grl.sizes import feature_map

__all__ = ["Architecture", "initial_weights"]


@dataclass(frozen=True)
class Architecture:
    """The parts of a `DANN`: `ConvNet` for images (C, H, W) or `MLP` for vectors (D,), and two classifiers.

    Args:
        sample_shape: (C, H, W) with H and W at least 4, or (D,).
        num_classes: the number of classes.
        channels: the channels of the convolutions, for images.
        hidden: the sizes of the layers, for vectors.
        label_hidden: the hidden sizes of the label classifier.
        domain_hidden: the hidden sizes of the domain classifier.

    Raises:
        ValueError: images too small for the convolutions.
    """

    sample_shape: tuple[int, ...]
    num_classes: int
    channels: tuple[int, ...] = (32, 48)
    hidden: tuple[int, ...] = (15,)
    label_hidden: tuple[int, ...] = (100,)
    domain_hidden: tuple[int, ...] = (100, 100)

    def __post_init__(self) -> None:
        if self.is_image and min(self.feature_map) < 1:
            smallest = 2 ** len(self.channels)
            raise ValueError(f"images of {self.sample_shape[1:]} pixels are too small; at least {smallest}×{smallest}.")

    @property
    def is_image(self) -> bool:
        """Whether a sample is an image (C, H, W)."""
        return len(self.sample_shape) == 3

    @property
    def kernel_size(self) -> int:
        """The side of the convolutions' kernels: 5, or 3 for images below 16 pixels."""
        return 5 if min(self.sample_shape[1:]) >= 16 else 3

    @property
    def padding(self) -> int:
        """The width of the zeros around an image: 0 for 5×5 kernels, 1 for the 3×3 kernels of small images."""
        return 0 if self.kernel_size == 5 else 1

    @property
    def feature_map(self) -> tuple[int, int]:
        """Height and width after the last convolution and pooling."""
        return feature_map(self.sample_shape[1:], len(self.channels), self.kernel_size, self.padding)

    @property
    def output_dim(self) -> int:
        """The number of features, which is the input size of both classifiers."""
        return self.channels[-1] * prod(self.feature_map) if self.is_image else self.hidden[-1]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape of all weights and statistics, with the names and layouts of PyTorch's `state_dict`.

        Example:
            >>> Architecture((2,), num_classes=2).shapes()["backbone.layers.0.weight"]
            (15, 2)
        """
        shapes: dict[str, tuple[int, ...]] = {}

        def add(name: str, *shape: int) -> None:
            shapes[f"{name}.weight"] = shape
            shapes[f"{name}.bias"] = shape[:1]

        if self.is_image:
            for i, sizes in enumerate(pairwise((self.sample_shape[0], *self.channels))):
                add(f"backbone.convolutions.{i}", sizes[1], sizes[0], *(self.kernel_size,) * 2)
                for part in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"backbone.norms.{i}.{part}"] = sizes[1:]
        else:
            for i, sizes in enumerate(pairwise((self.sample_shape[0], *self.hidden))):
                add(f"backbone.layers.{i}", sizes[1], sizes[0])
        heads = {
            "label_classifier": (self.output_dim, *self.label_hidden, self.num_classes),
            "domain_classifier": (self.output_dim, *self.domain_hidden, 1),
        }
        for head, features in heads.items():
            for i, sizes in enumerate(pairwise(features)):
                add(f"{head}.layers.{i}", sizes[1], sizes[0])
        return shapes


def initial_weights(architecture: Architecture, seed: int) -> Weights:
    """Draw the weights that both backends start from.

    Weights and biases are uniform in ±1/√fan_in, which is PyTorch's own default. Batch norm starts as (x − mean) / std.

    Args:
        architecture: the network.
        seed: the run's seed.

    Returns:
        Name → float64 array; names and layouts as in PyTorch's `state_dict` (OIHW and (out, in)).

    Example:
        >>> initial_weights(Architecture((2,), num_classes=2), seed=0)["backbone.layers.0.weight"].shape
        (15, 2)
    """
    generator = np.random.default_rng([seed, 0])
    weights: Weights = {}
    bound = 0.0
    for name, shape in architecture.shapes().items():
        part = name.rpartition(".")[2]
        if ".norms." in name:
            weights[name] = np.full(shape, 1.0 if part in ("weight", "running_var") else 0.0)
        else:
            bound = (
                1 / sqrt(prod(shape[1:])) if part == "weight" else bound
            )  # a bias follows its weight, and has the same bound
            weights[name] = generator.uniform(-bound, bound, shape)
    return weights
