"""The network of an experiment in PyTorch, its optimiser and its losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grl.experiment.architecture import Architecture
from grl.experiment.config import Config
from grl.torch_impl.dann import DANN, MLP, ConvNet

__all__ = ["Losses", "Objective", "build", "build_optimizer"]


class Losses(NamedTuple):
    """The losses of a batch, scalars, and its class logits (B, num_classes)."""

    label: Tensor
    domain: Tensor
    class_logits: Tensor


class Objective(nn.Module):
    """The losses as one module: DistributedDataParallel needs exactly one forward pass for each backward pass.

    Args:
        model: the network.
        adapts: whether to compute the domain loss, which is NaN otherwise.
    """

    def __init__(self, model: DANN, adapts: bool) -> None:
        super().__init__()
        self.model, self.adapts = model, adapts

    def forward(self, x: Tensor, y: Tensor, x_target: Tensor, coeff: float) -> Losses:
        """Return the mean losses of a batch.

        Args:
            x: labelled inputs (B, ...).
            y: their labels (B,).
            x_target: target inputs (B, ...).
            coeff: λ.
        """
        class_logits, source_logits = self.model(x, coeff)
        label_loss = F.cross_entropy(class_logits, y)
        if not self.adapts:
            return Losses(label_loss, torch.full_like(label_loss, torch.nan), class_logits)
        _, target_logits = self.model(x_target, coeff)  # a call of its own: batch norm must see one domain at a time
        logits = torch.cat([source_logits, target_logits])
        domains = torch.cat([torch.zeros_like(source_logits), torch.ones_like(target_logits)])
        return Losses(label_loss, F.binary_cross_entropy_with_logits(logits, domains), class_logits)


def build(architecture: Architecture) -> DANN:
    """Return the network, with weights that the trainer replaces."""
    backbone: ConvNet | MLP
    if architecture.is_image:
        backbone = ConvNet(
            architecture.sample_shape, architecture.channels, architecture.kernel_size, architecture.padding
        )
    else:
        backbone = MLP(architecture.sample_shape[0], architecture.hidden)
    return DANN(
        backbone,
        architecture.num_classes,
        label_hidden=architecture.label_hidden,
        domain_hidden=architecture.domain_hidden,
    )


def build_optimizer(config: Config, model: DANN) -> torch.optim.Optimizer:
    """Return the optimiser with two groups, feature extractor and classifiers; each step sets their learning rates."""
    classifiers = [*model.label_classifier.parameters(), *model.domain_classifier.parameters()]
    groups = [{"params": list(model.backbone.parameters())}, {"params": classifiers}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return torch.optim.Adam(groups)
