"""A DANN over a bottleneck ResNet in PyTorch, in training: the large network of `step`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.settings import CLASSES, ResNetSize
from grl.torch_impl import DANN

__all__ = ["ResNet", "Trainer"]

Array = NDArray[Any]


class _Bottleneck(nn.Module):
    """1×1, 3×3 (strided), 1×1 convolution, each with batch norm, around a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.body = nn.Sequential(
            *_convolution(before, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, after, 1),
        )
        changes = stride != 1 or before != after
        self.shortcut = nn.Sequential(*_convolution(before, after, 1, stride)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)


class ResNet(nn.Module):
    """Features (N, output_dim) of images (N, 3, H, W); with blocks (3, 4, 6, 3) and width 64, those of ResNet-50.

    Reference:
        He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385.
    """

    def __init__(self, size: ResNetSize) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, size.width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks, before = [], size.width
        for stage, count in enumerate(size.blocks):
            for block in range(count):
                width, stride = size.width * 2**stage, 2 if stage and not block else 1
                blocks.append(_Bottleneck(before, width, stride))
                before = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.output_dim = before

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return self.blocks(self.stem(x)).mean((2, 3))


class Trainer:
    """The network and its optimiser, SGD with momentum; `run` is that of `torch_trainer.Trainer`."""

    def __init__(self, size: ResNetSize, on_gpu: bool) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.model = DANN(ResNet(size), CLASSES).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=0.9)

    def run(self, x: Array, y: Array, x_target: Array, coeffs: Array, rates: Array) -> tuple[Array, Array, Array]:
        """Train for k steps on images (k, N, 3, H, W); return label loss, domain loss and accuracy, each (k,)."""
        images, labels, targets = (torch.from_numpy(array).to(self.device) for array in (x, y, x_target))
        records = []
        for i, (coeff, rate) in enumerate(zip(coeffs, rates[:, 0], strict=True)):
            self._optimizer.param_groups[0]["lr"] = float(rate)
            records.append(self._step(images[i], labels[i], targets[i], float(coeff)))
        label_loss, domain_loss, accuracy = np.asarray(torch.stack(records, 1).cpu())
        return label_loss, domain_loss, accuracy

    def _step(self, x: Tensor, y: Tensor, x_target: Tensor, coeff: float) -> Tensor:
        class_logits, source_logits = self.model(x, coeff)
        _, target_logits = self.model(x_target, coeff)
        logits = torch.cat([source_logits, target_logits])
        domains = torch.cat([torch.zeros_like(source_logits), torch.ones_like(target_logits)])
        label_loss = F.cross_entropy(class_logits, y)
        domain_loss = F.binary_cross_entropy_with_logits(logits, domains)
        self._optimizer.zero_grad()
        (label_loss + domain_loss).backward()
        self._optimizer.step()
        accuracy = (class_logits.detach().argmax(1) == y).to(class_logits.dtype).mean()
        return torch.stack([label_loss.detach(), domain_loss.detach(), accuracy])
