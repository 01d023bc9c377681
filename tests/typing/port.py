"""A port compared with its original: once, and while it trains."""

from __future__ import annotations

from typing import assert_type

import jax
import numpy as np
import optax
import torch
from flax import nnx
from torch import Tensor, nn

from grl.parity import Cause, Divergence, ParityReport, Row, TrainingReport, assert_parity, compare, compare_training


def torch_loss(output: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, targets)


def jax_loss(output: jax.Array, targets: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(output, targets).mean()


def once(torch_model: nn.Module, nnx_model: nnx.Module, images: Tensor, labels: Tensor) -> None:
    report = compare(
        torch_model,
        nnx_model,
        images,
        loss=(torch_loss, jax_loss),
        targets=labels,
        layout="NCHW",
        optimizers=(torch.optim.Adam(torch_model.parameters()), optax.adam(1e-3)),
        train=False,
        ignore=["batchnorm_variance"],
    )
    assert_type(report, ParityReport)
    assert_type(report.agrees, bool)
    assert_type(report.rows, tuple[Row, ...])
    assert_type(report.first_divergence, Divergence | None)
    assert_type(report.show(), None)
    assert_type(compare(torch_model, nnx_model, (np.ones((2, 3)), np.ones(2))), ParityReport)
    assert_type(assert_parity(torch_model, nnx_model, images, train=False), None)


def causes(divergence: Divergence) -> None:
    assert_type(divergence.causes, tuple[Cause, ...])


def while_training(torch_model: nn.Module, nnx_model: nnx.Module, images: Tensor, labels: Tensor) -> None:
    report = compare_training(
        torch_model,
        nnx_model,
        [(images, labels)],
        loss=(torch_loss, jax_loss),
        optimizers=(lambda parameters: torch.optim.SGD(parameters, 0.1), optax.sgd(0.1)),
        steps=100,
    )
    assert_type(report, TrainingReport)
    assert_type(report.verdict, str)
    assert_type(report.agrees, bool)
