"""The domain-adversarial network (DANN) over any backbone, and the two backbones of the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grl.sizes import feature_map, feature_size
from grl.torch_impl.function import Coefficient, gradient_reversal

__all__ = ["DANN", "MLP", "ConvNet"]


class DANN(nn.Module):
    """Domain-adversarial network: label classifier on the features, domain classifier on the reversed features.

    With features f = backbone(x): class logits = label_classifier(f), domain logits = domain_classifier(R(f; α)).
    Add the label loss (source only) and the domain loss (source and target); the reversal does the subtraction.

    Args:
        backbone: any module from a batch to features (N, D); its attribute `output_dim` is D.
        num_classes: the number of classes.
        label_hidden: the hidden sizes of the label classifier; none by default, a linear classifier.
        domain_hidden: the hidden sizes of the domain classifier, which may be the deeper of the two.

    Raises:
        TypeError: the backbone has no integer `output_dim`.

    Example:
        >>> model = DANN(MLP(2, (15,)), num_classes=3, domain_hidden=(8, 8))
        >>> class_logits, domain_logits = model(torch.zeros(4, 2), alpha=0.5)
        >>> class_logits.shape, domain_logits.shape
        (torch.Size([4, 3]), torch.Size([4]))

    Reference:
        Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, arXiv:1505.07818.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        label_hidden: Sequence[int] = (),
        domain_hidden: Sequence[int] = (100, 100),
    ) -> None:
        super().__init__()
        self.backbone, size = backbone, feature_size(backbone)
        self.label_classifier = MLP(size, (*label_hidden, num_classes), "relu", activate_last=False)
        self.domain_classifier = MLP(size, (*domain_hidden, 1), "relu", activate_last=False)

    if TYPE_CHECKING:

        def __call__(self, x: object, alpha: Coefficient = 1.0) -> tuple[Tensor, Tensor]:
            """Call `forward`."""
            ...

    def forward(self, x: object, alpha: Coefficient = 1.0) -> tuple[Tensor, Tensor]:
        """Return the logits of the classes and of the domain.

        Args:
            x: a batch of N samples, as the backbone takes it.
            alpha: λ. The backbone receives the gradient of the domain loss times −λ. A number, a 0-d
                tensor, or one value per sample (N,).

        Returns:
            class logits (N, num_classes) and domain logits (N,): above 0 means target (label 1), below 0 source (0).

        Raises:
            TypeError, ValueError: as `gradient_reversal` does, for `alpha`.
        """
        features = self.backbone(x)
        domain_logits = self.domain_classifier(gradient_reversal(features, alpha))
        return self.label_classifier(features), domain_logits[:, 0]


class ConvNet(nn.Module):
    """Features of small images: convolution → 2×2 max pooling → batch norm → ReLU, once per entry of `channels`.

    Pooling comes first because that leaves batch norm and ReLU a quarter of the work. Pass source and target in
    separate calls, so that each is normalised by its own statistics.

    Args:
        sample_shape: (C, H, W) of one image.
        channels: the channels of each convolution.
        kernel_size: the side of the kernels.
        padding: zeros on each side of a feature map.
    """

    def __init__(
        self,
        sample_shape: Sequence[int],
        channels: Sequence[int] = (32, 48),
        kernel_size: int = 5,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size, padding=padding)
            for before, after in pairwise((sample_shape[0], *channels))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in channels)
        self.output_dim = channels[-1] * prod(feature_map(sample_shape[1:], len(channels), kernel_size, padding))
        # A third faster on the CPU; shapes and values stay as they are.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out of its types

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (N, output_dim) of images (N, C, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(F.max_pool2d(convolution(x), 2)))
        return x.flatten(1)


class MLP(nn.Module):
    """Fully connected layers: y = σ(W·x + b), once per entry of `features`.

    Args:
        in_features: the size of the input.
        features: the size of each layer's output.
        activation: σ: "tanh", "sigmoid" or "relu".
        activate_last: whether σ follows the last layer too, as in a backbone, or not, as in a classifier.
    """

    def __init__(
        self, in_features: int, features: Sequence[int], activation: str = "tanh", *, activate_last: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise((in_features, *features)))
        self.activation = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}[activation]
        self.activate_last = activate_last
        self.output_dim = features[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, output_dim) for x of shape (N, in_features)."""
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.activate_last or i < len(self.layers) - 1:
                x = self.activation(x)
        return x
