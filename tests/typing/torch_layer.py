"""The layer in PyTorch: what comes in comes out, with its type."""

from __future__ import annotations

from typing import assert_type

import numpy as np
import torch
from torch import Tensor, nn

from grl import DannSchedule
from grl.torch_impl import DANN, GRL, GradientReverseFunction, gradient_reversal
from grl.torch_impl.function import Coefficient


def function(x: Tensor, samples: Tensor) -> None:
    assert_type(gradient_reversal(x), Tensor)
    assert_type(gradient_reversal(x, 0.5), Tensor)
    assert_type(gradient_reversal(x, 1), Tensor)
    assert_type(gradient_reversal(x, coeff=torch.tensor(0.5)), Tensor)
    assert_type(gradient_reversal(samples, np.ones(8, np.float32)), Tensor)


def trees(x: Tensor) -> None:
    assert_type(gradient_reversal([x, x]), list[Tensor])
    assert_type(gradient_reversal((x, x)), tuple[Tensor, Tensor])
    assert_type(gradient_reversal({"features": x}, 0.5), dict[str, Tensor])


def subclass(weight: nn.Parameter) -> None:
    assert_type(gradient_reversal(weight), nn.Parameter)


def raw_rule(x: Tensor) -> None:
    y: Tensor = GradientReverseFunction.apply(x, 0.5)  # PyTorch itself leaves `apply` without a type
    assert_type(y, Tensor)


def layer(x: Tensor) -> None:
    reversal = GRL()
    assert_type(reversal(x), Tensor)
    assert_type(reversal(x, 0.5), Tensor)
    assert_type(reversal(x, reverse=False), Tensor)
    assert_type(reversal([x]), list[Tensor])
    assert_type(reversal.forward(x), Tensor)
    assert_type(reversal.forward({"features": x}, coeff=torch.tensor(0.5)), dict[str, Tensor])


def state() -> None:
    reversal = GRL(DannSchedule(100))
    assert_type(reversal.step(), None)
    reversal.coeff = 0.5
    reversal.coeff = torch.tensor(0.5)
    reversal.coeff = DannSchedule(100)
    GRL(coeff=lambda step: 0.1 * step)
    GRL(torch.tensor(0.5))
    GRL(coeff=np.ones(8, np.float32))


def coefficient(reversal: GRL) -> None:
    assert_type(reversal.coeff, Coefficient)


def model(backbone: nn.Module, images: Tensor) -> None:
    dann = DANN(backbone, num_classes=10, label_hidden=(50,), domain_hidden=[100, 100])
    assert_type(dann(images), tuple[Tensor, Tensor])
    assert_type(dann(images, alpha=0.5), tuple[Tensor, Tensor])
    assert_type(dann.forward(images, torch.tensor(0.5)), tuple[Tensor, Tensor])


def refused(x: Tensor) -> None:
    # A checker that accepted one of these lines would report its comment as unused.
    gradient_reversal(x, "0.5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gradient_reversal(x, None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gradient_reversal(x, alpha=0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    GRL("dann")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    GRL()(x, flag=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
